"""A conversation about an image, the plain way and ours: seconds to the first word, of the first answer, of the next.

The plain way, as most code for such models does it: SAM and CLIP encode the image first; each token reads the whole
conversation again; SAM's modules compute as transformers wrote them; all masks come at the end. Ours is
:class:`~aura.chat.assistant.ChatSession`. Both say the same: a random model's words are of no use, so the answer is
given, with three ``[SEG]``, and the head says it after it computed its own.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import torch
from torch import nn

from aura.bench import sizes
from aura.bench.work import plainly
from aura.chat.album import Album
from aura.chat.assistant import ChatSession
from aura.data.images import sam_geometry
from aura.data.processor import ImageInputs
from aura.model import AuraModel
from aura.model.readout import decode_answers
from aura.plan.meter import synchronize

Way = Literal["plain", "ours"]
WAYS: tuple[Way, ...] = ("ours", "plain")
MOMENTS = ("first word", "first answer", "follow-up", "another conversation: first word")
OBJECTS = 3


class Words:
    """Stands for a tokenizer: any token is a word, and questions are the ids that they are."""

    def __init__(self, model: AuraModel, question_tokens: int, prompt_tokens: int) -> None:
        config = model.config
        self.seg, self.image_token_id = int(config.seg_token_id), config.image_token_id
        self.prefix = [*range(10, 10 + prompt_tokens), *[self.image_token_id] * config.num_image_tokens]
        self.question = list(range(60, 60 + question_tokens))

    def defuse(self, question: str) -> str:
        return question

    def start_prompt(self, question: str) -> list[int]:
        return [*self.prefix, *self.question]

    def followup(self, question: str, closed: bool) -> list[int]:
        return self.question

    def new_answer(self) -> Any:
        answer = SimpleNamespace(text="")

        def push(token: int) -> str:
            piece = " [SEG]" if token == self.seg else " w"
            answer.text += piece
            return piece

        answer.push = push
        return answer


class GivenAnswer(nn.Module):
    """The head of the language model, which says the same answer again and again, whatever it computed."""

    def __init__(self, head: nn.Module, answer: Sequence[int]) -> None:
        super().__init__()
        self.head, self.answer, self.said = head, list(answer), 0

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        logits = self.head(states)
        if logits[..., 0].numel() == 1:
            logits[..., self.answer[self.said % len(self.answer)]] = torch.inf
            self.said += 1
        return logits


class Talk:
    """One image, and questions about it.

    Args:
        model: In evaluation mode, without adapters.
        work: Of :func:`aura.bench.sizes.workload`.
        tokens: Of an answer.
    """

    def __init__(self, model: AuraModel, work: Any, tokens: int) -> None:
        sample = sizes.made_up(model.config, work)
        assert sample.sam_pixels is not None and sample.clip_pixels is not None
        geometry = sam_geometry(work.height, work.width, model.config.sam_config.vision_config.image_size)
        self.inputs = ImageInputs(sample.sam_pixels, sample.clip_pixels, geometry, pil=None)  # type: ignore[arg-type]
        self.model, self.tokens = model, tokens
        self.words = Words(model, work.text_tokens - work.answer_tokens, work.prompt_tokens)
        answer = [20] * tokens
        for place in range(OBJECTS):
            answer[(place + 1) * tokens // (OBJECTS + 1)] = self.words.seg
        self.answer = answer

    @contextlib.contextmanager
    def _saying(self) -> Iterator[None]:
        """Within ``with``, the model gives the answer."""
        own = self.model.mllm.lm_head
        self.model.mllm.lm_head = self._head = GivenAnswer(own, self.answer)
        try:
            yield
        finally:
            self.model.mllm.lm_head = own

    def run(self, way: Way) -> tuple[dict[str, tuple[float, float]], list[Any]]:
        """Seconds and CPU seconds of each of :data:`MOMENTS`, and all masks."""
        with self._saying(), torch.no_grad():
            return self._plainly() if way == "plain" else self._ours()

    def _ours(self) -> tuple[dict[str, tuple[float, float]], list[Any]]:
        processor: Any = SimpleNamespace(text=self.words)
        words: Any = self.words
        album, clock, masks = Album(self.model, words), Clock(self.model.device), []
        for moments in (MOMENTS[:2], (None, MOMENTS[2]), (MOMENTS[3], None)):
            self._head.said = 0
            clock.start()
            if moments[0] is not None:
                tokens = self.tokens if moments[1] else 1
                picture = album.picture(self.inputs)
                session = ChatSession(self.model, processor, picture, self.inputs.geometry, max_new_tokens=tokens)
            reply = session.ask("?", clock.first(moments[0]))
            clock.stop(moments[1])
            masks += [(obj.visible, obj.amodal) for obj in reply.objects]
        return clock.found, masks

    def _plainly(self) -> tuple[dict[str, tuple[float, float]], list[Any]]:
        clock, masks, ids = Clock(self.model.device), [], list[int]()
        for moments in (MOMENTS[:2], (None, MOMENTS[2]), (MOMENTS[3], None)):
            self._head.said = 0
            clock.start()
            with plainly(), mock.patch.object(self.model, "decoding", "plain"):
                if moments[0] is not None:  # another conversation knows nothing of the last one
                    features = self.model.encode_images(
                        self.inputs.sam_pixels[None].to(self.model.device),
                        self.inputs.clip_pixels[None].to(self.model.device),
                    )
                ids = [*ids, *self.words.question] if moments[0] is None else self.words.start_prompt("?")
                tokens = self.tokens if moments[1] else 1
                ids, states = self._write(ids, tokens, features.clip_features, clock.first(moments[0]))
                pairs = list(decode_answers(self.model, states, features, self.inputs.geometry))
            clock.stop(moments[1])
            masks += [(pair.visible, pair.amodal) for pair in pairs]
        return clock.found, masks

    def _write(
        self, ids: list[int], tokens: int, clip_features: torch.Tensor, on_text: Any
    ) -> tuple[list[int], torch.Tensor]:
        """The conversation with the answer, and the states of its ``[SEG]``; everything is read for each token."""
        states: list[torch.Tensor] = []
        for _ in range(tokens):
            read = torch.tensor([ids], device=self.model.device)
            state = self.model.mllm(read, clip_features=clip_features)[0, -1]
            token = int(self.model.mllm.logits(state).argmax())
            on_text("w")
            if token == self.words.seg:
                states.append(state)
            ids = [*ids, token]
        return ids, torch.stack(states) if states else state.new_zeros(0, len(state))


class Clock:
    """Notes what was taken up to a moment; on a GPU, what was launched has ended by then."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.found = device, dict[str, tuple[float, float]]()

    def start(self) -> None:
        synchronize(self.device)
        self._began = time.perf_counter(), time.process_time()

    def stop(self, moment: str | None) -> None:
        synchronize(self.device)
        self._note(moment)

    def first(self, moment: str | None) -> Any:
        """A function for pieces of text, whose first call is ``moment``; a word is there when it is read."""
        return lambda _: None if moment in self.found else self._note(moment)

    def _note(self, moment: str | None) -> None:
        if moment is not None:
            wall, cpu = self._began
            self.found[moment] = time.perf_counter() - wall, time.process_time() - cpu


def compare(model: AuraModel, size: str, *, tokens: int, repeat: int) -> dict[str, Any]:
    """Both ways in turns; medians of seconds and CPU seconds, and how many pixels of their masks differ.

    Ours goes first, without a warm-up: what first uses cost counts against it.

    Raises:
        ValueError: More than one in a thousand do.
    """
    talk = Talk(model, sizes.workload(size, **({"text_tokens": 104} if size != "tiny" else {})), tokens)
    taken: dict[Way, list[dict[str, tuple[float, float]]]] = {way: [] for way in WAYS}
    masks = {}
    for _ in range(repeat):
        for way in WAYS:
            found, masks[way] = talk.run(way)
            taken[way].append(found)
    pairs = [pair for both in zip(*masks.values(), strict=True) for pair in zip(*both, strict=True)]
    different = [float((one != other).mean()) for one, other in pairs]
    if max(different) > 1e-3:
        raise ValueError(f"{size}: the masks of the two ways differ in {max(different):.2%} of the pixels")
    row: dict[str, Any] = {"size": size, "tokens": tokens, "different_pixels": max(different)}
    for way, runs in taken.items():
        row[way] = {
            moment: [statistics.median(run[moment][which] for run in runs) for which in (0, 1)] for moment in MOMENTS
        }
    return row
