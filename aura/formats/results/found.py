"""A mask that a method predicts, as its file has it, before anybody knows which object it is meant for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aura.formats.names import Meant, meaning_of
from aura.masks import encode_rle, whole_number
from aura.types import Rle


@dataclass(frozen=True)
class FoundMask:
    """A predicted mask and what it is of: a place in an answer, an annotation, or anything in an image.

    Args:
        where: The file and the record, for errors.
        mask: At the image's size, as the method says.
        question: Conversation and turn; ``place`` is that of the ``[SEG]`` in the answer, from 0.
        annotation: The object's own id.
        image: An image's id or the name of its file.
        category: Its number in the data set, for a mask of something in an image; ``None`` if the method names none.
        score: The method's confidence.
    """

    where: str
    mask: Rle
    question: tuple[int, int] | None = None
    place: int = 0
    annotation: int | None = None
    image: int | str | None = None
    category: int | None = None
    score: float = 1.0

    @property
    def known_by(self) -> str:
        """What it is of, in one word."""
        if self.question is not None:
            return "question"
        return "image" if self.annotation is None else "annotation id"


def by_name(name: Any, masks: Sequence[tuple[str, Rle]], where: str) -> Iterable[FoundMask]:
    """Masks of one name (:mod:`aura.formats.names`), each with where it stands; of a question in ``[SEG]`` order."""
    number = None if isinstance(name, str) else whole_number(name)
    meant = meaning_of(Path(str(name).replace("\\", "/")).stem) if number is None else Meant()
    if len(masks) > 1 and (meant.annotation is not None or meant.place is not None):
        raise ValueError(f"{where}: {len(masks)} masks for one {_thing(meant)}; keep one")
    for place, (at, mask) in enumerate(masks):
        if meant.question is not None:
            yield FoundMask(at, mask, question=meant.question, place=place if meant.place is None else meant.place)
        elif meant.annotation is not None:
            yield FoundMask(at, mask, annotation=meant.annotation)
        else:
            yield FoundMask(at, mask, image=str(name) if number is None else number)


def _thing(meant: Meant) -> str:
    return "annotation" if meant.annotation is not None else "place of an answer"


def mask_of_array(array: NDArray[Any], where: str) -> Rle:
    """A mask [H, W] of two values, of which 0 is outside.

    Raises:
        ValueError: It has another shape or more values, as logits and label maps do.
    """
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{where}: the mask's shape is {list(array.shape)}; it must be [height, width]")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{where}: the mask holds {array.dtype}; write numbers or bool")
    inside = array != 0
    if array.dtype.kind != "b" and inside.any() and not (array[inside] == array[inside][0]).all():
        raise ValueError(
            f"{where}: the mask has more than two values; threshold it first, and write one mask for each object"
        )
    return encode_rle(inside)


def once(found: Iterable[FoundMask], path: Path) -> list[FoundMask]:
    """The masks of a file or folder, none of which may be given twice.

    Raises:
        ValueError: Two are of the same place or annotation, or there is none at all.
    """
    masks = list(found)
    seen: dict[tuple[object, ...], str] = {}
    for mask in masks:
        if mask.known_by == "image":
            continue
        key = (mask.question, mask.place, mask.annotation)
        if key in seen:
            what = "annotation" if mask.question is None else "place of an answer"
            raise ValueError(f"{mask.where}: the same {what} is given by {seen[key]} already; keep one")
        seen[key] = mask.where
    if not masks:
        raise ValueError(f"{path}: holds no mask; is it the right file, and is it complete?")
    return masks


def as_arrays(value: Any, where: str) -> list[NDArray[Any]]:
    """The masks of an array or of nested lists: [H, W], or [N, H, W]; sides of length 1 in front are taken off."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{where}: its rows have different lengths; a mask is [height, width]") from error
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        return [array]
    if array.ndim != 3:
        raise ValueError(f"{where}: its shape is {list(array.shape)}; masks are [height, width] or [N, height, width]")
    return list(array)
