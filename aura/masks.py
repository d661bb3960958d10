"""Masks as arrays, COCO run-length encodings (RLE), polygons and boxes.

Everything here works on ``bool`` arrays [H, W] and on COCO RLEs, ``{"size": [H, W], "counts": str}`` with the pixels
counted down the columns (pycocotools' format). Needs numpy and pycocotools only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from aura.types import Rle

BoolMask = NDArray[np.bool_]

MAX_PIXELS = 200_000_000
"""Of an image: Pillow decodes no more."""
FAR = 20
"""A point of a polygon may lie so many image sizes away; objects do reach beyond the image, but not without end."""
MAX_OUTLINE = 2_000_000
"""Pixels along all outlines of a mask; pycocotools allocates 30 bytes for each."""


def encode_rle(mask: NDArray[Any]) -> Rle:
    """Encode a mask [H, W] (bool, or numbers where non-zero means inside) as a compressed RLE that JSON can hold."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has the shape [H, W], this array has {mask.shape}")
    rle = coco_mask.encode(np.asfortranarray(mask.astype(bool).view(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, Any]) -> BoolMask:
    """Decode an RLE to a bool mask [H, W].

    ``counts`` may be compressed (``str`` or ``bytes``) or a plain list of run lengths.

    Raises:
        ValueError: This is not an RLE, or its runs do not add up to height x width.
    """
    mask = coco_mask.decode(_compressed(rle))
    return np.ascontiguousarray(mask).view(bool)


def rle_area(rle: Mapping[str, Any]) -> int:
    """Number of pixels inside the mask; errors as :func:`decode_rle`."""
    return int(coco_mask.area(_compressed(rle)))


def rle_bbox(rle: Mapping[str, Any]) -> list[float]:
    """The tight box [x, y, width, height] in pixels, all zero for an empty mask; errors as :func:`decode_rle`."""
    return [float(value) for value in coco_mask.toBbox(_compressed(rle))]


def polygons_to_mask(polygons: Sequence[Any], height: int, width: int) -> BoolMask:
    """Rasterise polygons as COCO does: the union of their insides, bool [H, W].

    Args:
        polygons: A list of polygons, or **one** (as in COCOA, ``docs/formats.md``). A polygon is ``[x1, y1, x2, y2,
            ...]`` or ``[[x1, y1], [x2, y2], ...]``, in pixels.
        height, width: Size of the image.

    Raises:
        ValueError: No polygon, fewer than three points, a coordinate that is no number or far outside the image, or a
            notation that could mean several things.
    """
    check_size(height, width)
    if len(polygons) == 0:
        raise ValueError("the segmentation has no polygon")
    one = is_number(polygons[0]) or all(_is_pair(item) for item in polygons)
    outlines = [_outline(polygon, height, width) for polygon in ([polygons] if one else polygons)]
    length = sum(float(np.abs(np.diff(o, axis=0, append=o[:1])).max(axis=1).sum()) for o in outlines)
    if length > MAX_OUTLINE:
        raise ValueError(f"its outline is {length:.0f} pixels long, at most {MAX_OUTLINE} are drawn; is it a polygon?")
    if height * width > 1 and all(o.min() >= 0 and o.max() <= 1 for o in outlines):
        raise ValueError("all its coordinates lie between 0 and 1, as fractions of the image; write them in pixels")
    parts = coco_mask.frPyObjects([o.ravel().tolist() for o in outlines], height, width)
    return np.ascontiguousarray(coco_mask.decode(coco_mask.merge(parts))).view(bool)


def _outline(polygon: Any, height: int, width: int) -> NDArray[np.float64]:
    """A polygon's points [N, 2]."""
    if not isinstance(polygon, (list, tuple)):
        raise ValueError(f"a polygon is a list of coordinates [x1, y1, x2, y2, ...], not {polygon!r:.60}")
    if any(_is_pair(item) for item in polygon):
        if not all(_is_pair(item) for item in polygon):
            raise ValueError(f"a polygon mixes points and numbers: {polygon!r:.60}")
        polygon = [value for pair in polygon for value in pair]
    if len(polygon) % 2 or len(polygon) < 6:
        box = "; is it a box?" if len(polygon) == 4 else ""
        raise ValueError(f"a polygon needs at least three x, y pairs, this one has {len(polygon)} coordinates{box}")
    for value in polygon:
        if not is_number(value):
            raise ValueError(f"a coordinate of a polygon is a number of pixels, not {value!r:.60}")
    points = np.array([float(value) for value in polygon]).reshape(-1, 2)
    for point in points:
        if not (np.abs(point) <= FAR * np.array([width, height])).all():
            x, y = (f"{value:g}" for value in point)
            raise ValueError(f"the point ({x}, {y}) lies far outside the image of {width} x {height} (width x height)")
    return points


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_number, value))


def is_number(value: Any) -> bool:
    """Whether a value from a file is a number, or one written as text."""
    if isinstance(value, str):
        return re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", value, re.ASCII) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def whole_number(value: Any) -> int | None:
    """A value from a file as a whole number: ``96``, ``96.0`` or ``"96"``; ``None`` for anything else.

    A float beyond 2^53 is none: it may stand for several whole numbers.
    """
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[+-]?\d{1,30}\s*", value, re.ASCII) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer)):
        return None
    if isinstance(value, float):
        return int(value) if abs(value) <= 2**53 and value.is_integer() else None
    return int(value)


def check_size(height: int, width: int) -> None:
    """Refuse sizes that no picture has, before anything is allocated.

    Raises:
        ValueError: A side below 1, or more pixels than can be decoded.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"the size is {height} x {width} (height x width); images have 1 to {MAX_PIXELS} pixels")


def mask_area(mask: NDArray[Any]) -> int:
    """Number of pixels inside the mask [H, W]."""
    return int(np.count_nonzero(mask))


def mask_to_bbox(mask: NDArray[Any]) -> list[float]:
    """The tight box [x, y, width, height] in pixels of a mask [H, W]; all zero for an empty mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(columns) == 0:
        return [0.0, 0.0, 0.0, 0.0]
    x, y = int(columns[0]), int(rows[0])
    return [float(x), float(y), float(columns[-1] - x + 1), float(rows[-1] - y + 1)]


def _compressed(rle: Mapping[str, Any]) -> dict[str, Any]:
    """The RLE as pycocotools wants it (``counts`` as bytes), checked: pycocotools itself would read past the end."""
    size, counts = rle.get("size"), rle.get("counts")
    sides = [whole_number(side) for side in size] if isinstance(size, (list, tuple, np.ndarray)) else []
    if counts is None or len(sides) != 2 or sides[0] is None or sides[1] is None:
        raise ValueError(f"an RLE has 'size' [height, width] and 'counts', not {dict(rle)!r:.80}")
    height, width = sides[0], sides[1]
    check_size(height, width)
    if isinstance(counts, (list, tuple)):
        runs = [None if isinstance(run, str) else whole_number(run) for run in counts]
        if any(run is None or run < 0 for run in runs):
            raise ValueError("the runs of the RLE must be whole numbers, none of them negative")
        total = sum(run for run in runs if run is not None)
        if total != height * width:
            raise ValueError(f"the runs of the RLE add up to {total} pixels, its size is {height} x {width}")
        plain = {"size": [height, width], "counts": runs}
        compressed: dict[str, Any] = coco_mask.frPyObjects(plain, height, width)
        return compressed
    if isinstance(counts, str):
        if counts.startswith(("b'", 'b"')):
            raise ValueError("the counts are Python's bytes written as text (b'...'); write counts.decode('ascii')")
        counts = counts.encode("ascii", errors="replace")
    if not isinstance(counts, bytes):
        raise ValueError(f"the counts of an RLE are a string or a list of numbers, not {type(counts).__name__}")
    total = _total_of_runs(counts)
    if total != height * width:
        raise ValueError(f"the runs of the RLE add up to {total} pixels, its size is {height} x {width}")
    return {"size": [height, width], "counts": counts}


def _total_of_runs(counts: bytes) -> int:
    """Sum of the run lengths of a compressed RLE: LEB128-like 5-bit groups, deltas to the run before the last one."""
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if len(codes) == 0:
        return 0
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("the counts of the RLE are damaged: they hold characters that no RLE has, or end too early")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    if (ends - starts).max() >= 7:
        raise ValueError("the counts of the RLE are damaged: a run is longer than any picture")
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    negative = (codes[ends] & 16) != 0
    values[negative] -= np.int64(1) << (5 * (ends - starts + 1))[negative]
    # run i is stored as the difference to run i - 2, from i = 3 on: undo it for odd and even runs apart
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    if runs.min() < 0:
        raise ValueError("the counts of the RLE are damaged: a run has a negative length")
    return int(runs.sum())
