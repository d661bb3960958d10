"""Exact mask metrics: IoUs from integer pixel counts, their means and sums, pairing, occlusion buckets.

Every figure is computed from one :class:`ObjectScore` per object and one :class:`AnswerScore` per answer. Several
processes score disjoint parts of a data set and concatenate their lists. The figures are then those of one process to
the last bit, because means use exactly rounded sums.

Conventions, the same for every figure:

- The IoU of two empty masks is 1 (LISA).
- **gIoU** is a mean of IoUs: over images, as the paper says, over answers, and over objects, as LISA's code has it. In
  an answer and an image, the objects are averaged first. Of a part of the objects (invisible region, occlusion bucket)
  it is the mean over objects alone.
- **cIoU** is the sum of all intersections over the sum of all unions.
- An unpaired object has IoU 0, even if its mask is empty. It counts as one object in gIoU. In cIoU the union is the
  true area of a *missed* object and the predicted area of an *extra* prediction. So neither silence nor chatter pays.
- The **invisible** region is scored over the objects of which some is hidden. The true region is the true amodal mask
  minus the true visible mask. The predicted region is the predicted amodal mask minus the *true* visible mask. Its gIoU
  is C2F-Seg's figure, its cIoU is SD-Amodal's.
- **amodal_from_visible** compares the predicted visible mask with the true amodal mask. A method scores this amodal IoU
  without completing anything.
- A method may predict one kind of mask only. Scores and figures that need the other kind are ``None``.
- **N-acc** and **T-acc** are GRES's (Liu, Ding, Jiang, CVPR 2023; ``refer_evaluation.py`` of henghuiding/ReLA at
  1e6e8899): of the answers that have no object, the share that mark nothing; of the answers that have one, the share
  that mark something. An answer marks nothing that has no ``[SEG]``, or whose masks have no pixel.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from aura.targets import rate_from_areas
from aura.types import ASKED, MaskPair, Masks, SegRecord

Status = Literal["paired", "missed", "extra"]

OCCLUSION_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Upper edges of the occlusion buckets: exactly 0, then (0, 0.25], (0.25, 0.5], (0.5, 0.75], (0.75, 1]."""


class Overlap(NamedTuple):
    """Pixels in both masks and in either mask. ``credit`` is False where the IoU is 0 whatever the masks are."""

    intersection: int
    union: int
    credit: bool = True

    @property
    def iou(self) -> float:
        """Intersection over union in [0, 1]; 1 for two empty masks."""
        if not self.credit:
            return 0.0
        return self.intersection / self.union if self.union else 1.0


def overlap(predicted: np.ndarray, true: np.ndarray) -> Overlap:
    """Exact pixel counts of two bool masks [H, W]."""
    assert predicted.shape == true.shape and predicted.dtype == true.dtype == np.bool_
    intersection = int(np.count_nonzero(predicted & true))
    return Overlap(intersection, int(np.count_nonzero(predicted)) + int(np.count_nonzero(true)) - intersection)


def blank(size: tuple[int, ...], masks: Masks = "both") -> MaskPair:
    """Empty masks [H, W] of the kinds that a method predicts."""
    visible, amodal = (np.zeros(size, bool) if masks in ("both", kind) else None for kind in ("visible", "amodal"))
    return MaskPair(visible, amodal)


@dataclass(frozen=True)
class ObjectScore:
    """All counts of one object. ``record.index`` is the place of its ``[SEG]`` in the true answer; an extra prediction
    has annotation id -1 and, as index, its own place in the predicted answer.

    Areas are in pixels. ``predicted_rate`` is the method's own estimate or, where it gave none, the hidden share of its
    amodal mask; ``None`` without prediction or amodal mask. ``visible_outside`` counts the predicted visible pixels
    outside the predicted amodal mask. What needs a kind of mask that the method does not predict, or the whole shape of
    an object of which it is not known, is ``None``. ``true_asked`` is the mask that the question means,
    ``predicted_asked`` the one that the method takes it to mean.
    """

    record: SegRecord
    status: Status
    predicted_index: int | None
    visible: Overlap | None
    amodal: Overlap | None
    amodal_from_visible: Overlap | None
    invisible: Overlap | None
    true_visible_area: int
    true_amodal_area: int | None
    predicted_visible_area: int | None
    predicted_amodal_area: int | None
    visible_outside: int | None
    true_rate: float | None
    predicted_rate: float | None
    true_asked: Masks | None = None
    predicted_asked: Masks | None = None

    @property
    def has_hidden_region(self) -> bool:
        """Whether some of the true object is hidden, so that the invisible region can be scored."""
        return self.true_amodal_area is not None and self.true_amodal_area > self.true_visible_area

    def as_dict(self) -> dict[str, Any]:
        """One flat JSON object: who, how paired, IoUs, pixel counts, rates."""
        invisible = self.invisible if self.has_hidden_region else None
        counts = {"visible": self.visible, "amodal": self.amodal, "amodal_from_visible": self.amodal_from_visible}
        keys = ("intersection", "union")
        pixels = {f"{kind}_{key}": getattr(c, key, None) for kind, c in counts.items() for key in keys}
        return {
            **dataclasses.asdict(self.record),
            "status": self.status,
            "predicted_index": self.predicted_index,
            **{f"{kind}_iou": None if count is None else count.iou for kind, count in counts.items()},
            "invisible_iou": None if invisible is None else invisible.iou,
            "true_occlusion_rate": self.true_rate,
            "predicted_occlusion_rate": self.predicted_rate,
            "true_visible_area": self.true_visible_area,
            "true_amodal_area": self.true_amodal_area,
            "predicted_visible_area": self.predicted_visible_area,
            "predicted_amodal_area": self.predicted_amodal_area,
            "visible_outside_amodal_area": self.visible_outside,
            **pixels,
            "invisible_intersection": None if invisible is None else invisible.intersection,
            "invisible_union": None if invisible is None else invisible.union,
        }


@dataclass(frozen=True)
class AnswerScore:
    """One answer: how many ``[SEG]`` it should have, how many were predicted, and the texts where they are known.

    ``predicted_area`` are the pixels of all its masks, of both kinds together; ``None`` where no mask was decoded.
    """

    image_id: int
    conversation_id: int
    turn: int
    true_count: int
    predicted_count: int
    question: str = ""
    true_text: str = ""
    predicted_text: str | None = None
    predicted_area: int | None = None

    @property
    def marks_nothing(self) -> bool:
        """Whether it says that nothing in the image is meant."""
        return self.predicted_count == 0 or self.predicted_area == 0


def score_object(
    record: SegRecord,
    true: MaskPair | None,
    predicted: MaskPair | None,
    predicted_index: int | None = None,
    masks: Masks = "both",
) -> ObjectScore:
    """Compare one prediction with one truth; ``None`` on one side makes it a missed object or an extra prediction.

    Args:
        record: Who the object is.
        true: Its true masks, bool [H, W], the visible within the amodal one, which is ``None`` where the object's whole
            shape is not known: then the visible mask alone is scored.
        predicted: The predicted masks at the same size.
        predicted_index: The prediction's place in the predicted answer.
        masks: The kinds that the method predicts; ``predicted`` has exactly these.
    """
    present = next(m for pair in (true, predicted) if pair is not None for m in pair[:2] if m is not None)
    target = true if true is not None else blank(present.shape)
    guess = predicted if predicted is not None else blank(present.shape, masks)
    assert target.visible is not None and guess.kinds == masks
    credit = true is not None and predicted is not None

    def compare(a: np.ndarray | None, b: np.ndarray | None) -> Overlap | None:
        return None if a is None or b is None else overlap(a, b)._replace(credit=credit)

    true_visible = int(np.count_nonzero(target.visible))
    true_amodal = None if target.amodal is None else int(np.count_nonzero(target.amodal))
    seen = None if guess.visible is None else int(np.count_nonzero(guess.visible))
    whole = None if guess.amodal is None else int(np.count_nonzero(guess.amodal))
    outside, rate = None, guess.occlusion_rate
    if guess.visible is not None and guess.amodal is not None and seen is not None:
        outside = int(np.count_nonzero(guess.visible & ~guess.amodal))
        if rate is None and whole:
            rate = rate_from_areas(seen - outside, whole)
    return ObjectScore(
        record=record,
        status="paired" if credit else "extra" if true is None else "missed",
        predicted_index=predicted_index,
        visible=compare(guess.visible, target.visible),
        amodal=compare(guess.amodal, target.amodal),
        amodal_from_visible=compare(guess.visible, target.amodal),
        invisible=compare(
            None if guess.amodal is None else guess.amodal & ~target.visible,
            None if target.amodal is None else target.amodal & ~target.visible,
        ),
        true_visible_area=true_visible,
        true_amodal_area=true_amodal,
        predicted_visible_area=seen,
        predicted_amodal_area=whole,
        visible_outside=outside,
        true_rate=None if true is None or true_amodal is None else rate_from_areas(true_visible, true_amodal),
        predicted_rate=rate,
        true_asked=None if true is None else true.asked,
        predicted_asked=None if predicted is None else predicted.asked,
    )


# --- pairing ----------------------------------------------------------------------------------------------------------


def pair_by_overlap(true: Sequence[MaskPair], predicted: Sequence[MaskPair]) -> list[tuple[int, int]]:
    """The pairing (true, predicted) with the largest sum of visible plus amodal IoU, shared by both kinds of mask.

    A kind that is not predicted does not count. As many pairs as the shorter side has. Of several best pairings the
    lexicographically first is taken (the first object gets the first prediction it can have, and so on), so the result
    depends on the masks alone.
    """
    gain = np.zeros((len(true), len(predicted)))
    for i, target in enumerate(true):
        for j, guess in enumerate(predicted):
            kinds = [(a, b) for a, b in zip(guess[:2], target[:2], strict=True) if a is not None and b is not None]
            gain[i, j] = sum(overlap(a, b).iou for a, b in kinds)
    return best_assignment(gain)


def best_assignment(gain: np.ndarray) -> list[tuple[int, int]]:
    """The Hungarian match: the first in order of the assignments (row, column) of largest ``gain`` [rows, columns]."""

    def best(rows: Sequence[int], columns: Sequence[int]) -> float:
        if not rows or not columns:
            return 0.0
        part = gain[np.ix_(rows, columns)]
        return float(part[linear_sum_assignment(part, maximize=True)].sum())

    rows, columns = list(range(gain.shape[0])), list(range(gain.shape[1]))
    left = best(rows, columns)
    pairs: list[tuple[int, int]] = []
    while rows and columns:
        row = rows.pop(0)
        for column in columns:
            rest = [c for c in columns if c != column]
            remaining = best(rows, rest)
            if gain[row, column] + remaining >= left - 1e-9:
                pairs.append((row, column))
                columns, left = rest, remaining
                break
        # No column fits: there are more rows than columns and this row stays alone in every best assignment.
    return pairs


# --- figures ----------------------------------------------------------------------------------------------------------


def mean(values: Iterable[float]) -> float | None:
    """Arithmetic mean, independent of order; ``None`` of nothing."""
    items = list(values)
    return math.fsum(items) / len(items) if items else None


def cumulative_iou(overlaps: Iterable[Overlap]) -> float | None:
    """Sum of intersections over sum of unions; 1 if all masks are empty, ``None`` of nothing."""
    items = list(overlaps)
    total = Overlap(sum(o.intersection for o in items), sum(o.union for o in items), any(o.credit for o in items))
    return total.iou if items else None


def mean_of_groups(values: Iterable[tuple[Hashable, float]]) -> float | None:
    """Mean over the groups of each group's mean."""
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for key, value in values:
        groups[key].append(value)
    return mean(math.fsum(group) / len(group) for group in groups.values())


def _region(objects: Iterable[ObjectScore], region: Callable[[ObjectScore], Overlap | None]) -> dict[str, float | None]:
    known = [(o.record, found) for o in objects if (found := region(o)) is not None]
    return {
        "giou_object": mean(found.iou for _, found in known),
        "giou_answer": mean_of_groups(((r.conversation_id, r.turn), found.iou) for r, found in known),
        "giou_image": mean_of_groups((r.image_id, found.iou) for r, found in known),
        "ciou": cumulative_iou(found for _, found in known),
    }


def mean_iou(overlaps: Iterable[Overlap | None]) -> float | None:
    """Mean IoU of those that are there."""
    return mean(found.iou for found in overlaps if found is not None)


def by_occlusion(objects: Iterable[ObjectScore]) -> list[dict[str, Any]]:
    """gIoU per range of the true occlusion rate, lower edge excluded, upper edge included; first the unoccluded.

    Extra predictions have no true rate and belong to no range.
    """
    known = [o for o in objects if o.true_rate is not None]
    rows = []
    for low, high in zip((-1.0, *OCCLUSION_EDGES[:-1]), OCCLUSION_EDGES, strict=True):
        chosen = [o for o in known if o.true_rate is not None and low < o.true_rate <= high]
        rows.append(
            {
                "above": max(low, 0.0),
                "to": high,
                "num_objects": len(chosen),
                "visible_giou": mean_iou(o.visible for o in chosen),
                "amodal_giou": mean_iou(o.amodal for o in chosen),
                "amodal_from_visible_giou": mean_iou(o.amodal_from_visible for o in chosen),
                "invisible_giou": mean_iou(o.invisible for o in chosen if o.has_hidden_region),
            }
        )
    return rows


def no_target(answers: Sequence[AnswerScore]) -> dict[str, Any] | None:
    """GRES's accuracies of answers that have no object and of the others; ``None`` where every answer has one.

    ``t_acc`` is ``None`` where no answer has one.
    """
    without = [a for a in answers if a.true_count == 0]
    if not without:
        return None
    return {
        "num_answers": len(without),
        "n_acc": mean(float(a.marks_nothing) for a in without),
        "t_acc": mean(float(not a.marks_nothing) for a in answers if a.true_count),
    }


def asked_masks(objects: Iterable[ObjectScore]) -> dict[str, Any] | None:
    """How often the method knows which mask a question means; ``None`` where no question means one kind alone.

    ``accuracy`` is over all true objects, and over those that mean each kind; a missed object counts as wrong. The
    accuracies are ``None`` of a method that never says. ``most_common`` is the share of the kind that is meant most
    often, which whoever always says that kind would score.
    """
    true = [o for o in objects if o.true_asked is not None]
    meant = Counter(o.true_asked for o in true)
    if not set(meant) - {"both"}:
        return None
    says = any(o.predicted_asked is not None for o in true)

    def accuracy(chosen: Iterable[ObjectScore]) -> float | None:
        return mean(float(o.predicted_asked == o.true_asked) for o in chosen) if says else None

    return {
        "num_objects": len(true),
        "accuracy": accuracy(true),
        **{f"accuracy_{kind}": accuracy(o for o in true if o.true_asked == kind) for kind in ASKED},
        "most_common": max(meant.values()) / len(true),
    }


def summarise(objects: Sequence[ObjectScore], answers: Sequence[AnswerScore]) -> dict[str, Any]:
    """Every figure of a report, as fractions in [0, 1]; ``None`` where there is nothing to measure.

    So are the figures that need a kind of mask which the method does not predict.

    ``num_objects`` counts true objects. ``occlusion_rate_mae`` is the mean absolute error over true objects with a
    predicted rate. ``seg_count_accuracy`` is the share of answers with exactly as many ``[SEG]`` as the true answer.
    ``visible_outside_amodal`` is the share of all predicted visible pixels that lie outside the predicted amodal mask
    of the same object (0 for a consistent method). ``no_target`` is there where some answer has no object, ``asked``
    where some question means one kind of mask.
    """
    without, asked = no_target(answers), asked_masks(objects)
    hidden = [o for o in objects if o.has_hidden_region]
    rates = [(o.predicted_rate, o.true_rate) for o in objects]
    errors = [abs(guess - true) for guess, true in rates if guess is not None and true is not None]
    pairs = [o for o in objects if o.visible_outside is not None]
    outside, seen = sum(o.visible_outside or 0 for o in pairs), sum(o.predicted_visible_area or 0 for o in pairs)
    return {
        "num_images": len({a.image_id for a in answers}),
        "num_answers": len(answers),
        "num_objects": sum(o.status != "extra" for o in objects),
        "visible": _region(objects, lambda o: o.visible),
        "amodal": _region(objects, lambda o: o.amodal),
        "invisible": {
            "giou_object": mean_iou(o.invisible for o in hidden),
            "ciou": cumulative_iou(o.invisible for o in hidden if o.invisible is not None),
            "num_objects": len(hidden),
        },
        "amodal_from_visible": _region(objects, lambda o: o.amodal_from_visible),
        "occlusion_rate_mae": mean(errors),
        "seg_count_accuracy": mean(float(a.true_count == a.predicted_count) for a in answers),
        "visible_outside_amodal": outside / max(1, seen) if pairs or not objects else None,
        "by_occlusion": by_occlusion(objects),
        **({} if without is None else {"no_target": without}),
        **({} if asked is None else {"asked": asked}),
    }
