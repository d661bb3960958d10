"""The two occlusion modules of the paper (section 3.3), E_OC and E_SO.

The paper names them and what they learn. Their layers are this project's choice; other forms of them are here for
trials (``model.condition_form``, ``model.spatial_form``).

Legend: B images, N ``[SEG]`` objects, C channels of SAM's prompts, g side of SAM's embedding grid, h w the mask
decoder's output grid (4 g).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from aura.config import ConditionForm, SpatialForm
from aura.geometry import to_image
from aura.types import ImageGeometry

IMAGE_SIDES = 4
"""SAM's input is so many times as wide as the mask decoder's output."""
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


class ZeroScale(nn.Module):
    """A factor for each channel that starts as 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x


class OcclusionConditionEncoder(nn.Module):
    """E_OC: the occlusion-aware embedding e_oa of an e_r, and the occlusion rate.

    With f a small MLP, every form but ``token`` starts as e_oa = e_r, the model without E_OC:

    - ``residual``: e_oa = e_r + f(e_r), and f's last layer starts at zero.
    - ``scaled``: e_oa = e_r + s * f(e_r), where f starts as layers do and s, a number for each channel, at zero.
    - ``film``: e_oa = (1 + s) * e_r + b, where (s, b) = f(e_r), and f's last layer starts at zero.
    - ``token``: the amodal decoder reads e_r and f(e_r) as two prompts; the second starts at zero, and the rate is read
      from it alone.

    Args:
        channels: C.
        form: One of these.
    """

    def __init__(self, channels: int, form: ConditionForm = "residual") -> None:
        super().__init__()
        self.form = form
        self.linear_in = nn.Linear(channels, channels)
        last = nn.Linear if form == "scaled" else ZeroLinear
        self.linear_out = last(channels, 2 * channels if form == "film" else channels)
        self.rate = nn.Linear(channels, 1)
        self.scale = ZeroScale(channels) if form == "scaled" else None

    def forward(self, refined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """e_r [N, C] -> e_oa [N, C], or both prompts [N, 2, C], and rates [N] in (0, 1)."""
        found = self.linear_out(F.gelu(self.linear_in(refined)))
        if self.form == "token":
            return torch.stack([refined, found], dim=1), self._rate(found)
        if self.form == "film":
            factor, shift = found.chunk(2, dim=-1)
            aware = (1 + factor) * refined + shift
        else:
            aware = refined + (found if self.scale is None else self.scale(found))
        return aware, self._rate(aware)

    def _rate(self, embedding: torch.Tensor) -> torch.Tensor:
        return self.rate(embedding).squeeze(-1).sigmoid()


class SpatialOcclusionEncoder(nn.Module):
    """E_SO: the 3-class map (background, visible, occluded) of visible and amodal logits.

    Two masks already imply such a map: with v and a the probabilities of visible and amodal, the classes have
    probabilities (1 - v)(1 - a), v and (1 - v) a, which sum to 1. The module gives the logarithm of these (up to a
    constant per pixel) plus a small convolutional stack that starts at zero. So its loss trains both decoders from the
    first step. The stack learns what single pixels cannot tell.

    Forms, which all start as the implied map:

    - ``decoder``: the stack reads the two maps of probabilities on the decoders' grid.
    - ``image``: the masks are brought to the size of SAM's input first, so that map and stack are as fine as it.
    - ``features``: the stack also reads SAM's embedding of the image.
    - ``detached``: no gradient goes from the stack to the decoders. They learn from the implied map alone; without that
      one too, E_SO would change no mask.

    Args:
        channels: Width of the convolutions.
        form: One of these.
        image_channels: C, which ``features`` reads.
    """

    def __init__(self, channels: int = 16, form: SpatialForm = "decoder", image_channels: int = 256) -> None:
        super().__init__()
        self.form = form
        self.conv_in = nn.Conv2d(2, channels, 3, padding=1)
        self.conv_mid = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = ZeroConv2d(channels, 3, 1)
        self.conv_image = nn.Conv2d(image_channels, channels, 1) if form == "features" else None

    def forward(
        self,
        visible_logits: torch.Tensor,
        amodal_logits: torch.Tensor,
        images: torch.Tensor | None = None,
        image_of: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Two maps [N, h, w], embeddings [B, C, g, g] and the image of each map [N] -> class logits [N, 3, h, w].

        The form ``image`` gives them on SAM's input, [N, 3, 4 h, 4 w]; only ``features`` reads the embeddings.
        """
        if self.form == "image":
            side = IMAGE_SIDES * visible_logits.shape[-1]
            visible_logits, amodal_logits = (_resized(maps, side) for maps in (visible_logits, amodal_logits))
        implied = torch.stack([F.logsigmoid(-amodal_logits), visible_logits, F.logsigmoid(amodal_logits)], dim=1)
        # Probabilities, because raw logits grow without bound as the decoders become sure.
        maps = torch.stack([visible_logits, amodal_logits], dim=1).sigmoid()
        if self.form == "detached":
            maps = maps.detach()
        if maps.device.type == "cpu" and maps.shape[-2] * maps.shape[-1] >= LEAST_PIXELS:
            maps = maps.contiguous(memory_format=torch.channels_last)
        features = self.conv_in(maps)
        if self.conv_image is not None:
            assert images is not None and image_of is not None
            features = features + _resized(self.conv_image(images), maps.shape[-1])[image_of]
        features = F.gelu(self.conv_mid(F.gelu(features)))
        return implied + self.conv_out(features)


def _resized(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Square maps [n, h, h] or [n, c, h, h] at another side, bilinearly, by products whose gradient has one order."""
    square = (side, side)
    return to_image(maps, ImageGeometry(original=square, resized=square, padded=side))
