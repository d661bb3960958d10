"""The time of a step: launches as counted in a real one, reductions and AdamW worked by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aura.config import Config, LossSettings, ModelSettings, TrainSettings
from aura.gpucheck.models import architecture, made_up_batch, random_model, with_features
from aura.losses import AuraCriterion
from aura.plan import GPUS, Workload, describe, make_plan, settled
from aura.plan.duration import LAUNCH, of_step
from aura.plan.gpus import GIB
from aura.plan.launches import Launches, step_launches

VIEWS = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "transpose", "permute", "expand", "slice", "select", "t"),
    *("unsqueeze", "squeeze", "detach", "alias", "split", "split_with_sizes", "unbind", "as_strided", "unfold"),
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh", "_local_scalar_dense"),
}
WORK = {"prompt_tokens": 8, "text_tokens": 14, "answer_tokens": 8, "height": 48, "width": 64}


class Counting(TorchDispatchMode):
    """Counts what torch is asked to compute; views and allocations launch nothing."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1].rstrip("_")
        if name not in VIEWS:
            self.names[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("checkpointing", "encode", "images", "layers"), [(False, False, 1, 2), (True, False, 2, 4), (False, True, 1, 2)]
)
def test_launches_are_those_of_a_counted_step(checkpointing, encode, images, layers):
    config = architecture(tiny=True)
    config.llava_config.text_config.num_hidden_layers = layers
    model = random_model(config, torch.bfloat16, torch.device("cpu")).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    work = Workload(**WORK, images=images)
    batch = made_up_batch(config, work)
    batch = batch if encode else with_features(model, batch)
    judge = AuraCriterion(LossSettings())
    judge(model(batch), batch)  # the matrices of the geometry are made once
    with Counting() as counting:
        total = judge(model(batch), batch).total
        forward = counting.names.total()
        total.backward()
    counted = Launches(forward, counting.names.total() - forward)
    planned = step_launches(config, work, checkpointing=checkpointing, encode=encode)
    assert sum(planned) == pytest.approx(sum(counted), rel=0.05)
    if not checkpointing:  # else a part of the forward pass is counted in the backward pass
        assert planned.forward == pytest.approx(counted.forward, rel=0.05)


def test_the_parts_of_a_step_by_hand():
    gpu = replace_gpu(utilisation=0.5, memory_gb_s=1000, link_gb_s=10)
    given = {
        **{"flops": 10**12, "launches": Launches(1000, 2000), "peak": 100, "accumulation": 4, "trained": 10**9},
        **{"total": 10**10, "gradient_bytes": 2, "value_bytes": 2, "num_gpus": 2, "offload": False},
    }
    two = of_step(gpu, **given, zero_stage=2)
    assert two.products == pytest.approx(4 * 1e12 / 50e12)
    assert two.launches == pytest.approx(4 * (1000 * LAUNCH[0] + 2000 * LAUNCH[1]))
    assert two.waits_for_the_cpu and two.total == pytest.approx(two.launches + two.reductions + two.optimizer)
    assert two.reductions == pytest.approx((4 + 1) * 0.5 * 2e9 / 10e9)  # each micro-batch, and the weights at the end
    assert two.optimizer == pytest.approx(0.5e9 * 28 / 1e12)
    one, none = (of_step(gpu, **given, zero_stage=stage) for stage in (1, 0))
    assert one.reductions == none.reductions == pytest.approx(2 * 0.5 * 2e9 / 10e9)
    assert none.optimizer == 2 * one.optimizer
    alone = of_step(gpu, **{**given, "num_gpus": 1}, zero_stage=2)
    assert alone.reductions == 0
    assert of_step(gpu, **{**given, "offload": True}, zero_stage=2).optimizer > 10 * two.optimizer
    assert of_step(gpu, **given, zero_stage=3).reductions > two.reductions


def replace_gpu(**changes):
    return GPUS["v100"]._replace(**changes)


def seven(**train):
    config = Config(train=TrainSettings(**train))
    return make_plan(config, describe(config.model, "7b", "vit_h")[0], work=Workload(), num_gpus=2)


def test_an_h100_waits_for_the_cpu_and_a_v100_does_not():
    plan = replace(seven(precision="fp16"), config=seven(precision="fp16").config)
    cached = replace(plan, config=replace(plan.config, data=replace(plan.config.data, feature_cache="here")))
    assert cached.duration(GPUS["h100"]).waits_for_the_cpu
    assert not cached.duration(GPUS["v100"]).waits_for_the_cpu


def test_auto_keeps_activations_where_they_fit_with_a_margin():
    plan = seven()
    assert plan.config.train.gradient_checkpointing == "auto" and plan.recomputes
    need = plan.memory(checkpointing=False).total
    for memory, recompute in ((need / 0.84, False), (need / 0.86, True)):
        decided = settled(plan, memory)
        assert decided.config.train.gradient_checkpointing is recompute is decided.recomputes
    chosen = seven(gradient_checkpointing=True)
    assert settled(chosen, 10 * need) is chosen
    assert settled(plan, 10 * need).micro_flops.total < plan.micro_flops.total
    alone = replace(plan, num_gpus=1)
    assert plan.memory().reserve == alone.memory().reserve + 0.5 * GIB  # NCCL's
    assert ModelSettings().quantize == "none"
