"""The frozen encoders' outputs of images: computed here, for training, evaluation and chat, or taken from a cache.

Nothing is imported from above: what a model, a processor and a cache must offer is said in three protocols.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
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

    def missing(self, paths: Sequence[Path]) -> list[Path]: ...

    def require_room(self, num_images: int) -> None: ...

    def refresh(self) -> None: ...


def fingerprint(model: Encoder, processor: ImageReader) -> str:
    """Tells these encoders (weights, dtype, layer) and this preprocessing from others; a cache is kept for one."""
    return model.encoder_fingerprint() + processor.image_fingerprint()


def weights_fingerprint(modules: Iterable[nn.Module], about: str = "") -> str:
    """16 hex digits that tell the weights and dtypes of ``modules``, and what is said ``about`` them, from others.

    Up to 4096 evenly spread values of every tensor are hashed. Weights that agree on those are the same for any
    practical purpose. A 7B model takes a moment, not a minute.
    """
    digest = hashlib.sha256(about.encode())
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().flatten()
            digest.update(flat[:: max(1, flat.numel() // 4096)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def encode_images(model: Encoder, images: Sequence[Pixels]) -> list[ImageFeatures]:
    """The features of each image (B = 1), on the model's device: in one pass, or in several where memory is short."""
    try:
        features = model.encode_images(
            torch.stack([image.sam_pixels for image in images]).to(model.device),
            torch.stack([image.clip_pixels for image in images]).to(model.device),
        )
        sam, clip = features.sam_embeddings, features.clip_features
        return [ImageFeatures(sam[i : i + 1], clip[i : i + 1]) for i in range(len(sam))]
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    torch.cuda.empty_cache()  # not in the handler, whose traceback holds on to the memory
    half = len(images) // 2
    return encode_images(model, images[:half]) + encode_images(model, images[half:])


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
    workers: int = 1,
    quiet: bool = False,
) -> int:
    """Encode this process's share of the images that are not cached yet; returns how many there were.

    While the model encodes one batch, ``workers`` threads read the images of the next and one thread stores the last.
    (Threads read as fast as processes would: decoding and resizing leave Python's lock to others.) On a GPU, fp32
    encoders multiply in TF32, whose error is that of the float16 they are kept in (not under ``train.deterministic``).

    Call it before DeepSpeed takes the model: ZeRO 3 would have to gather the encoders for every image. Then let all
    processes meet, and call ``cache.refresh()`` to see what the others have encoded.

    Raises:
        ValueError: An image cannot be read, or the cache cannot hold it.
    """
    size = _batch_size(processor, model.device)
    missing = cache.missing(sorted(set(paths))[rank::world])
    readers, writer = ThreadPoolExecutor(max(1, workers)), ThreadPoolExecutor(1)
    writing: deque[Future[None]] = deque()
    bar = tqdm(total=len(missing), desc="encoding images", disable=quiet or not missing)
    try:
        with bar, _tf32(model.device):
            images = _ahead(readers, processor.image, missing, count=2 * size + workers)
            for start in range(0, len(missing), size):
                part = missing[start : start + size]
                features = encode_images(model, list(islice(images, len(part))))
                writing.append(writer.submit(_store, cache, part, features))
                if start == 0:
                    writing.popleft().result()
                    cache.require_room((len(missing) - len(part)) * world)
                while len(writing) > 2:  # no more wait in memory
                    writing.popleft().result()
                bar.update(len(part))
            while writing:
                writing.popleft().result()
    finally:
        for pool in (readers, writer):
            pool.shutdown(cancel_futures=True)
    cache.refresh()
    return len(missing)


def _batch_size(processor: ImageReader, device: torch.device) -> int:
    if processor.sam_image_size <= 256:
        return 8
    return 4 if device.type == "cuda" else 1  # at full size one image fills a CPU


def _store(cache: Cache, paths: Sequence[Path], features: Sequence[ImageFeatures]) -> None:
    for path, one in zip(paths, features, strict=True):
        cache.store(path, one)


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Path], Pixels], items: Sequence[Path], count: int
) -> Iterator[Pixels]:
    """What ``work`` makes of each item, in order, up to ``count`` items ahead of the one asked for."""
    waiting: deque[Future[Pixels]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _tf32(device: torch.device) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
