"""A checkpoint of one process continued by two, and theirs by one again: the losses of a run that was never stopped."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from aura.config import TrainSettings
from aura.train.engine import Engine, mean_over_processes, start_process

STAGES = (0, 1, 2, 3)
MICRO_BATCHES = 4


def settings(stage, world):
    return TrainSettings(
        steps=20, warmup_steps=1, accumulation=MICRO_BATCHES // world, lr=0.05, precision="fp32", zero_stage=stage
    )


def make(process, stage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 5), nn.Linear(5, 1))
    model[0].requires_grad_(False)
    return Engine(model, settings(stage, process.world_size), process)


def steps(engine, count):
    """Mean losses of optimizer steps; every micro-batch of the run has its own data, whoever reads it."""
    process, losses = engine.process, []
    for number in range(engine.attempts, engine.attempts + count):
        total = 0.0
        for micro in range(MICRO_BATCHES // process.world_size):
            place = number * MICRO_BATCHES + micro * process.world_size + process.rank
            inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(place))
            loss = engine(inputs).square().mean()
            engine.backward(loss)
            engine.step()
            total += float(loss.detach()) * process.world_size / MICRO_BATCHES
        losses += mean_over_processes([total], process)
    return losses


def test_one_then_two_then_one_process(tmp_path):
    process = start_process(settings(0, 1))
    wanted = {}
    for stage in STAGES:
        engine = make(process, stage)
        steps(engine, 3)
        engine.save(tmp_path / str(stage), "one")
        wanted[stage] = steps(engine, 6)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    two = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env={**os.environ, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    told = [each.communicate(timeout=600)[0] for each in two]
    assert [each.returncode for each in two] == [0, 0], told[0][-3000:] + told[1][-3000:]
    for stage in STAGES:
        found = json.loads((tmp_path / str(stage) / "losses.json").read_text())
        engine = make(process, stage)
        engine.load(tmp_path / str(stage), "two", resharded=True)
        assert (engine.steps, engine.attempts) == (6, 6)
        assert [*found, *steps(engine, 3)] == pytest.approx(wanted[stage], abs=1e-6), stage
        left = {path.name for path in (tmp_path / str(stage)).iterdir() if not path.name.startswith("zero_to_")}
        assert left == {"one", "two", "losses.json"}, "the parts put together are left behind"


def two_processes(folder):
    process = start_process(settings(0, 2))
    for stage in STAGES:
        engine = make(process, stage)
        engine.load(folder / str(stage), "one", resharded=True)
        losses = steps(engine, 3)
        engine.save(folder / str(stage), "two")
        if process.is_main:
            (folder / str(stage) / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
