"""Which records are used, and what can be asked of them without reading each: counts, pictures, digests.

Records are any sequence of :class:`~aura.types.Sample`. One that is :class:`Indexed` answers at once, however long it
is; of a plain list every sample is looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import nsmallest
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from aura.formats.pictures import Picture
from aura.types import Sample, identifying_bytes


@runtime_checkable
class Indexed(Protocol):
    """Records that know about themselves."""

    def conversation_counts(self) -> NDArray[np.int64]:
        """Conversations of each image, [images]."""

    def pictures(self) -> Iterator[Picture]:
        """What the records say about each image's picture."""

    def digest(self) -> str:
        """Tells any two sets of images, conversations and their order apart."""

    def content(self) -> str | None:
        """Tells any two files apart, masks included; ``None`` if the records are not those of a file."""


def conversation_counts(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Conversations of each image, [images]."""
    if isinstance(samples, Indexed):
        return samples.conversation_counts()
    return np.array([len(sample.conversations) for sample in samples], dtype=np.int64)


def pictures(samples: Sequence[Sample]) -> Iterator[Picture]:
    """What the records say about each image's picture."""
    if isinstance(samples, Indexed):
        return samples.pictures()
    return (Picture(s.image_id, s.image_path, s.height, s.width) for s in samples)


def records_digest(samples: Sequence[Sample]) -> str:
    """A digest of the images' ids and their conversations, in their order."""
    if isinstance(samples, Indexed):
        return samples.digest()
    found = hashlib.sha256()
    for sample in samples:
        found.update(identifying_bytes(sample))
    return found.hexdigest()


def content_of(samples: Sequence[Sample]) -> str | None:
    """A digest of the file that the records come from, masks included, if there is one."""
    return samples.content() if isinstance(samples, Indexed) else None


def hold_out(samples: Sequence[Sample], number: int) -> tuple[Selection, Selection]:
    """The samples without those held out, and those: ``number`` images with conversations, at most a tenth of them.

    Taken are those whose ids come first in the order of their SHA-256: a rule of the ids alone, whatever their order,
    their number or a run's seed.
    """
    used = conversation_counts(samples) > 0
    number = min(number, int(used.sum()) // 10)
    lots = [
        (hashlib.sha256(str(picture.image_id).encode()).digest(), place)
        for place, (picture, has_any) in enumerate(zip(pictures(samples), used, strict=True))
        if has_any
    ]
    held = np.zeros(len(samples), dtype=bool)
    held[[place for _, place in nsmallest(number, lots)]] = True
    return Selection(samples, np.flatnonzero(~held)), Selection(samples, np.flatnonzero(held))


class Selection(Sequence[Sample]):
    """Some of the samples, in their order, and some of them without some of their conversations.

    Args:
        samples: All of them.
        positions: Those taken, ascending.
        without: Image id -> ids of the conversations that are left out.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        positions: NDArray[np.int64],
        without: Mapping[int, Collection[int]] | None = None,
    ) -> None:
        self._samples = samples
        self._positions = positions
        self._without = {image: frozenset(ids) for image, ids in (without or {}).items()}

    @property
    def positions(self) -> NDArray[np.int64]:
        """Of the taken ones among all samples, ascending."""
        return self._positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        sample = self._samples[int(self._positions[index])]
        left_out = self._without.get(sample.image_id)
        if not left_out:
            return sample
        return replace(sample, conversations=tuple(c for c in sample.conversations if c.id not in left_out))

    def conversation_counts(self) -> NDArray[np.int64]:
        counts = conversation_counts(self._samples)[self._positions]
        if self._without:
            fewer = [len(self._without.get(picture.image_id, ())) for picture in self.pictures()]
            counts = counts - np.array(fewer, dtype=np.int64)
        return counts

    def pictures(self) -> Iterator[Picture]:
        taken = np.zeros(len(self._samples), dtype=bool)
        taken[self._positions] = True
        return (picture for picture, wanted in zip(pictures(self._samples), taken, strict=True) if wanted)

    def digest(self) -> str:
        if len(self) == len(self._samples) and not self._without:
            return records_digest(self._samples)
        own: Any = [records_digest(self._samples), sorted((image, sorted(ids)) for image, ids in self._without.items())]
        return hashlib.sha256(repr(own).encode() + self._positions.astype("<i8").tobytes()).hexdigest()

    def content(self) -> str | None:
        whole = content_of(self._samples)
        return whole and f"{whole}/{self.digest()}"
