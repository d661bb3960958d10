"""The prompt encoder E_P, which turns ``[SEG]`` states into prompts, and the call of SAM's mask decoder.

Legend: B images, N ``[SEG]`` objects of the whole batch, H hidden size of the language model, C SAM's prompt channels,
g side of SAM's embedding grid, h w the decoder's output grid (4 g).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder

from aura.model.folded_decoder import ImageSide, can_fold, decode_folded, project_images
from aura.model.occlusion import ZeroLinear
from aura.model.pointing import Pointer, grid_codes, point_prompts


class TextProjection(nn.Sequential):
    """Linear - ReLU - Linear from the language model's space to SAM's prompts (LISA's ``text_hidden_fcs``).

    Args:
        hidden_size: Of the states.
        prompt_size: Of the prompts.
        silent: Start with prompts of zero, beside others that SAM knows.
    """

    def __init__(self, hidden_size: int, prompt_size: int, *, silent: bool = False) -> None:
        last = ZeroLinear if silent else nn.Linear
        super().__init__(nn.Linear(hidden_size, hidden_size), nn.ReLU(), last(hidden_size, prompt_size))


class Rescaling(nn.Module):
    """``weight * x + bias`` in each of H dimensions; it changes nothing until it is set or trained."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.bias

    @property
    def is_new(self) -> bool:
        return bool((self.weight == 1).all() and (self.bias == 0).all())

    @torch.no_grad()
    def standardize(self, states: torch.Tensor) -> None:
        """Bring states like these [N, H] to mean 0 and standard deviation 1 in each dimension.

        Fewer than two states have no deviation and change nothing.
        """
        if len(states) < 2:
            return
        mean, deviation = states.float().mean(0), states.float().std(0).clamp(min=1e-3)
        self.weight.copy_(1 / deviation)
        self.bias.copy_(-mean / deviation)


class PromptEncoder(nn.Module):
    """E_P: the refined embedding e_r of each ``[SEG]`` state, and SAM's dense prompts that go with it.

    Args:
        hidden_size: H of the language model.
        sam: SAM's own prompt encoder; frozen.
        rescale: Rescale the states first. The projection's first layer could do the same. But it starts as if all
            dimensions were alike, and learns slowly where they are not.
        pointing: Add the prompt of the place that a state points at, see :mod:`aura.model.pointing`.
    """

    def __init__(
        self, hidden_size: int, sam: SamPromptEncoder, rescale: bool = False, *, pointing: bool = False
    ) -> None:
        super().__init__()
        self.rescaling = Rescaling(hidden_size) if rescale else None
        self.projection = TextProjection(hidden_size, sam.hidden_size, silent=pointing)
        self.pointer = Pointer(hidden_size) if pointing else None
        self.sam = sam

    def forward(
        self, seg_hidden: torch.Tensor, tokens: torch.Tensor | None = None, image_of: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """e_r [N, C] of states [N, H], and with a pointer its logits [N, T].

        Args:
            seg_hidden: The states.
            tokens: What a pointer chooses from, [B, T, H].
            image_of: int64 [N], the image of each state, for a pointer.
        """
        # Masks teach a language model that is pointed with nothing: their large gradients spoil what it says and names.
        states = self.rescaled(seg_hidden if self.pointer is None else seg_hidden.detach())
        refined = self.projection(states)
        if self.pointer is None:
            return refined, None
        assert tokens is not None and image_of is not None, "a pointer needs image tokens"
        codes = point_prompts(self.sam, math.isqrt(tokens.shape[1])).to(refined.device, refined.dtype)
        prompts, logits = self.pointer(states, tokens, image_of.to(refined.device), codes)
        return refined + prompts, logits

    def rescaled(self, seg_hidden: torch.Tensor) -> torch.Tensor:
        """The states [N, H] as projection and pointer read them."""
        weight = next(self.projection.parameters())
        states = seg_hidden.to(weight.device, weight.dtype)
        return states if self.rescaling is None else self.rescaling(states)

    def dense(self) -> torch.Tensor:
        """SAM's "no mask" embedding [1, C, g, g]."""
        return self.sam(None, None, None, None)[1]

    def image_positions(self) -> torch.Tensor:
        """Positional encoding [1, C, g, g] of the embedding grid."""
        return grid_codes(self.sam, *self.sam.image_embedding_size).permute(2, 0, 1).unsqueeze(0)


class Canvas(NamedTuple):
    """What all masks of B images share, to be made once and drawn on again and again."""

    images: torch.Tensor  # [B, C, g, g], with the dense prompt added
    positions: torch.Tensor  # [1, C, g, g]
    visible: ImageSide | None  # of each decoder; None where it makes its own
    amodal: ImageSide | None
    tokens: torch.Tensor | None = None  # [B, T, H], that a pointer chooses from

    @property
    def num_bytes(self) -> int:
        tensors = [self.images, self.positions, *(self.visible or ()), *(self.amodal or ())]
        return sum(tensor.nbytes for tensor in tensors) + (0 if self.tokens is None else self.tokens.nbytes)


def project(decoder: SamMaskDecoder | None, images: torch.Tensor, positions: torch.Tensor) -> ImageSide | None:
    """The decoder's side of the images [B, C, g, g] for a :class:`Canvas`; ``None`` where it is not folded."""
    if decoder is None or not can_fold(decoder, images.shape[-2] * images.shape[-1]):
        return None
    return project_images(decoder, images, positions)


def decode(
    decoder: SamMaskDecoder,
    prompts: torch.Tensor,
    images: torch.Tensor,
    image_of: torch.Tensor,
    positions: torch.Tensor,
    projected: ImageSide | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One mask per prompt (or group of prompts), all N in one call, whichever image each is about.

    Args:
        decoder: SAM's mask decoder.
        prompts: e_r or e_oa, [N, C], or several for each mask, [N, T, C].
        images: [B, C, g, g], with the dense prompt added.
        image_of: int64 [N], the image of each prompt.
        positions: Of the embedding grid, [1, C, g, g].
        projected: What :func:`project` makes of the images, where it is at hand.

    Returns:
        Logits [N, h, w] (SAM's mask token 0) and SAM's own quality estimate [N], which AURA does not use.
    """
    prompts = prompts[:, None] if prompts.dim() == 2 else prompts  # [N, T, C]
    if can_fold(decoder, images.shape[-2] * images.shape[-1]):
        return decode_folded(decoder, prompts, images, image_of, positions, projected)
    # The decoder repeats an image for each of its prompts anyway, so one gathered image per prompt costs nothing.
    gathered = images[image_of]  # [N, C, g, g]
    masks, quality = decoder(
        image_embeddings=gathered,
        image_positional_embeddings=positions,
        sparse_prompt_embeddings=prompts[:, None],
        dense_prompt_embeddings=gathered.new_zeros(()),
        multimask_output=False,
    )
    return masks[:, 0, 0], quality[:, 0, 0]
