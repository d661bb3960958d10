"""Floating-point operations of one training step, counted from the architecture (a multiplication and an addition: 2).

Legend: as in :mod:`aura.plan.activations`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aura.model.configuration import AuraConfig, num_class_tokens
from aura.model.tiny_vit import EXPANSION, has_tiny_vit
from aura.plan.activations import Workload, _grid, map_cells


@dataclass(frozen=True)
class Flops:
    """Of one micro-batch on one GPU."""

    sam_encoder: int
    clip: int
    language_model: int
    mask_decoders: int

    @property
    def total(self) -> int:
        return self.sam_encoder + self.clip + self.language_model + self.mask_decoders


def step_flops(config: AuraConfig, work: Workload, *, checkpointing: bool, encode: bool) -> Flops:
    """Forward and backward pass of one micro-batch.

    Frozen linear layers take part in the backward pass with the gradient of their input alone; trained ones with that
    of their weight too. Checkpointing computes the language model's layers once more.
    """
    images = work.images
    return Flops(
        sam_encoder=images * sam_flops(config) if encode else 0,
        clip=images * clip_flops(config) if encode else 0,
        language_model=_language_model(config, work, checkpointing),
        mask_decoders=3 * work.num_objects * _decoders(config),
    )


def sam_flops(config: AuraConfig) -> int:
    """One image through SAM's encoder."""
    vision = config.sam_config.vision_config
    if has_tiny_vit(config.sam_config):
        return _tiny_vit_flops(vision)
    side, width = vision.image_size // vision.patch_size, vision.hidden_size
    head_dim = width // vision.num_attention_heads
    window = vision.window_size
    windows = ((side + window - 1) // window) ** 2
    total = 2 * side**2 * 3 * vision.patch_size**2 * width
    for layer in range(vision.num_hidden_layers):
        is_global = layer in vision.global_attn_indexes
        span, count = (side, 1) if is_global else (window, windows)
        tokens = count * span**2
        total += 2 * tokens * 4 * width**2 + 4 * count * span**4 * width
        total += 2 * 2 * tokens * vision.num_attention_heads * span * head_dim  # relative positions, both axes
        total += 2 * side**2 * 2 * width * vision.mlp_dim
    return total + 2 * side**2 * (width * vision.output_channels + 9 * vision.output_channels**2)


def _tiny_vit_flops(vision: Any) -> int:
    """One image through MobileSAM's encoder. A convolution of each channel by itself costs 9 products a place."""
    first, inner = vision.widths[0], vision.widths[0] // 2
    side = vision.image_size // 4
    total = 2 * (2 * side) ** 2 * 27 * inner + 2 * side**2 * 9 * inner * first
    for stage, width in enumerate(vision.widths):
        wide = EXPANSION * width
        for _ in range(vision.depths[stage]):
            if stage == 0:
                total += 2 * side**2 * (2 * width * wide + 9 * wide)
                continue
            window = vision.windows[stage]
            places = (-(-side // window) * window) ** 2
            total += 2 * places * 4 * width**2 + 4 * places * window**2 * width
            total += 2 * side**2 * (9 * width + 2 * width * wide)
        if stage + 1 < len(vision.widths):
            after, below = vision.widths[stage + 1], side // 2 if stage < 2 else side
            total += 2 * side**2 * width * after + 2 * below**2 * (9 * after + after**2)
            side = below
    channels = vision.output_channels
    return total + 2 * side**2 * (vision.widths[-1] * channels + 9 * channels**2)


def clip_flops(config: AuraConfig) -> int:
    """One image through the vision tower and the projector."""
    vision, hidden = config.llava_config.vision_config, config.llava_config.text_config.hidden_size
    patches = (vision.image_size // vision.patch_size) ** 2
    tokens, width = patches + num_class_tokens(vision), vision.hidden_size
    inner = getattr(vision, "intermediate_size", None) or vision.mlp_ratio * width  # DINOv2 states the ratio
    layer = 2 * tokens * (4 * width**2 + 2 * width * inner) + 4 * tokens**2 * width
    projector = 2 * config.num_image_tokens * (config.image_token_merge**2 * width * hidden + hidden**2)
    return 2 * patches * 3 * vision.patch_size**2 * width + vision.num_hidden_layers * layer + projector


def _language_model(config: AuraConfig, work: Workload, checkpointing: bool) -> int:
    text = config.llava_config.text_config
    hidden, inner, length = text.hidden_size, text.intermediate_size, work.length(config)
    head_dim = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
    queries, keys = text.num_attention_heads * head_dim, text.num_key_value_heads * head_dim
    sizes = {"q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys)}
    sizes |= {"o_proj": (queries, hidden), "down_proj": (inner, hidden)}
    sizes |= {"gate_proj": (hidden, inner), "up_proj": (hidden, inner)}
    linear = 2 * length * sum(rows * columns for rows, columns in sizes.values())
    attention = 4 * length**2 * queries
    adapters = 0
    if config.lora is not None:
        adapters = 2 * length * sum(config.lora["r"] * sum(sizes[name]) for name in config.lora["targets"])
    forward = linear + attention + adapters
    # SDPA's backward pass computes the scores once more: five products for the forward pass's two.
    backward = linear + 5 * attention // 2 + 2 * adapters
    # Recomputing stops where nothing more is needed: before the layer's last product.
    again = forward - 2 * length * inner * hidden if checkpointing else 0
    layers = work.images * text.num_hidden_layers * (forward + again + backward)
    head = work.num_targets * 2 * hidden * text.vocab_size * (3 if config.train_embeddings else 2)
    return layers + head


def _decoders(config: AuraConfig) -> int:
    """The forward pass of one object through the mask decoders, E_SO, and the projection before them."""
    sam = config.sam_config.mask_decoder_config
    positions, channels = _grid(config), sam.hidden_size
    inner = channels // sam.attention_downsample_rate
    tokens = sam.num_multimask_outputs + 3
    crossings = 2 * sam.num_hidden_layers + 1
    # Image side of each crossing: keys and values, or queries and output.
    image = crossings * 2 * 2 * positions * channels * inner + crossings * 4 * tokens * positions * inner
    block = 4 * channels**2 + 2 * channels * sam.mlp_dim + 2 * 2 * channels * inner
    text = sam.num_hidden_layers * 2 * tokens * block + 2 * tokens * 2 * channels * inner
    upscaling = 2 * positions * channels**2 + 2 * 4 * positions * (channels // 4) * (channels // 8) * 4
    product = 2 * (sam.num_multimask_outputs + 1) * (channels // 8) * 16 * positions
    one = image + text + upscaling + product
    total = one * ((config.masks != "visible") + (config.masks != "amodal"))
    if config.spatial_occlusion:
        total += 2 * map_cells(config) * (9 * 2 * 16 + 9 * 16 * 16 + 16 * 3)
    hidden = config.llava_config.text_config.hidden_size
    return total + 2 * (hidden**2 + hidden * channels)
