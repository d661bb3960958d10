"""The section that trains the mini model against what a CPU did: the same scenes, order and seeds, 200 steps.

``docs/results/mini_trace.json`` holds the CPU's losses; ``scripts/check_gpu.py --write-trace`` makes it anew.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from itertools import islice
from statistics import fmean
from typing import Any

import torch

from aura.gpucheck import models
from aura.gpucheck.findings import Findings
from aura.gpucheck.lab import Lab, release
from aura.gpucheck.small import strict_fp32
from aura.losses import AuraCriterion
from aura.train import engine as ds
from aura.train.feed import batches

TRACE = models.ROOT / "docs" / "results" / "mini_trace.json"
SIZES = {"full": {"steps": 200, "images": 240, "window": 20}, "tiny": {"steps": 4, "images": 12, "window": 1}}
"""Optimizer steps of 4 images, scenes they are drawn from, steps of which the mean loss is compared."""
ALLOWED = 0.05
REMAKE = "python scripts/check_gpu.py --write-trace"


def train_mini(lab: Lab, *, steps: int, images: int, window: int) -> list[dict[str, float]]:
    """Mean losses of each ``window`` steps of ``configs/mini.yaml``, in fp32 on the lab's device."""
    config = models.mini_config(output_dir=str(lab.folder), warmup_steps=10)
    model, processor = models.mini_model(config)
    samples = models.mini_samples(lab.folder, images, workers=1 if lab.tiny else min(8, os.cpu_count() or 1))
    process = lab.process(config.train)
    model.to(lab.device).train()  # type: ignore[arg-type]
    engine = ds.Engine(model, config.train, process)
    criterion = AuraCriterion(config.loss)
    rows = []
    with strict_fp32():
        for batch in islice(batches(samples, processor, config, process, None), steps):
            batch = batch.to(lab.device)
            losses = criterion(engine(batch), batch)
            engine.backward(losses.total)
            engine.step()
            rows.append(losses.as_floats())
    release(engine)
    return [mean_of(rows[start : start + window]) for start in range(0, steps, window)]


def mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def follows_the_cpu(lab: Lab, found: Findings) -> None:
    """Every window's total loss is within 5 % of the CPU's."""
    scale = "tiny" if lab.tiny else "full"
    document = json.loads(TRACE.read_text(encoding="utf-8"))
    trace = document[scale]
    if trace["size"] != SIZES[scale]:
        raise ValueError(f"{TRACE} is of {trace['size']}, not of {SIZES[scale]}; make it anew: {REMAKE}")
    mine, theirs = train_mini(lab, **SIZES[scale]), trace["losses"]
    apart = {
        name: max(abs(a[name] - b[name]) / max(abs(b[name]), 1e-6) for a, b in zip(mine, theirs, strict=True))
        for name in theirs[0]
    }
    found.at_most(f"the loss follows the CPU's (where training itself changed: {REMAKE})", apart["total"], ALLOWED)
    totals = [row["total"] for row in mine]
    found.fact(total=totals, cpu=[row["total"] for row in theirs], largest_difference=apart)


def write_trace(lab: Lab) -> None:
    """Make :data:`TRACE` on this CPU, both sizes."""
    assert lab.device.type == "cpu", "the trace is a CPU's"
    made_on: dict[str, Any] = {"torch": torch.__version__, "machine": platform.machine()}
    document: dict[str, Any] = {"made_by": REMAKE, "made_on": made_on}
    for scale, size in SIZES.items():
        losses = [to_six_digits(row) for row in train_mini(lab, **size)]
        document[scale] = {"size": size, "losses": losses}
    TRACE.parent.mkdir(parents=True, exist_ok=True)
    TRACE.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def to_six_digits(row: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in row.items()}
