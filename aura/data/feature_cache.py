"""The frozen encoders' outputs on disk, keyed by what they depend on: image bytes, weights, preprocessing.

The features lie in :class:`aura.data.shards.Shards`, about a thousand images to a file: any number of processes may
read and write one folder, and a killed process loses at most the image it was writing. Deleting the folder, or any file
in it, is always safe while nobody uses it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from aura.data.shards import DamagedError, RowTable, Shards, new_name
from aura.features import Encoder, ImageReader, fingerprint
from aura.types import ImageFeatures

NAMES = "images"
"""Subfolder that holds the digests of image files, by path, size and time of change."""
HASHING_THREADS = 8


class CacheSize(NamedTuple):
    """What lies on disk for one fingerprint."""

    images: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.images} images, {self.bytes / 2**20:.1f} MiB"


class FeatureCache:
    """A folder of image features.

    Args:
        root: The folder; one subfolder per fingerprint is made in it.
        fingerprint: Identifies encoder weights **and** preprocessing, see :func:`aura.features.fingerprint`.
        exact: Store float32; by default float16, half the size (relative error 5e-4).
    """

    def __init__(self, root: str | Path, fingerprint: str, *, exact: bool = False) -> None:
        self.exact = exact
        kind = f"{fingerprint}-{'fp32' if exact else 'fp16'}-shards"
        self.root, self.folder = Path(root), Path(root) / hashlib.sha256(kind.encode()).hexdigest()[:16]
        try:
            self._shards = Shards(self.folder)
            self._digests = RowTable(self.root / NAMES, payload=4)
        except OSError as error:
            raise ValueError(f"the feature cache {root} cannot be made ({error}); choose another folder") from error
        self._writer = os.getpid(), new_name()
        self._unsaved: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, root: str | Path | None, model: Encoder, processor: ImageReader) -> FeatureCache | None:
        """The cache for exactly these encoders and this preprocessing; ``None`` if ``root`` is."""
        return None if root is None else cls(root, fingerprint(model, processor))

    def missing(self, paths: Sequence[Path]) -> list[Path]:
        """Those of the images that are not cached; reads the files that it has not seen before, several at a time."""
        found: list[Path] = []
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            for start in range(0, len(paths), 1000):
                some = paths[start : start + 1000]
                keys = pool.map(self._key, some)
                found += [path for path, key in zip(some, keys, strict=True) if key not in self._shards]
        return found

    def _key(self, image_path: str | Path) -> bytes:
        """SHA-256 of the image's bytes: these decide, not the name."""
        try:
            status = Path(image_path).stat()
            place = f"{os.path.abspath(image_path)}\0{status.st_size}\0{status.st_mtime_ns}"  # noqa: PTH100 (no links)
            alias = hashlib.sha256(place.encode("utf-8", "surrogateescape")).digest()
            if (known := self._digests.find(alias)) is not None:
                return np.array(known[1], "<u8").tobytes()
            if alias not in self._unsaved:
                key = hashlib.sha256(Path(image_path).read_bytes()).digest()
                self._remember(alias, key)
                return key
        except OSError as error:
            raise ValueError(f"the image file {image_path} cannot be read ({error}); check the image folder") from error
        return self._unsaved[alias]

    def _remember(self, alias: bytes, key: bytes) -> None:
        with self._lock:
            if self._writer[0] != os.getpid():  # after a fork
                self._writer = os.getpid(), new_name()
            try:
                self._digests.append(alias, tuple(np.frombuffer(key, "<u8").tolist()), self._writer[1])
            except OSError:  # a folder that is read-only still serves
                self._unsaved[alias] = key

    def load(self, image_path: str | Path) -> ImageFeatures | None:
        """Features with B = 1 as they were stored, on the CPU, or ``None`` if they have to be computed.

        They are float16 unless that could not hold them: give them a dtype where they are used, on the device. Damaged
        features are forgotten with a warning that names their place, and count as absent.
        """
        key = self._key(image_path)
        try:
            blob = self._shards.get(key)
            if blob is None:
                return None
            tensors = load(blob)
            return ImageFeatures(tensors["sam_embeddings"], tensors["clip_features"])
        except (DamagedError, SafetensorError, KeyError, ValueError) as error:
            warnings.warn(
                f"the cached features of {image_path} are damaged ({error}); computing them anew", stacklevel=2
            )
            self._shards.drop(key)
            return None

    def store(self, image_path: str | Path, features: ImageFeatures) -> ImageFeatures:
        """Keep the features (B = 1) of one image, and return them as :meth:`load` will give them.

        Going on with the returned, rounded values makes a run independent of what was cached before it began. Where
        another process was first, its values are returned. A tensor that does not fit float16 is kept in float32.

        Raises:
            ValueError: They are not finite, or there is no room for them.
        """
        tensors = {}
        for name in ("sam_embeddings", "clip_features"):
            value = getattr(features, name).detach()
            assert value.shape[0] == 1, f"{name} of one image expected, got {list(value.shape)}"
            half = value.half()  # on the device, so that half as much is moved
            if self.exact or not torch.isfinite(half).all():
                half = value.float()
                if not torch.isfinite(half).all():
                    raise ValueError(
                        f"the {name} of {image_path} are not finite; they are not cached. Check the weights"
                    )
            tensors[name] = half.cpu().contiguous()
        key = self._key(image_path)
        if key in self._shards and (earlier := self.load(image_path)) is not None:
            return earlier
        try:
            self._shards.add(key, save(tensors))
        except OSError as error:
            raise ValueError(f"the feature cache {self.root} cannot be written ({error}); {REMEDY}") from error
        return ImageFeatures(**tensors)

    def require_room(self, num_images: int) -> None:
        """Refuse to add so many images of the size of those that are there to a disk that cannot hold them."""
        size = self.size()
        need, free = num_images * size.bytes // max(1, size.images), shutil.disk_usage(self.folder).free
        if need > free:
            raise ValueError(
                f"the feature cache {self.root} needs {need / 2**30:.1f} GiB for {num_images} more images, and its "
                f"disk has {free / 2**30:.1f} GiB left; {REMEDY}"
            )

    def refresh(self) -> None:
        """See what other processes have added, and leave what this one has added on the disk."""
        self._shards.close()
        self._digests.close()
        self._digests.refresh()

    def size(self) -> CacheSize:
        """Number of images and bytes stored for this fingerprint."""
        self._shards.refresh()
        return CacheSize(len(self._shards), sum(file.stat().st_size for file in self.folder.glob("*.shard")))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _writer=(os.getpid(), new_name()))


REMEDY = "make room, choose another folder with --data.feature_cache DIR, or pass --data.feature_cache null"
