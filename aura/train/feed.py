"""What feeds the training loop: frozen features, encoded once before the first step, and batches in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from aura.config import Config
from aura.data.collate import collate
from aura.data.dataset import AuraDataset, EpochSampler, Key
from aura.data.feature_cache import FeatureCache
from aura.data.processor import Processor
from aura.model import AuraModel
from aura.model.readout import encode_images
from aura.train.engine import Process, wait_for_all
from aura.types import Batch, Sample


def fill_cache(
    cache: FeatureCache, paths: Sequence[Path], model: AuraModel, processor: Processor, process: Process
) -> int:
    """Encode the images that are not cached yet, each process its share; returns how many this one encoded.

    Call it before DeepSpeed takes the model: ZeRO 3 would have to gather the encoders for every image.
    """
    batch = 8 if processor.sam_image_size <= 256 else 1  # at full size one image fills a small GPU
    paths = sorted(set(paths))
    mine = paths[process.rank :: process.world_size]
    missing = [path for path in mine if not cache.path(path).is_file()]
    with tqdm(total=len(missing), desc="encoding images", disable=not process.is_main or not missing) as progress:
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            features = encode_images(model, [processor.image(path) for path in part])
            for path, one in zip(part, features, strict=True):
                cache.store(path, one)
            progress.update(len(part))
    wait_for_all(process)
    return len(missing)


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
