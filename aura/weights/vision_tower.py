"""The vision tower of checkpoints that do not hold one: CLIP, DINOv2 or SigLIP, at the image size that is asked for."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from aura.data.images import CLIP_MEAN, CLIP_STD
from aura.model.configuration import num_class_tokens
from aura.weights.files import PartReport, load_pretrained, read_config

SETTING = "model.vision_tower"

_TEXT_SIDE = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
_POSITIONS = ("position_embedding.weight", "position_embeddings")


@dataclass(frozen=True)
class TowerKind:
    """What must be known of a kind of tower besides its class.

    ``unused`` begins the names of tensors that no feature depends on; ``changes`` of the config leave them out.
    """

    model: Any
    config: Any
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    unused: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)


_CLIP = TowerKind(CLIPVisionModel, CLIPVisionConfig, CLIP_MEAN, CLIP_STD)
_SIGLIP = TowerKind(
    SiglipVisionModel, SiglipVisionConfig, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), ("head.",), {"vision_use_head": False}
)
_DINOV2 = TowerKind(
    Dinov2Model,
    Dinov2Config,
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
    ("embeddings.mask_token",),
    {"use_mask_token": False},
)
KINDS = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "dinov2": _DINOV2,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
}
"""By the ``model_type`` of their folder's ``config.json``; a whole CLIP or SigLIP has its text side in it too."""


@dataclass(frozen=True)
class Reading:
    """How a new projector reads a tower: its config, the layer, and whether the class token is kept (LLaVA's words)."""

    config: Any
    feature_layer: int
    strategy: Literal["default", "full"]


def describe_reading(folder: str | Path, *, image_size: int | None = None, feature_layer: int | None = None) -> Reading:
    """How a language model will read the tower in ``folder``, a tower's own or a whole LLaVA's; reads no weights.

    Args:
        folder: With a ``config.json``.
        image_size: Side of its input in pixels; its own without.
        feature_layer: Of its hidden states; without, that of the LLaVA in the folder, or the last but one.

    Raises:
        ValueError: The folder holds another kind of model, or its tower has no such layer or takes no such size.
    """
    described = read_config(folder, SETTING)
    layer: Any = -2
    strategy: Any = "default"
    if described.get("model_type") == "llava" and "text_config" in described:
        layer = described.get("vision_feature_layer", layer)
        strategy = described.get("vision_feature_select_strategy", strategy)
        described = {"model_type": "clip_vision_model"} | described["vision_config"]
    _, config = _kind(described, folder)
    if feature_layer is not None:
        layer = feature_layer
    if isinstance(layer, int) and not -config.num_hidden_layers - 1 <= layer <= config.num_hidden_layers:
        raise ValueError(
            f"model.vision_feature_layer is {layer}, but the tower in {folder} has {config.num_hidden_layers} layers"
        )
    if image_size is not None:
        if image_size % config.patch_size:
            raise ValueError(
                f"model.vision_image_size is {image_size}, which the patches of {folder} ({config.patch_size} px) do "
                "not divide"
            )
        config.image_size = image_size
    # Where there is no class token, nothing can be left out.
    return Reading(config, layer, strategy if num_class_tokens(config) else "full")


def load_vision_tower(folder: str | Path, *, dtype: torch.dtype) -> tuple[Any, PartReport]:
    """An image encoder from its own folder or from that of a whole CLIP or SigLIP.

    Raises:
        ValueError: The folder holds another kind of model, or a file of it is damaged.
    """
    kind, config = _kind(read_config(folder, SETTING), folder)
    tower, report = load_pretrained(kind.model, "vision tower", folder, SETTING, dtype, False, config)
    # The text side of a whole CLIP and its old position buffers are no loss.
    unexpected = tuple(
        name
        for name in report.unexpected
        if not name.removeprefix("vision_model.").startswith((*_TEXT_SIDE, *kind.unused))
        and not name.endswith("position_ids")
    )
    return tower, dataclasses.replace(report, unexpected=unexpected)


def _kind(described: dict[str, Any], folder: str | Path) -> tuple[TowerKind, Any]:
    """The kind of a tower, and its config without what no feature depends on."""
    if described.get("model_type") not in KINDS:
        raise ValueError(
            f"{SETTING}: {folder}/config.json describes model_type {described.get('model_type')!r} "
            f"({described.get('architectures')}), not CLIP, DINOv2 or SigLIP"
        )
    kind = KINDS[described["model_type"]]
    return kind, kind.config(**{**described.get("vision_config", described), **kind.changes})


def default_preprocessing(vision_config: Any) -> dict[str, Any]:
    """How a tower other than CLIP reads an image where its folder does not say: its mean and std.

    It gets the whole image, lying where SAM has it. (DINOv2's own preprocessor cuts out the centre, which is for
    classifying.)
    """
    kind = KINDS[vision_config.model_type]
    return {} if kind is _CLIP else {"clip_mean": kind.mean, "clip_std": kind.std, "clip_resize": "corner"}


def resize_tower(tower: Any, image_size: int) -> Any:
    """The same tower for another input size, its table of positions resampled as transformers does in every call."""
    before = tower.config.image_size
    if image_size == before:
        return tower
    config = copy.deepcopy(tower.config)
    config.image_size = image_size
    resized = type(tower)._from_config(config, dtype=tower.dtype, attn_implementation="sdpa")
    state = tower.state_dict()
    for name in state:
        if name.endswith(_POSITIONS):
            state[name] = _resample(state[name], image_size // config.patch_size, num_class_tokens(config))
    resized.load_state_dict(state)
    return resized


def _resample(table: torch.Tensor, side: int, num_extra: int) -> torch.Tensor:
    """Positions [..., extra + n n, C] as [..., extra + side side, C], bicubic, in float32."""
    rows = table.reshape(-1, table.shape[-1])
    extra, grid = rows[:num_extra], rows[num_extra:]
    old = math.isqrt(len(grid))
    square = grid.float().unflatten(0, (old, old)).permute(2, 0, 1)[None]
    resampled = F.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)[0]
    result = torch.cat([extra, resampled.flatten(1).T.to(table.dtype)])
    return result.reshape(*table.shape[:-2], *result.shape)
