"""From a data set to every form, by the script."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.sources import AnnotatedImage
from aura.masks import encode_rle
from aura.types import AmodalObject, Conversation, Turn

main = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "export_dataset.py"))["main"]


@pytest.fixture
def data(tmp_path) -> Path:
    mask = np.zeros((20, 30), bool)
    mask[2:9, 3:8] = True
    whole = encode_rle(mask)
    conversation = Conversation(3, (Turn("What is there?", "A bus [SEG].", (7,)), Turn("Where?", "There.", ())))
    images = [AnnotatedImage(1, "1.jpg", 20, 30, (AmodalObject(7, "bus", whole, whole, 0.0),), {})]
    Image.new("RGB", (30, 20)).save(tmp_path / "1.jpg")
    return AmodalReasonSeg.build(images, {1: [conversation]}, source=tmp_path / "data.json").save()


@pytest.mark.parametrize(
    ("form", "masks", "out", "made"),
    [
        ("lisa_reasonseg", "visible", "lisa", "lisa/reason_seg/AmodalReasonSeg_visible/train/c3_t0.json"),
        ("coco_instances", "amodal", "coco.json", "coco.json"),
        ("coco_amodal", None, "cocoa.json", "cocoa.json"),
        ("glamm_gcg", "amodal", "glamm", "glamm/GranDf/annotations/train/GranDf_HA_GCG_train.json"),
    ],
)
def test_every_form(data, tmp_path, capsys, form, masks, out, made):
    arguments = ["--data", str(data), "--to", form, "--out", str(tmp_path / out)]
    arguments += ["--masks", masks] if masks else []
    assert main(arguments) == 0
    assert json.loads((tmp_path / made).read_text())
    assert ": 1 " in capsys.readouterr().out
    assert main(arguments) == 2  # nothing is replaced
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "is there already" in error


def test_a_name_and_a_split(data, tmp_path, capsys):
    arguments = ["--data", str(data), "--to", "lisa_reasonseg", "--masks", "visible", "--out", str(tmp_path / "lisa")]
    assert (
        main([*arguments, "--name", "Ours", "--split", "val", "--pictures", "copy", "--first-turns", "--first-object"])
        == 0
    )
    assert (tmp_path / "lisa" / "reason_seg" / "Ours" / "val" / "c3_t0.jpg").is_file()


def test_wrong_calls_end_with_one_line(data, tmp_path, capsys):
    for options in (["--to", "coco_amodal", "--masks", "visible"], ["--to", "coco_instances"]):
        with pytest.raises(SystemExit):
            main(["--data", str(data), "--out", str(tmp_path / "o.json"), *options])
        assert "--masks visible or amodal is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--data", str(data), "--out", str(tmp_path / "o.json"), "--to", "coco_amodal", "--first-object"])
    assert "--first-object is for lisa_reasonseg" in capsys.readouterr().err
    assert main(["--data", str(tmp_path / "no.json"), "--to", "coco_amodal", "--out", str(tmp_path / "o.json")]) == 2
    assert "no.json: cannot be read" in capsys.readouterr().err


def test_a_method_that_answers_what_was_exported_scores_one(data, tmp_path, capsys):
    score = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "score_predictions.py"))["main"]
    for form in ("lisa_reasonseg", "glamm_gcg", "coco_instances"):
        out = tmp_path / ("coco.json" if form.startswith("coco") else form)
        assert main(["--data", str(data), "--to", form, "--masks", "visible", "--out", str(out)]) == 0
    (tmp_path / "png").mkdir()
    (tmp_path / "json").mkdir()
    for picture in (tmp_path / "lisa_reasonseg").rglob("*.jpg"):
        pixels = np.zeros(np.asarray(Image.open(picture)).shape[:2], np.uint8)
        for shape in json.loads(picture.with_suffix(".json").read_text())["shapes"]:
            cv2.fillPoly(pixels, np.array([shape["points"]], np.int32), 255)
        Image.fromarray(pixels).save(tmp_path / "png" / f"{picture.stem}_mask_0.png")
    for entry in json.loads(next((tmp_path / "glamm_gcg").rglob("*train.json")).read_text()):
        masks = [rle for grounding in entry["groundings"].values() for rle in grounding["rle_masks"]]
        record = {"image_id": entry["file_name"][:-4], "caption": "", "phrases": [], "pred_masks": masks}
        (tmp_path / "json" / f"{record['image_id']}.json").write_text(json.dumps(record))
    results = [{**a, "score": 1.0} for a in json.loads((tmp_path / "coco.json").read_text())["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    for method, path in (("lisa", "png"), ("glamm", "json"), ("vrsp", "results.json")):
        call = [
            "--data",
            str(data),
            "--from",
            method,
            "--visible",
            str(tmp_path / path),
            "--out",
            str(tmp_path / method),
        ]
        assert score(call) == 0
        figures = json.loads((tmp_path / method / "report.json").read_text())
        assert set(figures["visible"].values()) == {1.0} and set(figures["amodal"].values()) == {None}
