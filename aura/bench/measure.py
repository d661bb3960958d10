"""Seconds and memory of each way: seconds in one process on the same weights, memory in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from aura.bench import sizes
from aura.bench.work import MODES, Mode, Work
from aura.gpucheck import models
from aura.plan.meter import GIB, peak_bytes, reset_peak, synchronize

Task = Callable[[Work], tuple[float, dict[str, float]]]
TASKS: dict[str, Task] = {
    "train": Work.train_step,
    "read": Work.read,
    "write": lambda work: work.write(TOKENS),
}
"""A training step; an image read with its true answers; answers written."""
TOKENS = 8
"""Of a written answer. The plain way reads everything again for each, so that a long one would take minutes."""

SAME = 1e-3
"""How far the plain way's loss or mask area may be from ours: rounding."""


def machine(device: torch.device) -> str:
    """Its class; no name."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} threads, torch {torch.__version__}"


def _processor() -> str:
    units = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} CPU with {units}"


def model_of(size: str, device: torch.device) -> Any:
    """The size's model with seeded random weights in fp32."""
    torch.manual_seed(0)
    return models.random_model(sizes.architecture(size), torch.float32, device)


def compare(
    model: Any, size: str, task: str, *, repeat: int, modes: Sequence[Mode] = MODES, seed: int = 0, **changes: Any
) -> dict[str, Any]:
    """What each mode takes for one task, in turns.

    Args:
        model: Of :func:`model_of`.
        size: Its name.
        task: In :data:`TASKS`.
        repeat: Timings of each, after one to warm up; the median counts.
        modes: Which ways.
        seed: Of the image.
        changes: Of :func:`aura.bench.sizes.workload`.

    Raises:
        ValueError: The ways do not compute the same.
    """
    sample = sizes.made_up(model.config, sizes.workload(size, **changes), seed)
    assert sample.sam_pixels is not None and sample.clip_pixels is not None
    pixels = (pixels[None].to(model.device) for pixels in (sample.sam_pixels, sample.clip_pixels))
    features = model.encode_images(*pixels)
    ways = {mode: Work(model, sample, mode, features) for mode in modes}
    times: dict[str, list[tuple[float, float, dict[str, float]]]] = {mode: [] for mode in modes}
    results = {}
    for _ in range(1 + repeat):
        for mode, way in ways.items():
            synchronize(model.device)
            clock, computed = time.perf_counter(), time.process_time()
            results[mode], parts = TASKS[task](way)
            synchronize(model.device)
            times[mode].append((time.perf_counter() - clock, time.process_time() - computed, parts))
    exact = [value for mode, value in results.items() if mode != "bf16"]
    low, high = min(exact), max(exact)
    apart = (high - low) / max(abs(high), 1)
    if apart > SAME:
        raise ValueError(f"{size}, {task}: the ways do not agree: {results}")
    row: dict[str, Any] = {"size": size, "task": task, **changes, "apart": apart}
    for name, found in times.items():
        kept = found[1:]
        row[name] = {
            "seconds": statistics.median(wall for wall, _, _ in kept),
            "cpu_seconds": statistics.median(cpu for _, cpu, _ in kept),
            "parts": {part: statistics.median(parts[part] for *_, parts in kept) for part in kept[0][2]},
        }
    return row


def peak(size: str, task: str, mode: Mode, device: torch.device, changes: Mapping[str, Any]) -> dict[str, float]:
    """GiB at rest, and the most while the task ran twice: what this process has and takes."""
    model = model_of(size, device)
    sample = sizes.made_up(model.config, sizes.workload(size, **changes))
    work = Work(model, sample, mode, sizes.random_features(model.config, device))
    reset_peak(device)
    rest = peak_bytes(device)
    for _ in range(2):  # the optimizer's state comes with the first step
        TASKS[task](work)
    return {"rest_gib": rest / GIB, "peak_gib": peak_bytes(device) / GIB}


def peak_elsewhere(script: str, row: Mapping[str, Any]) -> dict[str, float]:
    """:func:`peak` in a process of its own: ``script`` gets the arguments as JSON behind ``--row``."""
    command = [sys.executable, script, "--row", json.dumps(row)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
