"""ReasonSeg: shapes to masks as LISA draws them, regions to ignore, and every flaw by file and record."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from aura.formats.reading import Flaws
from aura.formats.reason_seg import ReasonSegFolder, read_explanations
from aura.masks import decode_rle
from tests.formats.asked import H, W, reason_seg, shape, square, written


@pytest.fixture
def root(tmp_path):
    return reason_seg(tmp_path / "ReasonSeg")


def redrawn(root, *shapes, **changes):
    """``val`` with the picture c alone, its shapes and other fields replaced."""
    path = root / "val" / "c.json"
    written(path, json.loads(path.read_text()) | ({"shapes": list(shapes)} if shapes else {}) | changes)
    (root / "val" / "d.jpg").unlink(missing_ok=True)
    return ReasonSegFolder(root / "val")


def test_a_picture_with_its_instructions(root):
    folder = ReasonSegFolder(root / "train")
    first, second = folder
    assert len(folder) == 2
    assert (first.image.file_name, first.image.height, first.image.width) == ("a.jpg", H, W)
    (target,) = first.image.objects
    mask = decode_rle(target.visible)
    assert mask[2:11, 4:13].all() and mask.sum() == 9 * 9  # the outline belongs to the shape
    assert target.amodal is None and target.occlusion_rate is None and first.image.ignore is None
    assert [(q.text, q.is_sentence, q.objects) for q in first.questions] == [
        ("What would keep me dry?", True, (target.id,)),
        ("Which thing helps in the rain?", True, (target.id,)),
    ]
    assert [(q.text, q.is_sentence) for q in second.questions] == [("the unusual part", False)]
    assert first.image.image_id != second.image.image_id


def test_pictures_of_two_splits_have_different_numbers(root):
    (root / "val" / "c.jpg").rename(root / "val" / "a.jpg")
    (root / "val" / "c.json").rename(root / "val" / "a.json")
    ids = [asked.image.image_id for split in ("train", "val") for asked in ReasonSegFolder(root / split)]
    assert len(set(ids)) == 4


def test_smaller_shapes_lie_on_larger_ones_whatever_their_order(root):
    """A hole in a target, a target in an ignored region, and what is marked as meaningless."""
    around = square("ignore", 0, 0, 20, 20)
    target, hole = square("target", 2, 2, 14, 14), square("Ignore region", 5, 5, 8, 8)
    flag = square("flag", 0, 0, 31, 23)
    for shapes in ([around, target, hole, flag], [flag, hole, target, around]):
        (asked,) = redrawn(root, *shapes)
        mask, ignore = decode_rle(asked.image.objects[0].visible), decode_rle(asked.image.ignore)
        assert mask.sum() == 13 * 13 - 4 * 4 and ignore.sum() == 21 * 21 - 13 * 13 + 4 * 4
        assert not (mask & ignore).any() and ignore[5:9, 5:9].all() and mask[3, 3]


def test_shapes_are_drawn_as_opencv_draws_them(root):
    """Slanted outlines with fractions, an independent composition of the two calls that LISA makes."""
    points = [(3.7, 2.2), (25.9, 6.1), (17.5, 21.4), (-4.3, 12.8)]
    (asked,) = redrawn(root, shape("target", *points))
    expected = np.zeros((H, W), np.uint8)
    whole = np.array([points], dtype=np.int32)
    cv2.polylines(expected, whole, True, 1, 1)
    cv2.fillPoly(expected, whole, 1)
    assert (decode_rle(asked.image.objects[0].visible) == expected.astype(bool)).all()


def test_the_first_instruction_and_the_kinds_of_query(root):
    first = ReasonSegFolder(root / "val", first_text_only=True)
    assert [[q.text for q in asked.questions] for asked in first] == [["What would keep me dry?"], ["the unusual part"]]
    long, short = (list(ReasonSegFolder(root / "val", queries=kind)) for kind in ("long", "short"))
    assert [a.image.file_name for a in long] == ["c.jpg"] and [a.image.file_name for a in short] == ["d.jpg"]


def test_explanations_belong_to_their_picture(root):
    folder = ReasonSegFolder(root / "train", explanations=root / "explanatory" / "train.json")
    first, second = folder
    assert {q.explanation for q in first.questions} == {"An umbrella keeps the rain off."}
    assert {q.explanation for q in second.questions} == {""}


def test_files_in_an_old_code_page_are_read(root):
    content = json.loads((root / "val" / "c.json").read_text()) | {"text": ["the café’s sign"]}
    written(root / "val" / "c.json", content, encoding="cp1252")
    assert next(iter(ReasonSegFolder(root / "val"))).questions[0].text == "the café’s sign"


BAD = {
    "no text": ({"text": []}, "'text': expected a list of at least one instruction, but it is"),
    "empty text": ({"text": ["  "]}, "'text': expected"),
    "is_sentence": ({"is_sentence": "perhaps"}, "'is_sentence': must be true or false"),
    "no shapes": ({"shapes": {}}, "'shapes': expected a list, but it is a dict"),
    "no label": ({"shapes": [{"points": [[1, 1], [2, 2], [3, 1]]}]}, "'shapes' item 0: 'label' must be a text"),
    "no points": ({"shapes": [shape("target")]}, r"'shapes' item 0: 'points' must be a list of \[x, y\]"),
    "text as point": ({"shapes": [shape("target", ("a", 1), (2, 2))]}, "'shapes' item 0: 'points' must be"),
    "outside": (
        {"shapes": [square("target", 40, 2, 50, 9)]},
        r"'shapes' item 0: it lies outside the image of 32 x 24 \(width",
    ),
    "far away": ({"shapes": [square("target", 0, 0, 1e6, 9)]}, "'shapes' item 0: a point lies far outside the image"),
    "nothing left": ({"shapes": [square("ignore", 1, 1, 9, 9)]}, "'shapes': no pixel of a target is left; add"),
    "covered": (
        {"shapes": [square("target", 2, 2, 6, 6), square("ignore", 2, 2, 6, 6)]},
        "'shapes': no pixel of a target is left",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_error_with_file_and_record(root, case):
    change, told = BAD[case]
    with pytest.raises(ValueError, match=rf"val/c\.json: {told}"):
        list(redrawn(root, **change))


def test_missing_keys_files_and_pictures(root):
    path = root / "val" / "c.json"
    content = json.loads(path.read_text())
    for key in ("text", "is_sentence", "shapes"):
        written(path, {k: v for k, v in content.items() if k != key})
        with pytest.raises(ValueError, match=rf"val/c\.json: '{key}'.*missing"):
            list(ReasonSegFolder(root / "val"))
    path.write_text("{")
    with pytest.raises(ValueError, match=r"val/c\.json: is not JSON"):
        list(ReasonSegFolder(root / "val"))
    path.unlink()
    with pytest.raises(ValueError, match=r"val/c\.json: cannot be read .* every picture has a file of its name"):
        list(ReasonSegFolder(root / "val"))
    written(path, content)
    (root / "val" / "c.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"val/c\.jpg: cannot be decoded"):
        list(ReasonSegFolder(root / "val"))
    with pytest.raises(ValueError, match=r"ReasonSeg: no NAME\.jpg there; give the folder of a split"):
        ReasonSegFolder(root)


def test_bad_pictures_can_be_left_out(root):
    written(root / "val" / "c.json", {})
    flaws = Flaws(skip=True)
    assert [a.image.file_name for a in ReasonSegFolder(root / "val", flaws=flaws)] == ["d.jpg"]
    assert len(flaws.told) == 1 and "c.json" in flaws.told[0]


def test_bad_explanations_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"train\.json: item 0: 'outputs' must be a text, but it is missing"):
        read_explanations(written(tmp_path / "train.json", [{"image": "a.jpg"}]))
    with pytest.raises(ValueError, match="expected a list of explanations, got a dict"):
        read_explanations(written(tmp_path / "train.json", {}))
