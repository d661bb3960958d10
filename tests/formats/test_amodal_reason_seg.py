"""The data set's file: written, read, refused when malformed."""

import contextlib
import copy
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.checks import problems, shared_images
from aura.masks import decode_rle, encode_rle
from aura.mini.scenes import Scene, SceneObject
from aura.types import Conversation, Turn
from tests.scenes import annotated_image_from_scene

SIDE = 40


def image(number: int = 1, first_id: int = 10):
    """A cat in front of a bus."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    cat, bus = (columns < 15) & (rows < 20), (columns > 5) & (columns < 35) & (rows > 4) & (rows < 30)
    scene = Scene(
        np.zeros((SIDE, SIDE, 3), np.uint8), (SceneObject("bus", bus, bus & ~cat), SceneObject("cat", cat, cat)), ""
    )
    return annotated_image_from_scene(scene, number, first_id=first_id)


def dialogue(number: int = 5) -> Conversation:
    turns = (
        Turn("What could I travel in?", "You could travel in the bus [SEG].", (10,)),
        Turn("What hides it?", "The bus [SEG] is partly hidden by the cat [SEG].", (10, 11)),
    )
    return Conversation(number, turns, {"generator": "offline", "version": "1", "seed": 0})


@pytest.fixture
def dataset(tmp_path) -> AmodalReasonSeg:
    return AmodalReasonSeg.build([image()], {1: [dialogue()]}, source=tmp_path / "split.json", image_folder="pictures")


@pytest.fixture
def document(dataset) -> dict:
    return copy.deepcopy(dataset.document)


def test_what_is_saved_is_what_is_loaded(dataset, tmp_path):
    path = dataset.save()
    again = AmodalReasonSeg.load(path)
    assert len(again) == 1
    sample = again[0]
    assert sample == dataset[0]
    assert sample.image_path == tmp_path / "pictures" / "000001.jpg"
    assert sample.conversations == (dialogue(),)
    assert [(o.id, o.category, o.occluded_by) for o in sample.objects] == [(10, "bus", (11,)), (11, "cat", ())]
    assert again.save(tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_the_images_folder_can_be_given(dataset):
    path = dataset.save()
    assert AmodalReasonSeg.load(path, "/elsewhere")[0].image_path == Path("/elsewhere/000001.jpg")
    content = json.loads(path.read_text())
    del content["info"]["image_folder"]
    path.write_text(json.dumps(content))
    assert AmodalReasonSeg.load(path)[0].image_path == path.parent / "000001.jpg"


def test_pycocotools_loads_the_file(dataset):
    path = dataset.save()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
        bus = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(catNms=["bus"])))[0]
    assert (coco.annToMask(bus).astype(bool) == decode_rle(dataset[0].objects[0].amodal)).all()


def test_annotations_have_the_fields_of_cocoa_cls_and_the_two_more(dataset):
    bus, cat = dataset.document["annotations"]
    amodal, visible = decode_rle(bus["segmentation"]), decode_rle(bus["visible_mask"])
    assert (decode_rle(bus["invisible_mask"]) == (amodal & ~visible)).all()
    assert bus["area"] == amodal.sum() == 29 * 25
    assert bus["bbox"] == [6.0, 5.0, 29.0, 25.0] and bus["visible_bbox"] == [6.0, 5.0, 29.0, 25.0]
    assert bus["occlude_rate"] == pytest.approx(9 * 15 / (29 * 25))
    assert (bus["occluded_by"], bus["iscrowd"]) == ([11], 0)
    assert "invisible_mask" not in cat and cat["occluded_by"] == []


def test_categories_keep_their_numbers_and_new_ones_follow(tmp_path):
    import dataclasses

    known = dataclasses.replace(image(), category_ids={"cat": 17})
    dataset = AmodalReasonSeg.build([known], {}, source=tmp_path / "x.json")
    assert [(c["id"], c["name"]) for c in dataset.document["categories"]] == [(17, "cat"), (18, "bus")]
    clash = dataclasses.replace(image(2, 20), category_ids={"cat": 3})
    with pytest.raises(ValueError, match="category 'cat' has the number 3 here and 17"):
        AmodalReasonSeg.build([known, clash], {}, source=tmp_path / "x.json")


def test_statistics(tmp_path):
    images = [image(), image(2, 20)]
    figures = AmodalReasonSeg.build(images, {1: [dialogue()]}, source=tmp_path / "x.json").statistics()
    assert (figures["images"], figures["images_with_conversations"], figures["objects"]) == (2, 1, 4)
    assert (figures["pairs"], figures["conversations"], figures["pairs_per_image"]) == (2, 1, 1.0)
    assert figures["objects_per_answer"] == 1.5
    assert figures["objects_per_answer_histogram"] == {1: 1, 2: 1}
    assert figures["occlusion_histogram"] == [2, 2, 0, 0, 0, 0, 0, 0, 0, 0]
    assert figures["mean_occlusion_rate"] == pytest.approx(9 * 15 / (29 * 25) / 2)
    json.dumps(figures)


def annotation(document):
    return document["annotations"][0]


def turn(document):
    return document["conversations"][0]["turns"][1]


MALFORMED = {
    "no images": (lambda d: d.pop("images"), "'images': expected a list, but it is missing"),
    "no height": (lambda d: d["images"][0].pop("height"), "image 1: 'height' must be"),
    "height of text": (lambda d: d["images"][0].update(height="forty"), "image 1: 'height' must be"),
    "no file name": (lambda d: d["images"][0].pop("file_name"), "image 1: 'file_name' must be a text"),
    "no mask": (lambda d: annotation(d).pop("visible_mask"), "annotation 10: 'visible_mask' must be a compressed RLE"),
    "polygon": (lambda d: annotation(d).update(segmentation=[[1, 2, 3]]), "annotation 10: 'segmentation' must be"),
    "mask size": (
        lambda d: annotation(d)["segmentation"].update(size=[4, 4]),
        "annotation 10: the amodal mask is [4, 4]",
    ),
    "no rate": (lambda d: annotation(d).pop("occlude_rate"), "annotation 10: 'occlude_rate' must be a number"),
    "rate": (lambda d: annotation(d).update(occlude_rate=1.5), "annotation 10: 'occlude_rate' must be in [0, 1]"),
    "category": (lambda d: annotation(d).update(category_id=99), "annotation 10: category 99 is not in 'categories'"),
    "dangling": (lambda d: annotation(d).update(image_id=99), "annotation 10: image 99 is not in 'images'"),
    "occluders": (lambda d: annotation(d).update(occluded_by=["a"]), "annotation 10: 'occluded_by' must be a list"),
    "twice": (lambda d: annotation(d).update(id=11), "annotation 11: the id occurs twice"),
    "no question": (lambda d: turn(d).pop("question"), "conversation 5, turn 1: 'question' must be a text"),
    "marks": (lambda d: turn(d).update(objects=[10]), "conversation 5, turn 1: the answer has 2 [SEG] but 1 objects"),
    "objects": (lambda d: turn(d).update(objects=3), "conversation 5, turn 1: 'objects' must be a list"),
    "foreign": (lambda d: turn(d).update(objects=[10, 99]), "turn 1: annotation ids [99] are not objects"),
    "no turns": (lambda d: d["conversations"][0].update(turns=[]), "conversation 5: 'turns' must be a list"),
    "provenance": (lambda d: d["conversations"][0].update(provenance=1), "conversation 5: 'provenance' must be"),
    "not a record": (lambda d: d["conversations"].append("x"), "'conversations' item 1: expected an object"),
    "no id": (lambda d: d["conversations"][0].pop("id"), "'conversations' item 0: 'id' must be"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_give_one_error_that_names_file_and_record(document, tmp_path, case):
    damage, expected = MALFORMED[case]
    damage(document)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError) as error:
        AmodalReasonSeg.load(path)
    assert "damaged.json: " in str(error.value) and expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert problems(document), "the full check must find it too"


@pytest.mark.parametrize("key", ["question", "answer", "name"])
def test_half_a_character_is_told_with_its_record(document, tmp_path, key):
    """As a text that was cut in the middle of an emoji has it; no encoding can write it."""
    record, where = (document["categories"][0], "category 1") if key == "name" else (turn(document), "turn 1")
    record[key] += "\ud83d"
    told = rf"{where}: '{key}' holds half of a character \(U\+D83D\)"
    assert re.search(told, "\n".join(map(str, problems(document))))
    with pytest.raises(ValueError, match=rf"cut\.json: .*{told}"):
        AmodalReasonSeg(document, source=tmp_path / "cut.json")
    with pytest.raises(ValueError, match=r"the answer holds half of a character"):
        Turn("What?", "The cup \udc00.")


def test_a_sound_file_has_no_problems(document):
    assert problems(document) == []


UNSOUND = {
    "stray": (
        lambda d: annotation(d).update(visible_mask=encode_rle(np.ones((40, 40)))),
        "lie outside the amodal mask",
    ),
    "rate": (lambda d: annotation(d).update(occlude_rate=0.5), "'occlude_rate' is 0.5 but by the masks it is 0.186"),
    "area": (lambda d: annotation(d).update(area=3), "'area' is 3 but"),
    "box": (lambda d: annotation(d).update(bbox=[0, 0, 1, 1]), "'bbox' is [0, 0, 1, 1] but"),
    "visible box": (lambda d: annotation(d).pop("visible_bbox"), "'visible_bbox' is None but"),
    "occluders": (lambda d: annotation(d).update(occluded_by=[]), "'occluded_by' is [] but by the masks it is [11]"),
    "invisible": (lambda d: annotation(d).update(invisible_mask=encode_rle(np.eye(40))), "is not amodal minus visible"),
    "no invisible": (lambda d: annotation(d).pop("invisible_mask"), "'invisible_mask' is missing"),
    "empty": (lambda d: annotation(d).update(visible_mask=encode_rle(np.zeros((40, 40)))), "'visible_mask' is empty"),
    "damaged": (lambda d: annotation(d)["segmentation"].update(counts="!!"), "'segmentation': "),
    "crowd": (lambda d: annotation(d).update(iscrowd=1), "'iscrowd' must be 0"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_whatever_the_masks_deny_is_a_problem_of_that_annotation(document, case):
    damage, expected = UNSOUND[case]
    damage(document)
    found = problems(document)
    assert any(p.record == "annotation 10" and expected in p.message for p in found), found


def test_all_problems_are_listed_and_not_just_the_first(document):
    annotation(document).update(area=1, occlude_rate=0.9)
    turn(document).update(objects=[10, 99], question="")
    document["images"].append(dict(document["images"][0]))
    found = [str(p) for p in problems(document)]
    assert len(found) == 5
    assert any(p.startswith("conversation 5, turn 1: annotation 99") for p in found)


@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [3], True, -1, 1.5])
def test_no_damage_makes_the_check_fail(document, value):
    """Every field of every record replaced by nonsense in turn: problems or none, but never a crash."""
    for key in document:
        for record in document[key] if isinstance(document[key], list) else []:
            for name in list(record):
                kept, record[name] = record[name], value
                assert isinstance(problems(document), list)
                record[name] = kept
        kept, document[key] = document[key], value
        assert problems(document) or key in ("info", "licenses") or (key, value) == ("conversations", [])
        assert isinstance(shared_images(document, document), list)
        document[key] = kept
    assert problems(document) == []


def test_splits_that_share_pictures(document, tmp_path):
    other = copy.deepcopy(document)
    (found,) = shared_images(document, other)
    assert str(found) == "image 1: both splits have an image of this id and file name; keep it in one of them"
    other["images"][0].update(id=2, file_name="b.jpg")
    assert shared_images(document, other) == []
    for folder, name in (("one", "000001.jpg"), ("two", "b.jpg")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(b"picture")
    folders = (tmp_path / "one", tmp_path / "two")
    (found,) = shared_images(document, other, folders)
    assert str(found).startswith("image 2: the picture equals image 1 of the other split")
    (tmp_path / "two" / "b.jpg").write_bytes(b"another")
    assert shared_images(document, other, folders) == []
    other["images"][0]["id"] = 1
    (found,) = shared_images(document, other, folders)
    assert str(found) == "image 1: the other split has an image of this id, with another picture; change the id of one"


# --- objects whose whole shape is not known ---------------------------------------------------------------------------


@pytest.fixture
def half_known(dataset) -> dict:
    """The bus hidden by the cat, with nothing known of the bus but what can be seen."""
    found = image()
    bus, cat = found.objects
    unknown = dataclasses.replace(bus, amodal=None, occlusion_rate=None, occluded_by=())
    split = AmodalReasonSeg.build(
        [dataclasses.replace(found, objects=(unknown, cat))], {1: [dialogue()]}, source=dataset.source
    )
    return copy.deepcopy(split.document)


def test_an_unknown_shape_is_null_in_the_file_and_none_in_the_sample(half_known, dataset):
    bus = half_known["annotations"][0]
    assert bus["segmentation"] is None and bus["occlude_rate"] is None and "invisible_mask" not in bus
    assert bus["area"] == decode_rle(bus["visible_mask"]).sum() and bus["bbox"] == bus["visible_bbox"]
    assert problems(half_known) == []
    dataset.source.write_text(json.dumps(half_known))
    loaded = AmodalReasonSeg.load(dataset.source)
    assert loaded[0].objects[0].amodal is None and loaded[0].objects[0].occlusion_rate is None
    assert loaded.statistics()["objects_of_unknown_shape"] == 1
    assert loaded.statistics()["occlusion_histogram"][0] == 1  # the cat alone
    again = dataset.source.with_name("again.json")
    assert json.loads(loaded.save(again).read_text()) == half_known


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"occlude_rate": 0.4}, "'occlude_rate' must be null or absent"),
        ({"invisible_mask": encode_rle(np.eye(SIDE, dtype=bool))}, "'invisible_mask' must be null or absent"),
        ({"area": 7}, "by the visible mask it is"),
        ({"bbox": [0, 0, 1, 1]}, "'bbox' is [0, 0, 1, 1]"),
        ({"visible_mask": None}, "'visible_mask': it must be an RLE"),
    ],
)
def test_flaws_of_an_object_of_unknown_shape_are_told(half_known, change, told):
    half_known["annotations"][0].update(change)
    assert any(told in problem.message and problem.record == "annotation 10" for problem in problems(half_known))


def test_a_mask_that_is_absent_or_empty_is_not_an_unknown_shape(half_known, dataset):
    for wrong in ({}, {"segmentation": []}):
        broken = copy.deepcopy(half_known)
        del broken["annotations"][0]["segmentation"]
        broken["annotations"][0].update(wrong)
        assert any("'segmentation'" in problem.message for problem in problems(broken))
        dataset.source.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="annotation 10: 'segmentation'"):
            AmodalReasonSeg.load(dataset.source)


@pytest.fixture
def ignoring(tmp_path) -> AmodalReasonSeg:
    """The upper left corner of the image does not count."""
    corner = np.zeros((SIDE, SIDE), bool)
    corner[:10, :10] = True
    whole = dataclasses.replace(image(), ignore=encode_rle(corner))
    return AmodalReasonSeg.build([whole], {1: [dialogue()]}, source=tmp_path / "split.json")


def test_pixels_to_ignore_are_kept(ignoring):
    assert problems(ignoring.document) == []
    for again in (ignoring, AmodalReasonSeg.load(ignoring.save())):
        assert decode_rle(again[0].ignore).sum() == 100


def test_a_wrong_ignore_mask_is_told(ignoring):
    document = copy.deepcopy(ignoring.document)
    document["images"][0]["ignore"]["size"] = [SIDE, SIDE + 1]
    (problem,) = problems(document)
    assert "image 1: 'ignore': the RLE's size" in str(problem)
    with pytest.raises(ValueError, match=r"split\.json: image 1: the 'ignore' mask is \[40, 41\] but the image"):
        AmodalReasonSeg(document, source="split.json")
    document["images"][0]["ignore"] = [[1, 2, 3, 4, 5, 6]]
    with pytest.raises(ValueError, match=r"split\.json: image 1: 'ignore' must be a compressed RLE"):
        AmodalReasonSeg(document, source="split.json")


@pytest.fixture
def intended(tmp_path) -> AmodalReasonSeg:
    """The dialogue, with a question that means one kind of mask of each object."""
    first, second = dialogue().turns
    talk = dataclasses.replace(dialogue(), turns=(first, dataclasses.replace(second, asked=("amodal", "visible"))))
    return AmodalReasonSeg.build([image()], {1: [talk]}, source=tmp_path / "split.json", image_folder="pictures")


def test_the_masks_that_are_asked_for_are_kept(intended, tmp_path):
    (record,) = intended.document["conversations"]
    assert "asked" not in record["turns"][0] and record["turns"][1]["asked"] == ["amodal", "visible"]
    again = AmodalReasonSeg.load(intended.save())
    assert again[0] == intended[0] and [t.asked for t in again[0].conversations[0].turns] == [(), ("amodal", "visible")]
    first, second = again[0].conversations[0].turns
    assert (first.asks(0), second.asks(0), second.asks(1)) == ("both", "amodal", "visible")
    assert again.save(tmp_path / "again.json").read_bytes() == intended.source.read_bytes()
    figures = again.statistics()
    assert (figures["asked_visible"], figures["asked_amodal"]) == (1, 1)
    assert problems(intended.document) == []


def test_both_masks_are_what_silence_means(dataset, document):
    document["conversations"][0]["turns"][1]["asked"] = ["both", "both"]
    said = AmodalReasonSeg(document, source=dataset.source)
    assert said[0] == dataset[0] and "asked_visible" not in said.statistics()
    # Digests of runs are made of this text: a data set that asks for nothing has the one that it always had.
    assert repr(Turn("Q?", "A [SEG].", (1,))) == "Turn(question='Q?', answer='A [SEG].', objects=(1,))"
    assert repr(Turn("Q?", "A [SEG].", (1,), ("visible",))).endswith("objects=(1,), asked=('visible',))")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["amodal"], "'asked' has 1 entries for 2 objects"),
        (["amodal", "whole"], "give visible, amodal or both for each object"),
        ("amodal", "give visible, amodal or both for each object"),
        ([["amodal"], 3], "give visible, amodal or both for each object"),
        ({"10": "amodal"}, "give visible, amodal or both for each object"),
    ],
)
def test_a_wrong_asked_is_told(dataset, document, asked, told):
    document["conversations"][0]["turns"][1]["asked"] = asked
    assert [told in problem.message for problem in problems(document)] == [True]
    with pytest.raises(ValueError, match=rf"split.json: conversation 5, turn 1: .*{told}"):
        AmodalReasonSeg(document, source=dataset.source)
    dataset.source.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=rf"split.json: conversation 5, turn 1: .*{told}"):
        AmodalReasonSeg.load(dataset.source)


def test_a_shape_that_is_not_known_cannot_be_asked_for(half_known):
    turn = half_known["conversations"][0]["turns"][0]
    known = len(problems(half_known))
    turn["asked"] = ["amodal"]
    more = [problem.message for problem in problems(half_known)]
    assert len(more) == known + 1 and any("wants the amodal mask of annotation 10" in message for message in more)
