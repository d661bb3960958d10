"""An image as SAM and CLIP read it: pure functions of PIL and numpy, one result on every machine.

Pretraining, training, evaluation and chat all call these very functions, so that no part sees other pixels than the
part that was trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from aura.formats.decoding import as_rgb, open_picture, read_picture
from aura.types import ImageGeometry

ClipResize = Literal["crop", "pad", "squash", "corner"]
CLIP_RESIZES = ("crop", "pad", "squash", "corner")

SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_image(source: Image.Image | np.ndarray | str | Path, context: str = "") -> Image.Image:
    """``source`` as a fully decoded RGB image, as :mod:`aura.formats.decoding` reads all of them.

    An EXIF orientation is **not** applied: masks of annotated data refer to the stored pixels. Callers that show a
    photograph to a person rotate it first (``PIL.ImageOps.exif_transpose``).

    Args:
        source: PIL image, uint8 array [H, W, 3] (RGB) or [H, W] (grey), or a file.
        context: Prefix of every error message, such as ``"image 17: "``.

    Raises:
        ValueError: A file that is missing or cannot be decoded (named), or an array of another shape or type.
    """
    if isinstance(source, Image.Image):
        return as_rgb(source, f"{context}the image")
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)):
            raise ValueError(
                f"{context}an image array must be uint8 [H, W, 3] (RGB) or [H, W] (grey), "
                f"got {source.dtype} {list(source.shape)}"
            )
        return Image.fromarray(source).convert("RGB")
    return read_picture(source, context)


def image_size(path: str | Path, context: str = "") -> tuple[int, int]:
    """(height, width) from the file's header, without decoding the pixels; errors as :func:`load_image`."""
    with open_picture(path, context) as image:
        return image.height, image.width


def sam_geometry(height: int, width: int, size: int) -> ImageGeometry:
    """Longest side to ``size``, the other rounded half up (segment-anything ``ResizeLongestSide``)."""
    scale = size / max(height, width)
    resized = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
    return ImageGeometry(original=(height, width), resized=resized, padded=size)


def sam_pixels(image: Image.Image, size: int) -> tuple[torch.Tensor, ImageGeometry]:
    """SAM's input, float32 [3, S, S], and how the image lies in it.

    Bilinear resize of the longest side to ``size`` on uint8, normalised on the 0-255 scale, and zero-padded right
    and bottom **after** normalising (segment-anything ``transforms.py``, ``sam.py``).
    """
    geometry = sam_geometry(image.height, image.width, size)
    height, width = geometry.resized
    array = _normalise(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), 1.0, SAM_MEAN, SAM_STD)
    pixels = torch.zeros(3, size, size)
    pixels[:, :height, :width] = torch.from_numpy(array)
    return pixels, geometry


def clip_pixels(
    image: Image.Image,
    size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    resize: ClipResize = "crop",
) -> torch.Tensor:
    """CLIP's input, float32 [3, P, P], resized bicubically and normalised on the 0-1 scale.

    ``crop`` brings the shortest side to P and cuts the centre (CLIP's and LISA's preprocessing: the ends of a long
    image are lost); ``pad`` brings the longest side to P and centres the image on the mean colour (zero after
    normalising); ``corner`` does so too and leaves the image in the top left corner, where SAM has it, so that a place
    is the same to both; ``squash`` brings both sides to P and loses the aspect ratio.
    """
    image = image.convert("RGB")
    if resize == "crop":
        short, long = sorted(image.size)
        long = int(size * long / short)
        width, height = (size, long) if image.width <= image.height else (long, size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    elif resize == "squash":
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    elif resize in ("pad", "corner"):
        height, width = sam_geometry(image.height, image.width, size).resized
        array = _normalise(image.resize((width, height), Image.Resampling.BICUBIC), 1 / 255, mean, std)
        pixels = torch.zeros(3, size, size)
        top, left = ((size - height) // 2, (size - width) // 2) if resize == "pad" else (0, 0)
        pixels[:, top : top + height, left : left + width] = torch.from_numpy(array)
        return pixels
    else:
        raise ValueError(f"clip_resize must be one of {', '.join(CLIP_RESIZES)}, got {resize!r}")
    return torch.from_numpy(_normalise(image, 1 / 255, mean, std))


def clip_preprocessing(folder: str | Path, *, whole_image: bool = False) -> dict[str, Any]:
    """CLIP's preprocessing as ``folder/preprocessor_config.json`` states it, as keyword arguments of ``Processor``.

    Reads ``image_mean``, ``image_std``, ``size`` and ``crop_size`` as Hugging Face writes them, and ``clip_resize``
    (one of :data:`CLIP_RESIZES`), which is ours. Without ``clip_resize``, a ``size`` of height and width without a
    crop is ``squash``, everything else ``crop``. Without the file the result is empty: CLIP's own defaults apply.
    ``whole_image`` passes over sizes and crops, which are for classifying; mean, std and ``clip_resize`` count.

    Raises:
        ValueError: An input that is not square, or a crop smaller than the resized image (the file is named).
    """
    path = Path(folder) / "preprocessor_config.json"
    if not path.is_file():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    result: dict[str, Any] = {
        f"clip_{k}": tuple(config[f"image_{k}"]) for k in ("mean", "std") if f"image_{k}" in config
    }
    if whole_image:
        return result | {key: config[key] for key in ("clip_resize",) if key in config}
    size = config.get("size", {})
    shape = {size} if isinstance(size, int) else set(size.values())
    crop = config.get("crop_size", {}) if config.get("do_center_crop", True) else {}
    shape |= {crop} if isinstance(crop, int) else set(crop.values())
    if len(shape) > 1:
        raise ValueError(f"{path}: size {size} and crop_size {crop} differ; only one square input size is supported")
    if shape:
        result["clip_image_size"] = shape.pop()
    squash = not crop and isinstance(size, dict) and "height" in size
    result["clip_resize"] = config.get("clip_resize", "squash" if squash else "crop")
    return result


def _normalise(image: Image.Image, scale: float, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    array = np.asarray(image, dtype=np.float32) * np.float32(scale)
    normal = (array - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))
