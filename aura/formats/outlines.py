"""A mask as polygons that fill to the same pixels again, for formats that know polygons only.

A polygon runs through the centres of the pixels on the border, and what is drawn from it is its inside and its border
(``cv2.fillPoly`` and ``cv2.polylines``, the rule of LISA's reader; ``docs/formats.md``). Every part of the mask is one
polygon. A hole hangs on it by a bridge of no width, which runs along pixels of the mask there and back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

from aura.masks import BoolMask

Point = tuple[int, int]
"""x, y in pixels."""


def exact_polygons(mask: BoolMask) -> list[list[Point]]:
    """Polygons, one for each 8-connected part of a mask [H, W], that together fill to exactly this mask.

    Each has at least three points; those of a part of one or two pixels repeat. An empty mask has none.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    found, tree = cv2.findContours(padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    borders = [[(int(x) - 1, int(y) - 1) for x, y in border[:, 0]] for border in found]
    polygons = []
    for number, border in enumerate(borders):
        if tree[0][number][3] != -1:
            continue  # a hole, which belongs to the part around it
        holes, hole = [], int(tree[0][number][2])
        while hole != -1:
            holes.append(borders[hole])
            hole = int(tree[0][hole][0])
        polygon = _straightened(_bridged(border, holes, mask) if holes else border)
        polygons.append((polygon * 3)[:3] if len(polygon) < 3 else polygon)
    return polygons


def _bridged(outer: list[Point], holes: Sequence[list[Point]], mask: BoolMask) -> list[Point]:
    """One closed line along the outer border and around every hole.

    From the leftmost pixel of a hole's border the bridge goes left to the last pixel of the mask. That one lies on the
    border of the outside or of a hole further left, so that the bridges make a tree whose root is the outer border.
    """
    borders = [outer, *sorted(holes, key=min)]
    place: dict[Point, tuple[int, int]] = {}
    for number, border in enumerate(borders):
        for index, point in enumerate(border):
            place.setdefault(point, (number, index))
    loops: dict[int, dict[int, list[list[Point]]]] = defaultdict(lambda: defaultdict(list))
    for number in range(len(borders) - 1, 0, -1):  # what hangs on a hole lies further right and is there already
        start = min(borders[number])
        x, y = start
        while x > 0 and mask[y, x - 1]:
            x -= 1
        parent, index = place[x, y]
        assert parent < number, "a hole hangs on itself"
        first = borders[number].index(start)
        loops[parent][index].append([*_with_loops(borders[number], loops[number], first), start])
    return _with_loops(outer, loops[0], 0)


def _with_loops(border: Sequence[Point], loops: dict[int, list[list[Point]]], first: int) -> list[Point]:
    """The border from its point ``first`` on; where a loop hangs on a point, there and back."""
    line: list[Point] = []
    for index in (*range(first, len(border)), *range(first)):
        line.append(border[index])
        for loop in loops.get(index, ()):
            line += [*loop, border[index]]
    return line


def _straightened(line: Sequence[Point]) -> list[Point]:
    """The closed line without the points within its straight stretches."""
    kept: list[Point] = []
    for index, point in enumerate(line):
        before, after = line[index - 1], line[(index + 1) % len(line)]
        if _direction(before, point) != _direction(point, after) or len(line) < 3:
            kept.append(point)
    return kept


def _direction(start: Point, end: Point) -> Point:
    """Of a step along a row, a column or a diagonal."""
    return _sign(end[0] - start[0]), _sign(end[1] - start[1])


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
