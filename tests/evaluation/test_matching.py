"""Masks of other methods find the objects they are for, or an error names the file, the record and the remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aura.evaluation.matching import match
from aura.evaluation.scoring import load_predictions, save_predictions, score
from aura.formats.results.found import FoundMask
from aura.masks import encode_rle
from aura.types import AmodalObject, Conversation, Sample, Turn

SIZE = (20, 30)
CATEGORIES = {6: "bus", 2: "tree"}


def box(top: int, left: int, bottom: int, right: int) -> dict:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return encode_rle(mask)


SEEN, WHOLE, FRONT = box(0, 0, 10, 5), box(0, 0, 10, 10), box(0, 5, 20, 10)
BUS, TREE = AmodalObject(7, "bus", SEEN, WHOLE, 0.5), AmodalObject(8, "tree", FRONT, FRONT, 0.0)
UNASKED = AmodalObject(9, "bus", box(12, 12, 20, 30), box(12, 12, 20, 30), 0.0)


@pytest.fixture
def dataset() -> list[Sample]:
    both = Turn("What is there?", "A bus [SEG] and a tree [SEG].", (7, 8))
    again = Turn("What can I ride?", "The bus [SEG].", (7,))
    conversations = (Conversation(3, (both, again)), Conversation(5, (Turn("A cat?", "No."),)))
    return [
        Sample(1, Path("x/COCO_val_000000000001.jpg"), *SIZE, (BUS, TREE, UNASKED), conversations),
        Sample(2, Path("y/two.jpg"), 4, 4, (), ()),
    ]


def in_image(mask: dict, category: int | None = None, score: float = 1.0, image: int | str = 1, number: int = 0):
    return FoundMask(f"r.json: result {number}", mask, image=image, category=category, score=score)


def places(matching) -> dict:
    return {(p.conversation_id, p.turn, p.index): (p.visible, p.amodal) for p in matching.predictions}


def test_by_question(dataset):
    found = [FoundMask("a", SEEN, question=(3, 0)), FoundMask("b", FRONT, question=(3, 0), place=1)]
    matching = match(dataset, CATEGORIES, visible=found)
    assert matching.policy == "by question" and places(matching) == {(3, 0, 0): (SEEN, None), (3, 0, 1): (FRONT, None)}
    assert (matching.num_asked, matching.num_answered, matching.num_used) == (3, 2, 2)
    assert "2 of 2 masks stand for 2 of 3 asked places" in matching.line()


def test_both_kinds_go_together_by_key_and_what_is_missing_is_empty(dataset):
    visible = [FoundMask("a", SEEN, question=(3, 0)), FoundMask("b", FRONT, question=(3, 0), place=1)]
    amodal = [FoundMask("c", WHOLE, question=(3, 1)), FoundMask("d", WHOLE, question=(3, 0))]
    empty = box(0, 0, 0, 0)
    assert places(match(dataset, CATEGORIES, visible=visible, amodal=amodal)) == {
        (3, 0, 0): (SEEN, WHOLE),
        (3, 0, 1): (FRONT, empty),
        (3, 1, 0): (empty, WHOLE),
    }


def test_by_annotation_id_wherever_the_object_is_asked_for(dataset):
    found = [FoundMask("a", WHOLE, annotation=7), FoundMask("b", FRONT, annotation=9)]
    matching = match(dataset, CATEGORIES, amodal=found)
    assert matching.policy == "by annotation id"
    assert places(matching) == {(3, 0, 0): (None, WHOLE), (3, 1, 0): (None, WHOLE)}
    assert (matching.num_masks, matching.num_used, matching.num_answered) == (2, 1, 2)


def test_by_best_visible_iou_and_category_with_the_amodal_mask_of_the_same_record(dataset):
    near = box(0, 0, 10, 6)  # IoU 5/6 with the bus
    visible = [in_image(near, 6, 0.9), in_image(SEEN, 2, 0.8), in_image(SEEN, 6, 0.3), in_image(FRONT, 2, 0.2)]
    amodal = [in_image(m, *rest) for m, *rest in ((FRONT, 6, 0.9), (FRONT, 2, 0.8), (WHOLE, 6, 0.3), (SEEN, 2, 0.2))]
    matching = match(dataset, CATEGORIES, visible=visible, amodal=amodal)
    assert matching.policy == "by best visible IoU and category"
    assert places(matching) == {(3, 0, 0): (SEEN, WHOLE), (3, 1, 0): (SEEN, WHOLE), (3, 0, 1): (FRONT, SEEN)}
    sure = match(dataset, CATEGORIES, visible=visible, amodal=amodal, min_score=0.5)
    assert sure.policy == "by best visible IoU and category, score at least 0.5"
    assert places(sure) == {(3, 0, 0): (near, FRONT), (3, 1, 0): (near, FRONT)}


def test_a_mask_serves_one_object_and_no_overlap_is_no_pair(dataset):
    covers_both = box(0, 0, 20, 10)  # IoU 50 / 200 with the bus, 100 / 200 with the tree
    assert places(match(dataset, {}, visible=[in_image(covers_both)])) == {(3, 0, 1): (covers_both, None)}
    assert match(dataset, {}, visible=[in_image(box(19, 29, 20, 30))]).predictions == []
    assert match(dataset, {}, visible=[in_image(covers_both)]).policy == "by best visible IoU"


def test_of_equal_masks_the_surer_one_is_taken(dataset):
    visible = [in_image(SEEN, 6, 0.1), in_image(SEEN, 6, 0.9)]
    amodal = [in_image(SEEN, 6, 0.1), in_image(WHOLE, 6, 0.9)]
    assert places(match(dataset, CATEGORIES, visible=visible, amodal=amodal))[3, 0, 0] == (SEEN, WHOLE)


def test_amodal_masks_alone_are_compared_with_amodal_masks(dataset):
    matching = match(dataset, CATEGORIES, amodal=[in_image(SEEN, 6), in_image(WHOLE, 6)])
    assert matching.policy == "by best amodal IoU and category" and places(matching)[3, 0, 0] == (None, WHOLE)
    unknown = Sample(1, Path("a.jpg"), *SIZE, (AmodalObject(7, "bus", SEEN, None, None),), dataset[0].conversations[1:])
    asks = Sample(3, Path("b.jpg"), *SIZE, unknown.objects, (Conversation(9, (Turn("What?", "It [SEG].", (7,)),)),))
    assert match([asks], CATEGORIES, amodal=[in_image(SEEN, 6, image=3)]).predictions == []


@pytest.mark.parametrize("name", [1, "1", "COCO_val_000000000001", "x/COCO_val_000000000001.jpg", "000000000001"])
def test_images_by_id_or_by_name(dataset, name):
    assert len(match(dataset, {}, visible=[in_image(SEEN, image=name)]).predictions) == 2


@pytest.mark.parametrize(
    ("visible", "amodal", "message"),
    [
        ([in_image(SEEN, image=4)], None, "result 0: image 4: the data set has no such image; name images of --data"),
        ([in_image(SEEN, image="b.jpg")], None, "result 0: image 'b.jpg': the data set has no such image"),
        ([in_image(SEEN, image=2)], None, r"result 0: the visible mask is \[20, 30\] but image 2 is \[4, 4\]"),
        (None, [FoundMask("a.png", box(0, 0, 1, 1) | {"size": [30, 20]}, annotation=7)], "a.png: the amodal mask is"),
        ([in_image(SEEN, 5)], None, "result 0: the data set has no category 5; scripts/export_dataset.py keeps"),
        ([in_image(SEEN, 6), in_image(SEEN, number=1)], None, "result 1: names no category, others do"),
        ([FoundMask("a.png", SEEN, annotation=99)], None, "a.png: the data set has no annotation 99; give the file"),
        ([FoundMask("a.png", SEEN, question=(4, 0))], None, "a.png: the data set has no conversation 4 with a turn 0"),
        ([FoundMask("a.png", SEEN, question=(3, 2))], None, "a.png: the data set has no conversation 3 with a turn 2"),
        (
            [FoundMask("a.png", SEEN, annotation=7), in_image(SEEN)],
            None,
            "result 0: is known by its image, a.png by its",
        ),
        ([FoundMask("a.png", SEEN, annotation=7)], [in_image(SEEN)], "result 0: is known by its image, a.png by its"),
        ([in_image(SEEN, 6)], [in_image(WHOLE, 6), in_image(WHOLE, 6)], "has 1 masks .* and the amodal one 2"),
        ([in_image(SEEN, 6)], [in_image(WHOLE, 2)], "result 0 is of another image, category or score than"),
    ],
)
def test_what_does_not_go_together_is_named(dataset, visible, amodal, message):
    with pytest.raises(ValueError, match=message) as error:
        match(dataset, CATEGORIES, visible=visible, amodal=amodal)
    assert "\n" not in str(error.value)


def test_two_images_of_one_name_are_named(dataset):
    twin = Sample(3, Path("z/two.jpg"), 4, 4, (), ())
    with pytest.raises(ValueError, match=r"it is the name of images \[2, 3\]"):
        match([*dataset, twin], {}, visible=[in_image(SEEN, image="two.jpg")])


def test_matched_masks_score_as_the_same_predictions_of_our_own_form(dataset, tmp_path):
    found = [FoundMask("a", SEEN, annotation=7), FoundMask("b", FRONT, annotation=8)]
    matching = match(dataset, CATEGORIES, visible=found, amodal=found)
    save_predictions(tmp_path / "ours.json", matching.predictions)
    direct, again = score(dataset, matching.predictions), score(dataset, load_predictions(tmp_path / "ours.json"))
    assert direct.objects == again.objects
    assert direct.as_dict()["visible"]["giou_object"] == 1
    assert direct.as_dict()["amodal"]["giou_object"] == pytest.approx((0.5 + 1 + 0.5) / 3)
