"""Images with what a data set asks about them, where it has phrases in place of conversations, and words around those.

A data set of referring expressions, categories or instructions says which words stand for which objects. For training
the words around a phrase vary, with the object's name right before its ``[SEG]``. For evaluation they are those of
LISA's ``utils/dataset.py`` (dvlab-research/LISA at 3cb2d430), so that its figures can be compared: one question, the
answer ``[SEG].``, and one mask.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pycocotools import mask as coco_mask

from aura.formats.sources import AnnotatedImage
from aura.types import SEG_TOKEN, AmodalObject, Conversation, Masks, Rle, Turn

Purpose = Literal["training", "evaluation"]

UNNAMED = "target"
"""The category of objects that a data set outlines without saying what they are."""
UNIONS = 10**12
"""Ids of objects that were joined for one question start here."""

_PHRASE = (
    "Can you segment {} in this image?",
    "Please mark {} in this image.",
    "Show me {} in this image.",
    "Where is {} in this image? Please output segmentation mask.",
)
_SENTENCE = ("{} Please output segmentation mask.", "{} Please mark it in the image.", "{}")
_EXPLAINED = ("{} Please output segmentation mask and say why.", "{} Please mark it and give the reason.")
_EVALUATED = {False: "What is {} in this image? Please output segmentation mask.", True: _SENTENCE[0]}
_ONE = ("It is the {}.", "Sure, it is the {}.", "The {}.")
_SOME = ("These are the {}.", "Sure, these are the {}.")
_NONE = ("Nothing in this image fits that.", "There is no such thing in this image.")


@dataclass(frozen=True)
class Question:
    """Words that stand for some objects of an image, by annotation id; for none where nothing in the image fits them.

    ``text`` is a phrase to be put into a question or, if ``is_sentence``, one that needs no more. ``explanation`` is
    why these are the objects. ``asked`` is the mask that is meant.
    """

    text: str
    objects: tuple[int, ...]
    is_sentence: bool = False
    explanation: str = ""
    asked: Masks = "both"

    @property
    def asks(self) -> tuple[Masks, ...]:
        """The mask of each object."""
        return (self.asked,) * len(self.objects)


@dataclass(frozen=True)
class AskedImage:
    """An image with questions, or with whole dialogues (of turns without ``[SEG]``)."""

    image: AnnotatedImage
    questions: tuple[Question, ...] = ()
    dialogues: tuple[tuple[Turn, ...], ...] = ()


def visible_object(number: int, category: str, mask: Rle, supercategory: str = "") -> AmodalObject:
    """An object of which only the visible part is known."""
    return AmodalObject(number, category, mask, None, None, supercategory=supercategory)


def joined(asked: AskedImage) -> AskedImage:
    """Several objects of one question as one: their masks' union, as LISA and GRES compare them.

    Of the objects that no question is about, those of known shape stay, since they may hide others.
    """
    by_id = {o.id: o for o in asked.image.objects}
    unions: dict[tuple[int, ...], AmodalObject] = {}
    questions = []
    for question in asked.questions:
        ids = tuple(sorted(set(question.objects)))
        if len(ids) > 1 and ids not in unions:
            unions[ids] = _union([by_id[i] for i in ids])
        questions.append(dataclasses.replace(question, objects=(unions[ids].id,) if ids in unions else ids))
    used = {i for question in questions for i in question.objects}
    objects = tuple(o for o in (*asked.image.objects, *unions.values()) if o.id in used or o.amodal is not None)
    return AskedImage(dataclasses.replace(asked.image, objects=objects), tuple(questions), asked.dialogues)


def _union(objects: Sequence[AmodalObject]) -> AmodalObject:
    rle = coco_mask.merge([o.visible for o in objects])
    mask = {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
    names = {o.category for o in objects}
    number = UNIONS + number_of(",".join(str(o.id) for o in objects))
    return visible_object(number, names.pop() if len(names) == 1 else UNNAMED, mask)


def number_of(text: str) -> int:
    """A number below 2^48 for a text, for images that have a name and no number."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


# --- conversations ----------------------------------------------------------------------------------------------------


def conversations_of(
    asked: AskedImage, *, purpose: Purpose, source: str, seed: int = 0, first_id: int = 1
) -> tuple[Conversation, ...]:
    """One conversation for each question and each dialogue; ``source`` is the data set's name."""
    names = {o.id: o.category for o in asked.image.objects}
    rng = np.random.default_rng((seed, asked.image.image_id % 2**63))
    talks: list[tuple[Turn, ...]] = []
    for question in asked.questions:
        if purpose == "evaluation":
            talks.append((_evaluated(question),))
        else:
            talks += [(turn,) for turn in _trained(question, names, rng)]
    provenance = {"generator": source, "purpose": purpose}
    return tuple(
        Conversation(number, turns, provenance) for number, turns in enumerate((*talks, *asked.dialogues), first_id)
    )


def _evaluated(question: Question) -> Turn:
    text = question.text.strip()
    if not question.objects:
        return Turn(_EVALUATED[question.is_sentence].format(text), _NONE[0])
    answer = f"{', '.join([SEG_TOKEN] * len(question.objects))}."
    return Turn(_EVALUATED[question.is_sentence].format(text), answer, question.objects, question.asks)


def _trained(question: Question, names: dict[int, str], rng: np.random.Generator) -> Iterator[Turn]:
    def pick(sentences: Sequence[str]) -> str:
        return sentences[int(rng.integers(len(sentences)))]

    text = question.text.strip()
    asked = pick(_SENTENCE if question.is_sentence else _PHRASE).format(text)
    answer = pick(_NONE)
    if question.objects:
        answer = pick(_ONE if len(question.objects) == 1 else _SOME).format(
            _listed([names[i] for i in question.objects])
        )
        answer = answer.replace(f"the {SEG_TOKEN}", SEG_TOKEN).replace(f"The {SEG_TOKEN}", SEG_TOKEN)
    yield Turn(asked, answer, question.objects, question.asks)
    if question.explanation:
        explained = f"{answer} {question.explanation}"
        yield Turn(pick(_EXPLAINED).format(text), explained, question.objects, question.asks)
        yield Turn(text, question.explanation)


def _listed(names: Sequence[str]) -> str:
    marked = [SEG_TOKEN if name == UNNAMED else f"{name} {SEG_TOKEN}" for name in names]
    *first, last = marked
    return f"{', the '.join(first)} and the {last}" if first else last
