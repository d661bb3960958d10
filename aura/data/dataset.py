"""The training data: keys drawn in a reproducible order, and the tensors of each key.

Everything random is a function of the seed and of a key, never of the past: a run can resume at any step, with any
number of loader processes, and see exactly what it would have seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset, Sampler

from aura.data.feature_cache import FeatureCache
from aura.data.mixture import Mixture, Schedule
from aura.data.processor import ProcessedSample, Processor
from aura.data.selection import conversation_counts
from aura.types import Conversation, Sample

Key = tuple[int, int]
"""(epoch, index): the index-th image on its epoch-th visit."""


class EpochSampler(Sampler[list[Key]]):
    """Endless batches of keys: a batch sampler for ``DataLoader``.

    The stream of epoch after epoch, each a fresh permutation, is cut into micro-steps of ``batch * world`` keys; each
    rank takes its own ``batch`` of them. So no image is lost at an epoch's end, ranks never share a key, and
    micro-step t depends only on (seed, t, batch, world).

    Args:
        num_samples: Length of the data set.
        batch: Images per rank and micro-step.
        seed: Seed of the permutations.
        rank: This process, 0 to ``world - 1``.
        world: Number of processes.
        start: Micro-steps already done (when resuming).
        schedule: The order of several sources, in place of one permutation after another.
    """

    def __init__(
        self,
        num_samples: int,
        batch: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        schedule: Schedule | None = None,
    ) -> None:
        if num_samples < 1:
            raise ValueError("the training split has no images to draw from; check data.train.annotations")
        assert batch > 0 and 0 <= rank < world and start >= 0
        self.num_samples, self.batch, self.seed = num_samples, batch, seed
        self.rank, self.world, self.start, self.schedule = rank, world, start, schedule
        self._order: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.start
        while True:
            yield self.keys(step)
            step += 1

    def keys(self, step: int) -> list[Key]:
        """This rank's keys of micro-step ``step``."""
        first = (step * self.world + self.rank) * self.batch
        return [self._key(position) for position in range(first, first + self.batch)]

    def _key(self, position: int) -> Key:
        if self.schedule is not None:
            return self.schedule.key(position, self.seed)
        epoch, offset = divmod(position, self.num_samples)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.num_samples))
        return epoch, int(self._order[1][offset])


class AuraDataset(Dataset[ProcessedSample]):
    """Records as tensors, with a draw of conversations per visit and cached features where there are any.

    Args:
        samples: The records, such as ``AmodalReasonSeg``; images without conversations are left out with a warning.
        processor: Makes the tensors.
        conversations_per_image: Conversations drawn without replacement per visit; ``None`` takes all.
        seed: Seed of the draws.
        cache: Features of the frozen encoders.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Processor,
        *,
        conversations_per_image: int | None = None,
        seed: int = 0,
        cache: FeatureCache | None = None,
    ) -> None:
        self.samples, self.processor, self.cache = samples, processor, cache
        self.conversations_per_image, self.seed = conversations_per_image, seed
        self._rows = np.flatnonzero(conversation_counts(samples))
        if without := len(samples) - len(self._rows):
            warnings.warn(f"{without} of {len(samples)} images have no conversation and are left out", stacklevel=2)

    def __len__(self) -> int:
        return len(self._rows)

    def schedule(self) -> Schedule | None:
        """The order in which a run visits several sources; ``None`` of a single one."""
        return self.samples.schedule if isinstance(self.samples, Mixture) else None

    def record(self, key: Key) -> Sample:
        """The record that a key stands for."""
        return self.samples[int(self._rows[key[1]])]

    def __getitem__(self, key: Key) -> ProcessedSample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[ProcessedSample]:
        """The samples of one batch: all with cached features, or, if any is not cached yet, all with pixels."""
        samples = [self.record(key) for key in keys]
        features = [self.cache.load(s.image_path) if self.cache else None for s in samples]
        if None in features:
            features = [None] * len(samples)
        return [
            self.processor(sample, found, self.draw(sample, key))
            for sample, found, key in zip(samples, features, keys, strict=True)
        ]

    def draw(self, sample: Sample, key: Key) -> Sequence[Conversation]:
        """The conversations of one visit; depends only on (seed, key)."""
        count = self.conversations_per_image
        if count is None or count >= len(sample.conversations):
            return sample.conversations
        chosen = np.random.default_rng((self.seed, *key)).choice(len(sample.conversations), count, replace=False)
        return [sample.conversations[i] for i in sorted(chosen)]
