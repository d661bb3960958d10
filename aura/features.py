"""The frozen encoders' outputs of images: computed here, for training, evaluation and chat, or taken from a cache.

Nothing is imported from above: what a model, a processor and a cache must offer is said in three protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from aura.types import ImageFeatures, Sample


class Encoder(Protocol):
    """What :class:`aura.model.AuraModel` offers."""

    @property
    def device(self) -> torch.device: ...

    def encode_images(self, sam_pixels: torch.Tensor, clip_pixels: torch.Tensor) -> ImageFeatures: ...

    def encoder_fingerprint(self) -> str: ...


class Pixels(Protocol):
    """One image for both encoders, as :class:`aura.data.processor.ImageInputs` holds it."""

    sam_pixels: torch.Tensor  # [3, S, S]
    clip_pixels: torch.Tensor  # [3, P, P]


class ImageReader(Protocol):
    """What :class:`aura.data.processor.Processor` offers."""

    sam_image_size: int

    def image(self, image: Path, context: str = "") -> Pixels: ...

    def image_fingerprint(self) -> str: ...


class Cache(Protocol):
    """What :class:`aura.data.feature_cache.FeatureCache` offers."""

    def load(self, image_path: Path) -> ImageFeatures | None: ...

    def store(self, image_path: Path, features: ImageFeatures) -> ImageFeatures: ...

    def __contains__(self, image_path: Path) -> bool: ...


def fingerprint(model: Encoder, processor: ImageReader) -> str:
    """Tells these encoders (weights, dtype, layer) and this preprocessing from others; a cache is kept for one."""
    return model.encoder_fingerprint() + processor.image_fingerprint()


def encode_images(model: Encoder, images: Sequence[Pixels]) -> list[ImageFeatures]:
    """The features of each image (B = 1), in one pass, on the model's device."""
    features = model.encode_images(
        torch.stack([image.sam_pixels for image in images]).to(model.device),
        torch.stack([image.clip_pixels for image in images]).to(model.device),
    )
    sam, clip = features.sam_embeddings, features.clip_features
    return [ImageFeatures(sam[i : i + 1], clip[i : i + 1]) for i in range(len(sam))]


def encode(
    model: Encoder, processor: ImageReader, samples: Sequence[Sample], cache: Cache | None = None
) -> list[ImageFeatures]:
    """The features of each sample's image (B = 1), on the model's device; what the cache lacks is put into it."""
    features = [cache.load(sample.image_path) if cache else None for sample in samples]
    missing = [i for i, found in enumerate(features) if found is None]
    if missing:
        images = [processor.image(samples[i].image_path, f"image {samples[i].image_id}: ") for i in missing]
        for i, one in zip(missing, encode_images(model, images), strict=True):
            features[i] = cache.store(samples[i].image_path, one) if cache else one
    return [
        ImageFeatures(found.sam_embeddings.to(model.device), found.clip_features.to(model.device))
        for found in features
        if found is not None
    ]


def fill_cache(
    cache: Cache,
    paths: Sequence[Path],
    model: Encoder,
    processor: ImageReader,
    *,
    rank: int = 0,
    world: int = 1,
    quiet: bool = False,
) -> int:
    """Encode this process's share of the images that are not cached yet; returns how many there were.

    Call it before DeepSpeed takes the model: ZeRO 3 would have to gather the encoders for every image.
    """
    batch = 8 if processor.sam_image_size <= 256 else 1  # at full size one image fills a small GPU
    missing = [path for path in sorted(set(paths))[rank::world] if path not in cache]
    with tqdm(total=len(missing), desc="encoding images", disable=quiet or not missing) as progress:
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            features = encode_images(model, [processor.image(path) for path in part])
            for path, one in zip(part, features, strict=True):
                cache.store(path, one)
            progress.update(len(part))
    return len(missing)
