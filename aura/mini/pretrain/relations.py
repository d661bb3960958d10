"""What a language model should know of an object that it names: how hidden it is, what hides it, and what it hides.

The answers about occlusion ask for it too, but for one object at a time. The head is thrown away.

Legend of shapes: K objects of an image, N named objects, C channels, Y categories.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from aura.formats.occlusion import occlusion_matrix
from aura.mini.pretrain.run import Metrics
from aura.mini.pretrain.scenes import PooledObject

RELATION_WEIGHT = 0.5


def object_relations(objects: Sequence[PooledObject], index_of: dict[str, int]) -> np.ndarray:
    """For each of K objects: categories that hide it, categories that it hides, its rate: float32 [K, 2 Y + 1]."""
    visible = np.stack([o.visible.ravel() for o in objects]).astype(np.float32)
    amodal = np.stack([o.amodal.ravel() for o in objects]).astype(np.float32)
    hidden = np.rint(visible @ (amodal - visible).T).astype(np.int64)  # [b, a]: pixels of a that show b instead
    np.fill_diagonal(hidden, 0)
    hides = occlusion_matrix(hidden, amodal.sum(1).astype(np.int64))
    y = len(index_of)
    category = np.eye(y, dtype=np.float32)[[index_of[o.category] for o in objects]]  # [K, Y]
    hidden_by, hiding = hides.T @ category, hides @ category
    rates = np.array([[o.occlusion_rate] for o in objects], np.float32)
    return np.concatenate([hidden_by.clip(max=1), hiding.clip(max=1), rates], axis=1, dtype=np.float32)


class RelationHead(nn.Module):
    """Throw-away: from states [N, C] to logits of what hides and what is hidden, and of the rate, [N, 2 Y + 1]."""

    def __init__(self, channels: int, num_categories: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, 2 * num_categories + 1)
        nn.init.constant_(self.linear.bias.data[:-1], -4.0)  # few things touch

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.norm(states.float()))
        return logits

    def loss(self, states: torch.Tensor, relations: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Mean over the states [N, C], against the relations [N, 2 Y + 1]; the terms."""
        logits = self(states)
        touching = F.binary_cross_entropy_with_logits(logits[:, :-1], relations[:, :-1], reduction="none").sum(-1)
        touching, rate = touching.mean(), (logits[:, -1].sigmoid() - relations[:, -1]).abs().mean()
        return touching + 2 * rate, {"touching": float(touching.detach()), "rate": float(rate.detach())}
