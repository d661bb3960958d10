"""SAM told where every object is: reference lines for a model that has to find the objects by itself.

A box is drawn around the true mask, and SAM's own decoder (its single-mask token) answers. Around the visible mask that
is the method's upper bound by words: where the object is, is given away. Around the amodal mask even how far the hidden
part reaches is.

Legend: B images, n objects of one image, C channels, g side of SAM's embedding grid, H W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from transformers import SamModel

from aura.data.images import image_size, load_image, sam_geometry, sam_pixels
from aura.evaluation.report import Report
from aura.evaluation.scoring import PredictedAnswer, Scorer, TurnKey
from aura.features import weights_fingerprint
from aura.geometry import to_image
from aura.masks import rle_bbox
from aura.types import ImageFeatures, ImageGeometry, MaskPair, Rle, Sample

Kind = Literal["visible", "amodal"]
OBJECTS_AT_ONCE = 16
"""The decoder holds several maps of the whole image for each."""


class Pixels(NamedTuple):
    """One image for SAM alone; the place of the other encoder's pixels is empty."""

    sam_pixels: torch.Tensor  # [3, S, S]
    clip_pixels: torch.Tensor  # [0]


class SamAlone:
    """A SAM as encoder and as reader of images, for :func:`aura.features.encode` and its cache."""

    def __init__(self, sam: SamModel) -> None:
        self.sam = sam
        self.sam_image_size = _side(sam)

    @property
    def device(self) -> torch.device:
        return self.sam.device

    @torch.no_grad()
    def encode_images(self, sam_pixels: torch.Tensor, clip_pixels: torch.Tensor) -> ImageFeatures:
        """Embeddings [B, C, g, g] of SAM pixels [B, 3, S, S], and nothing of the other encoder."""
        embeddings = self.sam.get_image_embeddings(sam_pixels.to(self.sam.dtype))
        return ImageFeatures(embeddings, embeddings.new_zeros(len(embeddings), 1, 1))

    def encoder_fingerprint(self) -> str:
        """Tells these weights from others."""
        return weights_fingerprint([self.sam.vision_encoder], "SAM alone")

    def image(self, image: Path, context: str = "") -> Pixels:
        """A file's pixels; errors as :func:`aura.data.images.load_image`."""
        pixels, _ = sam_pixels(load_image(image, context), self.sam_image_size)
        return Pixels(pixels, torch.zeros(0))

    def image_fingerprint(self) -> str:
        """Changes whenever the pixels that the encoder sees could change."""
        return f"SAM alone {self.sam_image_size}"


@torch.no_grad()
def masks_in_boxes(
    sam: SamModel, embeddings: torch.Tensor, boxes: Sequence[Sequence[float]], geometry: ImageGeometry
) -> list[np.ndarray]:
    """What SAM sees in each box.

    Args:
        sam: Its prompt encoder and mask decoder are used.
        embeddings: Of the image, [1, C, g, g].
        boxes: (x, y, width, height) in pixels of the image, as COCO writes them.
        geometry: How the image lies in SAM's square.

    Returns:
        n masks, bool [H, W], cut at logit 0.
    """
    scale = np.array([geometry.resized[1] / geometry.original[1], geometry.resized[0] / geometry.original[0]] * 2)
    corners = [[x, y, x + width, y + height] for x, y, width, height in boxes]
    found: list[np.ndarray] = []
    for start in range(0, len(corners), OBJECTS_AT_ONCE):
        part = torch.from_numpy(np.asarray(corners[start : start + OBJECTS_AT_ONCE]) * scale)
        given = part.to(embeddings.device, sam.dtype)[None]  # [1, n, 4]
        output = sam(image_embeddings=embeddings.to(sam.dtype), input_boxes=given, multimask_output=False)
        logits = output.pred_masks[0, :, 0]  # [n, 4 g, 4 g]
        found += [(to_image(one[None], geometry)[0] > 0).cpu().numpy() for one in logits]
    return found


class BoxScorer:
    """Scores a SAM that is given the true boxes, image after image, as a teacher-forced model is scored.

    Args:
        sam: The model.
        kinds: Of the mask that a box is drawn around; SAM's answer is compared with the mask of that kind. (The visible
            boxes' answers are compared with the amodal mask too: "amodal := predicted visible".)
    """

    def __init__(self, sam: SamModel, kinds: Iterable[Kind] = ("visible", "amodal")) -> None:
        self.sam = sam
        self._scorers: dict[Kind, Scorer] = {kind: Scorer("teacher_forced", kind) for kind in kinds}

    def add(self, sample: Sample, embeddings: torch.Tensor) -> None:
        """Score the objects that the questions about one image ask for; ``embeddings`` as in :func:`masks_in_boxes`.

        An object whose whole shape is unknown has no amodal box, and no amodal score.
        """
        height, width = image_size(sample.image_path, f"image {sample.image_id}: ")
        geometry = sam_geometry(height, width, _side(self.sam))
        asked = {i for c in sample.conversations for turn in c.turns for i in turn.objects}
        for kind, scorer in self._scorers.items():
            truth: dict[int, Rle] = {o.id: m for o in sample.objects if o.id in asked and (m := getattr(o, kind))}
            boxes = [rle_bbox(rle) for rle in truth.values()]
            seen = dict(zip(truth, masks_in_boxes(self.sam, embeddings, boxes, geometry), strict=True))
            scorer.add(sample, _answers(sample, kind, seen))

    def reports(self, name: str) -> dict[Kind, Report]:
        """By kind; ``name`` is the SAM's in the tables."""
        return {kind: scorer.report(f"{name}, true {kind} box") for kind, scorer in self._scorers.items()}


def _side(sam: SamModel) -> int:
    """Of its square input, in pixels."""
    vision: Any = sam.config.vision_config
    return int(vision.image_size)


def _answers(sample: Sample, kind: Kind, seen: Mapping[int, np.ndarray]) -> dict[TurnKey, PredictedAnswer]:
    """The masks at the places of their ``[SEG]``."""
    answers: dict[TurnKey, PredictedAnswer] = {}
    for conversation in sample.conversations:
        for number, turn in enumerate(conversation.turns):
            pairs = {
                index: MaskPair(seen[i], None) if kind == "visible" else MaskPair(None, seen[i])
                for index, i in enumerate(turn.objects)
                if i in seen
            }
            answers[conversation.id, number] = PredictedAnswer(pairs, len(turn.objects))
    return answers
