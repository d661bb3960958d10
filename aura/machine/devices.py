"""What a GPU can compute, and whether the installed torch was built for it."""

from __future__ import annotations

import re

import torch

BF16_SINCE = (8, 0)
"""Compute capability of Ampere. An older GPU computes bf16 as well, by emulation: many times slower than fp16."""
TURING = (7, 5)
VOLTA = (7, 0)

VOLTA_WHEELS = (
    "of PyTorch's own wheels those for CUDA 12.6 (cu126) carry it up to torch 2.14; of PyPI's, torch 2.10.0 is the last"
)
"""PyTorch dropped Volta from its CUDA 12.8 builds with release 2.11; the CUDA 13 builds, PyPI's since then, never had
it (pytorch/pytorch#172352, #175253, #190385)."""


def check_build(device: torch.device) -> None:
    """Refuse a GPU for which the installed torch has no code: it would fail at its first operation.

    Raises:
        ValueError: With what to install.
    """
    built_for = torch.cuda.get_arch_list() if device.type == "cuda" and torch.version.cuda else []
    if not built_for:
        return
    have = torch.cuda.get_device_capability(device)
    if any(_runs(code, have) for code in built_for):
        return
    if have >= TURING:
        remedy = "install a newer torch, or its build for a newer CUDA"
    elif have == VOLTA:
        remedy = f"install one with sm_70: {VOLTA_WHEELS}"
    else:
        remedy = "PyTorch's own wheels for CUDA 12.6 (cu126) are the last for GPUs older than Volta"
    raise ValueError(
        f"torch {torch.__version__} has no code for {_named(device, have)}; it was built for {', '.join(built_for)}; "
        f"{remedy}"
    )


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 itself; a GPU that only emulates it (V100, T4) does not."""
    if device.type != "cuda":
        return device.type == "cpu"
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= BF16_SINCE


def check_bf16(device: torch.device, setting: str) -> None:
    """Refuse bf16 on a GPU that only emulates it.

    Args:
        device: Where to compute.
        setting: What asks for bf16, and what to set instead: ``train.precision bf16``, ...

    Raises:
        ValueError: With the remedy.
    """
    if not has_bf16(device):
        named = _named(device, torch.cuda.get_device_capability(device)) if device.type == "cuda" else str(device)
        raise ValueError(f"{named} has no bf16 units and would emulate them; {setting}")


def inference_dtype(saved: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The precision to answer in: the one a model was trained in, where the device has it.

    fp32 on anything but a GPU. On a GPU without bf16 units fp16 stands in for bf16; a model that does not say what it
    was trained in gets the better of the two.

    Args:
        saved: Of the export.
        device: Where it will run.
    """
    if device.type != "cuda":
        return torch.float32
    if saved in (torch.float32, torch.float16):
        return saved
    return torch.bfloat16 if has_bf16(device) else torch.float16


def _runs(code: str, have: tuple[int, int]) -> bool:
    """Whether code such as ``sm_70`` (binary) or ``compute_120`` (to be translated) runs on that capability."""
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", code)
    if found is None:
        return False
    kind, major, minor, suffix = found[1], int(found[2]), int(found[3]), found[4]
    if suffix == "a":  # for this very capability
        return have == (major, minor)
    if kind == "sm" or suffix == "f":
        return have[0] == major and have[1] >= minor
    return have >= (major, minor)


def _named(device: torch.device, capability: tuple[int, int]) -> str:
    return f"{torch.cuda.get_device_name(device)} (compute capability {capability[0]}.{capability[1]})"
