"""Records of an AmodalReasonSeg file to samples; stops at the first flaw."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aura.formats.objects import is_unknown
from aura.formats.pictures import Picture, find_picture
from aura.formats.reading import RecordReader
from aura.types import AmodalObject, Conversation, Rle, Sample, Turn, asked_flaw, identifying_bytes

KINDS = {"categories": "category", "images": "image", "annotations": "annotation", "conversations": "conversation"}
"""The lists of a file, and what one record of each is called in messages."""

Names = Mapping[int, tuple[str, str]]
"""Category id -> (name, supercategory)."""


class ImageRow(NamedTuple):
    """What an image's own record says."""

    id: int
    file_name: str
    height: int
    width: int
    ignore: Rle | None = None


class ObjectRow(NamedTuple):
    """An annotation, with the number of its category."""

    id: int
    category_id: int
    visible: Rle
    amodal: Rle | None
    occlusion_rate: float | None
    occluded_by: Sequence[int]


class RecordParser:
    """Takes records apart; every error names the file, the record and the remedy."""

    def __init__(self, reader: RecordReader) -> None:
        self.reader = reader

    def category(self, record: Mapping[str, Any], number: int) -> tuple[str, str]:
        """(name, supercategory)."""
        return self.reader.text(record, "name", f"category {number}"), str(record.get("supercategory") or "")

    def image(self, record: Mapping[str, Any], number: int) -> ImageRow:
        where = f"image {number}"
        height, width = (self.reader.integer(record, key, where, at_least=1) for key in ("height", "width"))
        ignore = None if record.get("ignore") is None else self._rle(record, "ignore", where)
        return ImageRow(number, self.reader.file_name(record, "file_name", where), height, width, ignore)

    def image_id(self, record: Mapping[str, Any], where: str) -> int:
        """The image that an annotation or a conversation belongs to."""
        return self.reader.integer(record, "image_id", where)

    def no_image(self, where: str, image_id: int) -> ValueError:
        """The error about a record of an image that the file lacks."""
        return self.reader.error(where, f"image {image_id} is not in 'images'; add it or drop the record")

    def object(self, record: Mapping[str, Any], number: int) -> ObjectRow:
        where = f"annotation {number}"
        category_id = self.reader.integer(record, "category_id", where)
        visible, amodal, rate = self._rle(record, "visible_mask", where), None, None
        if not is_unknown(record, "segmentation"):
            amodal, rate = self._rle(record, "segmentation", where), self.reader.number(record, "occlude_rate", where)
            if not 0 <= rate <= 1:
                raise self.reader.error(where, f"'occlude_rate' must be in [0, 1], got {rate}")
        elif record.get("occlude_rate") is not None:
            raise self.reader.error(where, "'segmentation' is null, so 'occlude_rate' must be null too")
        occluded_by = self.reader.integers(record, "occluded_by", where) if "occluded_by" in record else ()
        return ObjectRow(number, category_id, visible, amodal, rate, occluded_by)

    def _rle(self, record: Mapping[str, Any], key: str, where: str) -> Rle:
        """Masks are taken as they stand: the checks decode them, loading a large file should not."""
        rle = record.get(key)
        if not (isinstance(rle, dict) and isinstance(rle.get("counts"), str) and isinstance(rle.get("size"), list)):
            raise self.reader.error(
                where,
                f"'{key}' must be a compressed RLE with 'size' and 'counts'; "
                "scripts/generate_questions.py converts files with polygons",
            )
        return rle

    def conversation(self, record: Mapping[str, Any], number: int) -> Conversation:
        where = f"conversation {number}"
        turns = []
        for index, turn in enumerate(self.reader.records(record, "turns") if "turns" in record else []):
            at = f"{where}, turn {index}"
            question, answer = self.reader.text(turn, "question", at), self.reader.text(turn, "answer", at)
            objects = self.reader.integers(turn, "objects", at)
            asked = turn.get("asked")
            if flaw := asked_flaw(() if asked is None else asked, len(objects)):
                raise self.reader.error(at, flaw)
            try:
                turns.append(Turn(question, answer, objects, tuple(asked or ())))
            except ValueError as error:
                raise self.reader.error(at, str(error)) from error
        provenance = record.get("provenance", {})
        if not turns or not isinstance(provenance, dict):
            what = "'turns' must be a list of at least one turn" if not turns else "'provenance' must be an object"
            raise self.reader.error(where, what)
        return Conversation(number, tuple(turns), provenance)

    def sample(
        self,
        image: ImageRow,
        folder: Path,
        objects: Sequence[ObjectRow],
        conversations: Sequence[Conversation],
        names: Names,
    ) -> Sample:
        """An image with what belongs to it."""
        named = []
        for row in objects:
            if row.category_id not in names:
                raise self.reader.error(
                    f"annotation {row.id}", f"category {row.category_id} is not in 'categories'; add it"
                )
            name, above = names[row.category_id]
            named.append(
                AmodalObject(row.id, name, row.visible, row.amodal, row.occlusion_rate, tuple(row.occluded_by), above)
            )
        path = find_picture(folder, image.file_name, f"{self.reader.path}: image {image.id}: ")
        try:
            return Sample(image.id, path, image.height, image.width, tuple(named), tuple(conversations), image.ignore)
        except ValueError as error:
            raise ValueError(f"{self.reader.path}: {error}; run scripts/validate_dataset.py for a full list") from error


class ListedSamples(list[Sample]):
    """The samples of a parsed file, all in memory, and what can be asked of them (:mod:`aura.data.selection`)."""

    def __init__(self, samples: Iterable[Sample], names: Names) -> None:
        super().__init__(samples)
        self._names = names

    def categories(self) -> dict[int, str]:
        return {number: name for number, (name, _) in self._names.items()}

    def conversation_counts(self) -> NDArray[np.int64]:
        return np.array([len(sample.conversations) for sample in self], dtype=np.int64)

    def pictures(self) -> Iterator[Picture]:
        return (Picture(s.image_id, s.image_path, s.height, s.width) for s in self)

    def digest(self) -> str:
        found = hashlib.sha256()
        for sample in self:
            found.update(identifying_bytes(sample))
        return found.hexdigest()

    def content(self) -> str | None:
        return None


def samples_of(root: Mapping[str, Any], reader: RecordReader, folder: Path) -> ListedSamples:
    """The samples of a parsed file."""
    parser = RecordParser(reader)
    names = {n: parser.category(c, n) for n, c in reader.by_id(root, "categories", KINDS["categories"]).items()}
    images = reader.by_id(root, "images", KINDS["images"])
    objects: dict[int, list[ObjectRow]] = defaultdict(list)
    conversations: dict[int, list[Conversation]] = defaultdict(list)
    for key in ("annotations", "conversations"):
        for number, record in reader.by_id(root, key, KINDS[key]).items():
            where = f"{KINDS[key]} {number}"
            image_id = parser.image_id(record, where)
            if image_id not in images:
                raise parser.no_image(where, image_id)
            if key == "annotations":
                objects[image_id].append(parser.object(record, number))
            else:
                conversations[image_id].append(parser.conversation(record, number))
    made = (
        parser.sample(parser.image(record, number), folder, objects[number], conversations[number], names)
        for number, record in images.items()
    )
    return ListedSamples(made, names)
