"""The two ways of a benchmark compute the same, and its page holds what was measured."""

import argparse
import json

import pytest
import torch

from aura.bench import command, measure, modules, page, sizes, work
from aura.bench.work import MODES, Work
from aura.model import folded_decoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return measure.model_of("tiny", CPU)


@pytest.mark.parametrize("task", measure.TASKS)
def test_all_ways_compute_the_same(model, task):
    row = measure.compare(model, "tiny", task, repeat=1, conversations=3)
    assert (row["size"], row["task"], row["conversations"]) == ("tiny", task, 3)
    for mode in MODES:
        assert row[mode]["cpu_seconds"] > 0 and all(value >= 0 for value in row[mode]["parts"].values())
        assert ("SAM's encoder" in row[mode]["parts"]) == (mode != "cached")
    assert sum(row["plain"]["parts"].values()) == pytest.approx(row["plain"]["cpu_seconds"], rel=0.5)


def test_bf16_is_the_cached_way_rounded(model):
    row = measure.compare(model, "tiny", "train", repeat=1, modes=work.TRAIN_MODES, conversations=3)
    assert row["bf16"]["parts"].keys() == row["cached"]["parts"].keys()
    sample = sizes.made_up(model.config, sizes.workload("tiny", conversations=3))
    features = sizes.random_features(model.config, CPU)
    rounded, exact = (Work(model, sample, mode, features).train_step()[0] for mode in ("bf16", "cached"))
    assert 0 < abs(rounded - exact) < 0.05 * exact
    assert not model.mllm.autocast


def test_ways_that_differ_are_refused(model, monkeypatch):
    monkeypatch.setitem(measure.TASKS, "train", lambda way: (float(way.mode == "plain"), {}))
    with pytest.raises(ValueError, match="do not agree"):
        measure.compare(model, "tiny", "train", repeat=1)


def test_the_plain_way_is_plain_while_it_runs_and_repeats_the_image(model):
    before = folded_decoder.LEAST_PIXELS
    with work.plainly():
        assert folded_decoder.LEAST_PIXELS > 10**12
    assert before == folded_decoder.LEAST_PIXELS
    sample = sizes.made_up(model.config, sizes.workload("tiny", conversations=3))
    features = sizes.random_features(model.config, CPU)
    plain, ours = (Work(model, sample, mode, features).batch for mode in ("plain", "ours"))
    images = [(batch.input_ids == model.config.image_token_id).sum().item() for batch in (plain, ours)]
    assert images == [3 * model.config.num_image_tokens, model.config.num_image_tokens]
    assert len(plain.target_index) == plain.input_ids.numel() and len(ours.target_index) == 3 * 8
    assert (plain.target_ids >= 0).sum() == 3 * 8


@pytest.mark.parametrize("size", ["mini", "small", "medium"])
def test_sizes_are_what_they_say(size):
    config = sizes.architecture(size)
    features = sizes.random_features(config, torch.device("meta"))
    assert features.sam_embeddings.shape[-1] == {"mini": 16}.get(size, 64)
    assert config.lora is not None and config.lora["dropout"] == 0
    sample = sizes.made_up(config, sizes.workload(size, conversations=2))
    assert len(sizes.packed(sample).input_ids[0]) == sizes.workload(size, conversations=2).length(config)


def row_of(plain, ours):
    ways = {"plain": plain, "ours": ours}
    return {"size": "mini", "conversations": 3} | {
        name: {"seconds": 2 * cpu, "cpu_seconds": cpu, "parts": {"masks": cpu / 2}, "peak_gib": cpu}
        for name, cpu in ways.items()
    }


def test_a_page_holds_every_section_and_replaces_its_own(tmp_path):
    rows = [row_of(6.0, 2.0)]
    seconds, memory, parts = page.tables(rows, ("plain", "ours"), "A step")
    assert seconds["rows"] == [["mini", 3, "12 (6)", "4 (2)", "3.0x"]]
    assert memory["rows"] == [["mini", 3, "6.00", "2.00", "0.33"]]
    assert parts["rows"] == [["mini", 3, "plain", "3"], ["mini", 3, "ours", "1"]]
    chart = page.chart(rows, ("plain", "ours"), "conversations", file="steps", title="Steps", x="questions")
    assert chart["series"] == {"plain": [[3.0, 6.0]], "ours": [[3.0, 2.0]]}
    section = {"title": "A step", "machine": "a CPU", "made_by": "bench.py", "tables": [seconds], "charts": [chart]}
    for name, title in (("train", "Old"), ("chat", "Talk"), ("train", "A step")):
        page.put(tmp_path / "performance", name, {**section, "title": title})
    assert list(json.loads((tmp_path / "performance.json").read_text())) == ["train", "chat"]
    text = (tmp_path / "performance.md").read_text()
    assert "## A step" in text and "## Talk" in text and "Old" not in text
    assert "| mini | 3 | 12 (6) | 4 (2) | 3.0x |" in text and "](performance/steps.svg)" in text
    assert (tmp_path / "performance" / "steps.svg").read_text().startswith("<svg")


def test_a_row_s_memory_is_one_line_of_json(capsys):
    asked = {"size": "tiny", "task": "train", "mode": "cached", "device": "cpu", "changes": {"conversations": 1}}
    assert command.answer_row(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["rest_gib"] <= found["peak_gib"]


def test_sweeps_are_charts_of_each_way(monkeypatch):
    monkeypatch.setattr(command, "SWEEPS", {"conversations": [1, 2]})
    (chart,) = command.sweeps(argparse.Namespace(sweep="tiny", device=CPU), "read")
    assert chart["file"] == "read_conversations" and [x for x, _ in chart["series"]["ours"]] == [1, 2]


def test_modules_alone_have_a_row_each(model):
    table = modules.alone(model, "tiny", repeat=1)
    names = [name for name, *_ in table["rows"]]
    assert [name.split(",")[0] for name in names] == ["a mask decoder", "E_SO", "SAM's global attention"]
    assert all(float(plain) > 0 and float(ours) > 0 for _, plain, ours, _ in table["rows"])
