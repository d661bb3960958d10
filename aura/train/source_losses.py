"""Loss terms of each of several training sources, from the losses that are computed anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aura.data.mixture import STRIDE
from aura.train.engine import Process, mean_over_processes


class SourceLosses:
    """Means over the images of each source since the last log line, term by term. Its state is part of a checkpoint.

    An image counts for the terms that it has: one without any ``[SEG]`` has no mask loss.

    Args:
        sources: Their names; without any, nothing is kept.
        terms: Names of the losses.
        state: What :meth:`state` gave.
    """

    def __init__(self, sources: Sequence[str], terms: Sequence[str], state: Sequence[float] | None = None) -> None:
        self.sources, self.terms = tuple(sources), tuple(terms)
        size = 2 * len(self.sources) * len(self.terms)
        self._sums = list(state) if state else [0.0] * size  # of each source and term: the sum, then how many
        assert len(self._sums) == size
        self._waiting: list[tuple[Sequence[int], Tensor]] = []

    @classmethod
    def shared(
        cls, sources: Sequence[str], terms: Sequence[str], states: Sequence[Sequence[float]], processes: int
    ) -> SourceLosses:
        """What several processes had summed up, in equal shares for another number of them: the means stay."""
        return cls(sources, terms, [sum(values) / processes for values in zip(*states, strict=True)])

    def note(self, images: Sequence[int], own: Mapping[str, Tensor]) -> None:
        """Take the terms [B] of a micro-batch's images; they are read when the optimizer step ends."""
        self._waiting.append((images, torch.stack([own[name] for name in self.terms], dim=1)))

    def end_step(self, keep: bool) -> None:
        """Read what was noted; ``keep`` is false of a step that was skipped."""
        waiting, self._waiting = self._waiting, []
        if not (keep and waiting):
            return
        images = [image for ids, _ in waiting for image in ids]
        for image, row in zip(images, torch.cat([values for _, values in waiting]).tolist(), strict=True):
            start = 2 * len(self.terms) * (image // STRIDE)
            for place, value in enumerate(row):
                if math.isfinite(value):
                    self._sums[start + 2 * place] += value
                    self._sums[start + 2 * place + 1] += 1

    def take(self, process: Process) -> dict[str, dict[str, float]]:
        """The means over all processes, by source and term, and a new beginning. All processes call it together."""
        sums = iter(mean_over_processes(self._sums, process))
        self._sums = [0.0] * len(self._sums)
        found: dict[str, dict[str, float]] = {}
        for source in self.sources:
            pairs = {term: (next(sums), next(sums)) for term in self.terms}
            found[source] = {term: total / count for term, (total, count) in pairs.items() if count}
        return {source: means for source, means in found.items() if means}

    def state(self) -> list[Any]:
        return list(self._sums)
