"""A run whose weights come from the hub keeps the commits that it began with."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path

from aura.config import load_config
from aura.model import AuraModel
from aura.train.start import train
from aura.weights import hub as names
from tests.weights.loopback_hub import LoopbackHub, allow, point_to, serving

EXPORT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "export.py"))["main"]


def test_a_run_keeps_its_commit_and_so_does_what_is_made_of_it(
    tiny_run, tiny_llava_dir, tiny_sam_dir, tmp_path, monkeypatch
):
    config = load_config(tiny_run)
    model = dataclasses.replace(config.model, mllm="me/llava", sam="me/sam")
    settings = dataclasses.replace(config.train, steps=2, validate_every=0)
    config, run = dataclasses.replace(config, model=model, train=settings), Path(settings.output_dir)
    allow(monkeypatch, tmp_path / "cache")
    hub = LoopbackHub()
    commits = {"me/llava": hub.add("me/llava", tiny_llava_dir), "me/sam": hub.add("me/sam", tiny_sam_dir)}
    with serving(hub):
        point_to(hub.url, monkeypatch)
        assert train(config) == 0
        assert load_config(run / "config.yaml").model == model  # in the user's words
        state = json.loads((run / "checkpoints" / "step_000002" / "state.json").read_text())
        assert state["hub_commits"] == commits

        for name in commits:  # both move on, to what is no model at all
            hub.add(name, **{"config.json": b"{}"})
        names._commits.clear()
        assert train(config) == 0  # continues: other weights than the checkpoint's would be refused
        names._commits.clear()
        assert EXPORT([str(run), "--out", str(tmp_path / "out")]) == 0
    for folder in (run / "export", tmp_path / "out"):
        assert AuraModel.config_class.from_pretrained(folder).hub_commits == commits
    assert f"me/llava, commit {commits['me/llava']}" in (tmp_path / "out" / "README.md").read_text()
