"""A picture's file as RGB: the one way in for training, evaluation, the chat and data generation.

All of them see the same pixels: transparent ones are white, deep values are brought to 8 bits, and of an animation the
first frame is taken. A camera's EXIF orientation is left alone unless asked for, since masks of annotated data refer to
the stored pixels.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_MEGAPIXELS, MAX_ASPECT = 100, 100
"""Larger pictures, and those so many times as long as wide, are refused before they are decoded."""
FORMATS = ["AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"]
"""The kinds that hold pixels; others that Pillow knows run programs of the machine (EPS) or are hardly met."""
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def read_picture(path: str | Path, context: str = "", *, upright: bool = False) -> Image.Image:
    """The decoded file as RGB.

    Args:
        path: The file.
        context: Prefix of every message, such as ``"image 17: "``.
        upright: Apply the EXIF orientation.

    Raises:
        ValueError: The file (named) is missing, damaged, too large, or of a kind that cannot be read.
    """
    with open_picture(path, context) as picture:
        return decoded(picture, f"{context}{path}", upright=upright)


def open_picture(path: str | Path, context: str = "") -> Image.Image:
    """The file with its header read and its size checked, not decoded; errors as :func:`read_picture`."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{context}the image {path} does not exist; check its name and the image folder")
    if not path.is_file():
        raise ValueError(f"{context}{path} is not an image file; give one file")
    return open_stream(path, f"{context}{path}")


def open_stream(source: Path | BinaryIO, name: str) -> Image.Image:
    """As :func:`open_picture`, of a file that is there or of its bytes; ``name`` is for messages."""
    try:
        return check_size(_open(source), name)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large; make it smaller than {MAX_MEGAPIXELS} megapixels") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} cannot be decoded ({_kind(source)}); save it as PNG or JPEG") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{name} cannot be decoded (damaged: {_reason(error)}); use an intact copy") from error


def decoded(picture: Image.Image, name: str, *, upright: bool = False) -> Image.Image:
    """An opened picture as RGB, with all its pixels; errors as :func:`read_picture`, with ``name``."""
    return as_rgb(loaded(picture, name, upright=upright), name)


def loaded(picture: Image.Image, name: str, *, upright: bool = False) -> Image.Image:
    """An opened picture in its own mode, with all its pixels; errors as :func:`decoded`."""
    try:
        picture.load()
        return ImageOps.exif_transpose(picture) if upright else picture
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise ValueError(f"{name} cannot be decoded (damaged: {_reason(error)}); use an intact copy") from error


def as_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """To RGB, without Pillow's clipping of deep values and without the hidden colours of transparent pixels.

    Integers up to 255 are taken as they are, whatever room they have; those up to 65535 are divided by 256.

    Raises:
        ValueError: Numbers whose range nobody knows, or colours that Pillow cannot turn into RGB.
    """
    if image.mode.startswith("I"):
        image = Image.fromarray(to_8_bits(np.asarray(image), name))
    elif image.mode == "F":
        raise ValueError(f"{name} holds floating-point numbers; save it with 8 bits per channel")
    try:
        if image.has_transparency_data:
            image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image.load()
        return image.convert("RGB")
    except Exception as error:
        raise ValueError(f"{name} cannot be decoded ({_reason(error)}); save it as RGB") from error


def to_8_bits(values: np.ndarray, name: str = "the image") -> np.ndarray:
    """Integers as uint8: as they are if none exceeds 255, else divided by 256.

    Raises:
        ValueError: Some are negative or exceed 65535.
    """
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0 or high > 65535:
        raise ValueError(f"{name} holds numbers from {low} to {high}; save it with 8 bits per channel")
    return (values if high <= 255 else values.astype(np.int64) >> 8).astype(np.uint8)


def check_size(image: Image.Image, name: str) -> Image.Image:
    """``image``, unless it would take too much memory or is a strip; ``ValueError`` says so."""
    short, long = sorted(image.size)
    if short * long > MAX_MEGAPIXELS * 1_000_000:
        raise ValueError(
            f"{name} has {image.width} x {image.height} pixels; make it smaller than {MAX_MEGAPIXELS} megapixels"
        )
    if long > MAX_ASPECT * short:
        raise ValueError(f"{name} is a strip of {image.width} x {image.height} pixels; cut out the part you mean")
    return image


def _open(source: Path | BinaryIO) -> Image.Image:
    if not isinstance(source, Path):
        source.seek(0)
    with warnings.catch_warnings():
        # check_size has its own limit and says what to do.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(source, formats=_formats())


@cache
def _formats() -> list[str]:
    if find_spec("pillow_heif") is not None:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _kind(source: Path | BinaryIO) -> str:
    """What a file is that Pillow does not know."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(16)
    else:
        source.seek(0)
        start = source.read(16)
    if start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS:
        return "a HEIC picture, as telephones make them: pip install pillow-heif"
    return "no kind of picture that is known" if start else "the file is empty"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
