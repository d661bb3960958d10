"""Any picture a user may hand over, as the upright RGB image that a person sees. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from aura.formats.decoding import as_rgb, check_size, read_picture, to_8_bits


def open_photo(source: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """``source`` as an upright RGB image; masks of an answer refer to it.

    Unlike :func:`aura.data.images.load_image`, which serves annotated data and keeps the stored pixels, this applies
    the EXIF orientation. The rest is as :mod:`aura.formats.decoding` says.

    Args:
        source: File, PIL image, or array: uint8 or uint16, [H, W], [H, W, 1] (grey), [H, W, 3] (RGB) or [H, W, 4]
            (RGBA).

    Raises:
        ValueError: A file (named) that is missing or damaged, an image beyond 100 megapixels or 100 times as long as
            wide, or another kind of array.
    """
    if isinstance(source, np.ndarray):
        return check_size(_from_array(source), "the image array")
    if isinstance(source, Image.Image):
        return as_rgb(ImageOps.exif_transpose(check_size(source, "the image")))
    return read_picture(source, upright=True)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    channels = 1 if array.ndim == 2 else array.shape[-1] if array.ndim == 3 else 0
    if array.dtype not in (np.uint8, np.uint16) or channels not in (1, 3, 4) or array.size == 0:
        raise ValueError(
            f"an image array must be uint8 or uint16, [H, W], [H, W, 3] (RGB) or [H, W, 4] (RGBA), "
            f"got {array.dtype} {list(array.shape)}"
        )
    return as_rgb(Image.fromarray(to_8_bits(array)))
