"""In which precision a run holds its weights: what it trains in fp32, the frozen backbones in half precision.

One rule for training and use. A trained weight is its own fp32 master: the optimizer changes it, a checkpoint stores
it, an export rounds it. The language model multiplies in half precision, also where an adapter, the token embeddings or
the head come in fp32 (``torch.autocast``), so that a model in training writes what its export writes. SAM's decoders
and the heads compute in fp32 in both, unless ``train.autocast`` has the decoders multiply in bf16 while they train.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from aura.model.aura import AuraModel

BACKBONES = ("mllm.", "image_encoder.")
"""Where frozen weights are held in half precision; SAM's prompt encoder is small and stays in fp32."""


def cast_parameters(module: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point parameters, in place. Buffers stay: rotary frequencies in half precision turn wrong.

    In bf16, a frequency is off by up to 2^-9 of itself; at position 500 that is an angle of 1 rad.
    """
    for parameter in module.parameters():
        _cast(parameter, dtype)
    return module


def hold(model: AuraModel, dtype: torch.dtype) -> None:
    """Give an ``AuraModel`` that is ready to train its precision.

    Args:
        model: It knows what it trains (``requires_grad``); packed (quantised) weights stay as they are.
        dtype: Of the frozen backbones.
    """
    for name, parameter in model.named_parameters():
        frozen = name.startswith(BACKBONES) and not parameter.requires_grad
        _cast(parameter, dtype if frozen else torch.float32)
    model.mllm.half_dtype = None if dtype == torch.float32 else dtype


def export_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a weight in an export whose language model is in ``dtype``: that, and fp32 where masks are drawn."""
    draws = name.split(".", 1)[0] in AuraModel._keep_in_fp32_modules_strict
    return torch.float32 if draws else dtype


def describe_export(config: Any, dtype: torch.dtype) -> None:
    """Say in an ``AuraConfig`` that the weights beside it are in ``dtype``: each part is loaded as its own says."""
    llava = config.llava_config
    for part in (config, llava, llava.text_config, llava.vision_config):
        part.dtype = dtype


def _cast(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    if parameter.is_floating_point() and parameter.dtype != dtype:
        parameter.data = parameter.data.to(dtype)
