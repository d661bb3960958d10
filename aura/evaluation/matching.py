"""Masks of other methods to predictions for the asked objects, by a stated policy.

What a file says its masks are of decides the policy:

- a **question** and a place in its answer: the mask is the prediction for that ``[SEG]``;
- an **annotation id**: the mask is the prediction wherever that object is asked for;
- an **image**: of all pairings of an image's masks with its asked objects, the one with the largest sum of IoUs between
  visible masks (amodal ones where the method predicts no other). Where the file names categories, a pair has the same.
  A mask serves one object; without any overlap there is no pair.

The last policy looks at the truth, so it favours the method: it is told which of its masks is meant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aura.evaluation.metrics import best_assignment
from aura.evaluation.scoring import Prediction, TurnKey
from aura.formats.occlusion import intersections
from aura.formats.results.found import FoundMask
from aura.masks import encode_rle, rle_area
from aura.types import AmodalObject, Rle, Sample


@dataclass(frozen=True)
class Found:
    """The masks of one prediction; a method of one kind leaves the other ``None``."""

    of: FoundMask
    visible: Rle | None
    amodal: Rle | None


@dataclass(frozen=True)
class Matching:
    """Predictions for the places where objects are asked for, and how they came about."""

    policy: str
    predictions: list[Prediction]
    num_masks: int
    num_used: int
    num_asked: int
    num_answered: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "matched": self.policy,
            "masks": self.num_masks,
            "masks_used": self.num_used,
            "asked_places": self.num_asked,
            "asked_places_with_a_mask": self.num_answered,
        }

    def line(self) -> str:
        """For a terminal."""
        return (
            f"matched {self.policy}: {self.num_used} of {self.num_masks} masks stand for {self.num_answered} of "
            f"{self.num_asked} asked places; a place without one counts as an empty mask"
        )


def match(
    dataset: Iterable[Sample],
    categories: Mapping[int, str],
    *,
    visible: Sequence[FoundMask] | None = None,
    amodal: Sequence[FoundMask] | None = None,
    min_score: float = 0.0,
) -> Matching:
    """Give each asked object its predicted mask.

    Args:
        dataset: The samples; iterated twice.
        categories: The data set's numbers of categories, and their names.
        visible: The method's visible masks, from one file or folder.
        amodal: Its amodal masks; masks of an image belong together record by record.
        min_score: Masks of an image below this confidence are passed over.

    Raises:
        ValueError: The two files do not go together, or a mask is of something that the data set does not have, or has
            another size than its image.
    """
    found = _joined(visible, amodal)
    asked = _Asked()
    for sample in dataset:
        asked.add(sample)
    known_by = found[0].of.known_by
    if known_by == "question":
        predictions, used = _by_question(found, asked), len(found)
        policy = "by question"
    elif known_by == "annotation id":
        predictions, used = _by_annotation(found, asked)
        policy = "by annotation id"
    else:
        with_category = [f.of.category is not None for f in found]
        if any(with_category) and not all(with_category):
            raise ValueError(f"{found[with_category.index(False)].of.where}: names no category, others do; name all")
        predictions, used = _by_overlap(dataset, found, asked, categories, min_score)
        kind = "amodal" if found[0].visible is None else "visible"
        policy = f"by best {kind} IoU{' and category' if with_category[0] else ''}"
        policy += f", score at least {min_score:g}" if min_score else ""
    places = sum(len(turn) for turn in asked.turns.values())
    answered = sum(p.index < len(asked.turns[p.conversation_id, p.turn]) for p in predictions)
    return Matching(policy, predictions, len(found), used, places, answered)


@dataclass
class _Asked:
    """What the data set has and asks for."""

    sizes: dict[int, list[int]] = field(default_factory=dict)
    images_called: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    turns: dict[TurnKey, tuple[int, ...]] = field(default_factory=dict)
    image_of_turn: dict[TurnKey, int] = field(default_factory=dict)
    image_of_object: dict[int, int] = field(default_factory=dict)
    places: dict[int, list[tuple[int, int, int]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, sample: Sample) -> None:
        self.sizes[sample.image_id] = [sample.height, sample.width]
        self.images_called[sample.image_path.stem].append(sample.image_id)
        self.image_of_object.update({o.id: sample.image_id for o in sample.objects})
        for conversation in sample.conversations:
            for number, turn in enumerate(conversation.turns):
                self.turns[conversation.id, number] = turn.objects
                self.image_of_turn[conversation.id, number] = sample.image_id
                for index, annotation in enumerate(turn.objects):
                    self.places[annotation].append((conversation.id, number, index))

    def image(self, found: FoundMask) -> int:
        """The id of an image that a file calls by its id or by its name."""
        name = found.image
        if isinstance(name, int):
            ids = [name] if name in self.sizes else []
        else:
            stem = PurePath(str(name).replace("\\", "/")).stem
            ids = self.images_called.get(stem, [])
            if not ids and stem.isdecimal() and int(stem) in self.sizes:
                ids = [int(stem)]
        if len(ids) != 1:
            what = "the data set has no such image" if not ids else f"it is the name of images {ids}"
            raise ValueError(f"{found.where}: image {name!r}: {what}; name images of --data by id or by file name")
        return ids[0]

    def check(self, found: Found, image: int) -> None:
        """Refuse a mask of another size than its image."""
        for kind, mask in (("visible", found.visible), ("amodal", found.amodal)):
            if mask is not None and list(mask["size"]) != self.sizes[image]:
                raise ValueError(
                    f"{found.of.where}: the {kind} mask is {mask['size']} but image {image} is {self.sizes[image]} "
                    "(height, width); resize the mask to its image"
                )


def _joined(visible: Sequence[FoundMask] | None, amodal: Sequence[FoundMask] | None) -> list[Found]:
    """Both masks of each prediction."""
    kinds = [kind for kind in (visible, amodal) if kind is not None]
    assert kinds and all(kinds), "readers refuse files without a mask"
    for kind in kinds:
        other = next((mask for mask in kind if mask.known_by != kinds[0][0].known_by), None)
        if other is not None:
            first = kinds[0][0]
            raise ValueError(
                f"{other.where}: is known by its {other.known_by}, {first.where} by its {first.known_by}; "
                "let all masks be known by the same"
            )
    if visible is None or amodal is None:
        return [Found(m, None if visible is None else m.mask, None if amodal is None else m.mask) for m in kinds[0]]
    return _row_by_row(visible, amodal) if visible[0].known_by == "image" else _key_by_key(visible, amodal)


def _row_by_row(visible: Sequence[FoundMask], amodal: Sequence[FoundMask]) -> list[Found]:
    """Masks of images: record n of one file and record n of the other are the same prediction."""
    if len(visible) != len(amodal):
        raise ValueError(
            f"the visible file has {len(visible)} masks (to {visible[-1].where}) and the amodal one {len(amodal)} "
            f"(to {amodal[-1].where}); give both files of one run, or score each alone"
        )
    for seen, whole in zip(visible, amodal, strict=True):
        if (seen.image, seen.category, seen.score) != (whole.image, whole.category, whole.score):
            raise ValueError(
                f"{seen.where} is of another image, category or score than {whole.where}; "
                "give both files of one run, or score each alone"
            )
    return [Found(seen, seen.mask, whole.mask) for seen, whole in zip(visible, amodal, strict=True)]


def _key_by_key(visible: Sequence[FoundMask], amodal: Sequence[FoundMask]) -> list[Found]:
    """Masks of questions or annotations; where one kind is missing, it counts as empty."""
    seen, whole = ({(m.question, m.place, m.annotation): m for m in kind} for kind in (visible, amodal))
    joined = []
    for key in dict.fromkeys((*seen, *whole)):
        first = seen.get(key) or whole[key]
        masks = [kind[key].mask if key in kind else _blank(first) for kind in (seen, whole)]
        joined.append(Found(first, *masks))
    return joined


def _blank(found: FoundMask) -> Rle:
    return encode_rle(np.zeros(found.mask["size"], bool))


def _by_question(found: Sequence[Found], asked: _Asked) -> list[Prediction]:
    predictions = []
    for one in found:
        key = one.of.question
        assert key is not None
        if key not in asked.turns:
            raise ValueError(
                f"{one.of.where}: the data set has no conversation {key[0]} with a turn {key[1]} (turns count from 0); "
                "give the file that was exported as --data"
            )
        asked.check(one, asked.image_of_turn[key])
        predictions.append(Prediction(*key, one.of.place, one.visible, one.amodal))
    return predictions


def _by_annotation(found: Sequence[Found], asked: _Asked) -> tuple[list[Prediction], int]:
    predictions, used = [], 0
    for one in found:
        annotation = one.of.annotation
        assert annotation is not None
        if annotation not in asked.image_of_object:
            raise ValueError(
                f"{one.of.where}: the data set has no annotation {annotation}; "
                "give the file that was exported as --data"
            )
        asked.check(one, asked.image_of_object[annotation])
        places = asked.places.get(annotation, [])
        used += bool(places)
        predictions += [Prediction(*place, one.visible, one.amodal) for place in places]
    return predictions, used


def _by_overlap(
    dataset: Iterable[Sample],
    found: Sequence[Found],
    asked: _Asked,
    categories: Mapping[int, str],
    min_score: float,
) -> tuple[list[Prediction], int]:
    of_image: dict[int, list[Found]] = defaultdict(list)
    for one in found:
        image = asked.image(one.of)
        asked.check(one, image)
        if one.of.category is not None and one.of.category not in categories:
            raise ValueError(
                f"{one.of.where}: the data set has no category {one.of.category}; scripts/export_dataset.py keeps the "
                "numbers of categories, use these"
            )
        if one.of.score >= min_score:
            of_image[image].append(one)
    predictions, used = [], 0
    for sample in dataset:
        guesses = sorted(of_image.get(sample.image_id, ()), key=lambda one: -one.of.score)
        objects = [o for o in sample.objects if asked.places.get(o.id)]
        for row, column in _pairs(objects, guesses, categories):
            used += 1
            one = guesses[column]
            places = asked.places[objects[row].id]
            predictions += [Prediction(*place, one.visible, one.amodal) for place in places]
    return predictions, used


def _pairs(
    objects: Sequence[AmodalObject], guesses: Sequence[Found], categories: Mapping[int, str]
) -> list[tuple[int, int]]:
    """(object, guess) that belong together; guesses come by falling score, which decides between equal ones."""
    gain = np.zeros((len(objects), len(guesses)))
    kind = "visible" if guesses and guesses[0].visible is not None else "amodal"
    rows = [i for i, o in enumerate(objects) if getattr(o, kind) is not None]
    gain[rows] = _ious([getattr(objects[i], kind) for i in rows], [getattr(one, kind) for one in guesses])
    for column, one in enumerate(guesses):
        if one.of.category is not None:
            gain[[o.category != categories[one.of.category] for o in objects], column] = 0
    columns = np.flatnonzero(gain.any(axis=0))
    pairs = [(row, int(columns[column])) for row, column in best_assignment(gain[:, columns])]
    return [(row, column) for row, column in pairs if gain[row, column] > 0]


def _ious(rows: Sequence[Rle], columns: Sequence[Rle]) -> NDArray[np.float64]:
    """[len(rows), len(columns)]."""
    shared = intersections(rows, columns)
    areas = [np.array([rle_area(mask) for mask in masks], np.int64) for masks in (rows, columns)]
    unions: NDArray[np.float64] = np.maximum(areas[0][:, None] + areas[1][None, :] - shared, 1)
    return shared / unions
