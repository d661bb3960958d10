"""The answers of an evaluation that is not finished: written as they come, so that a killed one goes on.

Every rank appends to a file of its own, one line an image, with the masks as RLE. Scores are made from the answers
again, so a continued evaluation has the figures of an uninterrupted one to the last bit, with any number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from aura.evaluation.scoring import PredictedAnswer, TurnKey
from aura.files import write_json
from aura.masks import decode_rle, encode_rle
from aura.types import MaskPair, Sample

Answers = dict[TurnKey, PredictedAnswer]

IDENTITY = "identity.json"
VALUES = 1024
"""Evenly spread values of every weight that tell two models apart."""


class Unfinished:
    """The folder of one unfinished evaluation.

    Several ranks may share it. Call :meth:`begin` on the first of them before any other method on any of them.

    Args:
        folder: Made when the first answer comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.jsonl"
        self._places: dict[tuple[int, str], tuple[Path, int]] | None = None

    def begin(self, identity: dict[str, Any]) -> int:
        """Say what is evaluated, and return how many images have their answers already.

        Args:
            identity: What answers depend on beside the record of an image, which is compared image by image.

        Raises:
            ValueError: The folder is of another evaluation; the message gives what differs.
        """
        file = self.folder / IDENTITY
        if file.is_file():
            try:
                then = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                then = {}
            changed = [f"{key}: {then.get(key)} -> {now}" for key, now in identity.items() if then.get(key) != now]
            if changed:
                raise ValueError(
                    f"{self.folder} holds the answers of another evaluation, which was not finished "
                    f"({'; '.join(changed)}); give another --out, or delete that folder to start anew"
                )
        write_json(file, identity)
        return len(self._find())

    def _find(self) -> dict[tuple[int, str], tuple[Path, int]]:
        """Where each image's line begins. A line that was cut off is not counted; nor is a damaged one."""
        if self._places is None:
            self._places = {}
            for path in sorted(self.folder.glob("*.jsonl")):
                with path.open("rb") as file:
                    at = 0
                    for line in file:
                        try:
                            row = json.loads(line) if line.endswith(b"\n") else None
                        except ValueError:
                            row = None
                        if isinstance(row, dict):
                            self._places[row["image_id"], row["record"]] = path, at
                        at += len(line)
        return self._places

    def load(self, sample: Sample) -> Answers | None:
        """The answers about this image, or ``None``."""
        place = self._find().get((sample.image_id, digest(sample)))
        if place is None:
            return None
        with place[0].open("rb") as file:
            file.seek(place[1])
            row = json.loads(file.readline())
        return {
            (answer["conversation_id"], answer["turn"]): PredictedAnswer(
                {masks["index"]: _pair(masks) for masks in answer["masks"]}, answer["seg_count"], answer["text"]
            )
            for answer in row["answers"]
        }

    def save(self, answered: Sequence[tuple[Sample, Answers]]) -> None:
        """Append the answers about some images."""
        lines = []
        for sample, answers in answered:
            rows = [
                {
                    **{"conversation_id": conversation_id, "turn": turn},
                    **{"seg_count": answer.seg_count, "text": answer.text},
                    "masks": [{"index": index, **_encoded(pair)} for index, pair in answer.masks.items()],
                }
                for (conversation_id, turn), answer in answers.items()
            ]
            lines.append(json.dumps({"image_id": sample.image_id, "record": digest(sample), "answers": rows}))
        with (self.folder / self._name).open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def end(self) -> None:
        """Remove the folder: the report is written."""
        for path in [*self.folder.glob("*.jsonl"), self.folder / IDENTITY]:
            path.unlink(missing_ok=True)
        self.folder.rmdir()


def digest(sample: Sample) -> str:
    """Changes whenever the picture's size or a question or answer about it does."""
    size = sample.image_path.stat().st_size if sample.image_path.is_file() else None
    told = (size, sample.height, sample.width, [(c.id, c.turns) for c in sample.conversations])
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def weights_digest(model: nn.Module) -> str:
    """Tells models apart, by names, shapes, dtypes and some values of their weights (not of those left on the disk)."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if not value.is_meta:
            flat = value.detach().flatten()
            found.update(flat[:: max(1, flat.numel() // VALUES)].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _encoded(pair: MaskPair) -> dict[str, Any]:
    visible, amodal = (None if mask is None else encode_rle(mask) for mask in pair[:2])
    return {"visible": visible, "amodal": amodal, "occlusion_rate": pair.occlusion_rate, "asked": pair.asked}


def _pair(row: dict[str, Any]) -> MaskPair:
    visible, amodal = (None if row[kind] is None else decode_rle(row[kind]) for kind in ("visible", "amodal"))
    return MaskPair(visible, amodal, row["occlusion_rate"], row.get("asked"))
