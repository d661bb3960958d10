"""Masks against hand-worked pixels and against pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from aura.masks import (
    decode_rle,
    encode_rle,
    mask_area,
    mask_to_bbox,
    polygons_to_mask,
    rle_area,
    rle_bbox,
)

# . X X .
# . X X X
# . . . .
HAND = np.array([[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
HAND_RUNS = [3, 2, 1, 2, 2, 1, 1]  # down the columns: 3 out, 2 in, 1 out, 2 in, 2 out, 1 in, 1 out


def test_hand_worked_runs() -> None:
    rle = {"size": [3, 4], "counts": HAND_RUNS}
    np.testing.assert_array_equal(decode_rle(rle), HAND)
    assert rle_area(rle) == 5
    assert rle_bbox(rle) == [1, 0, 3, 2]


def test_a_round_trip_is_plain_json_and_exact() -> None:
    rle = encode_rle(HAND)
    assert rle["size"] == [3, 4] and isinstance(rle["counts"], str)
    decoded = decode_rle(rle)
    assert decoded.dtype == bool and decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, HAND)
    np.testing.assert_array_equal(decode_rle({**rle, "counts": rle["counts"].encode()}), HAND)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_same_as_pycocotools(density: float) -> None:
    rng = np.random.default_rng(int(100 * density))
    for _ in range(20):
        mask = rng.random(rng.integers(1, 80, 2)) < density
        theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        ours = encode_rle(mask)
        assert ours["counts"].encode() == theirs["counts"]
        np.testing.assert_array_equal(decode_rle(ours), mask)
        assert rle_area(ours) == mask_area(mask) == mask.sum()
        assert mask_to_bbox(mask) == rle_bbox(ours)


def test_long_runs_survive() -> None:
    mask = np.zeros((700, 900), bool)
    mask[3:690, 400:890] = True
    np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)


def test_any_number_counts_as_inside_where_it_is_not_zero() -> None:
    np.testing.assert_array_equal(decode_rle(encode_rle(HAND * 255)), HAND)
    np.testing.assert_array_equal(decode_rle(encode_rle(HAND * 0.1)), HAND)


@pytest.mark.parametrize(
    ("rle", "problem"),
    [
        ({"size": [3, 4], "counts": [3, 2]}, "add up to 5"),
        ({"size": [3, 5], "counts": encode_rle(HAND)["counts"]}, "add up to 12"),
        ({"size": [30, 40], "counts": encode_rle(HAND)["counts"]}, "add up to 12"),
        ({"size": [3, 4], "counts": ""}, "add up to 0"),
        ({"size": [3, 4], "counts": "~~~"}, "damaged"),
        ({"size": [3, 4], "counts": 7}, "not int"),
        ({"size": [3, 4], "counts": [6, "6"]}, "whole numbers"),
        ({"size": [3, 4], "counts": [13, -1]}, "none of them negative"),
        ({"size": [3, 4]}, "'counts'"),
        ({"size": 3, "counts": "1"}, "'size'"),
    ],
)
def test_damaged_encodings_are_refused(rle: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        decode_rle(rle)
    with pytest.raises(ValueError, match=problem):
        rle_area(rle)


def test_three_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        encode_rle(np.zeros((1, 3, 4), bool))


def test_polygons_nested_or_flat() -> None:
    square = [1, 1, 4, 1, 4, 3, 1, 3]
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(polygons_to_mask([square], 5, 6), expected)
    np.testing.assert_array_equal(polygons_to_mask(square, 5, 6), expected)
    two = polygons_to_mask([square, [4, 3, 6, 3, 6, 5, 4, 5]], 5, 6)
    expected[3:5, 4:6] = True
    np.testing.assert_array_equal(two, expected)


@pytest.mark.parametrize(
    ("polygons", "problem"),
    [
        ([], "no polygon"),
        ([1, 2, 3, 4], "three"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 coordinates"),
        (["1 2 3"], "list of coordinates"),
    ],
)
def test_bad_polygons(polygons: list[Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        polygons_to_mask(polygons, 5, 6)


def test_boxes_of_edges_and_of_nothing() -> None:
    assert mask_to_bbox(HAND) == [1, 0, 3, 2]
    assert mask_to_bbox(np.ones((2, 3), bool)) == [0, 0, 3, 2]
    assert mask_to_bbox(np.zeros((2, 3), bool)) == [0, 0, 0, 0]
