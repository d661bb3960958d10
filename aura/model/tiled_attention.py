"""SAM's global attention, some queries at a time: the same function of the same weights, to rounding.

SAM adds to the scores of each pair of pixels what their distance in rows and in columns says. transformers makes this
bias for all pairs at once: of ViT-H on its grid of 64 x 64, a gigabyte. Here it is made for the queries of a tile.

Legend: B images, g h rows and columns of the grid, P = g * h pixels, a heads of d channels each, C channels, r rows of
a tile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.sam.modeling_sam import SamVisionSdpaAttention

LEAST_PIXELS = 32 * 32
"""Fewer attend as they did: their bias is small."""

TILE_BYTES = 64 * 2**20
"""Most of a tile's bias for all heads."""

TILE_SCORES = 2**20
"""Of one head, on a CPU: they stay in its cache."""


def attend_in_tiles(encoder: Any) -> None:
    """Give the global layers of SAM's vision encoder tiles; the names of their weights stay."""
    for layer in getattr(encoder, "layers", ()):
        attention = getattr(layer, "attn", None)
        if isinstance(attention, SamVisionSdpaAttention) and attention.use_rel_pos and layer.window_size == 0:
            layer.attn = TiledAttention(attention)


class TiledAttention(nn.Module):
    """Multi-head attention with relative positions.

    Args:
        attention: transformers' own, whose weights are taken over.
    """

    def __init__(self, attention: SamVisionSdpaAttention) -> None:
        super().__init__()
        self.num_attention_heads, self.scale = attention.num_attention_heads, attention.scale
        self.qkv, self.proj = attention.qkv, attention.proj
        self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[B, g, h, C] -> the same shape; and no weights, as transformers' SDPA attention."""
        rows, columns = hidden_states.shape[1:3]
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_attention_heads, -1))  # [B, g, h, 3, a, d]
        query, key, value = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)  # each [B, a, g, h, d]
        by_row = torch.einsum("...ghd,gkd->...ghk", query, _distances(self.rel_pos_h, rows))  # [B, a, g, h, g]
        by_column = torch.einsum("...ghd,hkd->...ghk", query, _distances(self.rel_pos_w, columns))  # [B, a, g, h, h]
        attend = self._attend_in_cache if self._fits_a_cpu(query) else self._attend
        mixed = attend(query, key.flatten(2, 3), value.flatten(2, 3), by_row, by_column)  # [B, a, P, d]
        mixed = mixed.unflatten(2, (rows, columns)).permute(0, 2, 3, 1, 4).flatten(3)
        return self.proj(mixed), None

    @staticmethod
    def _fits_a_cpu(query: torch.Tensor) -> bool:
        if query.device.type != "cpu" or query.shape[2] * query.shape[3] < LEAST_PIXELS:
            return False
        return query.dtype == torch.float32 and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        by_row: torch.Tensor,
        by_column: torch.Tensor,
    ) -> torch.Tensor:
        """torch's attention, for the queries of r rows at a time."""
        count, heads, rows, columns, _ = query.shape
        pixels = rows * columns
        row_bytes = count * heads * columns * pixels * query.element_size()
        height = rows if pixels < LEAST_PIXELS else max(1, TILE_BYTES // row_bytes)
        parts = []
        for top in range(0, rows, height):
            tile = slice(top, top + height)
            bias = by_row[:, :, tile, :, :, None] + by_column[:, :, tile, :, None, :]  # [B, a, r, h, g, h]
            parts.append(
                F.scaled_dot_product_attention(
                    query[:, :, tile].flatten(2, 3), key, value, attn_mask=bias.flatten(4).flatten(2, 3)
                )
            )
        return torch.cat(parts, dim=2)

    def _attend_in_cache(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        by_row: torch.Tensor,
        by_column: torch.Tensor,
    ) -> torch.Tensor:
        """Head by head, in a tile of scores that is used again: a CPU's memory is slower than its arithmetic."""
        rows, columns = query.shape[2:4]
        pixels = rows * columns
        query, key, value, by_row, by_column = (
            x.flatten(0, 1).contiguous() for x in (query * self.scale, key, value, by_row, by_column)
        )
        query, by_row, by_column = (x.flatten(1, 2) for x in (query, by_row, by_column))  # each [B * a, P, ...]
        key = key.transpose(1, 2)
        mixed = torch.empty_like(query)
        height = max(1, TILE_SCORES // pixels)
        scores = query.new_empty(height, pixels)
        for head in range(len(query)):
            for top in range(0, pixels, height):
                tile = slice(top, min(top + height, pixels))
                here = scores[: tile.stop - top]
                torch.mm(query[head, tile], key[head], out=here)
                bias = here.view(-1, rows, columns)
                bias.add_(by_row[head, tile, :, None]).add_(by_column[head, tile, None, :])
                torch.softmax(here, -1, out=here)
                torch.mm(here, value[head], out=mixed[head, tile])
        return mixed.view(-1, self.num_attention_heads, pixels, mixed.shape[-1])


def _distances(positions: torch.Tensor, length: int) -> torch.Tensor:
    """[length, length, d]: the embedding of each query's distance to each key, of [2 * length - 1, d]."""
    if len(positions) != 2 * length - 1:
        resized = F.interpolate(positions.T[None], size=2 * length - 1, mode="linear")
        positions = resized[0].T
    places = torch.arange(length, device=positions.device)
    return positions[places[:, None] - places + length - 1]
