"""Predictions against a data set, under a named protocol: the one code path behind every reported number.

Protocols differ in how an answer's predictions are paired with its objects:

- ``teacher_forced``: the true answer is given, one prediction per ``[SEG]`` of it, paired by place. A missing
  prediction is a pair of empty masks.
- ``generated_order``: the answer is the method's own; the i-th ``[SEG]`` is compared with the i-th object.
- ``generated_matched``: the same, paired by largest overlap (:func:`aura.evaluation.metrics.pair_by_overlap`).

In the two generated protocols objects and predictions that stay unpaired count as in :mod:`aura.evaluation.metrics`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aura.config import Protocol
from aura.evaluation.metrics import AnswerScore, ObjectScore, blank, pair_by_overlap, score_object
from aura.evaluation.report import Report
from aura.files import list_parts, read_text, to_json, write_parts
from aura.masks import decode_rle, encode_rle
from aura.types import ASKED, AmodalObject, MaskPair, Masks, Rle, Sample, SegRecord, kinds_of

Mask = Rle | np.ndarray
TurnKey = tuple[int, int]
"""Conversation id and number of the turn (from 0)."""


@dataclass(frozen=True)
class Prediction:
    """What a method says about one ``[SEG]``: masks at the image's size, as COCO RLE or bool [H, W].

    ``turn`` and ``index`` count from 0; ``index`` is the place of the ``[SEG]`` in its answer. A method that predicts
    one kind of mask leaves the other ``None``, in all its predictions. ``asked`` is the mask that it takes the question
    to mean, if it says so.
    """

    conversation_id: int
    turn: int
    index: int
    visible: Mask | None
    amodal: Mask | None
    occlusion_rate: float | None = None
    asked: Masks | None = None

    @property
    def kinds(self) -> Masks:
        """Which masks are there."""
        return kinds_of(self.visible, self.amodal)


@dataclass(frozen=True)
class PredictedAnswer:
    """One answer: masks by place of their ``[SEG]``, number of ``[SEG]``, text if known."""

    masks: Mapping[int, MaskPair]
    seg_count: int
    text: str | None = None


class Scorer:
    """Scores images one after another and keeps no masks.

    Pixels that an image ignores belong to no mask, true or predicted, so that they count in no intersection, union or
    area (LISA's rule for ReasonSeg).

    Every turn of a sample is scored; one without an entry in ``answers`` counts as answered with nothing.

    Args:
        protocol: How predictions and objects are paired.
        masks: The kinds of mask that the method predicts; figures that need the other one are ``None``.
        misses: Under ``teacher_forced`` too an object without a prediction is missed, not predicted empty: the method
            marks fewer objects than the true answers have.
    """

    def __init__(self, protocol: Protocol, masks: Masks = "both", *, misses: bool = False) -> None:
        self.protocol, self.misses = protocol, misses
        self.masks = masks
        self.objects: list[ObjectScore] = []
        self.answers: list[AnswerScore] = []

    def add(self, sample: Sample, answers: Mapping[TurnKey, PredictedAnswer]) -> None:
        """Score all answers about one image."""
        used = {i for c in sample.conversations for turn in c.turns for i in turn.objects}
        counted = counted_pixels(sample)
        truth = {o.id: _within(counted, true_masks(o, sample)) for o in sample.objects if o.id in used}
        names = {o.id: o.category for o in sample.objects}
        for conversation in sample.conversations:
            for number, turn in enumerate(conversation.turns):
                answer = answers.get((conversation.id, number), PredictedAnswer({}, 0))
                place = (sample.image_id, conversation.id, number)
                records = [SegRecord(*place, i, id_, names[id_]) for i, id_ in enumerate(turn.objects)]
                guesses = {index: _within(counted, pair) for index, pair in answer.masks.items()}
                true = [truth[id_]._replace(asked=turn.asks(i)) for i, id_ in enumerate(turn.objects)]
                self._add_objects(place, records, true, guesses)
                self.answers.append(
                    AnswerScore(
                        *place,
                        true_count=len(turn.objects),
                        predicted_count=answer.seg_count,
                        question=turn.question,
                        true_text=turn.answer,
                        predicted_text=answer.text,
                        predicted_area=_marked(guesses.values()) if guesses else None,
                    )
                )

    def _add_objects(
        self,
        place: tuple[int, int, int],
        records: Sequence[SegRecord],
        true: Sequence[MaskPair],
        guesses: dict[int, MaskPair],
    ) -> None:
        if self.protocol == "teacher_forced" and not self.misses:
            empty = {i: blank(t.visible.shape, self.masks) for i, t in enumerate(true) if t.visible is not None}
            guesses = empty | guesses
        if self.protocol == "generated_matched":
            indices = sorted(guesses)
            partner = {i: indices[j] for i, j in pair_by_overlap(true, [guesses[j] for j in indices])}
        else:
            partner = {i: i for i in range(len(true)) if i in guesses}
        for i, (record, masks) in enumerate(zip(records, true, strict=True)):
            j = partner.get(i)
            self.objects.append(score_object(record, masks, None if j is None else guesses[j], j, self.masks))
        for j in sorted(guesses.keys() - set(partner.values())):
            self.objects.append(score_object(SegRecord(*place, j, -1, ""), None, guesses[j], j, self.masks))

    def report(self, name: str = "AURA") -> Report:
        """What was scored so far."""
        return Report.merge(self.protocol, [Report(self.protocol, tuple(self.objects), tuple(self.answers))], name)


def score(
    dataset: Iterable[Sample],
    predictions: Iterable[Prediction],
    *,
    protocol: Protocol = "teacher_forced",
    name: str = "predictions",
    source: str = "",
) -> Report:
    """Score predictions made elsewhere. Each ``[SEG]`` without a prediction counts as predicted empty.

    Args:
        dataset: The samples; iterated twice.
        predictions: In any order, at most one per conversation, turn and index.
        protocol: How predictions and objects are paired.
        name: The method's row in tables.
        source: The file that the predictions come from, for errors.

    Raises:
        ValueError: A true mask is damaged, or a prediction names a conversation, turn or (under ``teacher_forced``)
            index that the data set does not have, comes twice, or holds masks of another size than the image.
    """
    images, lengths = _index(dataset)
    given: dict[TurnKey, dict[int, tuple[str, Prediction]]] = defaultdict(dict)
    masks: Masks = "both"
    for number, prediction in enumerate(predictions):
        where = f"{source}: {_name(number, prediction)}" if source else _name(number, prediction)
        masks = prediction.kinds if number == 0 else masks
        _check_alike(prediction, masks, where)
        key = (prediction.conversation_id, prediction.turn)
        if prediction.conversation_id not in images:
            raise ValueError(f"{where}: the data set has no conversation {prediction.conversation_id}")
        if key not in lengths:
            turns = sum(conversation == key[0] for conversation, _ in lengths)
            raise ValueError(f"{where}: the conversation has {turns} turns, numbered from 0")
        if prediction.index < 0 or (protocol == "teacher_forced" and prediction.index >= lengths[key]):
            more = "; --protocol generated_matched takes answers of any length" if prediction.index > 0 else ""
            raise ValueError(f"{where}: the true answer has {lengths[key]} [SEG], numbered from 0{more}")
        if prediction.index in given[key]:
            raise ValueError(f"{where}: the same place was already given by {given[key][prediction.index][0]}")
        given[key][prediction.index] = (where, prediction)

    scorer = Scorer(protocol, masks)
    for sample in dataset:
        keys = [(c.id, number) for c in sample.conversations for number in range(len(c.turns))]
        scorer.add(sample, {key: _decode(sample, given[key]) for key in keys if key in given})
    return scorer.report(name)


def true_masks(obj: AmodalObject, sample: Sample) -> MaskPair:
    """The masks of an object of ``sample``; without the amodal one where its whole shape is not known."""
    try:
        return MaskPair(decode_rle(obj.visible), None if obj.amodal is None else decode_rle(obj.amodal))
    except ValueError as error:
        raise ValueError(
            f"image {sample.image_id}, annotation {obj.id}: {error}; scripts/validate_dataset.py lists all such flaws"
        ) from error


def counted_pixels(sample: Sample) -> np.ndarray | None:
    """Bool [H, W], false where the image ignores a pixel; ``None`` where it ignores none."""
    try:
        return None if sample.ignore is None else ~decode_rle(sample.ignore)
    except ValueError as error:
        raise ValueError(
            f"image {sample.image_id}: the 'ignore' mask: {error}; scripts/validate_dataset.py lists all such flaws"
        ) from error


def _within(counted: np.ndarray | None, pair: MaskPair) -> MaskPair:
    """The masks on the pixels that are counted: all, or those of a bool mask [H, W]."""
    if counted is None:
        return pair
    visible, amodal = (None if mask is None else mask & counted for mask in pair[:2])
    return pair._replace(visible=visible, amodal=amodal)


def _marked(pairs: Iterable[MaskPair]) -> int:
    """Pixels of all masks."""
    return sum(int(np.count_nonzero(mask)) for pair in pairs for mask in pair[:2] if mask is not None)


def _index(dataset: Iterable[Sample]) -> tuple[dict[int, int], dict[TurnKey, int]]:
    """The image of each conversation, and the number of ``[SEG]`` of each turn."""
    images: dict[int, int] = {}
    lengths: dict[TurnKey, int] = {}
    for sample in dataset:
        for conversation in sample.conversations:
            if conversation.id in images:
                raise ValueError(f"conversation id {conversation.id} occurs twice in the data set; ids must be unique")
            images[conversation.id] = sample.image_id
            lengths |= {(conversation.id, i): len(turn.objects) for i, turn in enumerate(conversation.turns)}
    return images, lengths


def _decode(sample: Sample, given: Mapping[int, tuple[str, Prediction]]) -> PredictedAnswer:
    masks = {}
    for index, (where, prediction) in given.items():
        visible = _mask(prediction.visible, sample, f"{where}: visible")
        amodal = _mask(prediction.amodal, sample, f"{where}: amodal")
        masks[index] = MaskPair(visible, amodal, prediction.occlusion_rate, prediction.asked)
    return PredictedAnswer(masks, len(given))


def _check_alike(prediction: Prediction, masks: Masks, where: str) -> None:
    if prediction.kinds != masks:
        words = {"both": "both masks", "visible": "only the visible mask", "amodal": "only the amodal mask"}
        raise ValueError(
            f"{where} has {words[prediction.kinds]}, those before it {words[masks]}; "
            "a method predicts both masks everywhere, or one kind everywhere"
        )


def _mask(mask: Mask | None, sample: Sample, where: str) -> np.ndarray | None:
    if mask is None:
        return None
    size = list(mask.shape) if isinstance(mask, np.ndarray) else list(mask["size"])
    if size != [sample.height, sample.width]:
        raise ValueError(
            f"{where} mask is {size} but image {sample.image_id} is [{sample.height}, {sample.width}] (height, width)"
        )
    if isinstance(mask, np.ndarray):
        return np.asarray(mask, bool)
    try:
        return decode_rle(mask)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{where} mask: {error}") from None


def _name(number: int, prediction: Prediction) -> str:
    place = f"conversation {prediction.conversation_id}, turn {prediction.turn}, index {prediction.index}"
    return f"prediction {number} ({place})"


def load_predictions(path: str | Path) -> list[Prediction]:
    """Read a JSON list of ``{conversation_id, turn, index, visible: RLE, amodal: RLE, occlusion_rate?, asked?}``.

    A method that predicts one kind of mask leaves the other field out of every record. Other fields are ignored.

    Raises:
        ValueError: The file cannot be read, is not such a list, or a record lacks a field or has a wrong type; the
            message names the file and the record.
    """
    try:
        rows = json.loads(read_text(path))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a JSON list of predictions, not {type(rows).__name__}")
    predictions = [_parse(row, f"{path}: prediction {number}") for number, row in enumerate(rows)]
    for number, prediction in enumerate(predictions):
        _check_alike(prediction, predictions[0].kinds, f"{path}: {_name(number, prediction)}")
    return predictions


def save_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """Write what :func:`load_predictions` reads; the file appears whole or not at all."""

    def rows() -> Iterator[str]:
        for p in predictions:
            masks = {"visible": p.visible, "amodal": p.amodal}
            row = {key: getattr(p, key) for key in _PLACE} | {k: _as_rle(m) for k, m in masks.items() if m is not None}
            said = {"occlusion_rate": p.occlusion_rate, "asked": p.asked}
            row |= {key: value for key, value in said.items() if value is not None}
            yield to_json(row, compact=True)

    write_parts(path, list_parts(rows()))


def _as_rle(mask: Mask) -> Rle:
    return encode_rle(mask) if isinstance(mask, np.ndarray) else mask


def _parse(row: Any, where: str) -> Prediction:
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be an object with {', '.join(_PLACE)} and masks, not {type(row).__name__}")
    missing = [key for key in _PLACE if key not in row]
    missing += ["visible or amodal"] if not {"visible", "amodal"} & row.keys() else []
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing")
    where = f"{where} (conversation {row['conversation_id']}, turn {row['turn']}, index {row['index']})"
    for key in _PLACE:
        if type(row[key]) is not int:
            raise ValueError(f"{where}: {key} must be an integer, got {row[key]!r}")
    for key in [kind for kind in ("visible", "amodal") if kind in row]:
        rle = row[key]
        size = rle.get("size") if isinstance(rle, dict) else None
        if not (isinstance(size, list) and len(size) == 2 and isinstance(rle.get("counts"), str | list)):
            raise ValueError(f'{where}: {key} must be COCO RLE, {{"size": [height, width], "counts": ...}}')
    rate = row.get("occlusion_rate")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1):
        raise ValueError(f"{where}: occlusion_rate must be a number in [0, 1], got {rate!r}")
    asked = row.get("asked")
    if asked is not None and asked not in ASKED:
        raise ValueError(f"{where}: asked must be one of {', '.join(ASKED)}, got {asked!r}")
    place = {key: row[key] for key in _PLACE}
    return Prediction(**place, visible=row.get("visible"), amodal=row.get("amodal"), occlusion_rate=rate, asked=asked)


_PLACE = ("conversation_id", "turn", "index")
