"""The made-up batch against the plan's workload, and figures from a profiler's trace worked by hand."""

from __future__ import annotations

import pytest
import torch

from aura.gpucheck.large import summary_of
from aura.gpucheck.models import architecture, fill, made_up_batch
from aura.plan import Workload

WORK = {"prompt_tokens": 8, "text_tokens": 14, "answer_tokens": 8, "height": 48, "width": 64}


def test_a_made_up_batch_is_as_long_as_the_plan_reckons():
    config = architecture(tiny=True)
    work = Workload(**WORK, images=2, conversations=3, objects=2)
    batch = made_up_batch(config, work)
    assert batch.input_ids.shape == (2, work.length(config))
    assert (len(batch.target_ids), len(batch.seg_index)) == (work.num_targets, work.num_objects)
    assert (batch.input_ids.flatten()[batch.seg_index] == config.seg_token_id).all()
    assert (batch.input_ids == config.image_token_id).sum(1).tolist() == [config.num_image_tokens] * 2
    many = made_up_batch(config, Workload(**WORK, conversations=3, objects=10 / 3), [4, 3, 3])
    assert len(many.seg_index) == 10 == Workload(conversations=3, objects=10 / 3).num_objects


def test_the_large_batch_of_forty_is_what_the_issue_of_memory_is_about():
    work = Workload(conversations=11, text_tokens=325, answer_tokens=180, objects=40 / 11)
    assert work.length(architecture(tiny=False)) == 3876 and work.num_objects == 40


def test_random_weights_keep_activations_of_one_size():
    layer = torch.nn.Linear(400, 300)
    fill(layer)
    assert float(layer(torch.randn(50, 400)).std()) == pytest.approx(1, abs=0.1) and not layer.bias.any()


def test_figures_of_a_trace():
    def event(name, start, duration, category):
        return {"ph": "X", "name": name, "ts": start, "dur": duration, "cat": category}

    events = [
        event("cudaLaunchKernel", 0, 1, "cuda_runtime"),
        event("cuLaunchKernelEx", 1, 1, "cuda_driver"),
        event("cudaStreamSynchronize", 2, 1, "cuda_runtime"),
        event("cudaMemcpyAsync", 2, 1, "cuda_runtime"),
        event("aten::_local_scalar_dense", 2, 1, "cpu_op"),
        event("aten::_scaled_dot_product_efficient_attention", 2, 1, "cpu_op"),
        event("aten::_scaled_dot_product_efficient_attention_backward", 2, 1, "cpu_op"),
        event("gemm", 1000, 1000, "kernel"),
        event("copy", 1500, 1000, "gpu_memcpy"),  # overlaps: busy until 2500
        event("gemm", 4500, 500, "kernel"),
        {"ph": "i", "name": "mark", "ts": 3},
    ]
    figures = summary_of(events)
    assert figures["launches"] == 2 and figures["waits"] == {"cudaStreamSynchronize": 1}
    assert figures["values_read_by_the_cpu"] == 1 and figures["attention"] == {"efficient_attention": 1}
    assert figures["gpu_ms"] == 4.0 and figures["idle_share"] == 0.5
    assert next(iter(figures["longest"].items())) == ("gemm", "1.5 ms")
