"""A data set as GranD-f, which GLaMM and Sa2VA read for grounded conversations: captions whose phrases have masks.

The caption of an entry is an answer without ``[SEG]``; the phrase before each ``[SEG]`` becomes one of its
``groundings``. A ``[SEG]`` without a phrase of its own gets the object's category written before it. The format has no
place for the question: it stands in a field that GLaMM does not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aura.files import list_parts, to_json, write_parts
from aura.formats.exports.common import (
    Account,
    MaskKind,
    Pictures,
    Question,
    placed_questions,
    whole_folder,
)
from aura.types import SEG_TOKEN, Sample

FOLDERS = {"train": "train", "val": "val_test", "test": "val_test"}
"""Where GLaMM keeps each split."""

Names = Callable[[str], list[str]]
"""The phrase before each ``[SEG]`` of an answer."""


class Caption(NamedTuple):
    """An answer without ``[SEG]``, and the place of each object's phrase in it, [start, end)."""

    text: str
    spans: list[tuple[int, int]]


def export_gcg(
    samples: Iterable[Sample],
    out: Path,
    *,
    kind: MaskKind,
    split: str,
    names: Names,
    pictures: Pictures = "link",
    first_turns: bool = False,
) -> Account:
    """Write ``out/GranDf/annotations/SPLIT/GranDf_HA_GCG_SPLIT.json`` and the pictures, one a question, beside it.

    Args:
        samples: Iterated once.
        out: GLaMM's ``--dataset_dir``.
        kind: Which mask of an object is the target.
        split: ``train``, ``val`` or ``test``.
        names: The phrase before each ``[SEG]`` of an answer.
        pictures: Hard links or copies.
        first_turns: Leave out questions that follow others of their conversation.

    Raises:
        ValueError: The split is there already, a picture is missing or does not fit, or a mask is empty.
    """
    account = Account("answers")
    home = out / "GranDf"
    with whole_folder(home / "GranDf_HA_images" / FOLDERS[split]) as folder:
        annotations = home / "annotations" / FOLDERS[split]
        annotations.mkdir(parents=True, exist_ok=True)
        questions = placed_questions(samples, folder, kind, account, pictures, first_turns=first_turns)
        entries = (to_json(entry_of(question, names)) for question in questions)
        write_parts(annotations / f"GranDf_HA_GCG_{split}.json", list_parts(entries))
    return account


def entry_of(question: Question, names: Names) -> dict[str, Any]:
    """An answer as an entry of the file."""
    answer = question.turn.answer
    caption = caption_of(answer, names(answer), [o.category for o in question.objects])
    groundings: dict[str, Any] = {}
    for obj, mask, (start, end) in zip(question.objects, question.masks, caption.spans, strict=True):
        phrase = caption.text[start:end]
        same = sum(entry["phrase"] == phrase for entry in groundings.values())
        label = f"{phrase} ({same + 1})" if same else phrase
        groundings[label] = {
            "token_positives": [start, end],
            "rle_masks": [mask],
            "phrase": phrase,
            "annotation_id": obj.id,
            "category": obj.category,
        }
    sample = question.sample
    return {
        "file_name": f"{question.name}.jpg",
        "image_id": question.name,
        "height": sample.height,
        "width": sample.width,
        "caption": caption.text,
        "groundings": groundings,
        "question": question.turn.question,
        "answer": answer,
        "source_image_id": sample.image_id,
    }


def caption_of(answer: str, names: Sequence[str], categories: Sequence[str]) -> Caption:
    """The caption of an answer; ``names`` and ``categories`` go with its ``[SEG]`` marks."""
    *before, rest = answer.split(SEG_TOKEN)
    text, spans, free = "", [], 0
    for words, name, category in zip(before, names, categories, strict=True):
        text = (text + words).rstrip()
        start = text.rfind(name, free)
        if start < 0:
            text = f"{text} {category}".lstrip()
            start, name = len(text) - len(category), category
        free = start + len(name)
        spans.append((start, free))
    text += rest
    # GLaMM strips quotation marks, then white space, before it counts letters.
    stripped = text.strip('"').strip()
    shift = text.find(stripped)
    return Caption(stripped, [(start - shift, end - shift) for start, end in spans])
