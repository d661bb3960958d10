"""Pictures that scenes are composed from: the bundled ones or any folder of cut-outs and of photographs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from aura.formats.decoding import loaded, open_picture, read_picture
from aura.mini.scenes import Background, Cutout

DEFAULT_ASSETS = Path(__file__).resolve().parents[2] / "data" / "mini_assets"
PICTURE_SUFFIXES = frozenset({".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
MAX_PICTURE_SIDE = 1280


def load_cutouts(directory: str | Path | None = None) -> list[Cutout]:
    """Read cut-outs laid out as ``category/name.png`` or ``name.png`` (the name is the category), sorted by path.

    Without ``directory``, the committed ones. A cut-out is cropped to what is opaque. ``_`` in a category is a space.

    Raises:
        ValueError: The folder is missing or empty, or a picture cannot be read or has no transparent background.
    """
    root = _existing(directory, DEFAULT_ASSETS / "cutouts", "cut-outs")
    cutouts = []
    for path in _pictures(root, "cut-outs: RGBA pictures as category/name.png or name.png"):
        with open_picture(path) as opened:
            picture = loaded(opened, str(path))
        if "A" not in picture.getbands() and "transparency" not in picture.info:
            raise ValueError(f"{path}: this picture has no alpha channel; a cut-out needs a transparent background")
        rgba = np.asarray(_no_larger(picture.convert("RGBA")))
        opaque = rgba[..., 3] >= 128
        if not opaque.any():
            raise ValueError(f"{path}: nothing in this picture is opaque")
        if opaque.all():
            raise ValueError(f"{path}: opaque everywhere; a cut-out needs a transparent background")
        rows, columns = np.flatnonzero(opaque.any(axis=1)), np.flatnonzero(opaque.any(axis=0))
        rgba = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        parts = path.relative_to(root).with_suffix("").parts
        cutouts.append(Cutout(parts[0].replace("_", " "), parts[-1], np.ascontiguousarray(rgba)))
    return cutouts


def load_backgrounds(directory: str | Path | None = None) -> list[Background]:
    """Read photographs, sorted by path. ``NAME__2.jpg`` is another picture of the photograph ``NAME``.

    Without ``directory``, the committed ones.

    Raises:
        ValueError: The folder is missing or empty, or a picture cannot be read.
    """
    root = _existing(directory, DEFAULT_ASSETS / "backgrounds", "backgrounds")
    backgrounds = []
    for path in _pictures(root, "photographs"):
        name = path.relative_to(root).with_suffix("").as_posix()
        picture = _no_larger(read_picture(path, upright=True))
        backgrounds.append(Background(name, name.split("__")[0], np.asarray(picture)))
    return backgrounds


def split_backgrounds(backgrounds: Sequence[Background]) -> dict[str, list[Background]]:
    """Deal the photographs out to train, val and test, about 70/15/15 of them; ``pretrain`` uses those of ``train``.

    The order is that of a hash of the photograph's name, so it does not depend on the folder's order.

    Raises:
        ValueError: Fewer than three photographs, so that the splits cannot all have their own.
    """
    photos = sorted({b.photo for b in backgrounds}, key=lambda photo: hashlib.sha256(photo.encode()).digest())
    if len(photos) < 3:
        raise ValueError(f"three splits without a shared background need at least 3 photographs, found {len(photos)}")
    held_out = max(1, round(0.15 * len(photos)))
    split_of = dict.fromkeys(photos, "train")
    split_of.update(dict.fromkeys(photos[:held_out], "val"))
    split_of.update(dict.fromkeys(photos[held_out : 2 * held_out], "test"))
    splits: dict[str, list[Background]] = {"train": [], "val": [], "test": []}
    for background in backgrounds:
        splits[split_of[background.photo]].append(background)
    splits["pretrain"] = splits["train"]
    return splits


def _existing(directory: str | Path | None, default: Path, what: str) -> Path:
    root = default if directory is None else Path(directory)
    if not root.is_dir():
        hint = "; the bundled pictures come with a checkout of the repository: name a folder" if not directory else ""
        raise ValueError(f"{root}: no such folder of {what}{hint}")
    return root


def _pictures(root: Path, wanted: str) -> list[Path]:
    found = (path for path in root.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())
    # Hidden files are a file manager's: macOS writes ._NAME beside each NAME.
    paths = sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))
    if not paths:
        raise ValueError(f"{root}: no pictures here; this folder should hold {wanted}")
    return paths


def _no_larger(picture: Image.Image) -> Image.Image:
    """A camera's picture of many megapixels would only cost memory."""
    picture.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE), Image.Resampling.LANCZOS)
    return picture
