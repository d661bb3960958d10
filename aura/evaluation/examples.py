"""The best and the worst answers of an evaluation, as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from aura.drawing.visualize import contact_sheet
from aura.evaluation.gallery import sheet_row
from aura.evaluation.metrics import mean_iou, score_object
from aura.evaluation.scoring import PredictedAnswer, TurnKey, true_masks
from aura.files import write_bytes
from aura.types import Sample, SegRecord

Found = tuple[float, Sample, TurnKey, PredictedAnswer]


class Extremes:
    """Keeps the best and the worst answers while an evaluation by teacher forcing runs, one of each image.

    Use it as one of the ``observers`` of :func:`aura.evaluation.evaluate.evaluate`. An answer's score is the mean IoU
    of its objects, of the amodal masks where those are predicted. Of several ranks each sees its own images only.

    Args:
        num: How many of each.
    """

    def __init__(self, num: int = 3) -> None:
        self.num = num
        self.best: list[Found] = []
        self.worst: list[Found] = []

    def __call__(self, sample: Sample, answers: Mapping[TurnKey, PredictedAnswer]) -> None:
        found: list[Found] = []
        for key, answer in answers.items():
            score = _score(sample, key, answer)
            if score is not None:
                found.append((score, sample, key, answer))
        if found:
            best, worst = max(found, key=lambda one: one[0]), min(found, key=lambda one: one[0])
            self.best = sorted([*self.best, best], key=lambda one: -one[0])[: self.num]
            self.worst = sorted([*self.worst, worst], key=lambda one: one[0])[: self.num]

    def save(self, folder: Path) -> None:
        """Write ``best.jpg`` and ``worst.jpg``: truth beside prediction. Nothing where no answer has an object."""
        for name, kept in (("best", self.best), ("worst", self.worst)):
            if kept:
                data = BytesIO()
                rows = [sheet_row(sample, key, answer) for _, sample, key, answer in kept]
                contact_sheet(rows).convert("RGB").save(data, format="JPEG", quality=85)
                write_bytes(folder / f"{name}.jpg", data.getvalue())


def _score(sample: Sample, key: TurnKey, answer: PredictedAnswer) -> float | None:
    """``None`` of an answer without objects, or without a mask that can be compared."""
    conversation_id, number = key
    turn = next(c for c in sample.conversations if c.id == conversation_id).turns[number]
    objects = {o.id: o for o in sample.objects}
    scores = []
    for index, annotation_id in enumerate(turn.objects):
        if (guess := answer.masks.get(index)) is not None:
            record = SegRecord(sample.image_id, conversation_id, number, index, annotation_id)
            scores.append(score_object(record, true_masks(objects[annotation_id], sample), guess, masks=guess.kinds))
    amodal = mean_iou(score.amodal for score in scores)
    return mean_iou(score.visible for score in scores) if amodal is None else amodal
