"""Another method's masks, from a prediction file to the tables."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.sources import AnnotatedImage
from aura.masks import encode_rle
from aura.types import AmodalObject, Conversation, Turn

main = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "score_predictions.py"))["main"]
SIZE = (20, 30)


def box(top: int, left: int, bottom: int, right: int) -> dict:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return encode_rle(mask)


VISIBLE, AMODAL, FRONT = box(0, 0, 10, 5), box(0, 0, 10, 10), box(0, 5, 20, 10)


@pytest.fixture
def data(tmp_path) -> Path:
    objects = (AmodalObject(7, "bus", VISIBLE, AMODAL, 0.5), AmodalObject(8, "tree", FRONT, FRONT, 0.0))
    turn = Turn("What is there?", "A bus [SEG] and a tree [SEG].", (7, 8))
    images = [AnnotatedImage(1, "1.jpg", *SIZE, objects, {"id": 1})]
    return AmodalReasonSeg.build(images, {1: [Conversation(3, (turn,))]}, source=tmp_path / "data.json").save()


def write(folder: Path, rows: object) -> Path:
    path = folder / "predictions.json"
    path.write_text(json.dumps(rows))
    return path


def row(index: int, visible: dict, amodal: dict, **more) -> dict:
    return {"conversation_id": 3, "turn": 0, "index": index, "visible": visible, "amodal": amodal, **more}


def test_hand_worked_report_of_another_method(data, tmp_path, capsys) -> None:
    # The bus: visible right, amodal half (its visible part). The tree is missing.
    path = write(tmp_path, [row(0, VISIBLE, VISIBLE, occlusion_rate=0.2)])
    arguments = ["--data", str(data), "--predictions", str(path), "--name", "C2F-Seg", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "C2F-Seg" in printed and "teacher_forced" in printed and "amodal := predicted visible" in printed
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures["visible"] == {"giou_object": 0.5, "giou_answer": 0.5, "giou_image": 0.5, "ciou": 50 / 150}
    assert figures["amodal"] == {"giou_object": 0.25, "giou_answer": 0.25, "giou_image": 0.25, "ciou": 50 / 200}
    assert figures["amodal_from_visible"] == figures["amodal"]
    assert figures["invisible"] == {"giou_object": 0, "ciou": 0, "num_objects": 1}
    assert figures["occlusion_rate_mae"] == pytest.approx(0.3)
    assert figures["seg_count_accuracy"] == 0


def test_giou_over_images_answers_or_objects(data, tmp_path, capsys) -> None:
    path = str(write(tmp_path, [row(0, VISIBLE, AMODAL)]))
    for over in ("image", "answer", "object"):
        assert main(["--data", str(data), "--predictions", path, "--giou", over]) == 0
        printed = capsys.readouterr().out
        assert f"gIoU over {over}s (1 images" in printed and "gIoU averaged per object, answer and image" in printed


def test_perfect_predictions_in_any_order_and_several_methods_in_one_table(data, tmp_path, capsys) -> None:
    path = write(tmp_path, [row(0, FRONT, FRONT), row(1, VISIBLE, AMODAL)])
    first = ["--data", str(data), "--predictions", str(path), "--out", str(tmp_path / "first")]
    assert main([*first, "--protocol", "generated_matched"]) == 0
    figures = json.loads((tmp_path / "first" / "report.json").read_text())
    assert figures["protocol"] == "generated_matched"
    assert set(figures["visible"].values()) == set(figures["amodal"].values()) == {1.0}
    capsys.readouterr()
    both = ["--data", str(data), "--predictions", str(path), "--name", "in order", "--out", str(tmp_path / "both")]
    assert main([*both, "--compare", f"matched={tmp_path / 'first'}"]) == 0
    table = (tmp_path / "both" / "report.md").read_text()
    assert "| matched | generated_matched | 100.00 |" in table and "| in order | teacher_forced | " in table


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(2, FRONT, FRONT)], "prediction 0 (conversation 3, turn 0, index 2): the true answer has 2 [SEG]"),
        ([{**row(0, FRONT, FRONT), "conversation_id": 4}], "prediction 0 (conversation 4, turn 0, index 0)"),
        ([row(0, FRONT, FRONT)] * 2, "prediction 1 (conversation 3, turn 0, index 0): the same place"),
        ([row(0, FRONT, {"size": [30, 20], "counts": "S1"})], "amodal mask is [30, 20] but image 1 is [20, 30]"),
        ({}, "must hold a JSON list"),
    ],
)
def test_wrong_predictions_end_with_one_line(data, tmp_path, capsys, rows, message) -> None:
    assert main(["--data", str(data), "--predictions", str(write(tmp_path, rows))]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_missing_files_end_with_one_line(data, tmp_path, capsys) -> None:
    assert main(["--data", str(tmp_path / "no.json"), "--predictions", str(data)]) == 2
    assert main(["--data", str(data), "--predictions", str(tmp_path / "no.json")]) == 2
    predictions = str(write(tmp_path, []))
    assert main(["--data", str(data), "--predictions", predictions, "--compare", "x"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "no.json" in lines[0] and "no.json" in lines[1] and "NAME=REPORT" in lines[2] and len(lines) == 3
