"""Our questions as ReasonSeg, read by the rules of LISA's own readers."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.exports.reason_seg import export_reason_seg
from aura.formats.reason_seg import ReasonSegFolder
from aura.masks import decode_rle, encode_rle


def export(dataset, folder, **options):
    given = {"kind": "amodal", "name": "Ours", "split": "train", **options}
    return export_reason_seg(dataset, folder, **given)


def lisa_items(base: str, data: str, explanatory: float = 0.1) -> dict[str, dict]:
    """What LISA's ``ReasonSegDataset`` takes from the disk (dvlab-research/LISA at 16f73b66), by picture.

    Files by pattern, the JSON beside each; targets painted over ignored regions by falling area; one mask for every
    text of a picture; explanations by the picture's name.
    """
    name, splits = data.split("|")
    home = Path(base) / "reason_seg" / name
    paths = [str(path) for split in splits.split("_") for path in (home / split).glob("*.jpg")]
    explained = {}
    if explanatory != -1:
        explanations = json.loads((home / "explanatory" / "train.json").read_text())
        explained = {item["image"]: item["outputs"] for item in explanations}
    items = {}
    for path in paths:
        height, width = cv2.imread(path).shape[:2]
        record = json.loads(Path(path.replace(".jpg", ".json")).read_text())
        shapes = [shape for shape in record["shapes"] if shape["label"].lower() != "flag"]
        areas = []
        for shape in shapes:
            drawn = np.zeros((height, width), np.uint8)
            points = np.array([shape["points"]], dtype=np.int32)
            cv2.polylines(drawn, points, True, 1, 1)
            cv2.fillPoly(drawn, points, 1)
            areas.append(drawn.sum())
        mask = np.zeros((height, width), np.uint8)
        for i in np.argsort(areas)[::-1].astype(np.int32):
            value = 255 if "ignore" in shapes[i]["label"].lower() else 1
            points = np.array([shapes[i]["points"]], dtype=np.int32)
            cv2.polylines(mask, points, True, value, 1)
            cv2.fillPoly(mask, points, value)
        image = path.split("/")[-1]
        items[image] = {
            "texts": record["text"],
            "sentence": record["is_sentence"],
            "mask": mask,
            "explanation": explained.get(image),
            "record": record,
        }
    return items


@pytest.mark.parametrize("kind", ["visible", "amodal"])
def test_lisa_reads_every_question_with_the_union_of_its_objects(dataset, masks, tmp_path, kind):
    account = export(dataset, tmp_path / "lisa", kind=kind)
    items = lisa_items(str(tmp_path / "lisa"), "Ours|train")
    truth = masks(kind)
    asked = {
        (c.id, n): turn for s in dataset for c in s.conversations for n, turn in enumerate(c.turns) if turn.objects
    }
    if kind == "amodal":
        del asked[6, 0]  # the flag's shape is not known
    assert items.keys() == {f"c{c}_t{n}.jpg" for c, n in asked} and account.written == len(asked)
    for (conversation, number), turn in asked.items():
        item = items[f"c{conversation}_t{number}.jpg"]
        assert (item["mask"] == np.logical_or.reduce([truth[i] for i in turn.objects])).all()
        assert item["texts"] == [turn.question] and item["sentence"] is True
        assert item["explanation"] == " ".join(turn.answer.replace("[SEG]", "").split()).replace(" ,", ",").replace(
            " .", "."
        )


def test_nothing_is_lost_that_lisa_does_not_read(dataset, masks, tmp_path):
    export(dataset, tmp_path / "lisa")
    record = lisa_items(str(tmp_path / "lisa"), "Ours|train")["c3_t0.jpg"]["record"]
    assert (record["image_id"], record["conversation_id"], record["turn"], record["masks"]) == (4, 3, 0, "amodal")
    assert record["objects"] == [7, 8] and record["answer"].count("[SEG]") == 2
    for number, category in ((7, "bus"), (8, "tree")):
        own = [shape for shape in record["shapes"] if shape["annotation_id"] == number]
        assert {shape["category"] for shape in own} == {category}
        drawn = np.zeros((24, 32), np.uint8)
        for shape in own:
            cv2.fillPoly(drawn, np.array([shape["points"]], np.int32), 1)
        assert (drawn == masks("amodal")[number]).all()


def test_what_is_left_out_is_counted(dataset, tmp_path):
    account = export(dataset, tmp_path, first_turns=True)
    assert account.written == 2 and dict(account.left_out) == {
        "a later turn of a conversation": 1,
        "an object's whole shape is not known": 1,
        "the answer names no object": 1,
    }
    assert account.lines()[0] == "2 questions"


def test_the_target_may_be_the_first_object_alone(dataset, masks, tmp_path):
    account = export(dataset, tmp_path, first_object=True)
    items = lisa_items(str(tmp_path), "Ours|train")
    assert (items["c3_t0.jpg"]["mask"] == masks("amodal")[7]).all()
    assert account.written == 3 and account.left_out["an object after the first of its answer"] == 2


def test_ignored_pixels_are_ignored_by_lisa_too(dataset, masks, tmp_path):
    document = json.loads((tmp_path / "data.json").read_text())
    ignored = np.zeros((24, 32), bool)
    ignored[10:22, 20:31] = True
    ignored[15, 25] = False
    document["images"][0]["ignore"] = encode_rle(ignored)
    (tmp_path / "ignore.json").write_text(json.dumps(document))
    export(AmodalReasonSeg.load(tmp_path / "ignore.json"), tmp_path, split="val")
    drawn = lisa_items(str(tmp_path), "Ours|val", explanatory=-1)["c3_t0.jpg"]["mask"]
    target = masks("amodal")[7] | masks("amodal")[8]
    assert ((drawn == 255) == ignored).all() and ((drawn == 1) == target & ~ignored).all()
    read = {asked.image.file_name: asked.image for asked in ReasonSegFolder(tmp_path / "reason_seg" / "Ours" / "val")}
    assert read["c3_t0.jpg"].ignore == encode_rle(ignored)


def test_pictures_are_links_or_copies_of_the_same_bytes(dataset, tmp_path):
    for how in ("link", "copy"):
        export(dataset, tmp_path / how, pictures=how)
        target = tmp_path / how / "reason_seg" / "Ours" / "train" / "c3_t0.jpg"
        source = dataset[0].image_path
        assert target.read_bytes() == source.read_bytes()
        assert (target.stat().st_ino == source.stat().st_ino) == (how == "link")


def test_other_splits_come_without_explanations(dataset, tmp_path):
    export(dataset, tmp_path, split="val")
    assert len(lisa_items(str(tmp_path), "Ours|val", explanatory=-1)) == 3
    assert not (tmp_path / "reason_seg" / "Ours" / "explanatory").exists()


def test_a_split_appears_whole_or_not_at_all_and_replaces_nothing(dataset, tmp_path):
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(ValueError, match=r"image 2: .*b\.jpg does not exist; give the right folder"):
        export(dataset, tmp_path / "out")
    home = tmp_path / "out" / "reason_seg" / "Ours"
    assert not (home / "train").exists() and not (home / "explanatory" / "train.json").exists()
    (home / "train").mkdir()
    with pytest.raises(ValueError, match="train is there already; remove it or choose another"):
        export(dataset, tmp_path / "out")


def test_a_picture_that_opencv_would_turn_is_named(dataset, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (32, 24)).save(tmp_path / "images" / "street" / "a.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"image 4: .*a\.jpg has the EXIF orientation 3.*exiftran"):
        export(dataset, tmp_path / "out")
    Image.new("RGB", (30, 24)).save(tmp_path / "images" / "street" / "a.jpg")
    with pytest.raises(ValueError, match=r"image 4: .* is 24 x 30 \(height x width\), the record says 24 x 32"):
        export(dataset, tmp_path / "out")
    (tmp_path / "images" / "street" / "a.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"image 4: .*a\.jpg cannot be decoded \(no kind of picture"):
        export(dataset, tmp_path / "out")


def test_an_empty_target_is_named(dataset, tmp_path):
    document = json.loads((tmp_path / "data.json").read_text())
    document["annotations"][1]["visible_mask"] = encode_rle(np.zeros((24, 32), bool))
    (tmp_path / "empty.json").write_text(json.dumps(document))
    damaged = AmodalReasonSeg.load(tmp_path / "empty.json")
    with pytest.raises(ValueError, match="image 4, annotation 8: its visible mask is empty; drop the object"):
        export(damaged, tmp_path / "out", kind="visible")


def test_our_own_reader_of_reason_seg_takes_it_back(dataset, masks, tmp_path):
    export(dataset, tmp_path / "lisa", kind="visible")
    home = tmp_path / "lisa" / "reason_seg" / "Ours"
    read = {
        asked.image.file_name: asked
        for asked in ReasonSegFolder(home / "train", explanations=home / "explanatory" / "train.json")
    }
    asked = read["c3_t0.jpg"]
    (target,), (question,) = asked.image.objects, asked.questions
    truth = masks("visible")
    assert (decode_rle(target.visible) == truth[7] | truth[8]).all() and asked.image.ignore is None
    assert question.text == "What could I ride, and what hides it?" and question.is_sentence
    assert len(read) == 4


@pytest.mark.parametrize("kind", ["visible", "amodal"])
def test_a_question_that_means_the_other_mask_is_left_out(dataset, tmp_path, kind):
    document = dataset.document
    turn = document["conversations"][0]["turns"][0]
    turn["asked"] = ["amodal", "both"]
    asking = AmodalReasonSeg(document, source=dataset.source)
    plain, account = export(dataset, tmp_path / "plain", kind=kind), export(asking, tmp_path / "asking", kind=kind)
    missing = int(kind == "visible")
    assert plain.written - account.written == missing
    assert account.left_out["a question that asks for the other mask"] == missing
