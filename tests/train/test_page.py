"""A run's page, from files written by hand: a run at work, a finished one, damaged and foreign folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.evaluation.examples import Extremes
from aura.evaluation.metrics import AnswerScore, score_object
from aura.evaluation.report import Report
from aura.evaluation.scoring import PredictedAnswer
from aura.masks import encode_rle
from aura.train import page
from aura.train.page import TERMS, pictures_of, try_to_write_page, write_page
from aura.types import AmodalObject, Conversation, MaskPair, Sample, SegRecord, Turn
from scripts.plot_run import main

QUESTION = "<script>alert(1)</script> | what?\nWhere?"


def report() -> Report:
    rng = np.random.default_rng(0)
    objects, answers = [], []
    for number in range(4):
        amodal = rng.random((8, 8)) < 0.6
        true = MaskPair(amodal & (rng.random((8, 8)) < 0.7), amodal)
        guess = MaskPair(true.visible, rng.random((8, 8)) < number / 3, 0.25)
        objects.append(score_object(SegRecord(number, number, 0, 0, 50 + number, f"cup {number}"), true, guess, 0))
        answers.append(AnswerScore(number, number, 0, 1, 1, QUESTION, "A [SEG].", None))
    return Report("teacher_forced", tuple(objects), tuple(answers))


def train_record(step: int, total: float | None) -> dict[str, object]:
    return {"kind": "train", "step": step, "total": total, **dict.fromkeys(TERMS, 0.5), "lr": 1e-3}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run at work: three steps, one of which had no finite loss, one validation, half a line."""
    figures = {key: value for key, value in report().as_dict().items() if not isinstance(value, list)}
    records = [train_record(1, 3.0), train_record(2, None), {"kind": "val", "step": 2, **figures}, train_record(3, 2.5)]
    folder = tmp_path / "a & b"
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "tr')
    return folder


def test_a_run_at_work(run):
    html, markdown = (path.read_text() for path in write_page(run))
    assert "at optimizer step 3, loss 2.5000" in html and "at optimizer step 3, loss 2.5000" in markdown
    assert html.count("<svg") == 4 and "<title>a &amp; b</title>" in html
    assert "http" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", ""), "a page that needs nothing from elsewhere"
    assert "| 2 |" in markdown


def test_a_finished_run_shows_the_exported_checkpoint_s_objects(run):
    for step in (2, 3):
        report().write(pictures_of(run, step))
    Image.new("RGB", (4, 4)).save(pictures_of(run, 2) / "best.jpg")
    report().write(run / "eval" / "generated_order")
    facts = {"steps": 3, "effective_batch": 4, "seconds": 60.0, "evaluate": "python eval.py", "losses": {"total": 2.5}}
    (run / "report.json").write_text(json.dumps({**facts, "best": {"step": 2, "metric": "amodal.ciou", "score": 0.5}}))
    html, markdown = (path.read_text() for path in write_page(run))
    assert "Validation after step 2" in html and "Evaluation eval/generated_order" in html
    assert html.count("<svg") == 8 and "data:image/jpeg;base64," in html
    for text in (html, markdown):
        assert "Best answers (Validation after step 2)" in text and "Worst answers" in text
        assert text.index("cup 3") < text.index("cup 0")  # the fuller the guess, the better
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "what? Where?" in markdown and "\\| what?" in markdown
    assert "step 2, amodal.ciou 0.5000" in html


def test_a_folder_without_a_log_and_a_damaged_file(run, tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no log.jsonl with a training step" in capsys.readouterr().err
    report().write(pictures_of(run, 2))
    (pictures_of(run, 2) / "objects.jsonl").write_text("{}\n{")
    with pytest.raises(ValueError, match=r"objects\.jsonl is damaged"):
        write_page(run)


def test_a_page_that_fails_stops_no_run(run, monkeypatch, capsys):
    monkeypatch.setattr(page, "read_log", lambda path: 1 / 0)
    try_to_write_page(run)
    assert "report.html was not written: ZeroDivisionError" in capsys.readouterr().out


def test_the_best_and_the_worst_answers_are_kept_and_drawn(tmp_path):
    extremes, mask = Extremes(num=2), np.zeros((12, 12), bool)
    mask[2:10, 2:10] = True
    Image.new("RGB", (12, 12), (90, 90, 90)).save(tmp_path / "1.png")
    for number in range(4):
        guess = mask.copy()
        guess[2 : 2 + 2 * number] = False
        thing = AmodalObject(1, "cup", encode_rle(mask), encode_rle(mask), 0.0)
        talk = Conversation(1, (Turn("What?", "It [SEG].", (1,)), Turn("A bus?", "No.")))
        sample = Sample(number, tmp_path / "1.png", 12, 12, (thing,), (talk,))
        answers = {(1, 0): PredictedAnswer({0: MaskPair(guess, guess, 0.0)}, 1), (1, 1): PredictedAnswer({}, 0)}
        extremes(sample, answers)
    assert [round(score, 2) for score, *_ in extremes.best] == [1.0, 0.75]
    assert [round(score, 2) for score, *_ in extremes.worst] == [0.25, 0.5]
    extremes.save(tmp_path / "pictures")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["best.jpg", "worst.jpg"]
