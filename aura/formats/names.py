"""How questions, objects and images are called in files of other projects, which know file names only.

``c7_t0`` is the first turn of conversation 7, ``c7_t0_mask_1`` the second mask of its answer, ``a12`` annotation 12.
Any other name is an image's own.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_QUESTION = re.compile(r"c(-?\d+)_t(\d+)(?:_(?:mask_)?(\d+))?")
_ANNOTATION = re.compile(r"a(-?\d+)(?:_mask_0)?")


class Meant(NamedTuple):
    """What a name means: a question (conversation, turn) and a place in its answer, an annotation, or an image."""

    question: tuple[int, int] | None = None
    place: int | None = None
    annotation: int | None = None
    image: str | None = None


def question_name(conversation: int, turn: int) -> str:
    """The name of a question, and so of the copy of its picture."""
    return f"c{conversation}_t{turn}"


def meaning_of(name: str) -> Meant:
    """What a file name without its ending means."""
    if found := _QUESTION.fullmatch(name):
        conversation, turn, place = found.groups()
        return Meant(question=(int(conversation), int(turn)), place=None if place is None else int(place))
    if found := _ANNOTATION.fullmatch(name):
        return Meant(annotation=int(found[1]))
    return Meant(image=name)
