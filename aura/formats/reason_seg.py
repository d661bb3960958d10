"""ReasonSeg, the reasoning segmentation set of LISA: instructions about pictures, and the polygons they mean.

A split is a folder of ``NAME.jpg``, each with ``NAME.json`` beside it::

    {"text": ["instruction", ...], "is_sentence": true,
     "shapes": [{"label": "target", "points": [[x, y], ...], "shape_type": "polygon", ...}, ...]}

- Labels with "ignore" in them mark regions that an evaluation passes over, "flag" marks what is to be left out, all
  others are the target. Larger shapes are drawn first, so that smaller ones lie on them: a hole is an "ignore" in a
  target. A pixel on an outline belongs to the shape; coordinates are cut to whole pixels.
- All instructions of a file mean the same target. Training pictures have up to five, and LISA evaluates the first.
- ``is_sentence`` tells a whole sentence ("long query") from a phrase ("short query").
- Some files are in the code page 1252.

``explanatory/train.json`` is a list of ``{"image": "NAME.jpg", "query", "outputs"}`` with an explanation, ``outputs``,
for some training pictures. LISA's training passes over ``query``. Only visible masks are known.

Sources: dvlab-research/LISA ``README.md``, ``utils/data_processing.py``, ``utils/reason_seg_dataset.py`` and
``utils/dataset.py`` at 3cb2d430.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from aura.formats.pictures import examine
from aura.formats.questions import UNNAMED, AskedImage, Question, number_of, visible_object
from aura.formats.reading import Flaws, RecordReader, read_json, truth
from aura.formats.sources import AnnotatedImage
from aura.masks import FAR, check_size, encode_rle, is_number

Queries = Literal["all", "short", "long"]

_TARGET, _IGNORED = 1, 2


class ReasonSegFolder:
    """The pictures of a split, by name.

    Args:
        folder: Of the pictures and their files.
        explanations: ``explanatory/train.json``.
        first_text_only: Take the first instruction of each picture, as LISA's evaluation does.
        queries: Take phrases, sentences, or both.
        flaws: What becomes of bad pictures.

    Raises:
        ValueError: There is no such folder, no picture with a file in it, or a record is not valid.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        explanations: str | Path | None = None,
        first_text_only: bool = False,
        queries: Queries = "all",
        flaws: Flaws | None = None,
    ) -> None:
        self.folder, self.flaws = Path(folder), flaws or Flaws()
        self._first_text_only, self._queries = first_text_only, queries
        self._explained = {} if explanations is None else read_explanations(explanations)
        self.pictures = sorted(self.folder.glob("*.jpg"))
        if not self.pictures:
            raise ValueError(f"{self.folder}: no NAME.jpg there; give the folder of a split, such as ReasonSeg/val")

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[AskedImage]:
        return self.flaws.kept(self._read, self.pictures)

    def _read(self, picture: Path) -> AskedImage | None:
        path = picture.with_suffix(".json")
        reader = RecordReader(path)
        record = _record(path)
        is_sentence = truth(record.get("is_sentence")) if "is_sentence" in record else None
        if is_sentence is None:
            raise reader.error(
                "'is_sentence'", f"must be true or false, it is {record.get('is_sentence', 'missing')!r}"
            )
        if self._queries != "all" and is_sentence != (self._queries == "long"):
            return None
        facts = examine(picture)
        if facts.flaw:
            raise ValueError(f"{picture}: {facts.flaw}; unpack the archive again")
        texts = _texts(reader, record)
        label = _drawn(reader, record, facts.height, facts.width)
        if not (label == _TARGET).any():
            raise reader.error("'shapes'", "no pixel of a target is left; add its polygon, or leave the picture out")
        number = number_of(f"{self.folder.name}/{picture.name}")
        target = visible_object(number, UNNAMED, encode_rle(label == _TARGET))
        ignored = label == _IGNORED
        image = AnnotatedImage(
            number,
            picture.name,
            facts.height,
            facts.width,
            (target,),
            category_ids={UNNAMED: 1},
            ignore=encode_rle(ignored) if ignored.any() else None,
        )
        told = self._explained.get(picture.name, "")
        taken = texts[:1] if self._first_text_only else texts
        return AskedImage(image, tuple(Question(text, (number,), is_sentence, told) for text in taken))


def read_explanations(path: str | Path) -> dict[str, str]:
    """The explanation of each picture, by its file name."""
    path, records = Path(path), read_json(path)
    reader = RecordReader(path)
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list of explanations, got a {type(records).__name__}")
    found = {}
    for position, record in enumerate(records):
        where = f"item {position}"
        if not isinstance(record, dict):
            raise reader.error(where, f"expected an object, got a {type(record).__name__}")
        found[reader.text(record, "image", where)] = reader.text(record, "outputs", where).strip()
    return found


def _record(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); every picture has a file of its name") from error
    try:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252")
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); is the file complete?") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected an object with 'text', 'is_sentence' and 'shapes'")
    return record


def _texts(reader: RecordReader, record: Mapping[str, Any]) -> list[str]:
    texts = record.get("text")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        found = f"it is {texts!r:.60}" if "text" in record else "it is missing"
        raise reader.error("'text'", f"expected a list of at least one instruction, but {found}")
    return [text.strip() for text in texts]


def _drawn(reader: RecordReader, record: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """uint8 [H, W]: 0 background, 1 target, 2 ignored; drawn with OpenCV, as LISA's figures are."""
    check_size(height, width)
    shapes = []
    for position, shape in enumerate(reader.records(record, "shapes")):
        where = f"'shapes' item {position}"
        name = reader.text(shape, "label", where).lower()
        if name == "flag":
            continue
        points = _points(reader, shape, where, height, width)
        value = _IGNORED if "ignore" in name else _TARGET
        alone = np.zeros((height, width), np.uint8)
        _draw(alone, points, 1)
        shapes.append((int(np.count_nonzero(alone)), points, value))
    label = np.zeros((height, width), np.uint8)
    for area, points, value in sorted(shapes, key=lambda shape: -shape[0]):
        if area:
            _draw(label, points, value)
    return label


def _points(reader: RecordReader, shape: Mapping[str, Any], where: str, height: int, width: int) -> np.ndarray:
    """int32 [N, 2] of x, y."""
    points = shape.get("points")
    is_list = isinstance(points, list) and bool(points)
    if not is_list or not all(isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in points or ()):
        raise reader.error(where, f"'points' must be a list of [x, y] in pixels, it is {points!r:.60}; draw it again")
    found = np.array(points, dtype=np.float64)
    if (np.abs(found) > FAR * np.array([width, height])).any():
        raise reader.error(where, f"a point lies far outside the image of {width} x {height} (width x height)")
    if (found.max(0) < 0).any() or (found.min(0) >= [width, height]).any():
        raise reader.error(
            where, f"it lies outside the image of {width} x {height} (width x height); is it of another picture?"
        )
    return found.astype(np.int32)


def _draw(canvas: np.ndarray, points: np.ndarray, value: int) -> None:
    cv2.fillPoly(canvas, [points], value)
    cv2.polylines(canvas, [points], True, value)
