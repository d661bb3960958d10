"""What a tower should know of occlusion: how hidden the object at a patch is, what hides it, and what it hides.

Only the tower sees an image as a whole: the language model reads its patches one after the other, each without those
that follow. Told by every patch who hides whom, the language model needs to look at one place only to answer "what is
behind the bus?", and to compare one number between places for "which is hidden the most?". The heads are thrown away.

Legend of shapes: B images, N named objects, C channels, Y categories, T patches in reading order, g patches per side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from aura.data.occlusion import occlusion_matrix
from aura.train.pretrain import Metrics
from aura.train.pretrain_scenes import PooledObject

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


def patch_relations(
    objects: Sequence[PooledObject], relations: np.ndarray, shares: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The relations [K, 2 Y + 1] of what is seen at each patch, float32 [T, 2 Y + 1]; 0 where nothing is."""
    seen = np.stack([shares(o.visible).ravel() for o in objects])  # [K, T]
    return (seen / seen.sum(0, keepdims=True).clip(min=1e-6)).T @ relations


class RelationHead(nn.Module):
    """Throw-away: from states [..., C] to logits of what hides and what is hidden, and of the rate, [..., 2 Y + 1]."""

    def __init__(self, channels: int, num_categories: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, 2 * num_categories + 1)
        nn.init.constant_(self.linear.bias.data[:-1], -4.0)  # few things touch

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.norm(states.float()))
        return logits

    def loss(self, states: torch.Tensor, relations: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Mean over the states, by weight.

        Args:
            states: [..., C].
            relations: [..., 2 Y + 1].
            weight: [...]; for a patch, how much of it shows an object.
        """
        logits = self(states)
        touching = F.binary_cross_entropy_with_logits(logits[..., :-1], relations[..., :-1], reduction="none").sum(-1)
        rate = (logits[..., -1].sigmoid() - relations[..., -1]).abs()
        touching, rate = ((value * weight).sum() / weight.sum().clamp(min=1e-6) for value in (touching, rate))
        return touching + 2 * rate, {"touching": float(touching.detach()), "patch_rate": float(rate.detach())}


@torch.no_grad()
def evaluate_relations(logits: torch.Tensor, relations: torch.Tensor, weight: torch.Tensor) -> Metrics:
    """Of the statements "this hides that" at patches that show an object: share found, share right; error of rates."""
    shown = weight > 0.5
    said, true = logits[shown][:, :-1] > 0, relations[shown][:, :-1] > 0.5
    both = float((said & true).sum())
    return {
        "touching_found": both / max(1.0, float(true.sum())),
        "touching_right": both / max(1.0, float(said.sum())),
        "patch_rate_error": float((logits[shown][:, -1].sigmoid() - relations[shown][:, -1]).abs().mean()),
    }
