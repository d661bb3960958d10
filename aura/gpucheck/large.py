"""Sections on AURA-7B with ViT-H in the device's half precision: steps, a profile, packing, generation."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from aura.config import LossSettings
from aura.data.collate import collate
from aura.gpucheck import models
from aura.gpucheck.findings import Findings
from aura.gpucheck.lab import Lab, Large
from aura.losses import AuraCriterion, text_loss
from aura.model import AuraModel
from aura.model.configuration import DTYPES
from aura.plan import GPUS, Plan, Workload, make_plan
from aura.plan.meter import GIB, peak_bytes, reset_peak, seconds, synchronize
from aura.types import Batch

TOLERANCE = 0.15
"""How far the memory of a step may be from the plan's."""
SYNCHRONISING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def workload(lab: Lab, **changes: Any) -> Workload:
    """The plan's usual micro-batch; a few tokens in a rehearsal."""
    small = {"prompt_tokens": 8, "text_tokens": 14, "answer_tokens": 8, "height": 48, "width": 64}
    return Workload(**{**(small if lab.tiny else {}), **changes})


def criterion() -> AuraCriterion:
    return AuraCriterion(LossSettings())


def set_checkpointing(model: AuraModel, on: bool) -> None:
    if on:
        model.gradient_checkpointing_enable()
    else:
        model.gradient_checkpointing_disable()


# --- 4 ----------------------------------------------------------------------------------------------------------------


def steps(lab: Lab, found: Findings) -> None:
    """Training steps with and without cached features and recomputed activations: memory, milliseconds, TFLOP/s."""
    began = time.perf_counter()
    large = lab.large()
    synchronize(lab.device)
    found.fact(building_s=time.perf_counter() - began, parameters=sum(p.numel() for p in large.model.parameters()))
    found.fact(precision=lab.half, zero_stage=large.config.train.zero_stage)
    work = workload(lab)
    pixels = models.made_up_batch(large.model.config, work).to(lab.device)
    features = models.with_features(large.model, pixels)
    ceiling = lab.product_tflops(DTYPES[lab.half])
    for cached, batch in ((True, features), (False, pixels)):
        for recompute in (True, False):
            name = f"{'cached features' if cached else 'pixels'}, {'recomputed' if recompute else 'kept'}"
            plan = plan_of(large, work, cached=cached, recompute=recompute)
            set_checkpointing(large.model, recompute)
            try:
                measured = _measure_steps(lab, large, batch)
            except torch.OutOfMemoryError:
                _does_not_fit(lab, found, name, plan)
                lab.drop_large()  # DeepSpeed's buckets hold half a step
                return
            achieved = plan.micro_flops.total / measured["micro_ms"] * 1e3 / 1e12
            found.fact(
                **{name: {**measured, "tflops": achieved, "share": achieved / ceiling, **_planned_ms(lab, plan)}}
            )
            _memory(found, name, measured["peak_gib"], plan)


def plan_of(large: Large, work: Workload, *, cached: bool, recompute: bool) -> Plan:
    config = large.config
    data = dataclasses.replace(config.data, feature_cache="here" if cached else None)
    train = dataclasses.replace(config.train, gradient_checkpointing=recompute)
    config = dataclasses.replace(config, data=data, train=train)
    return make_plan(config, large.model.config, work=work)


def _measure_steps(lab: Lab, large: Large, batch: Batch) -> dict[str, float]:
    """Medians of the micro-step (forward, losses, backward) and of the optimizer's step, and the peak in GiB."""
    judge, times = criterion(), []
    for number in range(3 if lab.tiny else 7):
        if number == 2:  # AdamW's state is there, kernels are chosen
            reset_peak(lab.device)
        marks = []
        for task in (lambda: micro_step(large, judge, batch), large.engine.step):
            synchronize(lab.device)
            began = time.perf_counter()
            task()
            synchronize(lab.device)
            marks.append(1e3 * (time.perf_counter() - began))
        times.append(marks)
    micro, optimizer = (sorted(column)[len(times[2:]) // 2] for column in zip(*times[2:], strict=True))
    return {"micro_ms": micro, "optimizer_ms": optimizer, "peak_gib": peak_bytes(lab.device) / GIB}


def micro_step(large: Large, judge: AuraCriterion, batch: Batch) -> None:
    large.engine.backward(judge(large.engine(batch), batch).total)


def _planned_ms(lab: Lab, plan: Plan) -> dict[str, float]:
    """What the plan says of a step on this GPU, if it knows it."""
    name = torch.cuda.get_device_name(lab.device).lower() if lab.device.type == "cuda" else ""
    known = next((gpu for key, gpu in GPUS.items() if key in name), None)
    duration = plan.duration(known) if known is not None else None
    return {"planned_ms": 1e3 * duration.total} if duration is not None else {}


def _memory(found: Findings, name: str, peak_gib: float, plan: Plan) -> None:
    memory = plan.memory()
    planned = (memory.total - memory.reserve) / GIB  # what the allocator hands out; CUDA's own memory is not in it
    found.check(
        f"{name}: the peak is within {TOLERANCE:.0%} of the plan's",
        abs(peak_gib - planned) <= TOLERANCE * planned,
        seen=peak_gib,
        wanted=planned,
        gpu_only=True,
    )


def _does_not_fit(lab: Lab, found: Findings, name: str, plan: Plan) -> None:
    total = torch.cuda.get_device_properties(lab.device).total_memory
    need = plan.memory().total
    found.check(f"{name}: out of memory, as planned", need > total, seen=total / GIB, wanted=need / GIB)


# --- 5 ----------------------------------------------------------------------------------------------------------------


def profile(lab: Lab, found: Findings) -> None:
    """One micro-step with cached features: how often the CPU waits for the GPU, launches, how long the GPU is idle."""
    large = lab.large()
    set_checkpointing(large.model, False)
    batch = models.with_features(large.model, models.made_up_batch(large.model.config, workload(lab)).to(lab.device))
    judge = criterion()

    def task() -> None:
        micro_step(large, judge, batch)
        large.engine.step()

    for _ in range(2):
        task()
    synchronize(lab.device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if lab.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        micro_step(large, judge, batch)
        synchronize(lab.device)
    large.engine.step()
    file = lab.folder / "trace.json"
    profiler.export_chrome_trace(str(file))
    events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    file.unlink()
    facts = summary_of(events)
    found.fact(**facts)
    slow = [name for name in facts["attention"] if name.endswith("math")]
    found.check("no attention takes the math kernel", not slow, seen=facts["attention"], wanted="others", gpu_only=True)


def summary_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a profiler's trace: waits, launches, the share of the time in which the GPU does nothing."""
    whole = [event for event in events if event.get("ph") == "X" and "dur" in event]
    calls = Counter(event["name"] for event in whole if event.get("cat") in ("cuda_runtime", "cuda_driver"))
    waits = {name: count for name, count in calls.items() if name.startswith(SYNCHRONISING)}
    waits.pop("cudaMemcpyAsync", None)
    kernels = [event for event in whole if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    items = sum(event["name"] == "aten::_local_scalar_dense" for event in whole)
    launches = sum(count for name, count in calls.items() if "Launch" in name)
    attention = Counter(e["name"].removeprefix("aten::_scaled_dot_product_") for e in whole if _is_attention(e["name"]))
    facts: dict[str, Any] = {"waits": waits, "values_read_by_the_cpu": items, "launches": launches}
    facts["attention"] = dict(attention)
    if not kernels:
        return facts
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in kernels)
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    wall = end - spans[0][0]
    longest = Counter[str]()
    for event in kernels:
        longest[event["name"][:60]] += event["dur"]
    top = {name: f"{duration / 1e3:.1f} ms" for name, duration in longest.most_common(5)}
    return {**facts, "kernels": len(kernels), "gpu_ms": wall / 1e3, "idle_share": 1 - busy / wall, "longest": top}


def _is_attention(name: str) -> bool:
    return name.startswith("aten::_scaled_dot_product_") and not name.endswith("backward")


# --- 6 ----------------------------------------------------------------------------------------------------------------


def packing(lab: Lab, found: Findings) -> None:
    """The text loss of eleven conversations about an image, in one packed sequence and in a sequence each."""
    large, count = lab.large(), 3 if lab.tiny else 11
    model = large.model
    work = workload(lab, conversations=count)
    sample = models.made_up_sample(model.config, work, [round(work.objects)] * count)
    parts = [
        dataclasses.replace(sample, conversations=(conversation,), targets=(targets,))
        for conversation, targets in zip(sample.conversations, sample.targets, strict=True)
    ]
    clip = models.with_features(model, collate([sample]).to(lab.device))
    packed, *separate = [
        dataclasses.replace(
            collate([each]).to(lab.device),
            sam_pixels=None,
            clip_pixels=None,
            sam_embeddings=clip.sam_embeddings,
            clip_features=clip.clip_features,
        )
        for each in (sample, *parts)
    ]
    set_checkpointing(model, True)
    model.eval()  # without dropout the two must agree
    trained = [parameter for _, parameter in model.trainable_parameters()]

    def losses(batches: list[Batch]) -> list[float]:
        found = []
        for batch in batches:
            loss = text_loss(model(batch).text_logits, batch.target_ids)
            torch.autograd.grad(loss, trained, allow_unused=True)  # past DeepSpeed's hooks, which await its own step
            found.append(float(loss.detach()))
        return found

    together, apart = losses([packed])[0], losses(separate)
    mean = sum(apart) / count
    found.at_most("the packed text loss is that of separate sequences", abs(together - mean) / mean, 2e-2)
    repeat = 1 if lab.tiny else 3
    slow = seconds(lambda: losses(separate), repeat=repeat, device=lab.device)
    fast = seconds(lambda: losses([packed]), repeat=repeat, device=lab.device)
    found.fact(conversations=count, tokens=packed.input_ids.shape[1], packed_ms=1e3 * fast, separate_ms=1e3 * slow)
    found.check("packing is faster", slow > fast, seen=f"{slow / fast:.1f}x", wanted="above 1x", gpu_only=True)
    model.train()


# --- 7 ----------------------------------------------------------------------------------------------------------------


def generation(lab: Lab, found: Findings) -> None:
    """Greedy answers to 1 and to 11 prompts about an image."""
    large = lab.large()
    found.fact(**tokens_per_second(lab, large.model))


def tokens_per_second(lab: Lab, model: AuraModel, prompts: tuple[int, ...] = (1, 11)) -> dict[str, Any]:
    """For each number of prompts: seconds of the first call, then tokens a second."""
    config, count = model.config, 4 if lab.tiny else 64
    work = workload(lab, conversations=max(prompts))
    sample = models.made_up_sample(config, work, [1] * work.conversations)
    start = len(sample.conversations[0].input_ids) - work.answer_tokens
    questions = [conversation.input_ids[:start] for conversation in sample.conversations]
    assert sample.clip_pixels is not None
    model.eval()
    with torch.no_grad():
        clip_features = model.mllm.encode_images(sample.clip_pixels[None].to(lab.device))
    facts: dict[str, Any] = {}
    for number in prompts:
        written: list[int] = []

        def task(number: int = number, written: list[int] = written) -> None:
            answers = model.generate_answers(questions[:number], clip_features=clip_features, max_new_tokens=count)
            written.append(sum(len(answer.token_ids) for answer in answers))

        first = _once(task, lab)
        taken = seconds(task, repeat=2, device=lab.device, warm_up=0)
        per_second = written[-1] / taken
        facts[f"{number} prompts"] = {"first_call_s": first, "tokens_per_s": per_second, "tokens": written[-1]}
    weights = sum(p.numel() * p.element_size() for p in model.mllm.language_model.parameters())
    facts["language_model_gib"] = weights / GIB
    model.train()
    return facts


def _once(task: Callable[[], None], lab: Lab) -> float:
    return seconds(task, repeat=1, device=lab.device, warm_up=0)
