"""GPU operations that a training step launches, counted from the architecture.

One image and short sequences leave a fast GPU waiting for the CPU that launches its work: then this count, not that of
the arithmetic, says how long a step takes. The numbers are those of a counted step (views and allocations launch
nothing) in half precision; ``tests/plan`` counts again.
"""

from __future__ import annotations

from typing import NamedTuple

from aura.model.configuration import AuraConfig
from aura.plan.activations import Workload

LLAMA_LAYER = (38, 60)
"""Forward and backward operations of a decoder layer without adapters."""
ADAPTER = (11, 11)
"""Of one LoRA adapter in fp32 with dropout, cast to half precision."""
SAM_LAYER, CLIP_LAYER = 39, 14
"""Forward operations of an encoder's layer."""
ENCODERS = 20
"""What lies around the encoders' layers: patches, neck, projections."""
MASK_DECODER = (66, 128)
MASK_DECODER_LAYER = (31, 63)
"""Of one mask decoder without its two-way blocks, and of one of those."""
AROUND = (68, 1)
"""Embeddings, mask of the packed sequence, head, prompt encoder, occlusion modules."""
LOSSES_OF_AN_IMAGE = (69, 53)
TEXT_LOSS = (20, 0)


class Launches(NamedTuple):
    """Operations launched from Python and from autograd."""

    forward: int
    backward: int


def step_launches(config: AuraConfig, work: Workload, *, checkpointing: bool, encode: bool) -> Launches:
    """Of one micro-batch; arguments as in :func:`aura.plan.flops.step_flops`."""
    layers = config.llava_config.text_config.num_hidden_layers
    adapters = len(config.lora["targets"]) if config.lora is not None else 0
    decoders = (config.masks != "visible") + (config.masks != "amodal")
    blocks = config.sam_config.mask_decoder_config.num_hidden_layers
    forward, backward = (
        layers * (LLAMA_LAYER[way] + adapters * ADAPTER[way])
        + decoders * (MASK_DECODER[way] + blocks * MASK_DECODER_LAYER[way])
        + AROUND[way]
        + TEXT_LOSS[way]
        + work.images * LOSSES_OF_AN_IMAGE[way]
        for way in (0, 1)
    )
    if checkpointing:  # recomputed in Python, but for the layer's last sum
        forward += layers * (LLAMA_LAYER[0] + adapters * ADAPTER[0] - 2)
    if encode:
        forward += SAM_LAYER * config.sam_config.vision_config.num_hidden_layers + ENCODERS
        forward += CLIP_LAYER * config.llava_config.vision_config.num_hidden_layers
    return Launches(forward, backward)
