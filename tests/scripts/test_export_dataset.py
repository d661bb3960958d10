"""From a data set to every form, by the script."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

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
    assert main([*arguments, "--name", "Ours", "--split", "val", "--pictures", "copy", "--first-turns"]) == 0
    assert (tmp_path / "lisa" / "reason_seg" / "Ours" / "val" / "c3_t0.jpg").is_file()


def test_wrong_calls_end_with_one_line(data, tmp_path, capsys):
    for options in (["--to", "coco_amodal", "--masks", "visible"], ["--to", "coco_instances"]):
        with pytest.raises(SystemExit):
            main(["--data", str(data), "--out", str(tmp_path / "o.json"), *options])
        assert "--masks visible or amodal is needed" in capsys.readouterr().err
    assert main(["--data", str(tmp_path / "no.json"), "--to", "coco_amodal", "--out", str(tmp_path / "o.json")]) == 2
    assert "no.json: cannot be read" in capsys.readouterr().err
