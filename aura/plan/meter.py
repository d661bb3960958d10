"""What each part of a forward pass takes on a CPU: seconds, the process's memory, and whether its output is finite."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

GIB = 2**30


@dataclass
class Row:
    """What one part did. ``peak_gib`` is the process's largest memory while it ran."""

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

    rows: list[Row] = field(default_factory=list)
    _started: dict[str, tuple[float, int]] = field(default_factory=dict)

    def start(self, part: str) -> None:
        reset_peak()
        self._started[part] = time.perf_counter(), len(self.rows)

    def stop(self, part: str, outputs: Any, module: nn.Module | None = None) -> None:
        began, before = self._started.pop(part)
        seconds = time.perf_counter() - began
        inner = [row.peak_gib for row in self.rows[before:]]  # parts of this one reset the peak
        tensors = list(tensors_of(outputs))
        parameters = [] if module is None else list(module.parameters())
        self.rows.append(
            Row(
                part=part,
                output=", ".join("x".join(map(str, t.shape)) for t in tensors if t.dim()),
                finite=all(bool(torch.isfinite(t).all()) for t in tensors),
                seconds=round(seconds, 3),
                peak_gib=max([round(peak_bytes() / GIB, 2), *inner]),
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


def peak_bytes() -> int:
    """The largest resident memory since :func:`reset_peak` (since the start, where the system cannot reset it)."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024


def reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def available_bytes() -> int | None:
    """Memory that is free or can be freed; ``None`` where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration):
        return None
