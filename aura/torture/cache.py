"""The feature cache while four processes build it: whatever is killed, no stored image is lost, and none differs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aura.config import parse_config
from aura.data.feature_cache import NAMES, FeatureCache
from aura.data.shards import Shards
from aura.features import fill_cache
from aura.torture.processes import Act, Command
from aura.types import ImageFeatures

PROCESSES = 4
SIDE = 48


class CacheKind:
    """``argv`` are the options of train_ds.py, whose model encodes; the pictures are made here."""

    name = "cache"
    victims = Command.VICTIMS

    def __init__(self, argv: Sequence[str], num_images: int) -> None:
        self.argv, self.num_images = list(argv), num_images

    def new(self, run: Path) -> None:
        (run / "pictures").mkdir()
        for number, path in enumerate(self._paths(run)):
            pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)

    def _paths(self, run: Path) -> list[Path]:
        return [run / "pictures" / f"{number:04d}.png" for number in range(self.num_images)]

    def start(self, run: Path) -> Command:
        return Command([self._builder(run, rank) for rank in range(PROCESSES)], run / "output.txt")

    def _builder(self, run: Path, rank: int) -> Act:
        def act() -> int:
            from aura.weights.build import build_model

            config = parse_config(self.argv, prog="torture.py")
            model, processor, _ = build_model(config.model, config.data)
            acknowledged = _lines(run / "stored.txt")
            cache = _Told.open(run / "features", model, processor)
            assert isinstance(cache, _Told)
            cache.told = run / "stored.txt"
            for path in cache.missing([run / "pictures" / name for name in sorted(acknowledged)]):
                _append(run / "lost.txt", path.name)
            # As the ranks of a run; those that were quicker have done a part of what this one finds missing.
            fill_cache(cache, self._paths(run), model, processor, rank=rank, world=PROCESSES, workers=1, quiet=True)
            return 0

        return act

    def trace(self, run: Path) -> Path:
        return run / "stored.txt"

    def result(self, run: Path) -> Any:
        """The digests of all blobs, by picture."""
        [folder] = [path for path in (run / "features").iterdir() if path.name != NAMES]
        shards = Shards(folder)
        blobs = {path.name: shards.get(hashlib.sha256(path.read_bytes()).digest()) for path in self._paths(run)}
        return {name: None if blob is None else hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}

    def lost(self, run: Path) -> list[str]:
        return sorted(_lines(run / "lost.txt"))

    def close(self) -> None:
        """Nothing else runs."""


class _Told(FeatureCache):
    """A cache that writes down which images it has acknowledged."""

    told: Path

    def store(self, image_path: str | Path, features: ImageFeatures) -> ImageFeatures:
        kept = super().store(image_path, features)
        _append(self.told, Path(image_path).name)
        return kept


def _append(path: Path, line: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def _lines(path: Path) -> set[str]:
    return set(path.read_text().split()) if path.is_file() else set()
