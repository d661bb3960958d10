"""RefCOCO and gRefCOCO: expressions and the objects they stand for, by split, and every flaw by file and record."""

from __future__ import annotations

import json

import pytest

from aura.formats.reading import Flaws
from aura.formats.refer import ReferFolder, belongs
from aura.masks import decode_rle
from tests.formats.asked import grefer, grefs, refer, refs, sentences, written


def asked_of(folder):
    return {asked.image.image_id: [(q.text, q.objects) for q in asked.questions] for asked in folder}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_split_of_refcoco(tmp_path, protocol):
    folder = ReferFolder(refer(tmp_path, protocol=protocol), "unc", "train")
    assert len(folder) == 2
    assert asked_of(folder) == {7: [("left cup", (70,)), ("the one at the left", (70,))], 9: [("cup", (90,))]}
    first = next(iter(folder))
    assert [(o.id, o.category, o.amodal) for o in first.image.objects] == [(70, "cup", None)]
    mask = decode_rle(first.image.objects[0].visible)
    assert mask[2:8, 2:8].all() and mask.sum() == 36
    assert first.image.file_name == "COCO_train2014_000000000007.jpg" and first.image.category_ids["cup"] == 47
    assert asked_of(ReferFolder(tmp_path, "unc", "testA")) == {7: [("right cup", (71,))]}


def test_several_objects_and_none_in_grefcoco(tmp_path):
    folder = ReferFolder(grefer(tmp_path), "unc", "val")
    assert asked_of(folder) == {7: [("both cups", (71, 70)), ("a cat", ()), ("table", (72,))]}
    assert [o.id for o in next(iter(folder)).image.objects] == [70, 71, 72]


def test_an_image_of_which_nothing_is_meant_has_no_objects(tmp_path):
    (asked,) = ReferFolder(grefer(tmp_path, grefs()[1:2]), "unc", "val")
    assert asked.image.objects == () and asked.questions[0].objects == ()


def test_masks_of_refclef_are_rles_in_a_list(tmp_path):
    refer(tmp_path)
    content = json.loads((tmp_path / "instances.json").read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = [{"size": [24, 32], "counts": [24 * 4 + 2, 6, 24 * 28 - 8]}]
    written(tmp_path / "instances.json", content)
    first = next(iter(ReferFolder(tmp_path, "unc", "train")))
    assert decode_rle(first.image.objects[0].visible)[2:8, 4].all()


def test_splits_are_those_of_refer():
    assert belongs("testA", "testA") and belongs("testAB", "testB") and belongs("testA", "test")
    assert not belongs("testA", "testB") and not belongs("train", "val") and not belongs("val", "test")


def changed(number: int = 0, **fields):
    records = refs()
    records[number] = {k: v for k, v in {**records[number], **fields}.items() if v is not ...}
    return records


BAD = {
    "not a list": ({"a": 1}, r"refs\(unc\)\.p: expected a list of refs, got a dict"),
    "not a ref": ([1], r"refs\(unc\)\.p: item 0: expected a ref, got a int"),
    "no split": (changed(split=...), r"ref 1: 'split' must be a text, but it is missing"),
    "no ref_id": (changed(ref_id=...), "item 0: 'ref_id' must be a whole number, but it is missing"),
    "no ann_id": (changed(ann_id=...), "ref 1: 'ann_id' must be a whole number, but it is missing"),
    "no image_id": (changed(image_id="x"), "ref 1: 'image_id' must be a whole number, got 'x'"),
    "no sentences": (changed(sentences=...), "ref 1: 'sentences' must be a list of at least one sentence"),
    "empty sentences": (changed(sentences=[]), "ref 1: 'sentences' must be a list of at least one"),
    "no sent": (changed(sentences=[{"raw": "A"}]), "ref 1, sentence 0: 'sent' must be a text, but it is missing"),
    "blank": (changed(**sentences(" ")), "ref 1, sentence 0: 'sent' must be a text"),
    "unknown annotation": (changed(ann_id=999), "ref 1: annotation 999 of image 7 is not in instances.json"),
    "other image's": (changed(ann_id=90), "ref 1: annotation 90 of image 7 is not in instances.json"),
    "unknown image": (changed(image_id=8), "ref 1: image 8 is not in instances.json; are the two files of one"),
    "twice": (changed(2, ref_id=1), "ref 1: the ref_id occurs twice"),
    "nothing meant": (changed(ann_id=-1), r"ref 1: 'ann_id' is -1; give annotation ids, or \[-1\] alone"),
    "some and none": (changed(ann_id=[70, -1]), r"ref 1: 'ann_id' is \[70, -1\]"),
    "empty list": (changed(ann_id=[]), r"ref 1: 'ann_id' is \[\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_ref_is_one_error_with_file_and_record(tmp_path, case):
    records, told = BAD[case]
    with pytest.raises(ValueError, match=told) as error:
        list(ReferFolder(refer(tmp_path, records=records), "unc", "train"))
    assert "refs(unc).p" in str(error.value)


def test_bad_refs_can_be_left_out(tmp_path):
    flaws = Flaws(skip=True)
    records = [*changed(ann_id=999), 3, *changed(image_id=8, ref_id=5)[:1]]
    assert asked_of(ReferFolder(refer(tmp_path, records=records), "unc", "train", flaws=flaws)) == {9: [("cup", (90,))]}
    assert len(flaws.told) == 3


def test_a_bad_sentence_leaves_the_others(tmp_path):
    flaws = Flaws(skip=True)
    folder = ReferFolder(refer(tmp_path, records=changed(**sentences("", "Left Cup "))), "unc", "train", flaws=flaws)
    assert asked_of(folder)[7] == [("left cup", (70,))]
    assert len(flaws.told) == 1 and "ref 1, sentence 0: 'sent' must be a text" in flaws.told[0]


def test_a_mask_that_is_empty_or_outside_is_told(tmp_path):
    refer(tmp_path)
    content = json.loads((tmp_path / "instances.json").read_text())
    for value, told in (
        ([], "annotation 70: 'segmentation' is missing"),
        ([[40.0, 2.0, 60.0, 2.0, 60.0, 9.0]], "ref 1: annotation 70 of image 7 .* its mask is empty"),
        ([[1e6, 2.0, 60.0, 2.0, 60.0, 9.0]], "annotation 70: the point .* lies far outside the image"),
        ({"size": [1, 2], "counts": [2]}, r"annotation 70: the RLE's size is \[1, 2\] but the image's is"),
    ):
        content["annotations"][0]["segmentation"] = value
        written(tmp_path / "instances.json", content)
        with pytest.raises(ValueError, match=told):
            list(ReferFolder(tmp_path, "unc", "train"))


def test_wrong_folders_and_splits_are_told(tmp_path):
    refer(tmp_path)
    with pytest.raises(ValueError, match=r"no refs\(google\)\.p or .* there; files of refs there: refs\(unc\)\.p"):
        ReferFolder(tmp_path, "google", "train")
    with pytest.raises(ValueError, match="no ref has the split 'dev'; the splits there are: train, testA"):
        ReferFolder(tmp_path, "unc", "dev")
    (tmp_path / "instances.json").unlink()
    with pytest.raises(ValueError, match=r"instances\.json: cannot be read"):
        ReferFolder(tmp_path, "unc", "train")
