"""How answers are written, greedily and with a key-value cache: one for chat, many about one image for evaluation.

Legend: Q prompts about one image, L tokens, T image features, C channels of CLIP, H hidden size, n ``[SEG]`` of an
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import Cache

from aura.model.configuration import AuraConfig
from aura.model.key_cache import Prefix, keeps_all
from aura.model.lean_decoding import LeanSteps, can_decode_leanly
from aura.model.mllm import Mllm
from aura.model.static_decoding import BLOCK, KeptDecoders, can_decode_statically, pays_off


@dataclass
class Generation:
    """One answer.

    ``token_ids`` holds the end-of-answer token where it was reached; otherwise ``truncated`` is set. ``seg_hidden``
    [n, H] has the state of each ``[SEG]`` in order, the same that teacher forcing on ``token_ids`` gives.

    ``past_key_values`` covers the prompt and all of ``token_ids`` but ``pending_ids``: the last token, which was
    emitted but never read (empty where its state was needed). Whoever continues the conversation puts ``pending_ids``
    before the new tokens. Answers that were generated together have no cache.
    """

    token_ids: list[int]
    seg_hidden: torch.Tensor
    past_key_values: Cache | None
    truncated: bool
    pending_ids: list[int]


@dataclass
class _Answer:
    """An answer while it is being written."""

    config: AuraConfig
    limit: int
    ids: list[int] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)

    def emit(self, token: int, state: torch.Tensor) -> bool:
        """Take the token that ``state`` [H] predicted; whether it must be read by the model as well."""
        self.ids.append(token)
        if token == self.config.seg_token_id and self.config.seg_state == "before":
            self.states.append(state)
        return not self.ended or self.awaits_state

    def read(self, state: torch.Tensor) -> None:
        """The model read the last token and is now in ``state`` [H]."""
        if self.awaits_state:
            self.states.append(state)

    @property
    def awaits_state(self) -> bool:
        return self.config.seg_state == "at" and self.ids[-1] == self.config.seg_token_id

    @property
    def ended(self) -> bool:
        return bool(self.ids) and (self.ids[-1] == self.config.eos_token_id or len(self.ids) >= self.limit)

    @property
    def pending(self) -> list[int]:
        return [] if self.awaits_state else self.ids[-1:]

    def finish(self, cache: Cache | None, empty: torch.Tensor) -> Generation:
        return Generation(
            token_ids=self.ids,
            seg_hidden=torch.stack(self.states) if self.states else empty,
            past_key_values=cache,
            truncated=self.ids[-1] != self.config.eos_token_id,
            pending_ids=self.pending,
        )


class AnswerWriter:
    """The part of :class:`~aura.model.AuraModel` that writes answers.

    ``decoding`` says how tokens follow each other: by ``plain`` steps, by ``static`` ones
    (:mod:`aura.model.static_decoding`), or, with ``auto``, by static ones (on a GPU) or lean ones (on a CPU,
    :mod:`aura.model.lean_decoding`) where they are faster. All write the same.
    """

    config: Any  # an AuraConfig
    mllm: Mllm
    decoding: Literal["auto", "plain", "static"] = "auto"
    _decoders: KeptDecoders | None = None

    @torch.no_grad()
    def generate_answer(
        self,
        input_ids: torch.Tensor,
        *,
        clip_features: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        max_new_tokens: int = 256,
        on_token: Callable[[int], None] | None = None,
    ) -> Generation:
        """Write one answer.

        Args:
            input_ids: int64 [1, L], the tokens that the cache does not hold yet.
            clip_features: [1, T, C] where ``input_ids`` hold the image; ``None`` when a cache is continued.
            past_key_values: The cache of the conversation so far. It is extended in place.
            max_new_tokens: The answer is cut (and marked ``truncated``) after so many tokens.
            on_token: Called with each new token, in order, for streaming; with static steps, some at a time.

        Raises:
            ValueError: ``max_new_tokens`` is not positive, or placeholders and features differ in number.
        """
        mllm, answer = self.mllm, _Answer(self.config, _positive(max_new_tokens))
        cache = mllm.new_cache() if past_key_values is None else past_key_values
        state = mllm(input_ids, clip_features=clip_features, past_key_values=cache)[0, -1]
        if self._is_static(cache, 1):
            held = cache.get_seq_length()
            readable = torch.ones(1, held, dtype=torch.bool, device=state.device)
            self._write_in_blocks([answer], state[None], cache, readable, readable.sum(1), on_token)
        lean = LeanSteps(mllm, cache) if self.decoding == "auto" and can_decode_leanly(mllm, cache) else None
        while not answer.ended:
            token = int(self._likeliest(state))
            must_read = answer.emit(token, state)
            if on_token is not None:
                on_token(token)
            if must_read:
                if lean is not None:
                    state = lean(token)
                else:
                    state = mllm(input_ids.new_tensor([[token]]), past_key_values=cache)[0, -1]
                answer.read(state)
        return answer.finish(cache, state.new_zeros(0, state.shape[-1]))

    @torch.no_grad()
    def read_prefix(
        self, token_ids: Sequence[int], *, clip_features: torch.Tensor | None = None, after: Prefix | None = None
    ) -> Prefix | None:
        """Read the first tokens of prompts, once for all of them: ``prefix.new_cache`` is the cache to answer in.

        Args:
            token_ids: All of them, also those of ``after``.
            clip_features: [1, T, C] where the tokens that ``after`` does not hold have the image.
            after: A shorter prefix, from which to go on.

        Returns:
            ``None`` where layers forget tokens, so that no prefix can be kept.
        """
        ids, held = list(token_ids), 0
        cache = self.mllm.new_cache()
        if not keeps_all(cache):
            return None
        if after is not None:
            assert after.begins(ids)
            cache, held = after.new_cache(self.mllm.config.text_config), len(after)
        rest = torch.tensor([ids[held:]], device=self.mllm.language_model.embed_tokens.weight.device)
        self.mllm(rest, clip_features=clip_features, past_key_values=cache)
        return Prefix(ids, cache)

    @torch.no_grad()
    def generate_answers(
        self, prompts: Sequence[Sequence[int]], *, clip_features: torch.Tensor, max_new_tokens: int = 256
    ) -> list[Generation]:
        """Write the answers to Q prompts about one image together; each is what :meth:`generate_answer` would write.

        The tokens that all prompts start with (system prompt and image) are read once. The rest is read, and the
        answers are written, in batches of Q.

        Args:
            prompts: Q lists of ids, each with the image's placeholders; histories may differ.
            clip_features: [1, T, C] of the one image.
            max_new_tokens: As for :meth:`generate_answer`.

        Raises:
            ValueError: As :meth:`generate_answer`, or the prompts do not share all image placeholders.
        """
        answers = [_Answer(self.config, _positive(max_new_tokens)) for _ in prompts]
        if not prompts:
            return []
        device = clip_features.device
        prefix = _common_prefix(prompts)
        rests = [list(prompt[prefix:]) for prompt in prompts]
        if any(self.config.image_token_id in rest for rest in rests):
            raise ValueError(
                "the prompts differ before or inside the image; only prompts about one image share a prefix"
            )

        cache = self.mllm.new_cache()
        shared = torch.tensor([prompts[0][:prefix]], device=device)
        self.mllm(shared, clip_features=clip_features, past_key_values=cache)
        if len(prompts) > 1:
            cache.batch_repeat_interleave(len(prompts))

        ids, lengths = _pad_right(rests, device)
        length = ids.shape[1]
        steps = torch.arange(length, device=device)
        readable = torch.cat([steps.new_ones(len(rests), prefix).bool(), steps < lengths[:, None]], dim=1)
        causal = torch.ones(length, prefix + length, device=device).tril(prefix).bool()
        hidden = self.mllm(
            ids,
            attention_mask=_additive(causal & readable[:, None, :]),
            position_ids=(prefix + steps).expand(len(rests), -1),
            past_key_values=cache,
        )
        states = hidden[torch.arange(len(rests), device=device), lengths - 1]  # [Q, H]
        write = self._write_in_blocks if self._is_static(cache, len(prompts)) else self._write_in_lockstep
        write(answers, states, cache, readable, prefix + lengths)
        return [answer.finish(None, states.new_zeros(0, states.shape[-1])) for answer in answers]

    def _write_in_lockstep(
        self,
        answers: list[_Answer],
        states: torch.Tensor,  # [Q, H]
        cache: Cache,
        readable: torch.Tensor,  # [Q, keys] bool: False on the padding between a prompt and its answer
        positions: torch.Tensor,  # [Q] position of the next token
    ) -> None:
        rows = list(range(len(answers)))  # the answer that each row of the tensors belongs to
        while True:
            choices = self._likeliest(states)
            reading = []
            for row, (number, token) in enumerate(zip(rows, choices.tolist(), strict=True)):
                if not answers[number].ended and answers[number].emit(token, states[row]):
                    reading.append(row)
            if not reading:
                return
            # Dropping a row copies the cache, so wait until it halves the work.
            if len(reading) <= len(rows) // 2:
                keep = torch.tensor(reading, device=states.device)
                _select_rows(cache, keep)
                rows = [rows[row] for row in reading]
                readable, positions, choices = readable[keep], positions[keep], choices[keep]
                reading = list(range(len(rows)))
            readable = torch.cat([readable, readable.new_ones(len(rows), 1)], dim=1)
            states = self.mllm(
                choices[:, None],
                attention_mask=_additive(readable[:, None, :]),
                position_ids=positions[:, None],
                past_key_values=cache,
            )[:, -1]
            positions = positions + 1
            for row in reading:
                answers[rows[row]].read(states[row])

    def _is_static(self, cache: Cache, rows: int) -> bool:
        if self.decoding == "plain" or not can_decode_statically(self.mllm, cache):
            return False
        return self.decoding == "static" or pays_off(self.mllm, cache, rows)

    def _write_in_blocks(
        self,
        answers: list[_Answer],
        states: torch.Tensor,  # [Q, H]
        cache: Cache,
        readable: torch.Tensor,  # [Q, keys] bool
        positions: torch.Tensor,  # [Q]
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        """With static steps; the cache of a single answer comes back as plain steps would leave it."""
        if self._decoders is None:
            self._decoders = KeptDecoders()
        count, held = readable.shape
        decoder = self._decoders.take(self.mllm, self._likeliest, count, held)
        decoder.load(cache, states, readable, positions)
        while not all(answer.ended for answer in answers):
            if decoder.places - decoder.used < BLOCK:
                full, decoder = decoder, self._decoders.take(self.mllm, self._likeliest, count, decoder.used)
                full.move_to(decoder, count)
            tokens, states = decoder.run(BLOCK)
            for step, choices in enumerate(tokens):
                for row, answer in enumerate(answers):
                    if answer.ended:
                        continue
                    must_read = answer.emit(choices[row], states[step, row])
                    if on_token is not None:
                        on_token(choices[row])
                    if must_read:
                        answer.read(states[step + 1, row])
        if count == 1:
            read = held + len(answers[0].ids) - len(answers[0].pending)
            decoder.unload(cache, read)
        self._decoders.put_back(decoder)

    def forget_decoders(self) -> None:
        """Free the memory that static steps keep for the next answer."""
        self._decoders = None

    def _likeliest(self, states: torch.Tensor) -> torch.Tensor:
        """The most likely next token after states [..., H]; never the placeholder, which only an image may fill."""
        logits = self.mllm.logits(states)
        logits[..., self.config.image_token_id] = -torch.inf
        return logits.argmax(-1).to(states.device)  # the head may lie on another device


def _select_rows(cache: Cache, rows: torch.Tensor) -> None:
    """Keep some rows of each layer's keys and values, which lie on that layer's device."""
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.batch_select_indices(rows.to(layer.keys.device))


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix that leaves every prompt at least one token."""
    shortest = min(len(prompt) for prompt in prompts)
    if shortest < 2:
        raise ValueError("a prompt needs at least two tokens")
    first = prompts[0]
    for i in range(shortest - 1):
        if any(prompt[i] != first[i] for prompt in prompts):
            return i
    return shortest - 1


def _pad_right(rests: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [Q, longest] and lengths [Q]; the padding repeats the last token, whose value never matters."""
    longest = max(len(rest) for rest in rests)
    ids = [[*rest, *[rest[-1]] * (longest - len(rest))] for rest in rests]
    return torch.tensor(ids, device=device), torch.tensor([len(rest) for rest in rests], device=device)


def _additive(allowed: torch.Tensor) -> torch.Tensor:
    """bool [Q, queries, keys] -> float32 [Q, 1, queries, keys]; the half formats' own minimum would do as well."""
    mask = torch.zeros(allowed.shape, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(torch.float16).min).unsqueeze(1)


def _positive(max_new_tokens: int) -> int:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be positive, got {max_new_tokens}")
    return max_new_tokens
