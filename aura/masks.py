"""Masks as arrays, COCO run-length encodings (RLE), polygons and boxes.

Everything here works on ``bool`` arrays [H, W] and on COCO RLEs, ``{"size": [H, W], "counts": str}`` with the pixels
counted down the columns (pycocotools' format). Needs numpy and pycocotools only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from aura.types import Rle

BoolMask = NDArray[np.bool_]


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
        polygons: A list of polygons ``[x1, y1, x2, y2, ...]`` in pixels, or **one** such flat list as in COCOA
            (``docs/formats.md``).
        height, width: Size of the image.

    Raises:
        ValueError: No polygon, an odd number of coordinates, or fewer than three points.
    """
    if len(polygons) == 0:
        raise ValueError("the segmentation has no polygon")
    nested = [polygons] if isinstance(polygons[0], (int, float)) else polygons
    outlines = []
    for polygon in nested:
        if not isinstance(polygon, Sequence) or isinstance(polygon, str):
            raise ValueError(f"a polygon is a list of coordinates [x1, y1, x2, y2, ...], not {polygon!r:.60}")
        if len(polygon) % 2 or len(polygon) < 6:
            raise ValueError(f"a polygon needs at least three x, y pairs, this one has {len(polygon)} coordinates")
        outlines.append([float(value) for value in polygon])
    parts = coco_mask.frPyObjects(outlines, height, width)
    return np.ascontiguousarray(coco_mask.decode(coco_mask.merge(parts))).view(bool)


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
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"an RLE has 'size' [height, width] and 'counts', not {dict(rle)!r:.80}") from error
    if isinstance(counts, (list, tuple)):
        if not all(isinstance(run, int) and not isinstance(run, bool) and run >= 0 for run in counts):
            raise ValueError("the runs of the RLE must be whole numbers, none of them negative")
        total = sum(counts)
        if total != height * width:
            raise ValueError(f"the runs of the RLE add up to {total} pixels, its size is {height} x {width}")
        plain = {"size": [height, width], "counts": list(counts)}
        compressed: dict[str, Any] = coco_mask.frPyObjects(plain, height, width)
        return compressed
    if isinstance(counts, str):
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
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 31) << (5 * np.minimum(place, 12)), starts)
    negative = (codes[ends] & 16) != 0
    values[negative] -= np.int64(1) << (5 * (ends - starts + 1))[negative]
    # run i is stored as the difference to run i - 2, from i = 3 on: undo it for odd and even runs apart
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    if runs.min() < 0:
        raise ValueError("the counts of the RLE are damaged: a run has a negative length")
    return int(runs.sum())
