"""MobileSAM's image encoder, a TinyViT of 5 million parameters, in the place of SAM's ViT.

Source: ChaoningZhang/MobileSAM ``mobile_sam/modeling/tiny_vit_sam.py`` and ``build_sam.py`` at 2f77a48 and d6c9073. The
encoder is frozen in AURA, so its batch norms are part of the convolutions before them (:mod:`aura.weights.mobile_sam`).

Legend: B images, C channels, H W the map's size, w side of a window, h attention heads.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import SamConfig, SamModel
from transformers.models.sam.modeling_sam import SamVisionEncoderOutput, SamVisionNeck

ENCODER = "tiny_vit"
"""``vision_config.encoder`` of a ``SamConfig`` that has this encoder."""
SIZES: dict[str, Any] = {
    "widths": [64, 128, 160, 320],
    "depths": [2, 2, 6, 2],
    "heads": [2, 4, 5, 10],
    "windows": [7, 7, 14, 7],
}
"""Of MobileSAM, by stage. The first stage convolves, the others attend in windows."""
EXPANSION = 4
"""Of the hidden layers in convolutional blocks and MLPs."""


def mobile_sam_config(sizes: dict[str, Any] | None = None, *, image_size: int = 1024) -> SamConfig:
    """The config of a MobileSAM; ``sizes`` as in :data:`SIZES`, which are the released one's."""
    sizes = SIZES if sizes is None else sizes
    vision = {"encoder": ENCODER, "hidden_size": sizes["widths"][-1], "output_channels": 256, "image_size": image_size}
    return SamConfig(
        vision_config={**vision, **sizes},
        prompt_encoder_config={"image_size": image_size},
        mask_decoder_config={"layer_norm_eps": 1e-5},  # segment-anything's, a tenth of transformers'
    )


def has_tiny_vit(config: SamConfig) -> bool:
    """Whether the image encoder of this SAM is a TinyViT."""
    return getattr(config.vision_config, "encoder", None) == ENCODER


class MobileSam(SamModel):
    """SAM with a TinyViT as its image encoder; everything else is SAM's own."""

    def __init__(self, config: SamConfig) -> None:
        without_layers: Any = copy.deepcopy(config)
        without_layers.vision_config.num_hidden_layers = 0
        super().__init__(without_layers)
        self.config = config
        encoder: Any = TinyVitEncoder(config.vision_config)
        self.vision_encoder = encoder
        self.post_init()


def build_sam(config: SamConfig) -> SamModel:
    """A SAM of these sizes with random weights."""
    return MobileSam(config) if has_tiny_vit(config) else SamModel(config)


class TinyVitEncoder(nn.Module):
    """SAM pixels [B, 3, S, S] -> embeddings [B, C, S/16, S/16].

    Args:
        config: A ``SamVisionConfig`` with the fields of :data:`SIZES`; ``hidden_size`` is the last width.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, widths[0] // 2, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(widths[0] // 2, widths[0], 3, stride=2, padding=1),
        )
        stages = zip(widths, config.depths, config.heads, config.windows, strict=True)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                ConvBlock(width) if stage == 0 else AttentionBlock(width, heads, window) for _ in range(depth)
            )
            for stage, (width, depth, heads, window) in enumerate(stages)
        )
        # The embeddings are a sixteenth of the image's side, which the first two of the three steps down reach.
        self.downsample = nn.ModuleList(
            Downsample(before, after, stride=2 if step < 2 else 1)
            for step, (before, after) in enumerate(pairwise(widths))
        )
        self.neck = SamVisionNeck(config)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, pixel_values: torch.Tensor) -> SamVisionEncoderOutput:
        x = self.patch_embed(pixel_values)  # [B, C, S/4, S/4]
        blocks: Any
        for number, blocks in enumerate(self.stages):
            for block in blocks:
                x = block(x)
            if number < len(self.downsample):
                x = self.downsample[number](x)
        return SamVisionEncoderOutput(last_hidden_state=self.neck(x.permute(0, 2, 3, 1)))


class ConvBlock(nn.Module):
    """Widen, convolve each channel by itself, narrow; with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.conv1 = nn.Conv2d(width, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.conv3 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))) + x)


class Downsample(nn.Module):
    """Between two stages: another width, and with ``stride`` 2 half the side."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 1)
        self.conv2 = nn.Conv2d(after, after, 3, stride=stride, padding=1, groups=after)
        self.conv3 = nn.Conv2d(after, after, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class AttentionBlock(nn.Module):
    """Attention in windows, a convolution of each channel by itself, an MLP."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlp = Mlp(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.local_conv(x + self._attend(x))
        return x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W]; windows that reach beyond the map are filled with zeros, which are attended to as well."""
        batch, width, height, across = x.shape
        w = self.window
        x = F.pad(x, (0, -across % w, 0, -height % w))
        rows, columns = x.shape[2] // w, x.shape[3] // w
        x = x.view(batch, width, rows, w, columns, w).permute(0, 2, 4, 3, 5, 1)  # [B, rows, columns, w, w, C]
        x = self.attn(x.reshape(-1, w * w, width))
        x = x.view(batch, rows, columns, w, w, width).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(batch, width, rows * w, columns * w)[:, :, :height, :across]


class WindowAttention(nn.Module):
    """Attention among the w x w places of a window [B, w w, C], with a learned bias for each distance."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, places, width = x.shape
        # Each head's query, key and value lie side by side.
        qkv = self.qkv(self.norm(x)).view(batch, places, self.heads, 3, -1)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)  # 3 x [B, h, w w, C / h]
        bias = self.attention_biases[:, self._distances()].to(q.dtype)  # [h, w w, w w]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(batch, places, width))

    def _distances(self) -> torch.Tensor:
        """The column of ``attention_biases`` for each pair of places: rows apart times w, plus columns apart."""
        place = torch.arange(self.window, device=self.attention_biases.device)
        apart = (place[:, None] - place[None, :]).abs()  # [w, w]
        rows = apart[:, None, :, None].expand(-1, self.window, -1, self.window)
        columns = apart[None, :, None, :].expand(self.window, -1, self.window, -1)
        return (rows * self.window + columns).reshape(self.window**2, self.window**2)


class Mlp(nn.Module):
    """Norm, widen, narrow; on [..., C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.fc2 = nn.Linear(EXPANSION * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))
