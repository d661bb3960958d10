"""MobileSAM's official file, ``mobile_sam.pt``: its image encoder's tensors by our names, batch norms folded.

Everything else in the file is SAM's (:mod:`aura.weights.sam`). Source of the names: ChaoningZhang/MobileSAM
``mobile_sam/modeling/tiny_vit_sam.py`` at 2f77a48.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from aura.model.tiny_vit import SIZES

BATCH_NORM_EPS = 1e-5
ENCODER = "image_encoder."
MARK = f"{ENCODER}patch_embed.seq.0.c.weight"
"""A tensor that this file has, and no other SAM."""
UNUSED = tuple(f"{ENCODER}{name}" for name in ("norm_head.weight", "norm_head.bias", "head.weight", "head.bias"))
"""The head of the classifier that the encoder was."""
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def folded(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of ``mobile_sam.pt`` by the names that :class:`aura.model.tiny_vit.MobileSam` has under ``.pth``.

    A convolution and the batch norm after it become one convolution. What belongs to none stays under its own name, so
    that it is told as too many.
    """
    result = {name: value for name, value in state.items() if name not in UNUSED}
    for name in [name for name in result if name.startswith(ENCODER) and name.endswith(".c.weight")]:
        stem = name.removesuffix(".c.weight")
        norm = [result.get(f"{stem}.bn.{part}") for part in BATCH_NORM]
        if any(value is None for value in norm):
            continue
        weight, bias, mean, variance = (value.double() for value in norm if value is not None)
        scale = weight / (variance + BATCH_NORM_EPS).sqrt()
        kernel = result.pop(name)
        ours = _our_name(stem)
        result[f"{ours}.weight"] = (kernel.double() * scale[:, None, None, None]).to(kernel.dtype)
        result[f"{ours}.bias"] = (bias - mean * scale).to(kernel.dtype)
        for part in (*BATCH_NORM, "num_batches_tracked"):
            result.pop(f"{stem}.bn.{part}", None)
    return {_our_name(name): value for name, value in result.items()}


def _our_name(name: str) -> str:
    """``layers.1.blocks.0.attn`` -> ``stages.1.0.attn``; ``layers.0.downsample`` -> ``downsample.0``."""
    if not name.startswith(f"{ENCODER}layers.") and not name.startswith(f"{ENCODER}patch_embed."):
        return name
    parts = name.removeprefix(ENCODER).split(".")
    if parts[:2] == ["patch_embed", "seq"]:
        ours = ["patch_embed", *parts[2:]]
    elif parts[0] == "patch_embed":
        ours = parts
    elif parts[2:3] == ["blocks"]:
        ours = ["stages", parts[1], *parts[3:]]
    else:
        ours = ["downsample", parts[1], *parts[3:]]
    return ENCODER + ".".join(ours)


def sizes_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Widths, depths, heads and windows, read off the shapes of :func:`folded` tensors.

    The released widths say how deep the rest must be, so that a file which lost whole blocks is noticed.
    """
    widths = [shapes[f"{ENCODER}patch_embed.2.weight"][0]]
    while (name := f"{ENCODER}downsample.{len(widths) - 1}.conv1.weight") in shapes:
        widths.append(shapes[name][0])
    if widths == SIZES["widths"]:
        return SIZES
    depths, heads, windows = [], [], []
    for stage in range(len(widths)):
        prefix = f"{ENCODER}stages.{stage}."
        depths.append(len({name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)}))
        biases = shapes.get(f"{prefix}0.attn.attention_biases", (1, 1))
        heads.append(biases[0])
        windows.append(math.isqrt(biases[1]))
    return {"widths": widths, "depths": depths, "heads": heads, "windows": windows}
