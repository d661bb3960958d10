"""LISA's tables: our figures in the right columns, and what does not belong there refused."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from aura.evaluation.metrics import AnswerScore, score_object
from aura.evaluation.report import Report
from aura.reproduction.lisa import LISA_TABLES, beside, ours
from aura.types import MaskPair, SegRecord

MAIN = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "reproduce_table.py"))["main"]


def figures(giou: float, ciou: float, protocol: str = "teacher_forced") -> dict:
    region = {"giou_object": giou, "giou_answer": 0.1, "giou_image": 0.2, "ciou": ciou}
    return {"protocol": protocol, "visible": region, "amodal": {}}


def test_a_report_fills_the_columns_of_its_split():
    table = LISA_TABLES["reason_seg"]
    row = ours(table, {"test": figures(0.5, 0.25), "val": figures(0.75, 1.0)})
    assert row == (75.0, 100.0, None, None, None, None, 50.0, 25.0)
    shown = beside(table, row)
    assert shown.rows[-1] == ("AURA (visible)", "75.00", "100.00", "–", "–", "–", "–", "50.00", "25.00")
    assert [name for name, *_ in shown.rows[:-1]] == list(table.rows) and shown.rows[0][1:3] == ("28.5", "18.6")
    only = ours(LISA_TABLES["refcoco"], {"refcoco+_testB": figures(0.5, 0.25)})
    assert only == (None,) * 5 + (25.0, None, None)


def test_what_does_not_belong_is_refused():
    table = LISA_TABLES["refcoco"]
    with pytest.raises(ValueError, match="LISA's table 2 has no split 'val'; its splits are refcoco_val, "):
        ours(table, {"val": figures(1, 1)})
    mixed = {"refcoco_val": figures(1, 1), "refcoco_testA": figures(1, 1, "generated_order")}
    with pytest.raises(ValueError, match="different protocols, generated_order and teacher_forced"):
        ours(table, mixed)


@pytest.fixture
def report(tmp_path) -> Path:
    true, guess = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    true[:2], guess[:1] = True, True
    record = SegRecord(1, 1, 0, 0, 1, "target")
    scored = score_object(record, MaskPair(true, None), MaskPair(guess, None), 0, "visible")
    Report("teacher_forced", (scored,), (AnswerScore(1, 1, 0, 1, 1),)).write(tmp_path / "val")
    return tmp_path / "val"


def test_the_script_shows_and_writes_the_table(report, tmp_path, capsys):
    assert MAIN(["--table", "reason_seg", "--report", f"val={report}", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "LISA-13B-LLaVA1.5 (ft)" in printed and "val: 1 images, 1 masks, teacher_forced" in printed
    written = json.loads((tmp_path / "out" / "lisa_reason_seg.json").read_text())
    assert written["aura_visible"][:3] == [50.0, 50.0, None]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"lisa_reason_seg.{suffix}" for suffix in ("md", "tex", "csv", "json")}
    assert (tmp_path / "out" / "lisa_reason_seg.csv").read_text().endswith("\nAURA (visible),50.0,50.0,,,,,,\n")
    assert MAIN(["--table", "refcoco"]) == 0 and "ReLA" in capsys.readouterr().out


def test_what_the_user_can_mend_is_one_line(report, capsys):
    assert MAIN(["--table", "reason_seg", "--report", "val"]) == 2
    assert "--report takes SPLIT=DIR" in capsys.readouterr().err
    assert MAIN(["--table", "reason_seg", "--report", "val=nowhere"]) == 2
    assert "give a report.json or a folder that holds one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        MAIN(["--table", "1", "--report", f"val={report}"])
    assert "--report is for the tables reason_seg and refcoco" in capsys.readouterr().err
