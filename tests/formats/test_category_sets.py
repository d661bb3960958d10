"""COCO, LVIS and PACO as questions: every object of a category, and the categories that cannot be asked for."""

from __future__ import annotations

import pytest

from aura.formats.category_sets import CategorySet, plain_name
from aura.formats.reading import Flaws
from tests.formats.asked import box, instances, written


def asked_of(source):
    return {a.image.image_id: {q.text: q.objects for q in a.questions} for a in source}


def coco(tmp_path, change=lambda content: None):
    content = instances()
    change(content)
    return written(tmp_path / "instances.json", content)


def test_every_object_of_a_category_from_left_to_right(tmp_path):
    def swapped(content):
        content["annotations"][0], content["annotations"][1] = content["annotations"][1], content["annotations"][0]

    source = CategorySet(coco(tmp_path, swapped))
    assert len(source) == 2 and source.licenses == instances()["licenses"]
    assert asked_of(source) == {
        7: {"every cup": (70, 71), "every dining table": (72,)},
        9: {"every cup": (90,)},
    }
    first = next(iter(source))
    assert [(o.id, o.category, o.supercategory, o.amodal) for o in first.image.objects] == [
        (70, "cup", "kitchen", None),
        (71, "cup", "kitchen", None),
        (72, "dining table", "furniture", None),
    ]


def test_crowds_and_crowded_images_are_not_asked_for(tmp_path):
    path = coco(tmp_path, lambda content: content["annotations"][1].update(iscrowd=1))
    assert asked_of(CategorySet(path)) == {7: {"every dining table": (72,)}, 9: {"every cup": (90,)}}
    assert asked_of(CategorySet(coco(tmp_path), most=1)) == {7: {"every dining table": (72,)}, 9: {"every cup": (90,)}}


def lvis(content):
    """Version 1: no file names, and lists of categories that are not outlined throughout."""
    for image in content["images"]:
        del image["file_name"]
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image['id']:012d}.jpg"
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [5], [47] if image["id"] == 7 else []
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    names = {"name": "cup", "synset": "cup.n.01", "synonyms": ["cup"], "def": "...", "frequency": "f"}
    content["categories"][0] |= names
    content["categories"][1] |= {"name": "coffee_table"}


def test_lvis_has_no_file_names_and_lists_of_what_is_not_outlined_throughout(tmp_path):
    source = CategorySet(coco(tmp_path, lvis))
    assert asked_of(source) == {7: {"every coffee table": (72,)}, 9: {"every cup": (90,)}}
    assert [a.image.file_name for a in source] == ["train2017/000000000007.jpg", "train2017/000000000009.jpg"]


def test_parts_are_asked_for_as_parts(tmp_path):
    def parts(content):
        content["categories"] = [{"id": 47, "name": "cup:handle"}, {"id": 67, "name": "trash_can:lid"}]

    assert asked_of(CategorySet(coco(tmp_path, parts)))[7] == {
        "every handle of the cup": (70, 71),
        "the lid of the trash can": (72,),
    }


def test_names_in_words():
    assert plain_name("trash_can") == "trash can"
    assert plain_name("bat_(animal)") == "bat" and plain_name("bat_(animal)", with_sense=True) == "bat (animal)"
    assert plain_name("car_(automobile):steering_wheel") == "steering wheel of the car"


def test_two_senses_of_a_word_stay_two_categories(tmp_path):
    def senses(content):
        content["categories"] = [{"id": 47, "name": "bat_(animal)"}, {"id": 67, "name": "bat_(sports)"}]

    assert list(asked_of(CategorySet(coco(tmp_path, senses)))[7]) == ["every bat (animal)", "every bat (sports)"]


BAD = {
    "no image": (lambda c: c["annotations"][0].update(image_id=3), "annotation 70: image 3 is not in 'images'"),
    "no category": (lambda c: c["annotations"][0].update(category_id=3), "annotation 70: category 3 is not in"),
    "no mask": (lambda c: c["annotations"][0].pop("segmentation"), "annotation 70: 'segmentation' is missing"),
    "outside": (
        lambda c: c["annotations"][0].update(segmentation=[box(5000, 0, 5001, 1)]),
        "annotation 70: the point .* lies far outside the image",
    ),
    "no name": (lambda c: c["images"][0].pop("file_name"), "image 7: 'file_name' must be a text, but it is missing"),
    "no height": (lambda c: c["images"][0].pop("height"), "image 7: 'height' must be a whole number of at least 1"),
    "bad list": (
        lambda c: c["images"][0].update(not_exhaustive_category_ids="47"),
        "image 7: 'not_exhaustive_category_ids' must be a list of whole numbers",
    ),
    "no list": (lambda c: c.pop("categories"), "'categories': expected a list, but it is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_one_error_with_file_and_record(tmp_path, case):
    change, told = BAD[case]
    with pytest.raises(ValueError, match=rf"instances\.json: {told}"):
        list(CategorySet(coco(tmp_path, change)))


def test_bad_records_can_be_left_out(tmp_path):
    def damaged(content):
        del content["images"][1]["height"]
        content["annotations"][0]["segmentation"] = None

    flaws = Flaws(skip=True)
    found = asked_of(CategorySet(coco(tmp_path, damaged), flaws=flaws))
    assert len(flaws.told) == 2 and list(found) == [7]
    assert found[7] == {"every cup": (71,), "every dining table": (72,)}
