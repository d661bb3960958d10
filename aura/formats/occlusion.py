"""Who hides whom, from run-length masks alone: nothing is decoded, so that thousands of images take seconds."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_util

from aura.types import AmodalObject, Rle

MIN_HIDDEN_PIXELS = 4
MIN_HIDDEN_FRACTION = 0.02
"""B occludes A when B's visible mask covers at least this fraction of A's amodal mask, and 4 pixels of it.

Hand-drawn masks overlap by a pixel or two along shared borders; below these limits an overlap is such noise.
"""


DEPTH_ORDER = "depth order"
"""``info["occluded_by"]`` of a data set whose occluders follow an annotated depth order instead of the masks alone."""


def intersections(rows: Sequence[Rle], columns: Sequence[Rle]) -> NDArray[np.int64]:
    """Pixels that each pair of masks shares: [len(rows), len(columns)] int64."""
    if not rows or not columns:
        return np.zeros((len(rows), len(columns)), np.int64)
    # With iscrowd = 1 pycocotools divides by the row's own area, so the count comes back exactly.
    share = np.asarray(mask_util.iou(list(rows), list(columns), [1] * len(columns)), np.float64)
    areas = mask_util.area(list(rows)).astype(np.float64)
    counts: NDArray[np.int64] = np.rint(share * areas[:, None]).astype(np.int64)
    return counts


def known_shapes(objects: Sequence[AmodalObject]) -> list[Rle]:
    """What is known of each object's shape: its amodal mask, or its visible mask where that is all."""
    return [o.visible if o.amodal is None else o.amodal for o in objects]


def hidden_pixels(objects: Sequence[AmodalObject]) -> NDArray[np.int64]:
    """``[b, a]`` = pixels of object a's invisible region that show object b: [K, K] int64, zero diagonal.

    Counts |visible(b) and amodal(a)| - |visible(b) and visible(a)|, which is right as long as visible lies in amodal.
    Of an object whose whole shape is not known, no hidden pixel is known either.
    """
    visible = [o.visible for o in objects]
    counts: NDArray[np.int64] = intersections(visible, known_shapes(objects)) - intersections(visible, visible)
    np.fill_diagonal(counts, 0)
    return counts


def occlusion_matrix(counts: NDArray[np.int64], amodal_areas: NDArray[np.int64]) -> NDArray[np.bool_]:
    """``[b, a]`` = object b occludes object a, bool [K, K], from :func:`hidden_pixels` and the amodal areas [K]."""
    return (counts >= MIN_HIDDEN_PIXELS) & (counts >= MIN_HIDDEN_FRACTION * amodal_areas[None, :])


def occluders(objects: Sequence[AmodalObject], in_front: Collection[tuple[int, int]] = ()) -> list[tuple[int, ...]]:
    """For each object the ids of those that occlude it, the one that hides most first.

    Args:
        objects: Of one image.
        in_front: Pairs of ids (nearer, farther), where an annotator gave the depth order. For these the order decides
            who hides whom, and the nearer object counts with all of its amodal mask: it hides what lies behind it even
            where a third object hides both.
    """
    if not objects:
        return []
    counts = hidden_pixels(objects)
    if in_front:
        _apply_order(counts, objects, in_front)
    areas = mask_util.area(known_shapes(objects)).astype(np.int64)
    matrix = occlusion_matrix(counts, areas)
    result = []
    for column in range(len(objects)):
        rows = sorted(
            np.flatnonzero(matrix[:, column]).tolist(), key=lambda row: (-counts[row, column], objects[row].id)
        )
        result.append(tuple(objects[row].id for row in rows))
    return result


def _apply_order(
    counts: NDArray[np.int64], objects: Sequence[AmodalObject], in_front: Collection[tuple[int, int]]
) -> None:
    """Overwrite the counts of the ordered pairs, in place."""
    amodal = known_shapes(objects)
    covered = intersections(amodal, amodal) - intersections(amodal, [o.visible for o in objects])
    rows = {o.id: row for row, o in enumerate(objects)}
    for nearer, farther in in_front:
        if nearer in rows and farther in rows:
            front, back = rows[nearer], rows[farther]
            counts[front, back], counts[back, front] = covered[front, back], 0
