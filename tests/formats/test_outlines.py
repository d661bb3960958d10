"""Polygons of a mask fill to the same pixels, by OpenCV as LISA calls it and by a rasteriser of our own."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from aura.formats.outlines import exact_polygons


def as_lisa_draws(polygons, shape) -> np.ndarray:
    """As LISA's ``get_mask_from_json`` draws shapes: the line, then the inside, one shape after another."""
    drawn = np.zeros(shape, np.uint8)
    for points in polygons:
        cv2.polylines(drawn, np.array([points], np.int32), True, 1, 1)
        cv2.fillPoly(drawn, np.array([points], np.int32), 1)
    return drawn.astype(bool)


def by_hand(polygons, shape) -> np.ndarray:
    """The same rule in plain numpy: the pixels on the line, and those with an odd number of crossings on their left.

    All lines are rows, columns and diagonals, so that it is plain which pixels they pass.
    """
    drawn = np.zeros(shape, bool)
    for points in polygons:
        crossings = np.zeros((shape[0], shape[1] + 1), np.int64)
        for (x, y), (to_x, to_y) in zip(points, [*points[1:], points[0]], strict=True):
            steps = max(abs(to_x - x), abs(to_y - y))
            assert {abs(to_x - x), abs(to_y - y)} <= {0, steps}, "neither row, column nor diagonal"
            along = np.arange(steps + 1)
            xs, ys = x + along * np.sign(to_x - x), y + along * np.sign(to_y - y)
            drawn[ys, xs] = True
            if y != to_y:  # the upper end of a step belongs to it, the lower one to the next
                upper = ys < max(y, to_y)
                np.add.at(crossings, (ys[upper], xs[upper] + 1), 1)
        drawn |= (np.cumsum(crossings, axis=1)[:, :-1] % 2).astype(bool)
    return drawn


def disc(size: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size // 2
    return np.hypot(x, y) <= radius


RING = disc(40, 17) & ~disc(40, 9)
NESTED = RING | disc(40, 5)
HOLES = disc(40, 17)
HOLES[8:30:4, 8:30:3] = False
TWO_IN_A_ROW = np.ones((7, 15), bool)
TWO_IN_A_ROW[2:5, 3:5] = TWO_IN_A_ROW[2:5, 8:12] = TWO_IN_A_ROW[3, 6] = False
DIAGONAL = np.eye(9, dtype=bool) | np.eye(9, dtype=bool)[::-1]
SINGLE, PAIR = np.zeros((5, 6), bool), np.zeros((5, 6), bool)
SINGLE[2, 3] = PAIR[4, 5] = PAIR[3, 4] = True


@pytest.mark.parametrize(
    "mask", [RING, NESTED, HOLES, TWO_IN_A_ROW, DIAGONAL, SINGLE, PAIR, np.ones((4, 5), bool), np.zeros((4, 5), bool)]
)
def test_shapes_with_holes_and_parts_come_back(mask):
    polygons = exact_polygons(mask)
    assert (as_lisa_draws(polygons, mask.shape) == mask).all() and (by_hand(polygons, mask.shape) == mask).all()
    assert all(len(points) >= 3 for points in polygons)


def test_a_part_is_one_polygon_with_its_corners_only():
    assert len(exact_polygons(NESTED)) == 2 and len(exact_polygons(HOLES)) == 1
    assert sorted(exact_polygons(np.ones((4, 5), bool))[0]) == [(0, 0), (0, 3), (4, 0), (4, 3)]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.6, 0.7, 0.9])
def test_noise_comes_back_pixel_by_pixel(share):
    generator = np.random.default_rng(int(100 * share))
    for _ in range(60):
        mask = generator.random(generator.integers(1, 24, 2)) < share
        polygons = exact_polygons(mask)
        assert (as_lisa_draws(polygons, mask.shape) == mask).all()
        assert (by_hand(polygons, mask.shape) == mask).all()
