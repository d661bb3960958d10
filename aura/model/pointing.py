"""Where a ``[SEG]`` state points among the image tokens, as a prompt of SAM's. The paper has no such part.

READ (Qian et al., "Reasoning to Attend", CVPR 2025) finds that the ``[SEG]`` of LISA-like models resembles the image
tokens of the object that it means, and gives SAM points there. Here the comparison is learnt, and stays differentiable:
each state attends to the image's tokens, and SAM's code for the place that it attends to is added to e_r. A small
language model that has not learnt yet to carry places through its layers draws masks this way much sooner. It learns
from text alone then: masks train the pointer and all that comes after the states, and the projector by its tokens.

Legend: B images, N ``[SEG]`` objects, T image tokens in a square, H hidden size, C SAM's prompt channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.sam.modeling_sam import SamPromptEncoder

from aura.model.occlusion import ZeroLinear

WIDTH = 256
"""Of the space in which states and image tokens are compared."""


class Pointer(nn.Module):
    """Attention of ``[SEG]`` states over image tokens, both normalised first, whose values are SAM's codes of places.

    It starts by attending to all tokens alike.

    Args:
        hidden_size: H.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.query = ZeroLinear(hidden_size, WIDTH)
        self.key = nn.Linear(hidden_size, WIDTH, bias=False)  # a bias would add the same to all tokens

    @property
    def is_new(self) -> bool:
        return not bool(self.query.weight.any())

    def forward(
        self, states: torch.Tensor, tokens: torch.Tensor, image_of: torch.Tensor, codes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts [N, C] and the attention's logits [N, T].

        Args:
            states: [N, H].
            tokens: Image tokens as the language model reads them, [B, T, H].
            image_of: int64 [N], the image of each state.
            codes: The prompt of each place, [T, C].
        """
        logits = self.compare(states, tokens, image_of)
        return logits.softmax(-1) @ codes, logits

    def compare(self, states: torch.Tensor, tokens: torch.Tensor, image_of: torch.Tensor) -> torch.Tensor:
        """The attention's logits [N, T] alone; the arguments are those of :meth:`forward`."""
        weight = self.query.weight
        query, key = (
            layer(F.layer_norm(x.to(weight.device, weight.dtype), x.shape[-1:]))
            for layer, x in ((self.query, states), (self.key, tokens))
        )
        return torch.einsum("nd,ntd->nt", query, key[image_of]) / math.sqrt(WIDTH)


def point_prompts(sam: SamPromptEncoder, side: int) -> torch.Tensor:
    """SAM's prompts for points on the object at the centres of ``side`` x ``side`` cells, row by row: [T, C]."""
    label: Any = sam.point_embed[1].weight
    prompts: torch.Tensor = grid_codes(sam, side, side).flatten(0, 1) + label
    return prompts


def grid_codes(sam: SamPromptEncoder, rows: int, columns: int) -> torch.Tensor:
    """SAM's positional encoding of the centres of ``rows`` x ``columns`` cells of its square, [rows, columns, C]."""
    embedding = sam.shared_embedding
    device = embedding.positional_embedding.device
    y = (torch.arange(rows, device=device) + 0.5) / rows
    x = (torch.arange(columns, device=device) + 0.5) / columns
    codes: torch.Tensor = embedding(torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], dim=-1))
    return codes
