"""Multimodal language models from outside, as a ``LlavaForConditionalGeneration``."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from aura.model.weights.files import PartReport, load_pretrained, read_config


def load_llava(
    folder: str | Path, *, dtype: torch.dtype, allow_random: bool = False
) -> tuple[LlavaForConditionalGeneration, PartReport]:
    """An HF LLaVA folder (``LlavaForConditionalGeneration.save_pretrained`` or a llava-hf download).

    Raises:
        ValueError: The folder holds another kind of model, or a file of it is damaged.
    """
    config = read_config(folder, "model.mllm")
    if config.get("model_type") != "llava" or "text_config" not in config:
        raise ValueError(
            f"model.mllm: {folder}/config.json describes model_type {config.get('model_type')!r} "
            f"({config.get('architectures')}), not a Hugging Face LLaVA (model_type 'llava' with a text_config)"
        )
    return load_pretrained(LlavaForConditionalGeneration, "mllm", folder, "model.mllm", dtype, allow_random)
