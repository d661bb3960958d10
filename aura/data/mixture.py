"""Several sources of records as one, and the order in which a run visits them.

**An epoch** is as many visits as all sources have images. Source k gets a part of them by its weight, whole numbers by
largest remainder, and they lie evenly in the epoch: the j-th of its n visits stands at (j + 1/2) / n of the way. So
every stretch of the run, however short, holds the sources in their ratio, and nothing about the mixture is random. A
source goes through its own images in a fresh permutation, pass by pass, whatever the epochs: none of its images comes a
second time before all others of it have come.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, chain
from typing import overload

import numpy as np
from numpy.typing import NDArray

from aura.data.selection import Selection, conversation_counts, hold_out, pictures, records_digest
from aura.formats.pictures import Picture
from aura.types import Sample

STRIDE = 10**15
"""Ids of images and conversations of source k are raised by k times this, so that no two sources share one."""


class Mixture(Sequence[Sample]):
    """The records of several sources, one source after another.

    Args:
        parts: The records of each.
        names: What reports and logs call them.
        weights: Their shares of a run's visits, in any unit.

    Raises:
        ValueError: An id of an image is too large to be told from those of another source.
    """

    def __init__(self, parts: Sequence[Sequence[Sample]], names: Sequence[str], weights: Sequence[float]) -> None:
        assert len(parts) == len(names) == len(weights) > 0
        self.parts, self.names, self.weights = tuple(parts), tuple(names), tuple(weights)
        self.starts = (0, *accumulate(map(len, parts)))
        for name, part in zip(names, parts, strict=True):
            large = next((p.image_id for p in pictures(part) if not 0 <= p.image_id < STRIDE), None)
            if large is not None:
                raise ValueError(
                    f"{name}: image id {large}; of several sources, ids must lie between 0 and {STRIDE - 1}"
                )

    def of(self, parts: Sequence[Sequence[Sample]]) -> Mixture:
        """The same sources with other records."""
        return Mixture(parts, self.names, self.weights)

    def select(self, positions: NDArray[np.int64]) -> Mixture:
        """Some of the records; ``positions`` ascend."""
        borders = np.searchsorted(positions, self.starts)
        chosen = [positions[a:b] - start for a, b, start in zip(borders, borders[1:], self.starts, strict=False)]
        return self.of([Selection(part, places) for part, places in zip(self.parts, chosen, strict=True)])

    @cached_property
    def schedule(self) -> Schedule:
        """The order of the images that have a conversation."""
        used = [int(np.count_nonzero(conversation_counts(part))) for part in self.parts]
        return Schedule(used, self.weights, self.names)

    def visits(self, positions: int) -> dict[str, int]:
        """How often each source was visited in the first so many visits."""
        return dict(zip(self.names, self.schedule.drawn(positions), strict=True))

    def told(self) -> list[str]:
        """A line about each source for the first lines of a run."""
        shown = [weight / sum(self.weights) for weight in self.weights]
        return [
            f"source {number}, {name}: {len(part)} images, {share:.1%} of the visits"
            for number, (name, part, share) in enumerate(zip(self.names, self.parts, shown, strict=True))
        ]

    def __len__(self) -> int:
        return self.starts[-1]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        source = bisect_right(self.starts, index) - 1
        sample = self.parts[source][index - self.starts[source]]
        if not source:
            return sample
        added = source * STRIDE
        talks = tuple(replace(talk, id=talk.id + added) for talk in sample.conversations)
        return replace(sample, image_id=sample.image_id + added, conversations=talks)

    def conversation_counts(self) -> NDArray[np.int64]:
        return np.concatenate([conversation_counts(part) for part in self.parts])

    def pictures(self) -> Iterator[Picture]:
        return chain.from_iterable(
            (picture._replace(image_id=picture.image_id + source * STRIDE) for picture in pictures(part))
            for source, part in enumerate(self.parts)
        )

    def digest(self) -> str:
        told = [(records_digest(part), weight) for part, weight in zip(self.parts, self.weights, strict=True)]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def content(self) -> str | None:
        return None


def hold_out_of(samples: Sequence[Sample], number: int) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """As :func:`aura.data.selection.hold_out`; of a mixture both parts are mixtures."""
    kept, held = hold_out(samples, number)
    if isinstance(samples, Mixture):
        return samples.select(kept.positions), samples.select(held.positions)
    return kept, held


def evenly(samples: Sequence[Sample], number: int | None) -> list[Sample]:
    """The first ``number`` samples; of a mixture, as many of each source as their lengths say."""
    if not isinstance(samples, Mixture) or number is None:
        return list(samples[:number])
    lengths = np.array([len(part) for part in samples.parts])
    return [samples[int(place)] for place in np.sort(np.argsort(spread(lengths), kind="stable")[:number])]


def spread(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where the visits of each source stand in an epoch, source after source: the j-th of n at (j + 1/2) / n."""
    return np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in counts])


class Schedule:
    """Which image a run visits at which position of its endless stream.

    Args:
        lengths: Images of each source; they are numbered through.
        weights: Shares of the visits.
        names: Of the sources, for errors.

    Raises:
        ValueError: A source has no image, or so small a weight that no epoch visits it.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], names: Sequence[str]) -> None:
        self.lengths, self.starts = tuple(lengths), (0, *accumulate(lengths))
        self.visits = shares(sum(lengths), weights)
        for name, length, visits in zip(names, lengths, self.visits, strict=True):
            if not length or not visits:
                what = "has no image with a conversation" if not length else "has a weight under one visit an epoch"
                raise ValueError(f"data.train: {name} {what}; raise its weight, or leave it out")
        order = np.argsort(spread(self.visits), kind="stable")
        self.source = np.repeat(np.arange(len(lengths)), self.visits)[order]  # [visits of an epoch]
        first = np.concatenate([[0], np.cumsum(self.visits)])
        self.turn = order - first[self.source]  # [visits of an epoch], which of its source's visits each is
        self._permuted: dict[int, tuple[int, int, NDArray[np.int64]]] = {}

    def key(self, position: int, seed: int) -> tuple[int, int]:
        """The pass and the image at a position of the stream; ``seed`` is of the permutations."""
        epoch, offset = divmod(position, len(self.source))
        source = int(self.source[offset])
        number, place = divmod(epoch * int(self.visits[source]) + int(self.turn[offset]), self.lengths[source])
        if source not in self._permuted or self._permuted[source][:2] != (number, seed):
            permuted = np.random.default_rng((seed, source, number)).permutation(self.lengths[source])
            self._permuted[source] = (number, seed, permuted)
        return number, self.starts[source] + int(self._permuted[source][2][place])

    def drawn(self, positions: int) -> list[int]:
        """Visits of each source among the first so many positions."""
        epochs, offset = divmod(positions, len(self.source))
        some = np.bincount(self.source[:offset], minlength=len(self.lengths))
        return [int(count) for count in epochs * self.visits + some]


def shares(total: int, weights: Sequence[float]) -> NDArray[np.int64]:
    """``total`` in whole numbers by ``weights``, by largest remainder; of equal ones the first gets more."""
    exact = total * np.array(weights, dtype=np.float64) / sum(weights)
    whole = np.floor(exact).astype(np.int64)
    most = np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]
    whole[most] += 1
    return whole
