"""A split of AmodalReasonSeg, written image by image: nothing is held but ids, and the file appears whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from aura.files import to_json, write_parts
from aura.formats.amodal_reason_seg import FORMAT_VERSION, annotation_record, conversation_record, image_record
from aura.formats.sources import AnnotatedImage
from aura.types import Conversation

_LISTS = ("images", "annotations", "conversations")


class SplitWriter:
    """Use it as a context: the file is written at its end, and not at all after an error.

    Args:
        path: The file.
        info: What it says of itself beside its version.
        licenses: As in COCO.
    """

    def __init__(
        self, path: str | Path, *, info: Mapping[str, Any], licenses: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.path = Path(path)
        self.info = {"description": "AmodalReasonSeg", "version": FORMAT_VERSION, **info}
        self.licenses = [dict(item) for item in licenses]
        self.counts = dict.fromkeys(_LISTS, 0)
        self._categories: dict[str, tuple[int, str]] = {}
        self._taken: dict[int, str] = {}

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._files = ExitStack()
        self._waiting: dict[str, IO[str]] = {}
        for name in _LISTS:
            file = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self.path.parent)
            self._waiting[name] = self._files.enter_context(file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._files:
            if kind is None:
                write_parts(self.path, self._parts())

    def add(self, image: AnnotatedImage, conversations: Sequence[Conversation]) -> None:
        """Add an image with its objects and what is said about it."""
        for obj in image.objects:
            number = self._number(image, obj.category)
            self._categories.setdefault(obj.category, (number, obj.supercategory))
            self._add("annotations", annotation_record(obj, image.image_id, number))
        for conversation in conversations:
            self._add("conversations", conversation_record(conversation, image.image_id))
        self._add("images", image_record(image))

    def _number(self, image: AnnotatedImage, category: str) -> int:
        """The category's number: the source's own, or the next free one."""
        if category in self._categories:
            return self._categories[category][0]
        number = image.category_ids.get(category, max(self._taken, default=0) + 1)
        if self._taken.setdefault(number, category) != category:
            raise ValueError(
                f"image {image.image_id}: the categories {self._taken[number]!r} and {category!r} have the same number "
                f"{number}; give each a number of its own"
            )
        return number

    def _add(self, name: str, record: Mapping[str, Any]) -> None:
        self._waiting[name].write(("," if self.counts[name] else "") + to_json(record, compact=True) + "\n")
        self.counts[name] += 1

    def _parts(self) -> Iterator[str]:
        categories = [
            {"id": number, "name": name, "supercategory": above}
            for name, (number, above) in sorted(self._categories.items(), key=lambda item: item[1])
        ]
        for name, value in (("info", self.info), ("licenses", self.licenses), ("categories", categories)):
            yield f'{"{" if name == "info" else ","}"{name}":{to_json(value, compact=True)}'
        for name in _LISTS:
            self._waiting[name].seek(0)
            yield f',"{name}":['
            yield from self._waiting[name]
            yield "]"
        yield "}\n"
