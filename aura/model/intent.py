"""Which mask a question means: a linear head on the ``[SEG]`` states. The paper has no such part.

Legend: N ``[SEG]`` objects, H hidden size of the language model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from aura.model.occlusion import ZeroLinear
from aura.types import ASKED


class IntentHead(nn.Module):
    """Logits of the kinds in :data:`aura.types.ASKED` for each ``[SEG]`` state.

    The states are normalised first, because some language models have a few dimensions far larger than the others. The
    head starts at zero: all kinds are equally likely, and no other weight of a new model is drawn differently.

    Args:
        hidden_size: H.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = ZeroLinear(hidden_size, len(ASKED))

    def forward(self, seg_hidden: torch.Tensor) -> torch.Tensor:
        """States [N, H] -> logits [N, 3]."""
        weight = self.linear.weight
        states = seg_hidden.to(weight.device, weight.dtype)
        logits: torch.Tensor = self.linear(F.layer_norm(states, states.shape[-1:]))
        return logits
