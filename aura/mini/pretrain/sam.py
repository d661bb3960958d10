"""Pretraining of the SAM-like backbone: promptable segmentation, and what SAM gets from eleven million images.

SAM's features serve AURA because they were learned on vast data. On a few thousand scenes the same is asked for
directly, in two stages. The image encoder alone learns what is where (:mod:`aura.mini.pretrain.cells`). Then all of SAM
learns visible masks from point and box prompts and from a learned "name" prompt for a category; the first task goes on
beside them. The name table and the head are thrown away afterwards.

Legend of shapes: B images, P prompts of an image, T tokens of a prompt, C channels, Y categories, G mask grid (64),
h w feature grid (16).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from aura.data.images import sam_pixels
from aura.mini.pretrain.cells import CELLS, CellBatch, CellHead, cell_targets, evaluate_cells, stack_cells
from aura.mini.pretrain.run import Metrics
from aura.mini.pretrain.scenes import GRID, IMAGE_SIZE, PATCH_SIZE, ScenePool, padded_grid, shuffled

Seen = tuple[int, np.ndarray]
"""An object of an image: category index, visible share of each grid cell, float32 [G, G]."""


def sam_config(*, hidden: int = 192, layers: int = 6, channels: int = 128) -> SamConfig:
    """A SAM of about 3.5 million parameters: 192 px, patch 12, global attention, absolute positions alone."""
    vision = SamVisionConfig(
        hidden_size=hidden,
        output_channels=channels,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        window_size=CELLS,
        global_attn_indexes=list(range(layers)),
        use_rel_pos=False,
        num_pos_feats=channels // 2,
        mlp_dim=4 * hidden,
        initializer_range=0.02,
    )
    # transformers' default (half the hidden size) is overwritten by every released checkpoint; from scratch it would
    # make the positions' frequencies so high that neighbouring pixels look unrelated.
    vision.scale = 1.0
    prompt = SamPromptEncoderConfig(
        hidden_size=channels, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, mask_input_channels=16
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=channels, mlp_dim=2 * channels, num_attention_heads=4, iou_head_hidden_dim=channels // 2
    )
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


def padded_pixels(image: Image.Image) -> torch.Tensor:
    """SAM's input [3, S, S]."""
    return sam_pixels(image, IMAGE_SIZE)[0]


def padded_cells(mask: np.ndarray) -> np.ndarray:
    """Share of each patch of SAM's padded square: bool [H, W] -> float32 [h, w]."""
    return padded_grid(mask, CELLS)


@dataclass
class SamBatch:
    """B images with ``P_n`` name and ``P_g`` geometric prompts each."""

    cells: CellBatch
    names: torch.Tensor  # [B, P_n] int64, category indices
    name_masks: torch.Tensor  # [B, P_n, G, G] float32, share of each cell
    points: torch.Tensor  # [B, P_g, 1, 2] float32, x y in pixels of the input
    boxes: torch.Tensor  # [B, P_g, 4] float32, x0 y0 x1 y1
    is_box: torch.Tensor  # [B, P_g] bool
    shape_masks: torch.Tensor  # [B, P_g, G, G]


def sam_batches(
    pool: ScenePool,
    categories: list[str],
    *,
    batch_size: int,
    rng: np.random.Generator,
    name_prompts: int = 4,
    shape_prompts: int = 3,
) -> Iterator[SamBatch]:
    """Shuffled, mirrored batches with random prompts, without end."""
    order = shuffled(len(pool), rng)
    index_of = {name: i for i, name in enumerate(categories)}
    while True:
        cells, prompts = [], []
        while len(cells) < batch_size:
            index, flip = next(order)
            if objects := pool.objects(index, flip):
                pixels = padded_pixels(Image.fromarray(pool.image(index, flip)))
                cells.append((pixels, *cell_targets(objects, index_of, padded_cells)))
                grids = [(index_of[o.category], padded_grid(o.visible)) for o in objects]
                prompts.append(_prompts(grids, rng, name_prompts, shape_prompts))
        columns = zip(*prompts, strict=True)
        yield SamBatch(stack_cells(cells), *(torch.from_numpy(np.stack(column)) for column in columns))


def _prompts(
    objects: list[Seen], rng: np.random.Generator, name_prompts: int, shape_prompts: int
) -> tuple[np.ndarray, ...]:
    """The prompt fields of :class:`SamBatch` for one image, in order."""
    present = sorted({category for category, _ in objects})
    names = np.resize(rng.permutation(present), name_prompts)
    by_name = {y: np.maximum.reduce([visible for category, visible in objects if category == y]) for y in present}
    chosen = [objects[int(i)][1] for i in np.resize(rng.permutation(len(objects)), shape_prompts)]
    return (
        names.astype(np.int64),
        np.stack([by_name[int(y)] for y in names]),
        np.stack([random_point(mask, rng) for mask in chosen])[:, None],
        np.stack([jittered_box(mask, rng) for mask in chosen]),
        rng.random(shape_prompts) < 0.5,
        np.stack(chosen),
    )


def random_point(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random point (x, y) inside the mask [G, G], in pixels of the input."""
    rows, columns = np.nonzero(mask >= min(0.5, float(mask.max())))
    pick = rng.integers(len(rows))
    scale = IMAGE_SIZE / GRID
    return ((np.array([columns[pick], rows[pick]]) + rng.random(2)) * scale - 0.5).astype(np.float32)


def jittered_box(mask: np.ndarray, rng: np.random.Generator, jitter: float = 0.05) -> np.ndarray:
    """The mask's box (x0, y0, x1, y1) in pixels of the input, each side moved by about ``jitter`` of its length."""
    rows, columns = np.nonzero(mask > 0)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
    size = np.tile(box[2:] - box[:2], 2)
    moved = (box + rng.normal(0, jitter, 4) * size) * (IMAGE_SIZE / GRID)
    return moved.clip(0, IMAGE_SIZE).astype(np.float32)


class SamPretrainer(nn.Module):
    """SAM with the two throw-away parts: a name table [Y, C] and the head of the patches."""

    def __init__(self, config: SamConfig, num_categories: int) -> None:
        super().__init__()
        channels = config.prompt_encoder_config.hidden_size
        self.sam = SamModel(config)
        self.names = nn.Embedding(num_categories, channels)
        self.head = CellHead(channels, num_categories)
        # transformers initialises with a standard deviation of 0.02, which is far too small at these widths.
        for module in self.sam.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
                module.reset_parameters()
        positions = self.sam.vision_encoder.pos_embed
        positions.data[0] = 0.5 * sine_positions(positions.shape[1], positions.shape[3])
        self.low_precision = torch.cpu._is_avx512_bf16_supported()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, C, h, w]; in bfloat16 arithmetic where the processor has units for it."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
            return self.sam.vision_encoder(pixels).last_hidden_state.float()

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, h, w, C], as the head takes them."""
        return self.encode(pixels).permute(0, 2, 3, 1)

    def cell_loss(self, batch: CellBatch) -> tuple[torch.Tensor, Metrics]:
        """The image encoder's own task."""
        return self.head.loss(self.features(batch.pixels), batch)

    def decode(self, embeddings: torch.Tensor, sparse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [B, C, h, w] and prompts [B, P, T, C] -> mask logits [B, P, G, G] and IoU estimates [B, P]."""
        count = len(embeddings)
        no_mask = self.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(embeddings)
        positions = self.sam.get_image_wide_positional_embeddings().expand(count, -1, -1, -1)
        masks, scores = self.sam.mask_decoder(
            image_embeddings=embeddings,
            image_positional_embeddings=positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=no_mask,
            multimask_output=False,
        )
        return masks[:, :, 0], scores[:, :, 0]

    def shape_prompts(self, batch: SamBatch) -> torch.Tensor:
        """Point or box tokens [B, P_g, 2, C]."""
        labels = torch.ones(batch.points.shape[:3], dtype=torch.int64)
        encoder = self.sam.prompt_encoder
        points, _ = encoder(batch.points, labels, None, None)
        boxes, _ = encoder(None, None, batch.boxes, None)
        return torch.where(batch.is_box[:, :, None, None], boxes, points)

    def forward(self, embeddings: torch.Tensor, batch: SamBatch) -> dict[str, torch.Tensor]:
        """From embeddings [B, C, h, w]: ``name`` and ``shape`` logits [B, P, G, G], their ``*_score`` [B, P]."""
        name, name_score = self.decode(embeddings, self.names(batch.names)[:, :, None])
        shape, shape_score = self.decode(embeddings, self.shape_prompts(batch))
        return {"name": name, "name_score": name_score, "shape": shape, "shape_score": shape_score}


def sine_positions(side: int, channels: int) -> torch.Tensor:
    """Sines and cosines of the row and the column, [side, side, channels]: neighbours are alike from the start."""
    angles = torch.arange(side)[:, None] * 100 ** -torch.linspace(0, 1, channels // 4) * 2
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves[:, None].expand(side, side, -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=2)


def soft_iou(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """IoU of thresholded masks over the last two dimensions."""
    predicted, true = logits > 0, target > 0.5
    union = (predicted | true).sum((-2, -1))
    return torch.where(union > 0, (predicted & true).sum((-2, -1)) / union.clamp(min=1), 1.0)


def mask_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy (x 2) plus Dice against shares in [0, 1]."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * target).sum((-2, -1)) + 1
    dice = 1 - overlap / (probability.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    return 2 * F.binary_cross_entropy_with_logits(logits, target) + dice.mean()


def sam_loss(model: SamPretrainer, batch: SamBatch) -> tuple[torch.Tensor, Metrics]:
    """The weighted sum of all tasks, and the terms."""
    embeddings = model.encode(batch.cells.pixels)
    out = model(embeddings, batch)
    seeing, terms = model.head.loss(embeddings.permute(0, 2, 3, 1), batch.cells)
    name, shape = mask_loss(out["name"], batch.name_masks), mask_loss(out["shape"], batch.shape_masks)
    with torch.no_grad():
        name_iou, shape_iou = soft_iou(out["name"], batch.name_masks), soft_iou(out["shape"], batch.shape_masks)
    score = F.mse_loss(out["name_score"], name_iou) + F.mse_loss(out["shape_score"], shape_iou)
    total = seeing + name + shape + 0.1 * score
    terms |= {"name": float(name.detach()), "shape": float(shape.detach()), "name_iou": float(name_iou.mean())}
    return total, terms


@torch.no_grad()
def evaluate_sam(model: SamPretrainer, batches: list[SamBatch]) -> Metrics:
    """Mean IoU of visible masks by prompt, and the figures of the patches, on held-out scenes."""
    sums: dict[str, list[torch.Tensor]] = {"point_iou": [], "box_iou": [], "name_iou": []}
    for batch in batches:
        out = model(model.encode(batch.cells.pixels), batch)
        shape_iou = soft_iou(out["shape"], batch.shape_masks)
        sums["point_iou"].append(shape_iou[~batch.is_box])
        sums["box_iou"].append(shape_iou[batch.is_box])
        sums["name_iou"].append(soft_iou(out["name"], batch.name_masks).flatten())
    masks = {key: float(torch.cat(values).mean()) for key, values in sums.items()}
    return masks | evaluate_cells(model.features, model.head, [batch.cells for batch in batches])


def export_sam(model: SamPretrainer, folder: Path) -> None:
    """Save the SamModel without the throw-away parts, in float16."""
    copy.deepcopy(model.sam).half().save_pretrained(folder)
