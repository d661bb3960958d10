"""Masks in files of their own: pictures (PNG, JPEG) or arrays (npz, npy), named after what they are of.

The names are those of :mod:`aura.formats.names`. LISA's ``chat.py`` writes such pictures; methods that save nothing are
asked for them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aura.formats.decoding import loaded, open_stream
from aura.formats.results.found import FoundMask, as_arrays, by_name, mask_of_array, once
from aura.masks import encode_rle
from aura.types import Rle

PICTURES, ARRAYS = (".png", ".jpg", ".jpeg"), (".npz", ".npy")
_OVERLAY = re.compile(r".*_masked_img_\d+")
"""LISA writes the masked picture beside each mask."""
_KEYS = ("masks", "annotation_ids", "scores", "category_ids")


def read_mask_folder(path: str | Path) -> list[FoundMask]:
    """The masks of a folder, in the order of their names.

    A picture is one mask: of a PNG all that is not 0, of a JPEG, which is blurred, all above half of its largest value.
    An array is [H, W] or [N, H, W]; in a ``.npz`` it is called ``masks``, or is alone. With ``annotation_ids`` [N]
    beside it each mask is of that annotation; ``scores`` [N] and ``category_ids`` [N] go with masks of an image.

    Raises:
        ValueError: No such folder or no mask in it, a file that cannot be read or is no mask, or a mask given twice.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder}: is no folder; give the one with the masks ({', '.join(PICTURES + ARRAYS)})")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES + ARRAYS)
    files = [file for file in files if not _OVERLAY.fullmatch(file.stem)]
    if not files:
        raise ValueError(f"{folder}: has no masks ({', '.join(PICTURES + ARRAYS)}); is it the right folder?")
    return once((found for file in files for found in _masks_of(file)), folder)


def _masks_of(file: Path) -> Iterator[FoundMask]:
    if file.suffix.lower() in PICTURES:
        yield from by_name(file.stem, [(str(file), _picture(file))], str(file))
        return
    arrays = _arrays(file)
    masks = [(f"{file}: mask {n}", array) for n, array in enumerate(as_arrays(arrays["masks"], str(file)))]
    encoded = [(where, mask_of_array(array, where)) for where, array in masks]
    beside = {key: _numbers(arrays[key], len(masks), f"{file}: '{key}'") for key in _KEYS[1:] if key in arrays}
    if "annotation_ids" in beside:
        ids = [int(number) for number in beside["annotation_ids"]]
        yield from (FoundMask(where, mask, annotation=n) for (where, mask), n in zip(encoded, ids, strict=True))
        return
    for n, found in enumerate(by_name(file.stem, encoded, str(file))):
        if found.image is None:
            yield found
            continue
        category = int(beside["category_ids"][n]) if "category_ids" in beside else None
        score = float(beside["scores"][n]) if "scores" in beside else 1.0
        yield FoundMask(found.where, found.mask, image=found.image, category=category, score=score)


def _picture(file: Path) -> Rle:
    try:
        with open_stream(file, "") as picture:
            lossy = picture.format == "JPEG"
            pixels = np.asarray(loaded(picture, ""))
    except ValueError as error:
        reason = str(error).strip().partition(";")[0]
        raise ValueError(f"{file}: cannot be read as a picture ({reason}); write the mask again") from error
    if pixels.ndim == 3:
        if not (pixels[:, :, :1] == pixels[:, :, :3]).all():
            raise ValueError(f"{file}: is a coloured picture; a mask has one channel, or the same in all")
        pixels = pixels[:, :, 0]
    if lossy:
        return encode_rle(2 * pixels.astype(np.int64) > pixels.max())
    return mask_of_array(pixels, str(file))


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name, ``masks`` among them; nothing is unpickled."""
    try:
        loaded = np.load(file, allow_pickle=False)
        arrays = {"masks": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: cannot be read as arrays ({error}); save it with numpy.savez") from error
    if "masks" not in arrays and len(arrays) == 1:
        arrays = {"masks": next(iter(arrays.values()))}
    unknown = [key for key in arrays if key not in _KEYS]
    if "masks" not in arrays or unknown:
        raise ValueError(f"{file}: has the arrays {sorted(arrays)}; 'masks' and, if you like, {_KEYS[1:]} are read")
    return arrays


def _numbers(array: NDArray[Any], count: int, where: str) -> NDArray[Any]:
    if array.shape != (count,) or array.dtype.kind not in "iuf":
        raise ValueError(
            f"{where} is {array.dtype} {list(array.shape)}; it must hold a number for each of {count} masks"
        )
    return array
