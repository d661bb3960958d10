"""How other tools write the same things: accepted where it can mean one thing only, else named with its record."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aura.formats.layouts import regions_of
from aura.formats.reading import to_rle, truth
from aura.formats.sources import AnnotationFile, load_cocoa_cls
from aura.masks import decode_rle, encode_rle

H, W = 20, 30
CUP = np.zeros((H, W), bool)
CUP[2:12, 2:12] = True
SQUARE = [2, 2, 12, 2, 12, 12, 2, 12]
PAIRS = [[2, 2], [12, 2], [12, 12], [2, 12]]
FOUND = to_rle([SQUARE], (H, W))


@pytest.fixture
def content() -> dict:
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "height": H, "width": W}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": encode_rle(CUP), "visible_mask": encode_rle(CUP)}
        ],
    }


@pytest.fixture
def load(tmp_path, content):
    def write_and_load(mark: bytes = b""):
        path = tmp_path / "annotations.json"
        path.write_bytes(mark + json.dumps(content).encode())
        return load_cocoa_cls(path)

    return write_and_load


@pytest.mark.parametrize(
    "notation",
    [
        SQUARE,
        PAIRS,
        [PAIRS],
        [tuple(SQUARE)],
        [[str(value) for value in SQUARE]],
        [[[2.0, 2.0], [12.0, 2.0], [12.0, 12.0], [2.0, 12.0]]],
        [FOUND],
        {**FOUND, "size": [20.0, "30"]},
    ],
    ids=repr,
)
def test_masks_that_can_mean_one_thing_only(notation):
    assert to_rle(notation, (H, W)) == FOUND


def test_pairs_of_several_polygons_are_their_union():
    other = [[20, 2], [25, 2], [25, 9]]
    assert to_rle([PAIRS, other], (H, W)) == to_rle([SQUARE, [20, 2, 25, 2, 25, 9]], (H, W))


@pytest.mark.parametrize(
    ("notation", "told"),
    [
        ([[0.1, 0.1, 0.4, 0.1, 0.4, 0.6]], "between 0 and 1"),
        ([[2, 2, 10, 10]], "is it a box"),
        ([[[2, 2], [12, 2]]], "at least three"),
        ([[[2, 2], [12, 2], 5, 5]], "mixes points and numbers"),
        ([{"x": 2, "y": 2}, {"x": 12, "y": 2}, {"x": 12, "y": 12}], r"objects with \['x', 'y'\]"),
        ([FOUND, FOUND], "a list of 2 RLEs"),
        ([[2, 2, 12, None, 12, 12]], "not None"),
        ([[2, 2, True, 2, 12, 12]], "not True"),
        ({"size": [W, H], "counts": FOUND["counts"]}, "sides are swapped"),
        ({"size": [H, W], "counts": str(FOUND["counts"].encode())}, "bytes written as text"),
        ("mask.png", "not a str"),
    ],
)
def test_masks_that_could_mean_several_things_are_named(notation, told):
    with pytest.raises(ValueError, match=told):
        to_rle(notation, (H, W))


@pytest.mark.parametrize(
    "points",
    [
        [[2, 2, -3.5e8, 2, 12, 12]],
        [[2, 2, 1e300, 2, 12, 12]],
        [[2, 2, 10**400, 2, 12, 12]],
        [[2, 2, "1e999", 2, 12, 12]],
        [[2, 2, float("nan"), 2, 12, 12]],
        [[-500, 2, 600, 12] * 1_000_000],
    ],
    ids=["far", "huge", "beyond floats", "text", "nan", "scribble"],
)
def test_numbers_are_bounded_before_they_reach_the_mask_library(points):
    with pytest.raises(ValueError, match=r"far outside|number of pixels|pixels long"):
        to_rle(points, (H, W))


def test_whole_numbers_in_other_clothes(load, content):
    content["images"][0].update(id="7", height=20.0, width="30")
    content["annotations"][0].update(id=1.0, image_id=7.0, category_id="1", iscrowd="false", occlude_rate="0.0")
    (image,) = load()
    assert (image.image_id, image.height, image.width) == (7, H, W)
    assert [type(n) for n in (image.image_id, image.height, image.width, image.objects[0].id)] == [int] * 4
    assert image.objects[0].visible == encode_rle(CUP)


@pytest.mark.parametrize("value", [20.5, True, None, "twenty", [20], 1e300])
def test_what_is_no_whole_number_is_named(load, content, value):
    content["images"][0]["height"] = value
    with pytest.raises(ValueError, match=r"annotations.json: image 7: 'height' must be a whole number of at least 1"):
        load()


@pytest.mark.parametrize("number", [2**63, 2**63 + 1, 10**29])
def test_ids_beyond_63_bits_are_named(load, content, number):
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = number
    with pytest.raises(ValueError, match=r"'images' item 0: a whole number is too large .*below 2\^63"):
        load()
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = str(number)
    with pytest.raises(ValueError, match=f"image {number}: 'id' is {number}, which is too large"):
        load()


@pytest.mark.parametrize("crowd", [1, 1.0, True, "1", "true", "True", "yes"])
def test_truth_in_other_clothes(load, content, crowd):
    content["annotations"][0]["iscrowd"] = crowd
    assert load()[0].objects == ()


@pytest.mark.parametrize("crowd", ["maybe", 2, [], {}])
def test_what_is_no_truth_is_named(load, content, crowd):
    content["annotations"][0]["iscrowd"] = crowd
    with pytest.raises(ValueError, match="annotation 1: 'iscrowd' must be true or false"):
        load()


def test_absent_is_false():
    assert truth(None) is False


@pytest.mark.parametrize("empty", [None, "absent"])
def test_an_absent_visible_mask_means_in_full_view(load, content, empty):
    content["annotations"][0].update(visible_mask=None, occlude_rate=0)
    if empty == "absent":
        del content["annotations"][0]["visible_mask"]
    assert load()[0].objects[0].occlusion_rate == 0


def test_an_empty_visible_mask_is_what_the_rate_says(load, content):
    annotation = content["annotations"][0]
    annotation.update(visible_mask=[], occlude_rate=0)
    assert load()[0].objects[0].occlusion_rate == 0
    annotation.update(occlude_rate=1.0)
    assert load()[0].objects == ()
    del annotation["occlude_rate"]
    annotation["invisible_mask"] = None
    with pytest.raises(ValueError, match="annotation 1: 'visible_mask' is empty, which can mean"):
        load()


@pytest.mark.parametrize("rate", ["0.4", 0.4])
def test_a_rate_written_as_text_counts(load, content, rate):
    del content["annotations"][0]["visible_mask"]
    content["annotations"][0]["occlude_rate"] = rate
    with pytest.raises(ValueError, match=r"annotation 1: 'occlude_rate' is 0\.4 but there is no visible"):
        load()


def test_a_byte_order_mark_is_passed_over_and_utf_16_named(tmp_path, load, content):
    assert load(b"\xef\xbb\xbf")[0].image_id == 7
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content), encoding="utf-16")
    with pytest.raises(ValueError, match=r"other.json: is not JSON \(it is UTF-16; save it as UTF-8\)"):
        AnnotationFile(path)


def test_backslashes_are_windows_slashes(load, content):
    content["images"][0]["file_name"] = "train\\a.jpg"
    assert load()[0].file_name == "train/a.jpg"


def test_orders_and_stuff_in_other_clothes():
    told: list[tuple[str, str]] = []
    regions = [
        {"name": "cup", "order": "1", "isStuff": "0"},
        {"name": "table", "order": 2.0, "isStuff": False},
        {"name": "grass", "order": 3, "isStuff": "1"},
        {"name": "sky", "order": 4, "isStuff": "perhaps"},
    ]
    records = [
        {"id": 1, "image_id": "7", "regions": regions, "depth_constraint": "1-2"},
        {"id": 2, "image_id": 7, "regions": regions},
    ]
    found = regions_of(
        records, with_stuff=False, bad=lambda *at: told.append(at), note=lambda at, _: told.append((at, "note"))
    )
    (_, first), (_, second) = found
    assert [(r.record["name"], r.behind) for r in first] == [("cup", (2,)), ("table", ())] and not second
    assert ("annotation 1, region 4", "'isStuff' must be true or false, got 'perhaps'") in told


def test_sizes_that_no_picture_has_allocate_nothing():
    for size, counts in (([2**31, 2**31], "0"), ([0, 7], [0, 0]), ([-1, -1], [1]), ([10**6, 10**6], [10**12])):
        with pytest.raises(ValueError, match="images have 1 to"):
            decode_rle({"size": size, "counts": counts})
    with pytest.raises(ValueError, match="longer than any picture"):
        decode_rle({"size": [H, W], "counts": "o" * 20 + "0"})
