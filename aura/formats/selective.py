"""Queries that ask for the visible or for the whole shape of an object, in a layout of this project.

R2SM (Shih, Tai and others, arXiv 2506.01795) asks so about objects of COCOA-cls, D2SA and MUVA. How its files are laid
out was not found in public. Here a query is a record of a JSON list beside the annotation file that it is about, in any
layout that :mod:`aura.formats.sources` reads, with numbered annotations (COCOA-cls, D2SA, KINS)::

    {"annotation_id": 2, "query": "Outline the whole table, what the cup hides included.", "mask": "amodal"}

``mask`` is ``modal`` (also ``visible``) or ``amodal``. ``image_id`` may say which image the annotation must be of.
``is_sentence`` is true without a word: the query stands as it is. Where it is false, the query is a phrase ("the whole
table") and is put into a question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aura.formats.layouts import COCOA
from aura.formats.questions import AskedImage, Question
from aura.formats.reading import Flaws, RecordReader, read_json
from aura.formats.sources import AnnotatedImage, AnnotationFile
from aura.types import Masks

KINDS: dict[str, Masks] = {"modal": "visible", "visible": "visible", "amodal": "amodal"}
"""What a file calls a mask -> what we call it."""


class Query(NamedTuple):
    """One record: where it stands, the object, the image it must be of, if that is said, and the question."""

    where: str
    annotation: int
    image: int | None
    question: Question


class SelectiveQueries:
    """Images of an annotation file with the queries about them; images without one are passed over.

    Args:
        annotations: The file with both masks of each object.
        queries: The file of queries.
        flaws: What becomes of bad records.

    Raises:
        ValueError: A file is missing or is no such file, or a record is not valid.
    """

    def __init__(self, annotations: str | Path, queries: str | Path, *, flaws: Flaws | None = None) -> None:
        self.flaws = flaws or Flaws()
        self._reader = RecordReader(Path(queries))
        self._file = AnnotationFile(annotations, strict=not self.flaws.skip)
        if self._file.layout == COCOA:
            raise ValueError(f"{annotations}: COCOA's regions have no ids that a query could name; use COCOA-cls")
        self.licenses = self._file.licenses
        self._of_object: dict[int, list[Query]] = defaultdict(list)
        for query in self._queries():
            self._of_object[query.annotation].append(query)

    def __len__(self) -> int:
        """Images of the annotation file."""
        return len(self._file)

    def __iter__(self) -> Iterator[AskedImage]:
        left = dict(self._of_object)
        for image in self._file:
            found = []
            for obj in image.objects:
                for query in left.pop(obj.id, ()):
                    with self.flaws.leaving_out():
                        self._check(query, image)
                        found.append(query)
            if found:
                yield AskedImage(image, tuple(query.question for query in found))
        self.flaws.told += [f"{self._file.reader.path}: {problem}" for problem in self._file.problems]
        for query in (query for queries in left.values() for query in queries):
            with self.flaws.leaving_out():
                raise self._reader.error(
                    query.where,
                    f"annotation {query.annotation} is not in {self._file.reader.path}, or one of its masks is empty; "
                    "drop the query, or give the file that it is about",
                )

    def _check(self, query: Query, image: AnnotatedImage) -> None:
        if query.image not in (None, image.image_id):
            raise self._reader.error(
                query.where,
                f"annotation {query.annotation} is of image {image.image_id}, not {query.image}; correct one of them",
            )

    def _queries(self) -> Iterator[Query]:
        records = read_json(self._reader.path)
        if not isinstance(records, list):
            found = type(records).__name__
            raise ValueError(f"{self._reader.path}: expected a list of queries, got a {found}; is this the right file?")
        return self.flaws.kept(self._query, enumerate(records))

    def _query(self, item: tuple[int, Any]) -> Query:
        position, record = item
        where, reader = f"query {position}", self._reader
        if not isinstance(record, Mapping):
            raise reader.error(where, f"expected an object, got a {type(record).__name__}")
        annotation = reader.integer(record, "annotation_id", where)
        image = reader.integer(record, "image_id", where) if record.get("image_id") is not None else None
        kind = reader.text(record, "mask", where).strip().lower()
        if kind not in KINDS:
            raise reader.error(where, f"'mask' must be modal or amodal, got {record['mask']!r:.60}")
        is_sentence = reader.flag(record, "is_sentence", where) if "is_sentence" in record else True
        text = reader.text(record, "query", where).strip()
        return Query(where, annotation, image, Question(text, (annotation,), is_sentence, asked=KINDS[kind]))
