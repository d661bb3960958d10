"""What feeds the training loop: batches in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle

import torch
from torch.utils.data import DataLoader

from aura.config import Config
from aura.data.collate import collate
from aura.data.dataset import AuraDataset, EpochSampler, Key
from aura.data.feature_cache import FeatureCache
from aura.data.processor import Processor
from aura.train.engine import Process
from aura.types import Batch, Sample


def batches(
    samples: Sequence[Sample],
    processor: Processor,
    config: Config,
    process: Process,
    cache: FeatureCache | None,
    *,
    start: int = 0,
) -> Iterator[Batch]:
    """Endless batches of this process; those after ``start`` micro-steps do not depend on where a run was stopped."""
    data, train = config.data, config.train
    dataset = AuraDataset(
        samples, processor, conversations_per_image=data.conversations_per_image, seed=train.seed, cache=cache
    )
    rank, world, batch = process.rank, process.world_size, train.micro_batch_size
    sampler = EpochSampler(len(dataset), batch, seed=train.seed, rank=rank, world=world, start=start)
    keys: Iterable[list[Key]] = sampler
    if train.overfit_one_batch:
        keys = cycle([sampler.keys(micro_step) for micro_step in range(train.accumulation)])
    # A generator of its own: the loader draws a number when it starts, which would shift the model's dropout.
    loader = DataLoader(
        dataset,
        batch_sampler=keys,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=data.num_workers,
        generator=torch.Generator(),
    )
    return iter(loader)
