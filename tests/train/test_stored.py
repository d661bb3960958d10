"""Checkpoints of others: nothing in them runs when they are opened."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from aura.config import TrainSettings
from aura.train.engine import Engine, start_process, trained_weights


class Payload:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_payload_in_a_checkpoint_never_runs(tmp_path, monkeypatch, stage):
    settings = TrainSettings(steps=5, warmup_steps=2, accumulation=1, precision="fp32", zero_stage=stage)
    engine = Engine(nn.Linear(2, 1), settings, start_process(settings))
    engine.save(tmp_path, "step")
    monkeypatch.chdir(tmp_path)
    trained_weights(tmp_path / "step")
    engine.load(tmp_path, "step")
    for file in sorted((tmp_path / "step").glob("*_states.pt")):
        whole = file.read_bytes()
        torch.save({"module": {}, "more": Payload()}, file)
        for opening in (lambda: engine.load(tmp_path, "step"), lambda: trained_weights(tmp_path / "step")):
            with pytest.raises(ValueError, match=rf"{file.name} is not opened: .*mkdir, which could run code"):
                opening()
        assert not (tmp_path / "harm").exists()
        file.write_bytes(whole)
