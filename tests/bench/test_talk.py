"""The benchmark of a conversation: both ways draw the same masks, and its page holds what was measured."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from aura.bench import measure, talk

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_chat.py"


def test_both_ways_draw_the_same_masks_and_every_moment_is_timed():
    model = measure.model_of("tiny", torch.device("cpu")).eval()
    head = model.mllm.lm_head
    row = talk.compare(model, "tiny", tokens=8, repeat=1)
    assert row["different_pixels"] <= 1e-3 and model.mllm.lm_head is head
    for way in talk.WAYS:
        seconds = [row[way][moment][0] for moment in talk.MOMENTS]
        assert all(value > 0 for value in seconds)
        assert seconds[0] < seconds[1], "the first word comes before the first answer"


def test_ways_that_draw_other_masks_are_refused(monkeypatch):
    model = measure.model_of("tiny", torch.device("cpu")).eval()
    run = talk.Talk.run

    def inverted(self, way):
        found, masks = run(self, way)
        return found, [tuple(~mask for mask in pair) for pair in masks] if way == "ours" else masks

    monkeypatch.setattr(talk.Talk, "run", inverted)
    with pytest.raises(ValueError, match="masks of the two ways differ"):
        talk.compare(model, "tiny", tokens=8, repeat=1)


def test_the_script_writes_a_page(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("bench_chat", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script.environment, "prepare", lambda: None)
    moments = {moment: [2.0, 1.0] for moment in talk.MOMENTS}
    row = {"size": "tiny", "plain": {moment: [20.0, 6.0] for moment in talk.MOMENTS}, "ours": moments}
    monkeypatch.setattr(talk, "compare", lambda *_, **__: row)
    assert script.main(["--sizes", "tiny", "--out", str(tmp_path / "chat")]) == 0
    (found,) = json.loads((tmp_path / "chat.json").read_text())["chat"]["tables"]
    assert found["rows"][0] == ["tiny", "first word", "20 (6)", "2 (1)", "6.0x", "10.0x"]
    assert "first word | 20 (6) | 2 (1)" in capsys.readouterr().out
