"""Any picture a user may hand over, as the upright RGB image that a person sees. Imports no torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_MEGAPIXELS = 100
MAX_ASPECT = 100


def open_photo(source: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """``source`` as an upright RGB image; masks of an answer refer to it.

    Unlike :func:`aura.data.images.load_image`, which serves annotated data and keeps the stored pixels, this applies
    the EXIF orientation. Transparent pixels become white, 16-bit grey values are divided by 256, and of an animation
    the first frame is taken.

    Args:
        source: File, PIL image, or array: uint8 or uint16, [H, W], [H, W, 1] (grey), [H, W, 3] (RGB) or [H, W, 4]
            (RGBA).

    Raises:
        ValueError: A file (named) that is missing or damaged, an image beyond 100 megapixels or 100 times as long as
            wide, or another kind of array.
    """
    if isinstance(source, np.ndarray):
        return _checked(as_rgb(_from_array(source)), "the image array")
    if isinstance(source, Image.Image):
        return as_rgb(ImageOps.exif_transpose(_checked(source, "the image")))
    path = Path(source)
    if not path.exists():
        raise ValueError(f"the image {path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} is not an image file; give one file")
    with warnings.catch_warnings():
        # The check below has its own limit and says what to do.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(path)
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path} is too large; make it smaller than {MAX_MEGAPIXELS} megapixels") from error
        except Exception as error:
            raise ValueError(f"{path} is not an image that can be read ({_reason(error)})") from error
        with image:
            _checked(image, str(path))
            if image.mode == "F":
                raise ValueError(f"{path} holds floating-point numbers; save it with 8 bits per channel")
            try:
                return as_rgb(ImageOps.exif_transpose(image))
            except Exception as error:  # decoders raise whatever a damaged file leads them to
                raise ValueError(f"{path} is damaged ({_reason(error)}); use an intact copy") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """To RGB, without PIL's clipping of 16-bit values and without the hidden colours of transparent pixels.

    Raises:
        ValueError: An image of floating-point numbers, whose range nobody knows.
    """
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its values are floating-point numbers; save it with 8 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image.load()
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    channels = 1 if array.ndim == 2 else array.shape[-1] if array.ndim == 3 else 0
    if array.dtype not in (np.uint8, np.uint16) or channels not in (1, 3, 4) or array.size == 0:
        raise ValueError(
            f"an image array must be uint8 or uint16, [H, W], [H, W, 3] (RGB) or [H, W, 4] (RGBA), "
            f"got {array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(array if array.dtype == np.uint8 else (array >> 8).astype(np.uint8))


def _checked(image: Image.Image, name: str) -> Image.Image:
    short, long = sorted(image.size)
    if short * long > MAX_MEGAPIXELS * 1_000_000:
        raise ValueError(
            f"{name} has {image.width} x {image.height} pixels; make it smaller than {MAX_MEGAPIXELS} megapixels"
        )
    if long > MAX_ASPECT * short:
        raise ValueError(f"{name} is a strip of {image.width} x {image.height} pixels; cut out the part you mean")
    return image


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
