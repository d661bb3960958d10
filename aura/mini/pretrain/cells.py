"""The task that teaches both image encoders to see: per patch, which category is seen there and which reach there.

Real encoders learned from millions of images; a few thousand scenes must ask for it directly. A category "reaches" a
patch where an object of it lies, hidden or not. The head is thrown away.

Legend of shapes: B images, C channels, Y categories, g patches per side (16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from aura.mini.pretrain.run import Metrics
from aura.mini.pretrain.scenes import IMAGE_SIZE, PATCH_SIZE, PooledObject, ScenePool, shuffled

CELLS = IMAGE_SIZE // PATCH_SIZE

Preprocess = Callable[[Image.Image], torch.Tensor]
"""An image to pixels [3, S, S]."""
Shares = Callable[[np.ndarray], np.ndarray]
"""A mask bool [H, W] to its share of each patch, float32 [g, g], laid out as ``Preprocess`` lays out the image."""


@dataclass
class CellBatch:
    """B images and what is where in them."""

    pixels: torch.Tensor  # [B, 3, S, S] float32, normalised
    seen: torch.Tensor  # [B, Y + 1, g, g], shares that sum to 1; background last
    reaching: torch.Tensor  # [B, Y, g, g], in [0, 1]


def cell_targets(
    objects: Sequence[PooledObject], index_of: dict[str, int], shares: Shares
) -> tuple[np.ndarray, np.ndarray]:
    """What is seen (shares, background last) and what reaches each patch: float32 [Y + 1, g, g] and [Y, g, g]."""
    seen = np.zeros((len(index_of) + 1, CELLS, CELLS), np.float32)
    reaching = np.zeros((len(index_of), CELLS, CELLS), np.float32)
    for obj in objects:
        y = index_of[obj.category]
        seen[y] += shares(obj.visible)
        reaching[y] = np.maximum(reaching[y], shares(obj.amodal))
    seen[-1] = (1 - seen[:-1].sum(0)).clip(0, 1)
    return seen / seen.sum(0, keepdims=True), reaching


def stack_cells(samples: Sequence[tuple[torch.Tensor, np.ndarray, np.ndarray]]) -> CellBatch:
    """Pixels and targets of each image to a batch."""
    pixels, *targets = zip(*samples, strict=True)
    return CellBatch(torch.stack(pixels), *(torch.from_numpy(np.stack(column)) for column in targets))


def cell_batches(
    pool: ScenePool,
    categories: Sequence[str],
    *,
    batch_size: int,
    rng: np.random.Generator,
    preprocess: Preprocess,
    shares: Shares,
) -> Iterator[CellBatch]:
    """Shuffled, mirrored batches without end."""
    order = shuffled(len(pool), rng)
    index_of = {name: i for i, name in enumerate(categories)}
    while True:
        picked = [next(order) for _ in range(batch_size)]
        yield stack_cells(
            [
                (preprocess(Image.fromarray(pool.image(*at))), *cell_targets(pool.objects(*at), index_of, shares))
                for at in picked
            ]
        )


class CellHead(nn.Module):
    """Throw-away: from features [B, g, g, C] to logits [B, 2 Y + 1, g, g], the seen ones first."""

    def __init__(self, channels: int, num_categories: int) -> None:
        super().__init__()
        self.num_categories = num_categories
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, 2 * num_categories + 1)
        nn.init.constant_(self.linear.bias.data[num_categories + 1 :], -4.0)  # few categories reach a patch

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(features)).permute(0, 3, 1, 2)

    def loss(self, features: torch.Tensor, batch: CellBatch) -> tuple[torch.Tensor, Metrics]:
        """Cross-entropy of what is seen plus binary cross-entropy of what reaches; the terms."""
        logits, y = self(features), self.num_categories
        seen = F.cross_entropy(logits[:, : y + 1], batch.seen)
        reaching = F.binary_cross_entropy_with_logits(logits[:, y + 1 :], batch.reaching) * y
        return seen + reaching, {"seen": float(seen.detach()), "reaching": float(reaching.detach())}


@torch.no_grad()
def evaluate_cells(
    encode: Callable[[torch.Tensor], torch.Tensor], head: CellHead, batches: Sequence[CellBatch]
) -> Metrics:
    """Accuracy on patches that show an object, and the share of categories present that are found in some patch.

    Args:
        encode: Pixels [B, 3, S, S] to features [B, g, g, C].
        head: The head on them.
        batches: Held-out images.
    """
    hits, found, y = [], [], head.num_categories
    for batch in batches:
        logits = head(encode(batch.pixels))
        guess, true = logits[:, : y + 1].argmax(1), batch.seen.argmax(1)
        hits.append((guess == true)[true < y].float())
        present = batch.reaching.flatten(2).amax(2) > 0.5
        found.append((logits[:, y + 1 :].flatten(2).amax(2) > 0)[present].float())
    return {"cell_accuracy": float(torch.cat(hits).mean()), "found": float(torch.cat(found).mean())}
