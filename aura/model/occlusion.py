"""The two occlusion modules of the paper (section 3.3), E_OC and E_SO.

The paper names them and what they learn. Their layers are this project's choice.

Legend: N ``[SEG]`` objects, C channels of SAM's prompts, h w the mask decoder's output grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

LEAST_PIXELS = 128 * 128
"""On a CPU, maps at least as large are convolved channels last, a seventh faster; smaller ones gain nothing."""


class ZeroLinear(nn.Linear):
    """A linear layer that starts as 0."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts as 0."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class OcclusionConditionEncoder(nn.Module):
    """E_OC: the occlusion-aware embedding e_oa of an e_r, and the occlusion rate.

    It is a residual MLP whose last layer starts at zero. So training starts from e_oa = e_r, the model without E_OC.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(channels, channels)
        self.linear_out = ZeroLinear(channels, channels)
        self.rate = nn.Linear(channels, 1)

    def forward(self, refined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """e_r [N, C] -> e_oa [N, C] and rates [N] in (0, 1)."""
        aware = refined + self.linear_out(F.gelu(self.linear_in(refined)))
        return aware, self.rate(aware).squeeze(-1).sigmoid()


class SpatialOcclusionEncoder(nn.Module):
    """E_SO: the 3-class map (background, visible, occluded) of visible and amodal logits.

    Two masks already imply such a map: with v and a the probabilities of visible and amodal, the classes have
    probabilities (1 - v)(1 - a), v and (1 - v) a, which sum to 1. The module gives the logarithm of these (up to a
    constant per pixel) plus a small convolutional stack that starts at zero. So its loss trains both decoders from the
    first step. The stack learns what single pixels cannot tell.

    Args:
        channels: Width of the convolutions.
    """

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(2, channels, 3, padding=1)
        self.conv_mid = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = ZeroConv2d(channels, 3, 1)

    def forward(self, visible_logits: torch.Tensor, amodal_logits: torch.Tensor) -> torch.Tensor:
        """Two maps [N, h, w] -> class logits [N, 3, h, w]."""
        implied = torch.stack([F.logsigmoid(-amodal_logits), visible_logits, F.logsigmoid(amodal_logits)], dim=1)
        # Probabilities, because raw logits grow without bound as the decoders become sure.
        maps = torch.stack([visible_logits, amodal_logits], dim=1).sigmoid()
        if maps.device.type == "cpu" and maps.shape[-2] * maps.shape[-1] >= LEAST_PIXELS:
            maps = maps.contiguous(memory_format=torch.channels_last)
        features = F.gelu(self.conv_mid(F.gelu(self.conv_in(maps))))
        return implied + self.conv_out(features)
