"""Pretraining of the CLIP-like tower: which category is seen, and reaches, where in the image.

Real CLIP learned its features from 400 million captions; here a few thousand scenes must do, so the tower is told
directly. The heads are thrown away.

Legend of shapes: B images, T patches (64), C channels, Y categories, g cells per side of the target grid (16: each
patch answers for 2 x 2 cells).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from aura.data.images import clip_pixels
from aura.train.pretrain import Metrics
from aura.train.pretrain_scenes import IMAGE_SIZE, PooledObject, ScenePool, block_mean, shuffled

CELLS = 16
FEATURE_LAYER = -2
"""LLaVA takes the features before the tower's last layer."""


def tower_config(*, hidden: int = 192, layers: int = 6, image_size: int = IMAGE_SIZE) -> CLIPVisionConfig:
    """A CLIP vision tower of about 2.8 million parameters, patch 16."""
    return CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        projection_dim=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        image_size=image_size,
        patch_size=16,
        hidden_act="gelu",
    )


@dataclass
class TowerBatch:
    """B images and what is where in them."""

    pixels: torch.Tensor  # [B, 3, P, P] float32, normalised
    seen: torch.Tensor  # [B, Y + 1, g, g], shares that sum to 1; background last
    reaching: torch.Tensor  # [B, Y, g, g], in [0, 1]
    present: torch.Tensor  # [B, Y], 0 or 1
    hidden: torch.Tensor  # [B, Y], occlusion rate where present, largest of the category


def tower_sample(image: np.ndarray, objects: list[PooledObject], index_of: dict[str, int]) -> tuple[np.ndarray, ...]:
    """The fields of :class:`TowerBatch` for one image uint8 [H, W, 3], in order."""
    seen = np.zeros((len(index_of) + 1, CELLS, CELLS), np.float32)
    reaching = np.zeros((len(index_of), CELLS, CELLS), np.float32)
    present, hidden = np.zeros((2, len(index_of)), np.float32)
    for obj in objects:
        y = index_of[obj.category]
        seen[y] += block_mean(obj.visible, CELLS)
        reaching[y] = np.maximum(reaching[y], block_mean(obj.amodal, CELLS))
        present[y], hidden[y] = 1, max(hidden[y], obj.occlusion_rate)
    seen[-1] = (1 - seen[:-1].sum(0)).clip(0, 1)
    pixels = clip_pixels(Image.fromarray(image), IMAGE_SIZE, resize="squash").numpy()
    return pixels, seen / seen.sum(0, keepdims=True), reaching, present, hidden


def stack_tower(samples: list[tuple[np.ndarray, ...]]) -> TowerBatch:
    """Samples to a batch."""
    return TowerBatch(*(torch.from_numpy(np.stack(column)) for column in zip(*samples, strict=True)))


def tower_batches(
    pool: ScenePool, categories: list[str], *, batch_size: int, rng: np.random.Generator
) -> Iterator[TowerBatch]:
    """Shuffled, mirrored batches without end."""
    order = shuffled(len(pool), rng)
    index_of = {name: i for i, name in enumerate(categories)}
    while True:
        picked = [next(order) for _ in range(batch_size)]
        yield stack_tower([tower_sample(pool.image(*at), pool.objects(*at), index_of) for at in picked])


class TowerHeads(nn.Module):
    """The throw-away heads: per cell Y + 1 seen and Y reaching, per image presence and occlusion rate."""

    def __init__(self, hidden: int, num_categories: int) -> None:
        super().__init__()
        self.num_categories = num_categories
        self.norm = nn.LayerNorm(hidden)
        self.cells = nn.Linear(hidden, 4 * (2 * num_categories + 1))
        self.image = nn.Linear(hidden, 2 * num_categories)
        nn.init.constant_(self.cells.bias.view(4, -1).data[:, num_categories + 1 :], -4.0)
        nn.init.constant_(self.image.bias.data[:num_categories], -2.0)

    def loss(self, features: torch.Tensor, pooled: torch.Tensor, batch: TowerBatch) -> tuple[torch.Tensor, Metrics]:
        """From features [B, T, C] before the last layer and the pooled output [B, C]."""
        logits = self.cell_logits(features)
        y = self.num_categories
        seen = F.cross_entropy(logits[:, : y + 1], batch.seen)
        reaching = F.binary_cross_entropy_with_logits(logits[:, y + 1 :], batch.reaching) * y
        image = self.image(pooled)
        present = F.binary_cross_entropy_with_logits(image[:, :y], batch.present) * y / 10
        rate = (image[:, y:].sigmoid() - batch.hidden).square()[batch.present > 0].mean()
        terms = {"seen": seen, "reaching": reaching, "present": present, "rate": rate}
        return seen + reaching + present + rate, {key: float(value.detach()) for key, value in terms.items()}

    def cell_logits(self, features: torch.Tensor) -> torch.Tensor:
        """[B, T, C] -> [B, 2 Y + 1, g, g]."""
        count, side = len(features), CELLS // 2
        logits = self.cells(self.norm(features)).view(count, side, side, 2, 2, -1)
        return logits.permute(0, 5, 1, 3, 2, 4).reshape(count, -1, CELLS, CELLS)


class TowerPretrainer(nn.Module):
    """The tower with its heads."""

    def __init__(self, config: CLIPVisionConfig, num_categories: int) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(config)
        self.heads = TowerHeads(config.hidden_size, num_categories)
        side = config.image_size // config.patch_size
        position = self.tower.get_parameter(
            next(name for name, _ in self.tower.named_parameters() if name.endswith("position_embedding.weight"))
        )
        position.data[1:] = 0.5 * sine_positions(side, config.hidden_size)
        self.low_precision = torch.cpu._is_avx512_bf16_supported()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, 3, P, P] -> patch features [B, T, C] as LLaVA takes them, and the pooled output [B, C]."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
            out = self.tower(pixels, output_hidden_states=True)
        return out.hidden_states[FEATURE_LAYER][:, 1:].float(), out.pooler_output.float()

    def loss(self, batch: TowerBatch) -> tuple[torch.Tensor, Metrics]:
        """The heads' loss on a batch."""
        return self.heads.loss(*self(batch.pixels), batch)


def sine_positions(side: int, channels: int) -> torch.Tensor:
    """Sines and cosines of the row and the column, [side x side, channels]: neighbours are alike from the start."""
    angles = torch.arange(side)[:, None] * 100 ** -torch.linspace(0, 1, channels // 4) * 2
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves[:, None].expand(side, side, -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=2).flatten(0, 1)


@torch.no_grad()
def evaluate_tower(model: TowerPretrainer, batches: list[TowerBatch]) -> Metrics:
    """Accuracy of the category on cells that show an object, and precision and recall of presence."""
    hits, right, said, there = [], 0.0, 0.0, 0.0
    for batch in batches:
        features, pooled = model(batch.pixels)
        y = batch.present.shape[1]
        guess, true = model.heads.cell_logits(features)[:, : y + 1].argmax(1), batch.seen.argmax(1)
        hits.append((guess == true)[true < y].float())
        positive = model.heads.image(pooled)[:, :y] > 0
        right += float((positive & (batch.present > 0)).sum())
        said, there = said + float(positive.sum()), there + float(batch.present.sum())
    return {
        "cell_accuracy": float(torch.cat(hits).mean()),
        "presence_precision": right / max(said, 1.0),
        "presence_recall": right / there,
    }
