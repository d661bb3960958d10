"""Pretraining of the CLIP-like tower: it starts from SAM's image encoder and learns on, with a class token.

Real CLIP and SAM were trained apart. Here one training of the image transformer serves both: the tower has the same
blocks, takes over their weights, and goes its own way from there. It has two tasks: that of
:mod:`aura.mini.pretrain.cells`, and to say where each patch lies. Naming a patch does not need its place, so without
the second task the place is gone after a few layers, and a language model could not tell what stands left of what.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.sam.modeling_sam import SamVisionEncoder

from aura.data.images import clip_pixels
from aura.mini.pretrain.cells import CELLS, CellBatch, CellHead, evaluate_cells
from aura.mini.pretrain.run import Metrics
from aura.mini.pretrain.scenes import IMAGE_SIZE, PATCH_SIZE, block_mean

FEATURE_LAYER = -1
"""Every layer was trained on patches, so none is left out (LLaVA leaves CLIP's last one out)."""

POSITION_WEIGHT = 0.25


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
    """A tower with the heads that teach it, which are thrown away.

    Args:
        tower: To train.
        neck: SAM's, between the tower and the head.
        head: What is seen, what reaches.
    """

    def __init__(self, tower: CLIPVisionModel, neck: nn.Module, head: CellHead) -> None:
        super().__init__()
        self.tower = tower
        self.neck, self.head = copy.deepcopy(neck), copy.deepcopy(head)
        self.position_head = PositionHead(tower.config.hidden_size)
        self.low_precision = torch.cpu._is_avx512_bf16_supported()

    @classmethod
    def from_encoder(
        cls, config: CLIPVisionConfig, encoder: SamVisionEncoder, head: CellHead, pixels: torch.Tensor
    ) -> TowerPretrainer:
        """A tower that starts as SAM's image encoder.

        Args:
            config: The tower's; its blocks are those of ``encoder``.
            encoder: The trained one.
            head: On what its neck gives.
            pixels: A few images [B, 3, S, S], to measure how large the encoder's tokens are.
        """
        model = cls(CLIPVisionModel(config), encoder.neck, head)
        model._start_from(encoder, pixels)
        return model

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

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, P, P] -> patch features [B, T, C], as LLaVA takes them."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
            return self.tower(pixels, output_hidden_states=True).hidden_states[FEATURE_LAYER][:, 1:]

    def through_neck(self, features: torch.Tensor) -> torch.Tensor:
        """Patch features [B, T, C] -> what the head takes, float32 [B, g, g, C']."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
            return self.neck(features.unflatten(1, (CELLS, CELLS))).float().permute(0, 2, 3, 1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, P, P] -> what the head takes, [B, g, g, C']."""
        return self.through_neck(self.features(pixels))

    def loss(self, batch: CellBatch) -> tuple[torch.Tensor, Metrics]:
        """The losses of both heads on a batch; the terms."""
        features = self.features(batch.pixels)
        cells, terms = self.head.loss(self.through_neck(features), batch)
        position = self.position_head.loss(features)
        return cells + POSITION_WEIGHT * position, terms | {"position": float(position.detach())}

    def measure(self, batches: Sequence[CellBatch]) -> Metrics:
        """The figures on held-out images."""
        return evaluate_cells(self.encode, self.head, batches)


class PositionHead(nn.Module):
    """Throw-away: from the states [B, T, C] of the patches to the logits of their rows and columns, [B, T, 2 g]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, 2 * CELLS)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(states.float()))

    def loss(self, states: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the row plus that of the column, for patches in reading order."""
        rows, columns = self(states).flatten(0, 1).chunk(2, dim=1)
        row, column = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
        images = len(states)
        return F.cross_entropy(rows, row.flatten().repeat(images)) + F.cross_entropy(
            columns, column.flatten().repeat(images)
        )
