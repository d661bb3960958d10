"""SAM from outside, as a ``SamModel``."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import SamModel

from aura.model.weights.files import PartReport, load_pretrained, read_config


def load_sam(folder: str | Path, *, dtype: torch.dtype, allow_random: bool = False) -> tuple[SamModel, PartReport]:
    """An HF SAM folder (``SamModel.save_pretrained`` or facebook/sam-vit-*).

    Raises:
        ValueError: The folder holds another kind of model, or a file of it is damaged.
    """
    config = read_config(folder, "model.sam")
    if config.get("model_type") != "sam":
        raise ValueError(
            f"model.sam: {folder}/config.json describes model_type {config.get('model_type')!r} "
            f"({config.get('architectures')}), not SAM (model_type 'sam')"
        )
    return load_pretrained(SamModel, "sam", folder, "model.sam", dtype, allow_random)
