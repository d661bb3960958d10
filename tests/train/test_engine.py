"""The engine on one CPU process with a two-layer network, one layer frozen."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from aura.config import TrainSettings
from aura.train import engine as engine_module
from aura.train.engine import (
    Engine,
    deepspeed_config,
    start_process,
    trained_weights,
    uses_autocast,
)
from aura.train.randomness import rng_state, set_rng_state


def settings(**changes):
    values = {"steps": 10, "warmup_steps": 2, "accumulation": 2, "lr": 0.1, "precision": "fp32", "zero_stage": 0}
    return TrainSettings(**{**values, **changes})


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    return model


def train_steps(engine, count):
    losses = []
    for _ in range(count):
        for _ in range(2):
            loss = engine(torch.randn(5, 3)).square().mean()
            engine.backward(loss)
            engine.step()
        losses.append(float(loss))
    return losses


@pytest.fixture(scope="module")
def process():
    return start_process(settings())


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_resumed_training_equals_uninterrupted(process, stage, tmp_path):
    engine = Engine(network(), settings(zero_stage=stage), process)
    torch.manual_seed(1)
    train_steps(engine, 4)
    engine.save(tmp_path, "middle")
    state = rng_state()
    expected = train_steps(engine, 3)
    expected_lr = engine.lr

    resumed = Engine(network(), settings(zero_stage=stage), process)
    resumed.load(tmp_path, "middle")
    set_rng_state(state)
    assert resumed.steps == 4
    assert train_steps(resumed, 3) == expected
    assert resumed.lr == expected_lr

    weights = trained_weights(tmp_path / "middle")
    fresh = network().state_dict()
    assert not torch.equal(weights["2.weight"], fresh["2.weight"])
    assert "0.weight" not in weights or weights["0.weight"].numel() == 0


def test_learning_rate_warms_up_and_decays_linearly_per_optimizer_step(process):
    engine = Engine(network(), settings(), process)
    rates = []
    for _ in range(10):
        rates.append(engine.lr)
        train_steps(engine, 1)
    assert rates == pytest.approx([0, 0, 0.05, 0.1, 0.0875, 0.075, 0.0625, 0.05, 0.0375, 0.025])


def test_gradients_are_averaged_over_accumulation_and_clipped(process):
    model = nn.Linear(1, 1, bias=False)
    engine = Engine(model, settings(grad_clip=1.0), process)
    for value in (2.0, 4.0):
        engine.backward(engine(torch.full((1, 1), value)).sum())
        engine.step()
    assert engine.grad_norm == pytest.approx(3.0)
    assert engine.steps == 1


def test_damaged_checkpoint_is_an_error_with_a_remedy(process, tmp_path):
    engine = Engine(network(), settings(), process)
    engine.save(tmp_path, "a")
    (tmp_path / "a" / "mp_rank_00_model_states.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"a cannot be loaded .*--train.resume"):
        engine.load(tmp_path, "a")


def test_checkpoint_without_a_trainable_weight_is_refused(process, tmp_path):
    engine = Engine(network(), settings(), process)
    engine.save(tmp_path, "a")
    path = tmp_path / "a" / "mp_rank_00_model_states.pt"
    state = torch.load(path, weights_only=False)
    del state["module"]["2.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"lacks .*2.weight"):
        engine.load(tmp_path, "a")


def test_model_without_trainable_parameters_is_refused(process):
    with pytest.raises(ValueError, match=r"no trainable parameter"):
        Engine(nn.Linear(1, 1).requires_grad_(False), settings(), process)


def test_fp16_on_a_cpu_names_the_remedy(monkeypatch):
    monkeypatch.setattr(engine_module.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"--train.precision fp32"):
        start_process(settings(precision="fp16"))


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"precision": "fp16", "autocast": "bf16"}])
def test_bf16_on_a_gpu_that_only_emulates_it_names_the_remedy(monkeypatch, changes):
    cuda = engine_module.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "set_device", lambda device: None)
    monkeypatch.setattr(cuda, "get_device_name", lambda device=None: "Tesla V100")
    monkeypatch.setattr(cuda, "get_device_capability", lambda device=None: (7, 0))
    with pytest.raises(ValueError, match=r"V100 .*no bf16 units.*--train.precision fp16"):
        start_process(settings(**changes))


def test_a_gpu_without_code_in_this_torch_is_refused_at_the_start(monkeypatch):
    cuda = engine_module.torch.cuda
    monkeypatch.setattr(engine_module.torch.version, "cuda", "13.0")
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "set_device", lambda device: None)
    monkeypatch.setattr(cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    monkeypatch.setattr(cuda, "get_device_name", lambda device=None: "Tesla V100")
    monkeypatch.setattr(cuda, "get_device_capability", lambda device=None: (7, 0))
    with pytest.raises(ValueError, match=r"no code for Tesla V100.*cu126"):
        start_process(settings(precision="fp16"))


@pytest.mark.parametrize("stage", [0, 2])
def test_gradients_that_are_not_finite_stop_the_run(process, stage):
    engine = Engine(network(), settings(zero_stage=stage, accumulation=1), process)
    loss = engine(torch.ones(4, 3)).mul(0).square().sum().sqrt()  # 0, and its derivative is 0 / 0
    engine.backward(loss)
    with pytest.raises(FloatingPointError, match=r"gradients are not finite in optimizer step 1\b"):
        engine.step()


def test_auto_multiplies_in_bf16_where_the_cpu_can(process, monkeypatch):
    for can in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda can=can: can)
        found = {value: uses_autocast(settings(autocast=value), process) for value in ("off", "bf16", "auto")}
        assert found == {"off": False, "bf16": True, "auto": can}


def test_configuration_follows_the_paper():
    config = deepspeed_config(TrainSettings(), world_size=2, device_type="cuda")
    assert config["train_batch_size"] == 8
    assert "fp16" not in config and "bf16" not in config  # DeepSpeed would cast what is trained
    assert config["scheduler"]["params"] == {
        "total_num_steps": 5000,
        "warmup_min_lr": 0.0,
        "warmup_max_lr": 1e-3,
        "warmup_num_steps": 100,
        "warmup_type": "linear",
    }
    assert config["zero_optimization"]["stage"] == 2


def test_random_state_goes_back():
    state = rng_state()
    drawn = (random.random(), np.random.rand(), torch.rand(()))
    set_rng_state(state)
    assert (random.random(), np.random.rand(), torch.rand(())) == drawn


def test_a_process_may_train_twice(process):
    """DeepSpeed keeps groups of its own, which end with those of the run that made them."""
    for _ in range(2):
        again = start_process(settings())
        assert len(train_steps(Engine(network(), settings(zero_stage=2), again), 1)) == 1
        engine_module.stop_process()
    start_process(settings())
