"""Gradients that DeepSpeed accumulates for the real (tiny) model, against the exact mean over the micro-batches."""

import copy

import pytest
import torch

from aura.config import LossSettings, TrainSettings
from aura.data.collate import collate
from aura.losses import AuraCriterion
from aura.train import engine as engine_module
from aura.train.engine import Engine, start_process

ACCUMULATION = 4
SETTINGS = TrainSettings(
    steps=10, warmup_steps=1, accumulation=ACCUMULATION, grad_clip=0.0, precision="fp32", zero_stage=0
)
CRITERION = AuraCriterion(LossSettings())


@pytest.fixture(scope="module")
def process():
    return start_process(SETTINGS)


@pytest.fixture
def batches(make_sample):
    """Micro-batches of several shapes; the third has no ``[SEG]``."""
    shapes = ([[9], [7]], [[5, 6]], [[8]], [[12]])
    return [collate([make_sample(shape, image_id=i, seg=int(i != 2))]) for i, shape in enumerate(shapes)]


SMALL, LARGE = 2_000, 20_000_000
CASES = [(0, False, LARGE), (2, True, LARGE), *((stage, off, SMALL) for stage in (1, 2, 3) for off in (False, True))]


@pytest.mark.parametrize(("stage", "offload", "bucket"), CASES)
def test_accumulated_gradients_are_the_exact_mean(process, make_model, batches, monkeypatch, stage, offload, bucket):
    model = make_model().train()
    exact = copy.deepcopy(model)
    for batch in batches:
        (CRITERION(exact(batch), batch).total / ACCUMULATION).backward()
    norm = float(torch.nn.utils.get_total_norm([p.grad for _, p in exact.trainable_parameters()]))

    monkeypatch.setattr(engine_module, "CPU_BUCKET", bucket)
    settings = TrainSettings(**{**vars(SETTINGS), "zero_stage": stage, "offload_optimizer": offload})
    engine = Engine(model, settings, process)
    for _ in range(2):  # at lr 0: the second step shows what the first one left behind
        for batch in batches:
            engine.backward(CRITERION(engine(batch), batch).total)
            engine.step()
        assert engine.grad_norm == pytest.approx(norm, rel=1e-4)
