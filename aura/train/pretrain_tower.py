"""Pretraining of the CLIP-like tower: it starts from SAM's image encoder and learns on, with a class token.

Real CLIP and SAM were trained apart. Here one training of the image transformer serves both: the tower has the same
blocks, takes over their weights, and goes its own way from there (:mod:`aura.train.pretrain_cells` is its task).
"""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.sam.modeling_sam import SamVisionEncoder

from aura.data.images import clip_pixels
from aura.train.pretrain import Metrics
from aura.train.pretrain_cells import CELLS, CellBatch
from aura.train.pretrain_sam import SamPretrainer
from aura.train.pretrain_scenes import IMAGE_SIZE, PATCH_SIZE, block_mean

FEATURE_LAYER = -1
"""Every layer was trained on patches, so none is left out (LLaVA leaves CLIP's last one out)."""


def tower_config(*, hidden: int = 192, layers: int = 6) -> CLIPVisionConfig:
    """A CLIP vision tower of about 2.8 million parameters, with the blocks of :func:`.pretrain_sam.sam_config`."""
    return CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        projection_dim=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="gelu",
    )


def squashed_pixels(image: Image.Image) -> torch.Tensor:
    """The tower's input [3, P, P]."""
    return clip_pixels(image, IMAGE_SIZE, resize="squash")


def squashed_shares(mask: np.ndarray) -> np.ndarray:
    """Share of each patch of the squashed image: bool [H, W] -> float32 [g, g]."""
    return block_mean(mask, CELLS)


class TowerPretrainer(nn.Module):
    """The tower as it starts from SAM's image encoder, with SAM's neck and head, which are thrown away.

    Args:
        config: The tower's; its blocks are those of ``sam``.
        sam: The trained encoder.
        pixels: A few images [B, 3, S, S], to measure how large the encoder's tokens are.
    """

    def __init__(self, config: CLIPVisionConfig, sam: SamPretrainer, pixels: torch.Tensor) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(config)
        encoder = sam.sam.vision_encoder
        self.neck, self.head = copy.deepcopy(encoder.neck), copy.deepcopy(sam.head)
        self._start_from(encoder, pixels)
        self.low_precision = torch.cpu._is_avx512_bf16_supported()

    def _start_from(self, encoder: SamVisionEncoder, pixels: torch.Tensor) -> None:
        """Take over the blocks, the patch embedding and the positions.

        CLIP normalises its tokens before the first block, SAM does not: the normalisation starts with the middle size
        of SAM's tokens, so that most of them enter the first block as they did in SAM.
        """
        embeddings = self.tower.embeddings
        width = embeddings.embed_dim
        projection = encoder.patch_embed.projection
        positions = cast(torch.Tensor, encoder.pos_embed).detach().reshape(-1, width)
        with torch.no_grad():
            embeddings.patch_embedding.weight.copy_(projection.weight)
            assert projection.bias is not None
            embeddings.position_embedding.weight[1:] = positions + projection.bias
            embeddings.position_embedding.weight[0] = 0
            tokens = encoder.patch_embed(pixels) + encoder.pos_embed
            self.tower.pre_layrnorm.weight.fill_(float(tokens.std(-1).median()))
            for block, source in zip(self.tower.encoder.layers, encoder.layers, strict=True):
                query, key, value = source.attn.qkv.weight.chunk(3)
                query_bias, key_bias, value_bias = source.attn.qkv.bias.chunk(3)
                attention = block.self_attn
                for layer, weight, bias in (
                    (attention.q_proj, query, query_bias),
                    (attention.k_proj, key, key_bias),
                    (attention.v_proj, value, value_bias),
                    (attention.out_proj, source.attn.proj.weight, source.attn.proj.bias),
                    (block.layer_norm1, source.layer_norm1.weight, source.layer_norm1.bias),
                    (block.layer_norm2, source.layer_norm2.weight, source.layer_norm2.bias),
                    (block.mlp.fc1, source.mlp.lin1.weight, source.mlp.lin1.bias),
                    (block.mlp.fc2, source.mlp.lin2.weight, source.mlp.lin2.bias),
                ):
                    layer.weight.copy_(weight)
                    layer.bias.copy_(bias)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, P, P] -> what the head takes, [B, g, g, C']."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
            states = self.tower(pixels, output_hidden_states=True).hidden_states[FEATURE_LAYER]
            return through_neck(self.neck, states[:, 1:])

    def loss(self, batch: CellBatch) -> tuple[torch.Tensor, Metrics]:
        """The head's loss on a batch."""
        return self.head.loss(self.encode(batch.pixels), batch)


def through_neck(neck: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Patch features [B, T, C] as LLaVA takes them -> what the head takes, float32 [B, g, g, C']."""
    return neck(features.unflatten(1, (CELLS, CELLS))).float().permute(0, 2, 3, 1)
