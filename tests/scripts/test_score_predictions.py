"""Another method's masks, from a prediction file to the tables."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from aura.evaluation.report import combine, read_figures
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.sources import AnnotatedImage
from aura.masks import decode_rle, encode_rle
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


def test_files_of_another_method_with_the_policy_in_the_table(data, tmp_path, capsys) -> None:
    numbers = {c["name"]: c["id"] for c in json.loads(data.read_text())["categories"]}
    paths = {}
    for kind, masks in (("visible", (VISIBLE, FRONT)), ("amodal", (AMODAL, FRONT))):
        results = [
            {"image_id": 1, "category_id": numbers[name], "segmentation": mask, "score": 0.75, "bbox": [0, 0, 9, 9]}
            for name, mask in zip(("bus", "tree"), masks, strict=True)
        ]
        paths[kind] = tmp_path / f"coco_instances_{kind}_results.json"
        paths[kind].write_text(json.dumps(results))
    both = ["--visible", str(paths["visible"]), "--amodal", str(paths["amodal"])]
    saved, out = tmp_path / "matched.json", tmp_path / "out"
    call = ["--data", str(data), "--from", "vrsp", "--name", "VRSP", *both, "--save", str(saved), "--out", str(out)]
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 masks stand for 2 of 2 asked places" in printed
    policy = "by best visible IoU and category"
    assert f"| VRSP (matched {policy}) | teacher_forced | 100.00 |" in (out / "report.md").read_text()
    assert json.loads((out / "matching.json").read_text())["matched"] == policy
    assert main(["--data", str(data), "--predictions", str(saved), "--out", str(tmp_path / "again")]) == 0
    reports = [json.loads((folder / "report.json").read_text()) for folder in (out, tmp_path / "again")]
    assert reports[0] == reports[1] and reports[0]["amodal"]["giou_object"] == 1


def test_methods_of_one_kind_of_mask_make_one_row_of_two_files(data, tmp_path, capsys) -> None:
    for kind, mask in (("visible", VISIBLE), ("amodal", AMODAL)):
        (tmp_path / kind).mkdir()
        np.save(tmp_path / kind / "c3_t0.npy", decode_rle(mask))
        call = ["--data", str(data), "--from", "lisa", f"--{kind}", str(tmp_path / kind), "--out", str(tmp_path / kind)]
        assert main(call) == 0
    figures = combine(*(read_figures(tmp_path / kind) for kind in ("visible", "amodal")))
    assert figures["visible"]["giou_object"] == figures["amodal"]["giou_object"] == 0.5  # the tree is missed


def test_answers_that_are_too_long_are_told_of_the_protocol(data, tmp_path, capsys) -> None:
    np.save(tmp_path / "c3_t0.npy", np.stack([decode_rle(m) for m in (FRONT, VISIBLE, AMODAL)]))
    call = ["--data", str(data), "--from", "masks", "--visible", str(tmp_path)]
    assert main(call) == 2
    assert "the true answer has 2 [SEG], numbered from 0; --protocol generated_matched" in capsys.readouterr().err
    assert main([*call, "--protocol", "generated_matched"]) == 0


@pytest.mark.parametrize(
    "options", [[], ["--from", "coco"], ["--visible", "x"], ["--predictions", "x", "--from", "coco"]]
)
def test_either_our_form_or_theirs(data, capsys, options) -> None:
    with pytest.raises(SystemExit):
        main(["--data", str(data), *options])
    assert "give --predictions FILE, or --from NAME with --visible PATH" in capsys.readouterr().err
