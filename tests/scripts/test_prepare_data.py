"""``scripts/prepare_data.py`` on every kind of set: what it writes can be trained on and evaluated."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.checks import problems
from aura.masks import decode_rle
from tests.formats.asked import H, W, grefer, instances, llava, picture, reason_seg, refer, square, written
from tests.formats.test_selective import QUERIES, annotations

MAIN = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "prepare_data.py"))["main"]


def prepared(out: Path, *arguments: object) -> AmodalReasonSeg:
    assert MAIN([*map(str, arguments), "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    found = AmodalReasonSeg.load(out)
    assert problems(document, images=found.images) == []
    return found


def turns(dataset) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(t.question, t.answer, t.objects) for s in dataset for c in s.conversations for t in c.turns]


def test_reason_seg(tmp_path, capsys):
    root = reason_seg(tmp_path / "ReasonSeg")
    train = prepared(tmp_path / "train.json", "reasonseg", "--data", root, "--split", "train")
    assert "2 images, 2 objects, 7 pairs, 0.71 objects an answer" in capsys.readouterr().out
    assert len(train[0].conversations) == 6  # two instructions: plain, explained, and explained without a mask
    val = prepared(
        tmp_path / "val.json",
        "reasonseg",
        "--data",
        root,
        "--split",
        "val",
        "--for",
        "evaluation",
        "--queries",
        "short",
    )
    ((question, answer, objects),) = turns(val)
    assert question == "What is the unusual part in this image? Please output segmentation mask."
    assert answer == "[SEG]." and len(objects) == 1


def test_reason_seg_keeps_what_is_ignored(tmp_path):
    root = reason_seg(tmp_path / "ReasonSeg")
    content = json.loads((root / "val" / "c.json").read_text())
    written(root / "val" / "c.json", content | {"shapes": [*content["shapes"], square("ignore", 20, 0, 29, 9)]})
    val = prepared(tmp_path / "val.json", "reasonseg", "--data", root, "--split", "val", "--for", "evaluation")
    assert decode_rle(val[0].ignore).sum() == 100 and val[1].ignore is None


def test_refcoco(tmp_path):
    root = refer(tmp_path / "refcoco")
    common = ("refer", "--data", root, "--by", "unc", "--images", root / "train2014")
    train = prepared(tmp_path / "train.json", *common, "--split", "train")
    assert [[o.id for o in s.objects] for s in train] == [[70], [90]] and len(turns(train)) == 3
    assert train.document["licenses"] == instances()["licenses"] and train[0].objects[0].category == "cup"
    test = prepared(tmp_path / "test.json", *common, "--split", "testA", "--for", "evaluation")
    asked = "What is right cup in this image? Please output segmentation mask."
    assert turns(test) == [(asked, "[SEG].", (71,))]


def test_grefcoco_for_training_and_for_evaluation(tmp_path):
    root = grefer(tmp_path / "grefcoco")
    common = ("refer", "--data", root, "--by", "unc", "--split", "val", "--images", root / "train2014")
    several, none, one = turns(prepared(tmp_path / "train.json", *common))
    assert several[2] == (71, 70) and none[2] == () and one[2] == (72,)
    val = prepared(tmp_path / "val.json", *common, "--for", "evaluation")
    assert [len(objects) for _, _, objects in turns(val)] == [1, 0, 1]
    union = next(o for o in val[0].objects if o.id == turns(val)[0][2][0])
    assert decode_rle(union.visible).sum() == 36 + 48


def test_instances(tmp_path):
    path = written(tmp_path / "instances.json", instances())
    for image in instances()["images"]:
        picture(tmp_path / "photos" / image["file_name"])
    found = prepared(
        tmp_path / "out" / "coco.json", "instances", "--annotations", path, "--images", tmp_path / "photos"
    )
    assert [objects for _, _, objects in turns(found)] == [(70, 71), (72,), (90,)]
    assert found.document["info"]["image_folder"] == "../photos"
    limited = prepared(
        tmp_path / "one.json", "instances", "--annotations", path, "--images", tmp_path / "photos", "--limit", 1
    )
    assert len(limited) == 1


def test_label_maps(tmp_path):
    picture(tmp_path / "photos" / "a.jpg")
    (tmp_path / "maps").mkdir()
    grid = np.zeros((H, W), np.uint8)
    grid[:5] = 1
    Image.fromarray(grid).save(tmp_path / "maps" / "a.png")
    names = written(tmp_path / "names.json", ["wall"])
    found = prepared(
        tmp_path / "ade.json",
        *("labels", "--layout", "ade20k", "--labels", tmp_path / "maps", "--classes", names),
        *("--images", tmp_path / "photos"),
    )
    ((question, answer, _),) = turns(found)
    assert [o.category for o in found[0].objects] == ["wall"]
    assert "the wall" in question and answer.lower().endswith("the wall [seg].")


def test_llava(tmp_path, capsys):
    for name in ("000000033471.jpg", "000000052846.jpg"):
        picture(tmp_path / "photos" / name)
    path = written(tmp_path / "llava.json", llava())
    found = prepared(tmp_path / "out.json", "llava", "--annotations", path, "--images", tmp_path / "photos")
    assert "left out: 1 records about no picture" in capsys.readouterr().out
    assert [[len(c.turns) for c in s.conversations] for s in found] == [[2, 1], [1]]
    assert all(objects == () for _, _, objects in turns(found))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    root = reason_seg(tmp_path / "ReasonSeg")
    for name in ("a.json", "b.json"):
        prepared(tmp_path / name, "reasonseg", "--data", root, "--split", "train")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_file_that_is_there_is_kept_without_force(tmp_path, capsys):
    root, out = reason_seg(tmp_path / "ReasonSeg"), tmp_path / "val.json"
    out.write_text("mine")
    arguments = ["reasonseg", "--data", str(root), "--split", "val", "--out", str(out)]
    assert MAIN(arguments) == 2 and out.read_text() == "mine"
    assert "is there already; --force replaces it" in capsys.readouterr().err
    assert MAIN([*arguments, "--force"]) == 0 and out.read_text() != "mine"


def test_bad_records_stop_or_are_left_out_with_a_report(tmp_path, capsys):
    root, out = refer(tmp_path / "refcoco"), tmp_path / "train.json"
    (root / "train2014" / "COCO_train2014_000000000009.jpg").unlink()
    common = ("refer", "--data", root, "--by", "unc", "--split", "train", "--images", root / "train2014")
    assert MAIN([*map(str, common), "--out", str(out)]) == 2
    assert "image 9: " in (told := capsys.readouterr().err) and "does not exist; give the pictures' folder" in told
    assert not out.exists()
    found = prepared(out, *common, "--on-error", "skip-with-report")
    assert [s.image_id for s in found] == [7]
    assert "1 bad records were left out" in capsys.readouterr().out
    assert (tmp_path / "train.problems.txt").read_text().startswith("image 9: ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("reasonseg", "--data", "none", "--split", "val"), "none/val: no NAME.jpg there"),
        (("refer", "--data", "none", "--by", "unc", "--split", "val", "--images", "none"), "none: no refs(unc).p or"),
        (("instances", "--annotations", "none.json", "--images", "none"), "none.json: cannot be read"),
        (("llava", "--annotations", "none.json", "--images", "none"), "none.json: cannot be read"),
        (("llava", "--annotations", "x", "--images", "none", "--limit", "0"), "--limit must be positive"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert MAIN([*arguments, "--out", "out.json"]) == 2
    assert told in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("purpose", ["training", "evaluation"])
def test_queries_for_one_kind_of_mask(tmp_path, purpose):
    annotated = annotations(tmp_path)
    picture(tmp_path / "photos" / "7.jpg")
    queries = written(tmp_path / "queries.json", QUERIES[:2])  # nobody asks about the cup, which hides the table
    files = ("--annotations", annotated, "--queries", queries, "--images", tmp_path / "photos")
    (sample,) = found = prepared(tmp_path / "out.json", "selective", *files, "--for", purpose)
    assert [o.id for o in sample.objects] == [1, 2] and sample.objects[1].occluded_by == (1,)
    assert all(o.amodal is not None for o in sample.objects) and found.images.name == "photos"
    assert [c.turns[0].asked for c in sample.conversations] == [("visible",), ("amodal",)]
