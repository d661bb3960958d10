"""Decoding steps on tensors that never move, so that a GPU launches a whole step as one recorded graph.

Launching the kernels of a step one by one takes several times longer than running them. Asking for each token makes the
host wait for each step. Here one launch runs a step, and the host looks at the tokens every :data:`BLOCK` steps. The
tokens are those of plain steps: the same layers read the same keys, and the free places of the cache are masked.

Legend: R rows (answers, and spare rows), S places of the cache, H hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers import Cache, StaticCache
from transformers.cache_utils import DynamicLayer

from aura.model.key_cache import keeps_all
from aura.model.mllm import Mllm

BLOCK = 8
"""Steps between two looks at the tokens. Up to ``BLOCK - 1`` steps after the end of an answer are in vain."""

PLACES = 256
"""The number of places of a cache is a multiple of it, so that few graphs serve answers of all lengths."""

SHARE = 0.25
"""Of a GPU's memory, what a static cache may take."""

logger = logging.getLogger(__name__)


class StaticDecoder:
    """Steps of up to R answers: the token after each state, and the state after reading it.

    Args:
        mllm: In evaluation mode, on one device.
        choose: The token after each state, [R, H] -> int64 [R].
        rows: R.
        places: S.
    """

    def __init__(self, mllm: Mllm, choose: Callable[[torch.Tensor], torch.Tensor], rows: int, places: int) -> None:
        self.mllm, self.choose = mllm, choose
        self.rows, self.places = rows, places
        self.weights = _addresses(mllm)
        self.cache = StaticCache(mllm.config.text_config, max_cache_len=places)
        self.used = 0  # places of the cache that are filled
        self._step: Callable[[], None] | None = None

    def fits(self, mllm: Mllm, rows: int, places: int) -> bool:
        """Whether so many answers can be written here; the recorded graph knows the weights by their addresses."""
        return rows <= self.rows and places <= self.places and self.weights == _addresses(mllm)

    def load(self, cache: Cache, states: torch.Tensor, readable: torch.Tensor, positions: torch.Tensor) -> None:
        """Start where plain steps, or a decoder with fewer places, stopped.

        Args:
            cache: Of Q answers, Q <= R. A dynamic one is emptied layer by layer, so that nothing is held twice.
            states: [Q, H], which predict the next tokens.
            readable: bool [Q, places used so far]: False on padding.
            positions: int64 [Q], of the next tokens.
        """
        count, used = readable.shape
        if self._step is None:
            self._make(cache, states)
        for mine, other in zip(_layers(self.cache), _layers(cache), strict=True):
            mine.keys[:count, :, :used] = other.keys[:count, :, :used]
            mine.values[:count, :, :used] = other.values[:count, :, :used]
            mine.cumulative_length.fill_(used)
            if isinstance(other, DynamicLayer):
                other.reset()
        self.used = used
        self.place.fill_(used)
        self.mask.fill_(torch.finfo(torch.float16).min)
        self.mask[:count, 0, 0, :used].masked_fill_(readable, 0)
        self.states[:count] = states
        self.positions[:count] = positions

    def run(self, steps: int) -> tuple[list[list[int]], torch.Tensor]:
        """The next tokens of each row, and the states before and after reading each.

        Returns:
            ``steps`` lists of R tokens, and states [steps + 1, R, H]. Token i of row r was predicted by state [i, r]
            and led to state [i + 1, r].
        """
        assert self._step is not None and self.used + steps <= self.places
        tokens = self.tokens.new_empty(steps, self.rows)
        states = self.states.new_empty(steps + 1, *self.states.shape)
        states[0] = self.states
        for i in range(steps):
            self._step()
            tokens[i], states[i + 1] = self.tokens, self.states
        self.used += steps
        return tokens.tolist(), states

    def move_to(self, longer: StaticDecoder, count: int) -> None:
        """Go on in a decoder with more places."""
        readable = self.mask[:count, 0, 0, : self.used] == 0
        longer.load(self.cache, self.states[:count], readable, self.positions[:count])

    def unload(self, cache: Cache, used: int) -> None:
        """Give the first row's first ``used`` places back to the emptied ``cache``."""
        for mine, other in zip(_layers(self.cache), _layers(cache), strict=True):
            other.update(mine.keys[:1, :, :used], mine.values[:1, :, :used])

    def _make(self, cache: Cache, states: torch.Tensor) -> None:
        keys = _layers(cache)[0].keys
        device, dtype = keys.device, keys.dtype
        self.cache.early_initialization(self.rows, keys.shape[1], keys.shape[3], dtype, device)
        self.mask = torch.zeros(self.rows, 1, 1, self.places, dtype=self.mllm.dtype, device=device)
        self.states = states.new_zeros(self.rows, states.shape[1])
        self.tokens = torch.zeros(self.rows, dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.tokens)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self._step = record(self._run_step, device) if device.type == "cuda" else self._run_step

    def _run_step(self) -> None:
        self.tokens.copy_(self.choose(self.states))
        self.mask.index_fill_(3, self.place, 0)
        hidden = self.mllm(
            self.tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.positions[:, None],
            past_key_values=self.cache,
        )
        self.states.copy_(hidden[:, -1])
        self.place.add_(1)
        self.positions.add_(1)


class KeptDecoders:
    """A decoder for one answer and one for several, kept for the next answers. A copy of the model starts without."""

    def __init__(self) -> None:
        self._idle: dict[bool, StaticDecoder] = {}

    def __reduce__(self) -> Any:
        return KeptDecoders, ()

    def take(self, mllm: Mllm, choose: Callable[[torch.Tensor], torch.Tensor], rows: int, used: int) -> StaticDecoder:
        """A decoder with room for ``rows`` answers and one more block after ``used`` places.

        It belongs to the caller until :meth:`put_back`, so that threads never share one.
        """
        several, places = rows > 1, -(-(used + BLOCK) // PLACES) * PLACES
        kept = self._idle.pop(several, None)
        if kept is not None and kept.fits(mllm, rows, places):
            return kept
        return StaticDecoder(mllm, choose, -(-rows // 4) * 4 if several else 1, places)

    def put_back(self, decoder: StaticDecoder) -> None:
        self._idle[decoder.rows > 1] = decoder


def can_decode_statically(mllm: Mllm, cache: Cache) -> bool:
    """Whether static steps give what plain steps would: in evaluation, on one device, with whole weights and keys."""
    parameters = list(mllm.language_model.parameters())
    return (
        not mllm.training
        and keeps_all(cache)
        and len({p.device for p in [*parameters, *mllm.lm_head.parameters()]}) == 1
        and not any(p.is_meta or hasattr(p, "ds_id") for p in parameters)  # on the disk, or in parts on several ranks
    )


def pays_off(mllm: Mllm, cache: Cache, rows: int) -> bool:
    """Whether static steps are faster here and have the memory: on a GPU, but for what cannot be recorded."""
    keys = _layers(cache)[0].keys
    if keys.device.type != "cuda" or getattr(mllm.language_model, "is_loaded_in_8bit", False):
        return False  # LLM.int8() looks for outliers on the host
    bytes_a_place = 2 * keys.element_size() * keys.shape[1] * keys.shape[3] * len(cache.layers)
    needed = bytes_a_place * (-(-rows // 4) * 4) * (keys.shape[2] + PLACES)
    return needed <= SHARE * torch.cuda.get_device_properties(keys.device).total_memory


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record the kernels of ``step`` on a GPU; what is returned launches them all at once.

    Where they cannot be recorded, that is ``step`` itself, which costs time and nothing else.
    """
    with torch.cuda.device(device):
        return _record(step)


def _record(step: Callable[[], None]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries allocate their workspaces at the first calls, which no graph may hold
        step()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or ["unknown"])[0]
        logger.warning("decoding steps are launched kernel by kernel, because they cannot be recorded (%s)", reason)
        return step
    return graph.replay


def _layers(cache: Cache) -> list[Any]:
    """With keys and values, which the library's type of a cache does not promise."""
    return cache.layers


def _addresses(mllm: Mllm) -> tuple[int, ...]:
    return tuple(p.data_ptr() for part in (mllm.language_model, mllm.lm_head) for p in part.parameters())
