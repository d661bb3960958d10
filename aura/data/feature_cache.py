"""The frozen encoders' outputs on disk, keyed by what they depend on: image bytes, weights, preprocessing.

One safetensors file per image, written atomically: any number of processes may read and write one folder. Deleting the
folder, or any file in it, is always safe.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from aura.features import Encoder, ImageReader, fingerprint
from aura.files import write_bytes
from aura.types import ImageFeatures


class CacheSize(NamedTuple):
    """What lies on disk for one fingerprint."""

    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.files} images, {self.bytes / 2**20:.1f} MiB"


class FeatureCache:
    """A folder of image features.

    Args:
        root: The folder; one subfolder per fingerprint is made in it.
        fingerprint: Identifies encoder weights **and** preprocessing, see :func:`aura.features.fingerprint`.
        exact: Store float32; by default float16, half the size (relative error 5e-4).
    """

    def __init__(self, root: str | Path, fingerprint: str, *, exact: bool = False) -> None:
        self.fingerprint = f"{fingerprint}-{'fp32' if exact else 'fp16'}"
        self.folder = Path(root) / hashlib.sha256(self.fingerprint.encode()).hexdigest()[:16]
        self.exact = exact
        self._keys: dict[tuple[str, int, int], str] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"the feature cache {root} cannot be made ({error}); choose another folder") from error

    @classmethod
    def open(cls, root: str | Path | None, model: Encoder, processor: ImageReader) -> FeatureCache | None:
        """The cache for exactly these encoders and this preprocessing; ``None`` if ``root`` is."""
        return None if root is None else cls(root, fingerprint(model, processor))

    def __contains__(self, image_path: str | Path) -> bool:
        return self.path(image_path).is_file()

    def path(self, image_path: str | Path) -> Path:
        """Where the features of this image lie, present or not; the image's bytes decide, not its name."""
        try:
            status = Path(image_path).stat()
            known = (str(image_path), status.st_size, status.st_mtime_ns)
            if known not in self._keys:
                self._keys[known] = hashlib.sha256(Path(image_path).read_bytes()).hexdigest()
        except OSError as error:
            raise ValueError(f"the image file {image_path} cannot be read ({error}); check the image folder") from error
        key = self._keys[known]
        return self.folder / key[:2] / f"{key}.safetensors"

    def load(self, image_path: str | Path) -> ImageFeatures | None:
        """Features with B = 1, float32, or ``None`` if they have to be computed.

        A file that cannot be read is removed with a warning that names it, and counts as absent.
        """
        path = self.path(image_path)
        try:
            tensors = load(path.read_bytes())
            return ImageFeatures(tensors["sam_embeddings"].float(), tensors["clip_features"].float())
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            warnings.warn(f"the cached features {path} are damaged ({error}); computing them anew", stacklevel=2)
            path.unlink(missing_ok=True)
            return None

    def store(self, image_path: str | Path, features: ImageFeatures) -> ImageFeatures:
        """Write the features (B = 1) of one image, and return them as :meth:`load` will give them.

        Going on with the returned, rounded values makes a run independent of what was cached before it began.
        A tensor whose values do not fit float16 is kept in float32.
        """
        tensors = {}
        for name in ("sam_embeddings", "clip_features"):
            value = getattr(features, name).detach().to("cpu", torch.float32)
            assert value.shape[0] == 1, f"{name} of one image expected, got {list(value.shape)}"
            if not torch.isfinite(value).all():
                raise ValueError(f"the {name} of {image_path} are not finite; they are not cached. Check the weights")
            half = value.half()
            tensors[name] = (value if self.exact or not torch.isfinite(half).all() else half).contiguous()
        write_bytes(self.path(image_path), save(tensors, metadata={"fingerprint": self.fingerprint}))
        device = features.sam_embeddings.device
        return ImageFeatures(*(t.float().to(device) for t in tensors.values()))

    def size(self) -> CacheSize:
        """Number of images and bytes stored for this fingerprint."""
        files = list(self.folder.glob("*/*.safetensors"))
        return CacheSize(len(files), sum(f.stat().st_size for f in files))
