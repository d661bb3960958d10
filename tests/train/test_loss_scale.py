"""fp16's loss scale: its rule, and steps that overflow under every ZeRO stage (on a CPU, with injected infinities)."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from aura.config import TrainSettings
from aura.train.engine import Engine, start_process
from aura.train.loss_scale import LossScale

SETTINGS = TrainSettings(
    steps=20, warmup_steps=1, accumulation=2, lr=0.1, grad_clip=1.0, zero_stage=0, max_skipped_steps=3
)
STAGES = [(0, False), *((stage, offload) for stage in (1, 2, 3) for offload in (False, True))]


def test_the_scale_falls_at_once_and_rises_slowly():
    scale = LossScale(8.0, window=2)
    seen = []
    for overflowed in (True, False, False, False, True, True, True, True):
        scale.update(overflowed)
        seen.append((scale.scale, scale.overflows_in_a_row))
    assert seen == [(4, 1), (4, 0), (8, 0), (8, 0), (4, 1), (2, 2), (1, 3), (1, 4)]
    again = LossScale()
    again.load(scale.state())
    assert again.state() == scale.state()


@pytest.fixture(scope="module")
def process():
    return start_process(dataclasses.replace(SETTINGS, precision="fp32"))


def make_engine(process, stage, offload, precision="fp16"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    settings = dataclasses.replace(SETTINGS, zero_stage=stage, offload_optimizer=offload, precision=precision)
    return Engine(model, settings, process)


def step(engine, seed, bad=1.0):
    """One optimizer step of two micro-batches, the first's loss times ``bad``; whether it was skipped."""
    torch.manual_seed(seed)
    for factor in (bad, 1.0):
        engine.backward(engine(torch.randn(5, 3)).square().mean() * factor)
        skipped = engine.step()
    return skipped


def facts(engine):
    weights = {name: value.clone() for name, value in engine.full_state_dict().items()}
    return engine.steps, engine.lr, weights


def assert_same(one, other):
    assert one[:2] == other[:2]
    assert all(torch.equal(one[2][name], other[2][name]) for name in one[2])


@pytest.mark.parametrize(("stage", "offload"), STAGES)
def test_an_overflow_changes_nothing_but_the_scale(process, stage, offload, tmp_path):
    plain, scaled = make_engine(process, stage, offload, "fp32"), make_engine(process, stage, offload)
    for seed in range(3):
        assert not step(plain, seed) and not step(scaled, seed)
    before = facts(scaled)
    for bad in (float("inf"), float("nan")):
        assert step(scaled, 99, bad)
        assert not math.isfinite(scaled.grad_norm)
    assert_same(facts(scaled), before)
    assert (scaled.attempts, scaled.skipped_steps, scaled.scaler.scale) == (5, 2, 2.0**14)

    scaled.save(tmp_path, "a")
    resumed = make_engine(process, stage, offload)
    resumed.load(tmp_path, "a")
    assert (resumed.attempts, resumed.skipped_steps) == (5, 2) and resumed.scaler.state() == scaled.scaler.state()
    for engine in (plain, scaled, resumed):
        assert not step(engine, 3)
    assert scaled.grad_norm == pytest.approx(plain.grad_norm, rel=1e-5)
    assert_same(facts(resumed), facts(scaled))
    (steps, lr, weights), exact = facts(scaled), facts(plain)
    assert (steps, lr) == exact[:2]
    for name, value in weights.items():  # powers of two: scaling rounds nothing
        torch.testing.assert_close(value, exact[2][name], rtol=1e-5, atol=1e-6)


def test_so_many_in_a_row_stop_the_run(process):
    engine = make_engine(process, 0, False)
    step(engine, 0, float("inf"))
    step(engine, 0)
    for _ in range(2):
        step(engine, 0, float("inf"))
    with pytest.raises(FloatingPointError, match=r"not finite 3 times in a row after optimizer step 1\b.*train\.lr"):
        step(engine, 0, float("inf"))
