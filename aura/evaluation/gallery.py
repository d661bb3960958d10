"""What an evaluation leaves beside its figures: a contact sheet, and the predictions as a file."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from aura.data.images import load_image
from aura.drawing.visualize import SheetRow, ShownObject, contact_sheet
from aura.evaluation.metrics import score_object
from aura.evaluation.scoring import PredictedAnswer, TurnKey, true_masks
from aura.files import write_bytes, write_json
from aura.machine.ranks import gather, rank_and_world
from aura.masks import encode_rle
from aura.types import MaskPair, Sample, SegRecord


class Gallery:
    """Collects rows of a contact sheet while an evaluation runs: one question of each of the first ``num`` images.

    Use it as one of the ``observers`` of :func:`aura.evaluation.evaluate.evaluate`.
    """

    def __init__(self, num: int = 12) -> None:
        self.num = num
        self.rows: list[SheetRow] = []

    def __call__(self, sample: Sample, answers: Mapping[TurnKey, PredictedAnswer]) -> None:
        """Take a question about this image whose answer has objects, another one from image to image."""
        keys = [(c.id, t) for c in sample.conversations for t, turn in enumerate(c.turns) if turn.objects]
        if keys and len(self.rows) < self.num:
            key = keys[7 * len(self.rows) % len(keys)]
            self.rows.append(sheet_row(sample, key, answers[key]))

    def save(self, path: str | Path, title: str = "") -> None:
        """Write the sheet as PNG, or in the format of the path's suffix.

        Raises:
            ValueError: No image had a question with objects, or the suffix is of no picture format.
        """
        data = BytesIO()
        contact_sheet(self.rows, title).save(data, format=picture_format(path))
        write_bytes(path, data.getvalue())


def picture_format(path: str | Path) -> str:
    """Pillow's name of the format that the suffix of ``path`` stands for.

    Raises:
        ValueError: It stands for none that Pillow writes.
    """
    suffix = Path(path).suffix.lower()
    found = Image.registered_extensions().get(suffix)
    if found not in Image.SAVE:
        raise ValueError(f"{path}: {suffix or 'no suffix'} is no picture format; call it .png")
    return found


def sheet_row(sample: Sample, key: TurnKey, answer: PredictedAnswer) -> SheetRow:
    """The line of a contact sheet for one question. Under teacher forcing the answer's text is the true one."""
    conversation_id, number = key
    turn = next(c for c in sample.conversations if c.id == conversation_id).turns[number]
    objects = {o.id: o for o in sample.objects}
    true = [true_masks(objects[i], sample)._replace(asked=turn.asks(n)) for n, i in enumerate(turn.objects)]
    predicted = [answer.masks[i] for i in sorted(answer.masks)]
    note = ""
    if len(true) == len(predicted) == 1:
        record = SegRecord(sample.image_id, conversation_id, number, 0, turn.objects[0])
        found = score_object(record, true[0], predicted[0], masks=predicted[0].kinds)
        ious = {"visible": found.visible, "amodal": found.amodal}
        note = "IoU " + ", ".join(f"{count.iou:.2f} {kind}" for kind, count in ious.items() if count is not None)
    return SheetRow(
        image=load_image(sample.image_path),
        question=turn.question,
        true_answer=turn.answer,
        true=[_shown(masks, objects[i].occlusion_rate) for i, masks in zip(turn.objects, true, strict=True)],
        answer=turn.answer if answer.text is None else answer.text,
        predicted=[_shown(masks, masks.occlusion_rate) for masks in predicted],
        note=note,
    )


def _shown(masks: MaskPair, rate: float | None) -> ShownObject:
    return ShownObject("", masks.visible, masks.amodal, rate, masks.asked or "both")


class PredictionFile:
    """Collects predictions while an evaluation runs and writes what ``scripts/score_predictions.py`` reads."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def __call__(self, sample: Sample, answers: Mapping[TurnKey, PredictedAnswer]) -> None:
        """Take all answers about one image."""
        for (conversation_id, turn), answer in answers.items():
            for index, masks in sorted(answer.masks.items()):
                place = {"conversation_id": conversation_id, "turn": turn, "index": index}
                found = {kind: getattr(masks, kind) for kind in ("visible", "amodal")}
                encoded = {kind: encode_rle(mask) for kind, mask in found.items() if mask is not None}
                said = {"occlusion_rate": masks.occlusion_rate, "asked": masks.asked}
                self.rows.append({**place, **encoded, **{k: v for k, v in said.items() if v is not None}})

    def save(self, path: str | Path) -> None:
        """Write the JSON list in the order of ids. Of several ranks each must call this; rank 0 writes for all."""
        rows = [row for part in gather(self.rows) for row in part]
        if rank_and_world()[0] == 0:
            write_json(path, sorted(rows, key=lambda row: (row["conversation_id"], row["turn"], row["index"])))
