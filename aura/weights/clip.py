"""The vision tower of checkpoints that do not hold one, as a ``CLIPVisionModel``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from transformers import CLIPVisionModel

from aura.weights.files import PartReport, load_pretrained, read_config

TEXT_SIDE = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")


def load_vision_tower(folder: str | Path, *, dtype: torch.dtype) -> tuple[CLIPVisionModel, PartReport]:
    """CLIP's image encoder from a folder of the whole CLIP (openai/clip-vit-large-patch14) or of its image side.

    Raises:
        ValueError: The folder holds another kind of model, or a file of it is damaged.
    """
    config = read_config(folder, "model.vision_tower")
    if config.get("model_type") not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"model.vision_tower: {folder}/config.json describes model_type {config.get('model_type')!r} "
            f"({config.get('architectures')}), not CLIP"
        )
    tower, report = load_pretrained(CLIPVisionModel, "vision tower", folder, "model.vision_tower", dtype, False)
    # The text side of a whole CLIP and its old position buffers are no loss.
    unexpected = tuple(
        name for name in report.unexpected if not name.startswith(TEXT_SIDE) and not name.endswith("position_ids")
    )
    return tower, dataclasses.replace(report, unexpected=unexpected)
