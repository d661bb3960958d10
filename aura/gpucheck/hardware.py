"""The section on the machine itself: products, copies, and the kernel that attention with a 4-D mask gets."""

from __future__ import annotations

import math
import shutil
import subprocess
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from aura.gpucheck.findings import Findings
from aura.gpucheck.lab import Lab
from aura.gpucheck.small import strict_fp32
from aura.machine.devices import check_build
from aura.model.configuration import DTYPES
from aura.model.mllm import packed_attention_mask
from aura.plan.meter import seconds

BACKENDS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")


def environment(lab: Lab, found: Findings) -> None:
    """What is here, what it can do at best, and that no attention falls back to the kernel that keeps all scores."""
    check_build(lab.device)
    if lab.device.type == "cuda":
        found.fact(driver=_driver(), built_for=torch.cuda.get_arch_list(), cudnn=torch.backends.cudnn.version())
        free, total = torch.cuda.mem_get_info()
        found.fact(free_gib=free / 2**30, total_gib=total / 2**30)
    half = DTYPES[lab.half]
    with strict_fp32():
        found.fact(tflops={lab.half: lab.product_tflops(half), "fp32": lab.product_tflops(torch.float32)})
    found.fact(copies_gb_per_s=_copies(lab))
    _attention(lab, found, half)


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not here"
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"


def _copies(lab: Lab) -> dict[str, float]:
    """GB/s within the device (bytes read and written), and from the CPU's pinned memory to it."""
    size = 1 << (20 if lab.tiny else 30)
    source = torch.zeros(size, dtype=torch.uint8, device=lab.device)
    target = torch.empty_like(source)
    rates = {"device": 2 * size / seconds(lambda: target.copy_(source), repeat=5, device=lab.device) / 1e9}
    on_cpu = torch.zeros(size // 4, dtype=torch.uint8, pin_memory=lab.device.type == "cuda")
    part = target[: size // 4]
    taken = seconds(lambda: part.copy_(on_cpu, non_blocking=True), repeat=5, device=lab.device)
    return {**rates, "to device": size / 4 / taken / 1e9}


def _attention(lab: Lab, found: Findings, dtype: torch.dtype) -> None:
    """The two attentions with a mask: the packed sequence's, and SAM's global layers with relative positions."""
    heads, length, width = (2, 61, 16) if lab.tiny else (32, 541, 128)
    segments = torch.zeros(1, length, dtype=torch.int64, device=lab.device)
    segments[:, length // 2 :] = 1
    shapes: dict[str, tuple[tuple[int, ...], torch.Tensor, bool]] = {
        "packed sequence": ((1, heads, length, width), packed_attention_mask(segments, dtype), True)
    }
    heads, side, width = (2, 8, 16) if lab.tiny else (16, 64, 80)
    bias = torch.randn(1, heads, side**2, side**2, device=lab.device, dtype=dtype)
    shapes["SAM's global layers"] = ((1, heads, side**2, width), bias, False)
    for name, (shape, mask, trained) in shapes.items():
        query, key, value = (
            torch.randn(shape, device=lab.device, dtype=dtype, requires_grad=trained) for _ in range(3)
        )
        works = {backend: _time(lab, query, key, value, mask, backend) for backend in BACKENDS}
        chosen = _chosen(query, key, value, mask)
        found.fact(**{f"attention, {name}": {"chosen": chosen, **works}})
        found.check(f"attention over the {name} is not the math kernel", chosen != "MATH", seen=chosen,
                    wanted="another", gpu_only=True)  # fmt: skip
        default = _time(lab, query, key, value, mask, None)
        math_time = works["MATH"]
        if isinstance(default, float) and isinstance(math_time, float):
            found.fact(**{f"{name}, default over math": default / math_time})


def _time(lab: Lab, *inputs: Any) -> float | str:
    """Milliseconds of the forward pass under one backend; why not, where it cannot."""
    query, key, value, mask, backend = inputs

    def attend() -> None:
        F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1 / math.sqrt(query.shape[-1]))

    try:
        if backend is None:
            return 1e3 * seconds(attend, repeat=3, device=lab.device)
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return 1e3 * seconds(attend, repeat=3, device=lab.device)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return f"cannot: {(str(error).strip().splitlines() or ['?'])[0][:80]}"


def _chosen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> str:
    """The backend that torch takes by itself, as it says."""
    try:
        number = torch._fused_sdp_choice(query, key, value, attn_mask=mask)
        named = {int(getattr(SDPBackend, name)): name for name in BACKENDS if hasattr(SDPBackend, name)}
        return named.get(int(number), f"number {number}")
    except Exception as error:  # not a public function
        return f"unknown: {(str(error).strip().splitlines() or ['?'])[0][:80]}"
