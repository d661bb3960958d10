"""What the feature cache costs on this machine: images a second in and out, bytes, time to open.

``--size 1024`` gives features of SAM ViT-H's size (2.5 MiB an image); no encoder runs, so the figures are those of
reading pictures, rounding, writing and reading features. ``--keys N`` opens a cache of N images, whose features are a
few bytes each.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from aura.data.feature_cache import FeatureCache
from aura.data.images import CLIP_MEAN, CLIP_STD, clip_pixels, load_image, sam_pixels
from aura.data.shards import Shards
from aura.features import Pixels, fill_cache
from aura.types import ImageFeatures


class Reader:
    """The processor's side of pictures, without a tokenizer."""

    def __init__(self, size: int) -> None:
        self.sam_image_size = size

    def image(self, image: Path, context: str = "") -> Pixels:
        pil = load_image(image, context)
        sam, _ = sam_pixels(pil, self.sam_image_size)
        return SimpleNamespace(sam_pixels=sam, clip_pixels=clip_pixels(pil, 224, CLIP_MEAN, CLIP_STD, "crop"))

    def image_fingerprint(self) -> str:
        return f"bench {self.sam_image_size}"


class Encoder:
    """Features of the real sizes, made in no time."""

    device = torch.device("cpu")

    def encode_images(self, sam_pixels: torch.Tensor, clip_pixels: torch.Tensor) -> ImageFeatures:
        images, side = len(sam_pixels), sam_pixels.shape[-1] // 16
        mean = sam_pixels.mean((1, 2, 3))
        return ImageFeatures(
            mean.view(-1, 1, 1, 1).expand(images, 256, side, side), mean.view(-1, 1, 1).expand(images, 256, 1024)
        )

    def encoder_fingerprint(self) -> str:
        return "bench"


def measure(folder: Path, num_images: int, size: int, workers: int, keys: int) -> dict[str, float]:
    """All figures, by name."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(num_images):
        noise = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        noise.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
        paths.append(folder / f"{number}.jpg")
    reader, encoder, figures = Reader(size), Encoder(), {}

    def timed(name: str, start: float, count: int) -> None:
        figures[name] = count / (time.perf_counter() - start)

    cache = FeatureCache.open(folder / "cache", encoder, reader)
    assert cache is not None
    start = time.perf_counter()
    fill_cache(cache, paths, encoder, reader, workers=workers, quiet=True)
    timed("filled, images/s", start, num_images)
    figures["bytes an image"] = cache.size().bytes / num_images
    start = time.perf_counter()
    for path in paths:
        cache.load(path)
    timed("loaded, images/s", start, num_images)

    many = Shards(folder / "many")
    digests = [hashlib.sha256(str(number).encode()).digest() for number in range(keys)]
    start = time.perf_counter()
    for digest in digests:
        many.add(digest, b"few bytes")
    many.close()
    timed("added without features, images/s", start, keys)
    start = time.perf_counter()
    many = Shards(folder / "many")
    figures[f"opened with {keys} images, s"] = time.perf_counter() - start
    start = time.perf_counter()
    for digest in digests[:: max(1, keys // 2000)]:
        many.get(digest)
    timed(f"found among {keys}, images/s", start, len(digests[:: max(1, keys // 2000)]))
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_cache.py", description="The feature cache on this machine.")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="on the disk to measure (default: a temporary one)")
    parser.add_argument("--images", type=int, default=64, metavar="N", help="pictures of 640 x 480 to make and fill in")
    parser.add_argument("--size", type=int, default=1024, metavar="PX", help="side of SAM's input")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads that read pictures")
    parser.add_argument("--keys", type=int, default=100_000, metavar="N", help="images of the cache to open")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(argv)
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(Path(folder), options.images, options.size, options.workers, options.keys)
    if options.json:
        print(json.dumps(figures, allow_nan=False))
    else:
        for name, value in figures.items():
            print(f"{name:40s} {value:14,.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
