"""What all exports share: which questions, which masks, pictures beside them, and an account of what was left out."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from aura.formats.decoding import open_picture
from aura.formats.names import question_name
from aura.formats.pictures import ORIENTATION, UPRIGHT
from aura.masks import rle_area
from aura.types import AmodalObject, Rle, Sample, Turn

MaskKind = Literal["visible", "amodal"]
Pictures = Literal["link", "copy"]

UNKNOWN_SHAPE = "an object's whole shape is not known"
NO_OBJECT = "the answer names no object"
LATER_TURN = "a later turn of a conversation"
OTHER_MASK = "a question that asks for the other mask"
LATER_OBJECT = "an object after the first of its answer"


@dataclass
class Account:
    """What an export wrote, and why it left something out: a reason and how often it held."""

    unit: str
    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """For a terminal."""
        left = [f"  {count} left out: {reason}" for reason, count in sorted(self.left_out.items())]
        return [f"{self.written} {self.unit}", *left]


@dataclass(frozen=True)
class Question:
    """A turn that is exported, with its objects and the mask of each that is asked for."""

    sample: Sample
    conversation: int
    number: int
    turn: Turn
    objects: tuple[AmodalObject, ...]
    masks: tuple[Rle, ...]

    @property
    def name(self) -> str:
        return question_name(self.conversation, self.number)


def questions_of(
    sample: Sample, kind: MaskKind, account: Account, *, first_turns: bool, first_object: bool = False
) -> Iterator[Question]:
    """The turns of a sample that can be exported; the others are counted.

    ``first_turns`` leaves out those that follow others of their conversation, ``first_object`` all objects of an answer
    but its first. A question that means the other kind of mask cannot be answered with this one, and is left out.

    Raises:
        ValueError: A mask is empty or damaged.
    """
    known = {o.id: o for o in sample.objects}
    for conversation in sample.conversations:
        for number, turn in enumerate(conversation.turns):
            objects = tuple(known[i] for i in (turn.objects[:1] if first_object else turn.objects))
            masks = [mask_of(o, kind, sample) for o in objects]
            found = tuple(mask for mask in masks if mask is not None)
            obstacles = {
                LATER_TURN: bool(first_turns and number),
                UNKNOWN_SHAPE: len(found) < len(masks),
                NO_OBJECT: not masks,
                OTHER_MASK: any(turn.asks(index) not in (kind, "both") for index in range(len(objects))),
            }
            if reason := next((reason for reason, holds in obstacles.items() if holds), None):
                account.left_out[reason] += 1
                continue
            account.written += 1
            if len(objects) < len(turn.objects):
                account.left_out[LATER_OBJECT] += len(turn.objects) - len(objects)
            yield Question(sample, conversation.id, number, turn, objects, found)


def placed_questions(
    samples: Iterable[Sample],
    folder: Path,
    kind: MaskKind,
    account: Account,
    pictures: Pictures,
    *,
    first_turns: bool,
    first_object: bool = False,
) -> Iterator[Question]:
    """:func:`questions_of` all samples, each with its picture in ``folder``, called as the question is.

    Raises:
        ValueError: A mask is empty or damaged, or a picture is missing or does not fit.
    """
    for sample in samples:
        checked = False
        for question in questions_of(sample, kind, account, first_turns=first_turns, first_object=first_object):
            if not checked:
                check_picture(sample)
                checked = True
            place_picture(sample.image_path, folder / f"{question.name}.jpg", pictures)
            yield question


def mask_of(obj: AmodalObject, kind: MaskKind, sample: Sample) -> Rle | None:
    """The asked mask of an object; ``None`` for the amodal one where it is not known."""
    mask = obj.visible if kind == "visible" else obj.amodal
    if mask is not None:
        check_mask(mask, f"image {sample.image_id}, annotation {obj.id}: its {kind} mask")
    return mask


def check_mask(mask: Rle, where: str) -> None:
    """Refuse a mask without pixels, which no reader could learn from."""
    try:
        area = rle_area(mask)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; scripts/validate_dataset.py lists all such flaws") from error
    if area == 0:
        raise ValueError(f"{where} is empty; drop the object, scripts/validate_dataset.py lists all such flaws")


def check_picture(sample: Sample) -> None:
    """Refuse a picture that another size is read from than the masks have.

    OpenCV, by which the others read, turns a picture as its camera said; masks refer to the stored pixels.
    """
    where = f"image {sample.image_id}: {sample.image_path}"
    if not sample.image_path.exists():
        raise ValueError(f"{where} does not exist; give the right folder with --images")
    with open_picture(sample.image_path, f"image {sample.image_id}: ") as picture:
        size, orientation = picture.size[::-1], picture.getexif().get(ORIENTATION, UPRIGHT)
    if size != (sample.height, sample.width):
        raise ValueError(
            f"{where} is {size[0]} x {size[1]} (height x width), the record says {sample.height} x {sample.width}; "
            "correct one of them"
        )
    if orientation != UPRIGHT:
        raise ValueError(
            f"{where} has the EXIF orientation {orientation}, which OpenCV would apply and our masks do not; "
            "store the picture upright (exiftran -ai FILE)"
        )


def place_picture(source: Path, target: Path, how: Pictures) -> None:
    """Put a picture at ``target``: as a hard link, which takes no room, or as a copy.

    Its bytes stay as they are. A PNG keeps being one whatever its name ends with; OpenCV and Pillow look at the bytes.
    """
    if how == "link":
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another disk, or a file system without links
            pass
    shutil.copyfile(source, target)


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A hidden folder to write into; it takes its name ``target`` when all is written.

    Raises:
        ValueError: ``target`` is there already.
    """
    if target.exists():
        raise ValueError(f"{target} is there already; remove it or choose another --out, --name or --split")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
