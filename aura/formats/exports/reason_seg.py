"""A data set as ReasonSeg, which LISA and those that follow it read: one picture and one JSON file a question.

A question's file has ``text``, ``is_sentence`` and ``shapes`` (polygons, :mod:`aura.formats.outlines`); its target is
the union of the asked objects. The answers, without ``[SEG]``, go to ``explanatory/train.json``. Fields that LISA does
not read keep what would be lost: ids, categories, the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aura.files import list_parts, to_json, write_parts
from aura.formats.exports.common import (
    Account,
    MaskKind,
    Pictures,
    Question,
    placed_questions,
    whole_folder,
)
from aura.formats.outlines import exact_polygons
from aura.masks import decode_rle
from aura.types import SEG_TOKEN, Sample

_SEG = re.compile(rf"\s*{re.escape(SEG_TOKEN)}")


def export_reason_seg(
    samples: Iterable[Sample],
    out: Path,
    *,
    kind: MaskKind,
    name: str,
    split: str,
    pictures: Pictures = "link",
    first_turns: bool = False,
    first_object: bool = False,
) -> Account:
    """Write ``out/reason_seg/NAME/SPLIT``; it appears whole or not at all.

    Args:
        samples: Iterated once.
        out: LISA's ``--dataset_dir``.
        kind: Which mask of an object is the target.
        name: What stands before the bar in LISA's ``--reason_seg_data "NAME|train"``.
        split: ``train`` comes with ``explanatory/train.json``.
        pictures: Hard links or copies.
        first_turns: Leave out questions that follow others of their conversation.
        first_object: Only an answer's first object is the target, not the union.

    Raises:
        ValueError: The split is there already, a picture is missing or does not fit, or a mask is empty.
    """
    account = Account("questions")
    home = out / "reason_seg" / name
    with whole_folder(home / split) as folder:
        questions = placed_questions(
            samples, folder, kind, account, pictures, first_turns=first_turns, first_object=first_object
        )
        explanations = _written(questions, folder, kind)
        if split == "train":
            (home / "explanatory").mkdir(exist_ok=True)
            write_parts(home / "explanatory" / "train.json", list_parts(map(to_json, explanations)))
        else:
            for _ in explanations:
                pass
    return account


def _written(questions: Iterable[Question], folder: Path, kind: MaskKind) -> Iterator[dict[str, Any]]:
    """Write each question's file; its entry of ``explanatory/train.json``, if its answer has words."""
    for question in questions:
        (folder / f"{question.name}.json").write_text(to_json(question_record(question, kind)), encoding="utf-8")
        answer = _SEG.sub("", question.turn.answer).strip()
        if any(map(str.isalnum, answer)):
            yield {"image": f"{question.name}.jpg", "query": question.turn.question, "outputs": answer}


def question_record(question: Question, kind: MaskKind) -> dict[str, Any]:
    """The JSON file of a question; pixels that the image ignores are shapes of their own and none of the target's."""
    sample = question.sample
    ignored = None if sample.ignore is None else decode_rle(sample.ignore)
    shapes = [
        {
            "label": "target",
            "shape_type": "polygon",
            "points": points,
            "annotation_id": obj.id,
            "category": obj.category,
        }
        for obj, mask in zip(question.objects, question.masks, strict=True)
        for points in exact_polygons(decode_rle(mask) if ignored is None else decode_rle(mask) & ~ignored)
    ]
    if ignored is not None:
        shapes += [{"label": "ignore", "shape_type": "polygon", "points": points} for points in exact_polygons(ignored)]
    return {
        "text": [question.turn.question],
        "is_sentence": True,
        "shapes": shapes,
        "masks": kind,
        "image_id": sample.image_id,
        "conversation_id": question.conversation,
        "turn": question.number,
        "answer": question.turn.answer,
        "objects": list(question.turn.objects),
    }
