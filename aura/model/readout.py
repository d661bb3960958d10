"""From ``[SEG]`` states to the masks of one image, at its own size.

Legend: n ``[SEG]`` of one image, H hidden size, H W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from aura.geometry import to_image
from aura.model import AuraModel
from aura.model.segmentation import Canvas
from aura.types import ASKED, ImageFeatures, ImageGeometry, MaskOutput, MaskPair


@torch.no_grad()
def decode_answers(
    model: AuraModel, states: torch.Tensor, features: ImageFeatures | Canvas, geometry: ImageGeometry
) -> Iterator[MaskPair]:
    """The masks of ``[SEG]`` states [n, H] of one image, whose features have B = 1; nothing for n = 0."""
    if len(states) == 0:
        return iter(())
    canvas = features if isinstance(features, Canvas) else model.canvas(features.sam_embeddings, features.clip_features)
    image = torch.zeros(len(states), dtype=torch.int64, device=states.device)
    return read_masks(model.decode_masks(states, canvas, image), range(len(states)), geometry)


def read_masks(output: MaskOutput, rows: Iterable[int], geometry: ImageGeometry) -> Iterator[MaskPair]:
    """Decoded masks of some rows of ``output`` at their image's size, bool [H, W], cut at logit 0.

    One at a time: at a photograph's size, the float maps of a long answer would fill the memory.
    """

    def mask(logits: torch.Tensor | None, row: int) -> np.ndarray | None:
        return None if logits is None else (to_image(logits[row, None], geometry)[0] > 0).cpu().numpy()

    rates = None if output.occlusion_rate is None else output.occlusion_rate.tolist()
    kinds = None if output.asked_logits is None else output.asked_logits.argmax(-1).tolist()
    for row in rows:
        rate, asked = None if rates is None else rates[row], None if kinds is None else ASKED[kinds[row]]
        yield MaskPair(mask(output.visible_logits, row), mask(output.amodal_logits, row), rate, asked)
