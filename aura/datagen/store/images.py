"""The images of a project, as they were when it was made, and where their files lie now."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from sqlite3 import Row
from typing import Any

from aura.datagen.store.database import Database
from aura.formats.pictures import find_picture
from aura.formats.sources import AnnotatedImage
from aura.types import AmodalObject

CHUNK = 200
"""Rows held at once where a whole table is walked through."""


@dataclass(frozen=True)
class Source:
    """An annotation file of the project with the folder of its pictures, as the settings give them."""

    annotations: str
    images: str


@dataclass(frozen=True)
class ImageEntry:
    """An image as it enters the store; ``source`` counts the annotation files from 0.

    ``picture_sha256`` is the digest of the picture file's bytes.
    """

    image: AnnotatedImage
    split: str
    source: int
    picture_sha256: str


@dataclass(frozen=True)
class StoredImage:
    """An image of the project; ``order`` numbers the images from 1 as they were added."""

    order: int
    image: AnnotatedImage
    split: str
    picture: Path
    picture_sha256: str
    state: str


class Images:
    """The images of a project: adding and reading them."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The annotation files and picture folders."""
        return tuple(Source(**record) for record in self.database.meta("sources", []))

    def set_sources(self, sources: Sequence[Source]) -> None:
        """Say anew where the files lie, after they were moved; their number and order must stay.

        Raises:
            ValueError: Another number of sources.
        """
        if len(sources) != len(self.sources):
            raise ValueError(
                f"{self.database.path}: the project was made from {len(self.sources)} annotation files and "
                f"{len(sources)} are given; start a new project for other data"
            )
        if tuple(sources) != self.sources:
            self.database.set_meta("sources", [asdict(source) for source in sources])
            del self.sources

    def add(self, entries: Iterable[ImageEntry]) -> int:
        """Add the images that are not there yet, and return how many those were.

        Raises:
            ValueError: An image id is there with another picture, other annotations or in another split. Most of what
                came before it in ``entries`` stays.
        """
        added = 0
        chunk: list[ImageEntry] = []
        for entry in entries:
            chunk.append(entry)
            if len(chunk) == CHUNK:
                added += self._add(chunk)
                chunk = []
        return added + self._add(chunk)

    def _add(self, entries: Sequence[ImageEntry]) -> int:
        added = 0
        with self.database.write() as cursor:
            for entry in entries:
                content = _content(entry.image)
                digest = digest_of(content, entry.picture_sha256)
                cursor.execute(
                    "INSERT OR IGNORE INTO images (image_id, source, split, file_name, digest, picture_sha256, "
                    "object_ids, record) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        entry.image.image_id,
                        entry.source,
                        entry.split,
                        entry.image.file_name,
                        digest,
                        entry.picture_sha256,
                        json.dumps([o.id for o in entry.image.objects]),
                        zlib.compress(content.encode()),
                    ],
                )
                added += cursor.rowcount
                if not cursor.rowcount:
                    self._check_same(entry, digest)
        return added

    def _check_same(self, entry: ImageEntry, digest: str) -> None:
        row = self._image_row(entry.image.image_id)
        different = [
            what
            for what, old, new in (
                ("another picture or other annotations", row["digest"], digest),
                (f"in the split {row['split']!r}", row["split"], entry.split),
                ("from another annotation file", row["source"], entry.source),
            )
            if old != new
        ]
        if different:
            raise ValueError(
                f"{self.database.path}: image {entry.image.image_id} ({entry.image.file_name}) is there already, "
                f"{' and '.join(different)}; start a new project for changed data, and give every image its own id"
            )

    def count(self) -> int:
        """How many images the project holds."""
        return int(self.database.value("SELECT count(*) FROM images"))

    def get(self, image_id: int) -> StoredImage:
        """One image, by the annotation file's id.

        Raises:
            KeyError: There is none.
        """
        return self._stored(self._image_row(image_id))

    def all(self) -> Iterator[StoredImage]:
        """All images in their order, a few in memory at a time; others may write meanwhile."""
        last = 0
        while rows := self.database.rows("SELECT * FROM images WHERE id > ? ORDER BY id LIMIT ?", [last, CHUNK]):
            yield from map(self._stored, rows)
            last = rows[-1]["id"]

    def object_ids(self, image_id: int) -> frozenset[int]:
        """The annotation ids of an image's objects; empty for an unknown image."""
        ids = self.database.value("SELECT object_ids FROM images WHERE image_id = ?", [image_id])
        return frozenset(json.loads(ids or "[]"))

    def picture(self, row: Row) -> Path:
        """Where the picture of a row of the table lies now."""
        return find_picture(Path(self.sources[row["source"]].images), row["file_name"], f"{self.database.path}: ")

    def _image_row(self, image_id: int) -> Row:
        row = self.database.row("SELECT * FROM images WHERE image_id = ?", [image_id])
        if row is None:
            raise KeyError(f"{self.database.path}: no image {image_id}")
        return row

    def _stored(self, row: Row) -> StoredImage:
        return StoredImage(
            order=row["id"],
            image=read_image(row["record"]),
            split=row["split"],
            picture=self.picture(row),
            picture_sha256=row["picture_sha256"],
            state=row["state"],
        )


def _content(image: AnnotatedImage) -> str:
    # Not asdict(), which copies every mask.
    return json.dumps({**vars(image), "objects": [vars(o) for o in image.objects]}, sort_keys=True)


def write_image(image: AnnotatedImage) -> bytes:
    """An image in the form in which it is stored."""
    return zlib.compress(_content(image).encode())


def read_image(record: bytes) -> AnnotatedImage:
    """An image out of its stored form."""
    content = json.loads(zlib.decompress(record))
    objects = tuple(AmodalObject(**{**o, "occluded_by": tuple(o["occluded_by"])}) for o in content["objects"])
    return AnnotatedImage(**{**content, "objects": objects})


def digest_of(*parts: Any) -> str:
    """One name for all that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
