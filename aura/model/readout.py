"""What stands between a model and one image's pixels: features going in, masks coming out.

Legend: B images, n ``[SEG]`` of one image, H hidden size, H W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from aura.data.processor import ImageInputs
from aura.geometry import to_image
from aura.model import AuraModel
from aura.types import ImageFeatures, ImageGeometry, MaskOutput, MaskPair


def encode_images(model: AuraModel, images: Sequence[ImageInputs]) -> list[ImageFeatures]:
    """The frozen encoders' outputs of each image (B = 1), in one pass, on the model's device."""
    features = model.encode_images(
        torch.stack([image.sam_pixels for image in images]).to(model.device),
        torch.stack([image.clip_pixels for image in images]).to(model.device),
    )
    rows = zip(features.sam_embeddings.split(1), features.clip_features.split(1), strict=True)
    return [ImageFeatures(*row) for row in rows]


@torch.no_grad()
def decode_answers(
    model: AuraModel, states: torch.Tensor, sam_embeddings: torch.Tensor, geometry: ImageGeometry
) -> Iterator[MaskPair]:
    """The masks of ``[SEG]`` states [n, H] of one image, whose embeddings have B = 1; nothing for n = 0."""
    if len(states) == 0:
        return iter(())
    image = torch.zeros(len(states), dtype=torch.int64, device=states.device)
    return read_masks(model.decode_masks(states, sam_embeddings, image), range(len(states)), geometry)


def read_masks(output: MaskOutput, rows: Iterable[int], geometry: ImageGeometry) -> Iterator[MaskPair]:
    """Decoded masks of some rows of ``output`` at their image's size, bool [H, W], cut at logit 0.

    One at a time: at a photograph's size, the float maps of a long answer would fill the memory.
    """

    def mask(logits: torch.Tensor | None, row: int) -> np.ndarray | None:
        return None if logits is None else (to_image(logits[row, None], geometry)[0] > 0).cpu().numpy()

    rates = None if output.occlusion_rate is None else output.occlusion_rate.tolist()
    for row in rows:
        rate = None if rates is None else rates[row]
        yield MaskPair(mask(output.visible_logits, row), mask(output.amodal_logits, row), rate)
