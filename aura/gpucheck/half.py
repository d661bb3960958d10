"""Sections that build AURA-7B once more: in fp16, in 4 bits, and with many objects in a long sequence."""

from __future__ import annotations

import copy
import time

import torch

from aura.config import Config, Precision
from aura.gpucheck import models
from aura.gpucheck.findings import Findings, NotPossible
from aura.gpucheck.lab import Lab, release
from aura.gpucheck.large import criterion, plan_of, set_checkpointing, tokens_per_second, workload
from aura.gpucheck.small import relative, scale_of
from aura.model.configuration import DTYPES
from aura.model.precision import hold
from aura.model.quantize import check_quantization
from aura.plan import make_plan
from aura.plan.meter import GIB, peak_bytes, reset_peak, synchronize
from aura.train import engine as ds
from aura.train.randomness import rng_state, set_rng_state


def fp16_run(lab: Lab, found: Findings) -> None:
    """ViT-H's features in fp16 against fp32; six steps, the last three repeated from a checkpoint."""
    precision: Precision = "fp16"
    config = models.architecture(tiny=lab.tiny)
    lab.require(make_plan(Config(train=lab.settings(precision)), config, work=workload(lab)))
    model = models.random_model(config, DTYPES[precision], lab.device).train()
    pixels = models.made_up_batch(config, workload(lab)).to(lab.device)
    assert pixels.sam_pixels is not None
    with torch.no_grad():
        half = model.image_encoder(pixels.sam_pixels.to(DTYPES[precision])).last_hidden_state
        exact = copy.deepcopy(model.image_encoder).float()(pixels.sam_pixels.float()).last_hidden_state
    finite = bool(torch.isfinite(half).all())
    found.check("SAM's features are finite", finite, seen=float(half.abs().max()), wanted="finite")
    found.at_most("SAM's features equal those in fp32", relative(half, exact), 3e-2)
    del exact, half

    batch = models.with_features(model, pixels)
    settings = lab.settings(precision, accumulation=1)
    set_checkpointing(model, True)
    engine = ds.Engine(model, settings, lab.process(settings))
    judge = criterion()

    def steps() -> list[float]:
        totals = []
        for _ in range(3):
            losses = judge(engine(batch), batch)
            engine.backward(losses.total)
            engine.step()
            totals.append(float(losses.total.detach()))
        return totals

    reset_peak(lab.device)
    first = steps()
    began = time.perf_counter()
    engine.save(lab.folder / "checkpoints", "middle")
    saved, state = time.perf_counter() - began, rng_state()
    expected = steps()
    size = sum(file.stat().st_size for file in (lab.folder / "checkpoints").rglob("*") if file.is_file())
    began = time.perf_counter()
    engine.load(lab.folder / "checkpoints", "middle")
    loaded = time.perf_counter() - began
    set_rng_state(state)
    again = steps()
    apart = max(abs(a - b) / abs(b) for a, b in zip(again, expected, strict=True))
    found.at_most("resumed steps repeat the uninterrupted ones", apart, 5e-3)
    found.fact(losses=[*first, *expected], resumed=again, loss_scale=scale_of(engine))
    found.fact(checkpoint_gib=size / GIB, save_s=saved, load_s=loaded, peak_gib=peak_bytes(lab.device) / GIB)
    release(engine)


def four_bits(lab: Lab, found: Findings) -> None:
    """One training step over 4-bit weights, and answers."""
    try:
        device = check_quantization("int4", lab.device)
    except ValueError as error:
        raise NotPossible(str(error)) from error
    config, dtype = models.architecture(tiny=lab.tiny), DTYPES[lab.half]
    model = models.random_model(config, dtype, lab.device)
    began = time.perf_counter()
    model.mllm.quantize("int4", config.lora, dtype=dtype, device=device)
    model.freeze()
    hold(model, dtype)
    found.fact(packing_s=time.perf_counter() - began)
    model.to(lab.device).train()  # type: ignore[arg-type]
    settings = lab.settings(lab.half)
    set_checkpointing(model, True)
    engine = ds.Engine(model, settings, lab.process(settings))
    pixels = models.made_up_batch(config, workload(lab)).to(lab.device)
    batch, judge = models.with_features(model, pixels), criterion()
    losses = []
    for number in range(3):
        if number == 2:
            reset_peak(lab.device)
            synchronize(lab.device)
            began = time.perf_counter()
        loss = judge(engine(batch), batch).total
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    synchronize(lab.device)
    found.fact(step_ms=1e3 * (time.perf_counter() - began), peak_gib=peak_bytes(lab.device) / GIB)
    finite = all(torch.isfinite(torch.tensor(losses)))
    found.check("losses are finite", finite, seen=losses, wanted="finite")
    found.fact(**tokens_per_second(lab, model, prompts=(1,)))
    release(engine)


def many_objects(lab: Lab, found: Findings) -> None:
    """Forty ``[SEG]`` in eleven conversations about an image of 1024 px, in one sequence of 3,876 tokens."""
    large = lab.large()
    counts = [4, 3, 3] if lab.tiny else [4] * 7 + [3] * 4
    sizes = {"text_tokens": 14, "height": 64, "width": 64} if lab.tiny else {"height": 1024, "width": 1024}
    if not lab.tiny:
        sizes |= {"text_tokens": 325, "answer_tokens": 180}
    work = workload(lab, conversations=len(counts), objects=sum(counts) / len(counts), **sizes)
    batch = models.made_up_batch(large.model.config, work, counts).to(lab.device)
    found.fact(tokens=batch.input_ids.shape[1], objects=len(batch.seg_index))
    batch = models.with_features(large.model, batch)
    set_checkpointing(large.model, True)
    plan, judge = plan_of(large, work, cached=True, recompute=True), criterion()
    reset_peak(lab.device)
    synchronize(lab.device)
    began = time.perf_counter()
    losses = judge(large.engine(batch), batch)
    large.engine.backward(losses.total)
    synchronize(lab.device)
    found.fact(micro_ms=1e3 * (time.perf_counter() - began))
    memory = plan.memory()
    planned, peak = (memory.total - memory.reserve) / GIB, peak_bytes(lab.device) / GIB
    total = float(losses.total.detach())
    large.engine.step()
    found.check("the loss is finite", torch.isfinite(losses.total).item() is True, seen=total, wanted="finite")
    found.check(
        "the peak is no more than the plan's and 15 %", peak <= 1.15 * planned, seen=peak, wanted=planned, gpu_only=True
    )
