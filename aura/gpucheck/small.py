"""Sections on the mini model: the device against the CPU, the export against the run, fp16 overflows."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from aura.config import LossSettings, Precision
from aura.data.collate import collate
from aura.evaluation.evaluate import answer_starts
from aura.gpucheck import models
from aura.gpucheck.findings import Findings
from aura.gpucheck.lab import Lab, release
from aura.losses import AuraCriterion
from aura.machine.devices import has_bf16
from aura.model import AuraModel
from aura.model.configuration import DTYPES
from aura.train import checkpoint as ckpt
from aura.train import engine as ds
from aura.types import Batch

HUGE = 1e30
"""Times a loss: its gradients do not fit fp16, and the loss itself fits fp32."""


@contextlib.contextmanager
def strict_fp32() -> Iterator[None]:
    """Products and convolutions of fp32 in fp32: no TF32."""
    convolutions: Any = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), convolutions.allow_tf32
    torch.set_float32_matmul_precision("highest")
    convolutions.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        convolutions.allow_tf32 = before[1]


def relative(value: Tensor, reference: Tensor) -> float:
    """The largest difference in units of the reference's largest value."""
    value, reference = value.detach().float().cpu(), reference.detach().float().cpu()
    return float((value - reference).abs().max() / reference.abs().max().clamp(min=1e-12))


def _batch(lab: Lab, processor: Any, count: int = 2) -> tuple[Batch, list[list[int]]]:
    """Images of the mini benchmark with their first three conversations, and the prompts of the first one's."""
    samples = models.mini_samples(lab.folder, 4)[:count]
    chosen = [(sample, sample.conversations[:3]) for sample in samples]
    sample, conversations = chosen[0]
    tokens = [processor.text.conversation(conversation, sample.image_id) for conversation in conversations]
    prompts = [each.input_ids[: answer_starts(each)[0]] for each in tokens]
    return collate([processor(sample, None, some) for sample, some in chosen]), prompts


# --- 1 ----------------------------------------------------------------------------------------------------------------


def devices_agree(lab: Lab, found: Findings) -> None:
    """Features, losses, gradients and tokens of the same weights, here and on the CPU, all in fp32."""
    model, processor = models.mini_model(models.mini_config())
    with torch.no_grad():  # adapters start as a zero update: half of their gradients would be zero
        for _, parameter in model.trainable_parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    batch, prompts = _batch(lab, processor)
    with strict_fp32():
        here = _observe(model, batch, prompts, torch.device("cpu"))
        there = _observe(copy.deepcopy(model), batch, prompts, lab.device)
    for name in ("SAM features", "CLIP features"):
        found.at_most(f"{name} equal the CPU's", relative(there[name], here[name]), 1e-4)
    losses = {k: abs(v - here["losses"][k]) / max(abs(here["losses"][k]), 1e-3) for k, v in there["losses"].items()}
    worst = max(losses, key=lambda name: losses[name])
    found.at_most(f"every loss equals the CPU's ({worst} the least)", losses[worst], 1e-4)
    largest = max(float(gradient.norm()) for gradient in here["gradients"].values())
    apart = {
        name: float((there["gradients"][name] - gradient).norm() / gradient.norm().clamp(min=1e-3 * largest))
        for name, gradient in here["gradients"].items()
    }
    worst = max(apart, key=lambda name: apart[name])
    found.at_most(f"every gradient equals the CPU's ({worst} the least)", apart[worst], 1e-3)
    same = there["tokens"] == here["tokens"]
    lengths = [len(tokens) for tokens in here["tokens"]]
    found.check("generated tokens are the CPU's", same, seen="equal" if same else "different", wanted="equal")
    found.fact(answer_tokens=lengths, loss=here["losses"]["total"], gradients=len(apart))


def _observe(model: AuraModel, batch: Batch, prompts: list[list[int]], device: torch.device) -> dict[str, Any]:
    model, batch = model.to(device).train(), batch.to(device)  # type: ignore[arg-type]
    assert batch.sam_pixels is not None and batch.clip_pixels is not None
    features = model.encode_images(batch.sam_pixels, batch.clip_pixels)
    losses = AuraCriterion(LossSettings(mask_resolution="decoder"))(model(batch), batch)
    losses.total.backward()
    gradients = {name: p.grad.float().cpu() for name, p in model.trainable_parameters() if p.grad is not None}
    model.eval()
    answers = model.generate_answers(prompts, clip_features=features.clip_features[:1], max_new_tokens=24)
    return {
        "SAM features": features.sam_embeddings.cpu(),
        "CLIP features": features.clip_features.cpu(),
        "losses": losses.as_floats(),
        "gradients": gradients,
        "tokens": [answer.token_ids for answer in answers],
    }


# --- 2 ----------------------------------------------------------------------------------------------------------------


def export_is_the_run(lab: Lab, found: Findings) -> None:
    """In each half precision: some steps through the engine, an export, and the loaded export's own output."""
    kinds: tuple[Precision, ...] = ("bf16", "fp16")
    for precision in kinds:
        if precision == "bf16" and not has_bf16(lab.device):
            found.fact(bf16="this GPU has no bf16 units")
        else:
            _export_and_reload(lab, found, precision)


def _export_and_reload(lab: Lab, found: Findings, precision: Precision) -> None:
    settings = lab.settings(precision, lr=1e-3)
    model, processor = models.mini_model(models.mini_config(), DTYPES[precision])
    batch = _batch(lab, processor, 1)[0].to(lab.device)
    model.to(lab.device).train()  # type: ignore[arg-type]
    engine = ds.Engine(model, settings, lab.process(settings))
    criterion = AuraCriterion(LossSettings(mask_resolution="decoder"))
    totals = _steps(engine, criterion, batch, 5 if lab.tiny else 14)
    folder = lab.folder / f"export_{precision}"
    ckpt.export(engine, processor, folder, None, DTYPES[precision])
    loaded = AuraModel.from_pretrained(folder, dtype=DTYPES[precision]).to(lab.device).eval()
    model.eval()
    half, batch = models.with_features(model, batch), models.with_features(loaded, batch)
    assert half.sam_embeddings is not None and batch.sam_embeddings is not None
    apart = relative(half.sam_embeddings, batch.sam_embeddings)  # SAM's encoder computes in fp32 in an export
    found.fact(**{f"{precision}: SAM's features, half precision against fp32": apart})
    with torch.no_grad():
        run, export = model(batch), loaded(batch)
    found.check(f"{precision}: the loss falls", min(totals) < totals[0], seen=totals, wanted="one below the first")
    for name in ("text_logits", "visible_logits", "amodal_logits"):
        apart = relative(getattr(export, name), getattr(run, name))
        found.at_most(f"{precision}: the export's {name} are the run's", apart, 2e-3)
    release(engine)


def _step(engine: ds.Engine, criterion: AuraCriterion, batch: Batch, times: float = 1.0) -> float:
    """One micro-batch; ``times`` enlarges its loss."""
    losses = criterion(engine(batch), batch)
    engine.backward(losses.total * times)
    engine.step()
    return float(losses.total.detach())


def _steps(engine: ds.Engine, criterion: AuraCriterion, batch: Batch, count: int) -> list[float]:
    """Losses of ``count`` optimizer steps, and of those that fp16 skipped among them."""
    end = engine.steps + count
    totals: list[float] = []
    while engine.steps < end and len(totals) < count + 10:
        totals.append(_step(engine, criterion, batch))
    return totals


# --- 3 ----------------------------------------------------------------------------------------------------------------


def overflows_are_skipped(lab: Lab, found: Findings) -> None:
    """Two optimizer steps whose gradients overflow fp16: nothing moves, the scale falls, and the next ones train."""
    precision: Precision = "fp16"
    settings = lab.settings(precision, lr=1e-3)
    model, processor = models.mini_model(models.mini_config(), DTYPES[precision])
    batch = _batch(lab, processor, 1)[0].to(lab.device)
    model.to(lab.device).train()  # type: ignore[arg-type]
    engine = ds.Engine(model, settings, lab.process(settings))
    criterion = AuraCriterion(LossSettings(mask_resolution="decoder"))
    _steps(engine, criterion, batch, 3)
    before, scale, steps = _weights(model), scale_of(engine), engine.steps
    for _ in range(2):
        _step(engine, criterion, batch, HUGE)
    same = all(torch.equal(value, before[name]) for name, value in _weights(model).items())
    found.check("weights are unchanged", same, seen="equal" if same else "different", wanted="equal")
    now = scale_of(engine)
    found.check("the loss scale falls", now < scale, seen=now, wanted=f"below {scale:g}")
    found.check("they count as no steps", engine.steps == steps, seen=engine.steps, wanted=steps)
    after = _steps(engine, criterion, batch, 2 if lab.tiny else 4)
    moved = any(not torch.equal(value, before[name]) for name, value in _weights(model).items())
    found.check("the run goes on", moved, seen=after, wanted="finite losses, weights that move")
    release(engine)


def _weights(model: AuraModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.trainable_parameters()}


def scale_of(engine: ds.Engine) -> float:
    """The present loss scale; 1 without one."""
    return engine.scaler.scale if engine.scaler is not None else 1.0
