"""What a piece of work takes, on a CPU or a GPU: seconds, memory, and whether its output is finite."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

GIB = 2**30
CPU = torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given: a GPU's work is queued, and a clock would time the queueing."""
    if device.type != "cpu" and hasattr(module := getattr(torch, device.type), "synchronize"):
        module.synchronize()


def seconds(task: Callable[[], object], *, repeat: int, device: torch.device = CPU, warm_up: int = 1) -> float:
    """Median over ``repeat`` runs of ``task``, after some to warm up (kernels are chosen, memory is taken)."""
    for _ in range(warm_up):
        task()
    times = []
    for _ in range(repeat):
        synchronize(device)
        began = time.perf_counter()
        task()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@dataclass
class Row:
    """What one part did. ``peak_gib`` is the largest memory while it ran: of the process, or of the GPU's tensors."""

    part: str
    output: str
    finite: bool
    seconds: float
    peak_gib: float
    parameters: int = 0
    dtypes: str = ""


@dataclass
class Meter:
    """Times parts, one after the other or by hooks on the modules of a forward pass."""

    device: torch.device = CPU
    rows: list[Row] = field(default_factory=list)
    _started: dict[str, tuple[float, int]] = field(default_factory=dict)

    def start(self, part: str) -> None:
        synchronize(self.device)
        reset_peak(self.device)
        self._started[part] = time.perf_counter(), len(self.rows)

    def stop(self, part: str, outputs: Any, module: nn.Module | None = None) -> None:
        synchronize(self.device)
        began, before = self._started.pop(part)
        taken = time.perf_counter() - began
        inner = [row.peak_gib for row in self.rows[before:]]  # parts of this one reset the peak
        tensors = list(tensors_of(outputs))
        parameters = [] if module is None else list(module.parameters())
        self.rows.append(
            Row(
                part=part,
                output=", ".join("x".join(map(str, t.shape)) for t in tensors if t.dim()),
                finite=all(bool(torch.isfinite(t).all()) for t in tensors),
                seconds=round(taken, 3),
                peak_gib=max([round(peak_bytes(self.device) / GIB, 2), *inner]),
                parameters=sum(p.numel() for p in parameters),
                dtypes=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
            )
        )

    def watch(self, part: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda *_: self.start(part))
        module.register_forward_hook(lambda module, _, outputs: self.stop(part, outputs, module))


def tensors_of(outputs: Any) -> Iterator[torch.Tensor]:
    """The tensors that matter in whatever a module returned."""
    if hasattr(outputs, "last_hidden_state"):
        outputs = outputs.last_hidden_state
    if isinstance(outputs, torch.Tensor):
        yield outputs
    elif isinstance(outputs, tuple | list):
        for output in outputs:
            yield from tensors_of(output)


def peak_bytes(device: torch.device = CPU) -> int:
    """The largest memory since :func:`reset_peak`: of a GPU's tensors, else resident memory of the process.

    Where the system cannot reset the latter, since the start.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024


def reset_peak(device: torch.device = CPU) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def available_bytes() -> int | None:
    """Memory that is free or can be freed; ``None`` where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration):
        return None
