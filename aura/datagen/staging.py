"""The images of a project that is being made: read once, checked, kept on disk until their splits are known."""

from __future__ import annotations

import dataclasses
import sqlite3
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aura.datagen.settings import SourceSettings
from aura.datagen.store.images import read_image, write_image
from aura.formats.layouts import LAYOUTS
from aura.formats.sources import AnnotatedImage, AnnotationFile

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


def silent(what: str, done: int, total: int) -> None:
    """Tells nobody."""


class Staging:
    """All images with objects of all sources, in a temporary database, which SQLite keeps on disk and removes itself.

    ``layouts``: the layout of each source; ``licenses`` those that the sources list, one of each number;
    ``without_objects`` counts the images that were left out.
    """

    def __init__(
        self, sources: tuple[SourceSettings, ...], progress: Progress = lambda what, done, total: None
    ) -> None:
        """Read the sources.

        Raises:
            ValueError: A file is missing, has another layout or contradicts itself, or two sources contradict each
                other.
        """
        self.sources, self.progress = sources, progress
        self.layouts: list[str] = []
        self.without_objects = 0
        self._licenses: dict[Any, dict[str, Any]] = {}
        self._categories: dict[str, int] = {}
        self._next_region = 1
        self._database = sqlite3.connect("", isolation_level=None)
        weakref.finalize(self, self._database.close)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "CREATE TABLE images (place INTEGER PRIMARY KEY, source INTEGER, image_id INTEGER UNIQUE, "
            "file_name TEXT, split TEXT, record BLOB)",
            "CREATE TABLE objects (id INTEGER PRIMARY KEY, source INTEGER)",
            "BEGIN",
        ):
            self._database.execute(statement)
        for number, source in enumerate(sources):
            self._read(number, source)
        self._database.execute("CREATE INDEX by_name ON images (file_name)")

    @property
    def licenses(self) -> list[dict[str, Any]]:
        return list(self._licenses.values())

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM images").fetchone()[0])

    def _read(self, number: int, source: SourceSettings) -> None:
        file = AnnotationFile(
            source.annotations,
            None if source.layout is None else LAYOUTS[source.layout],
            with_stuff=source.with_stuff,
            strict=True,
            first_region=self._next_region,
        )
        self._next_region = file.next_region
        self.layouts.append(file.layout.name)
        self._add_licenses(source, file.licenses)
        for done, image in enumerate(file, start=1):
            self.progress(f"reading {Path(source.annotations).name}", done, len(file))
            if image.objects:
                self._add(number, _moved(image, source.id_offset))
            else:
                self.without_objects += 1

    def _add(self, number: int, image: AnnotatedImage) -> None:
        for name, category_id in image.category_ids.items():
            if self._categories.setdefault(name, category_id) != category_id:
                raise ValueError(
                    f"image {image.image_id}: category {name!r} has the number {category_id} here and "
                    f"{self._categories[name]} in another image; only sources that share their categories can make "
                    "one data set"
                )
        self._insert("images", image.image_id, number, (image.image_id, image.file_name, write_image(image)))
        for found in image.objects:
            self._insert("objects", found.id, number, (found.id,))

    def _insert(self, table: str, record_id: int, number: int, values: tuple[Any, ...]) -> None:
        column = {"images": "image_id", "objects": "id"}[table]
        columns = {"images": "source, image_id, file_name, record", "objects": "source, id"}[table]
        marks = ", ".join("?" * (1 + len(values)))
        try:
            self._database.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", [number, *values])
        except sqlite3.IntegrityError:
            sql = f"SELECT source FROM {table} WHERE {column} = ?"
            other = self._database.execute(sql, [record_id]).fetchone()[0]
            files = sorted({self.sources[i].annotations for i in (other, number)})
            what = {"images": "image", "objects": "annotation"}[table]
            raise ValueError(
                f"{' and '.join(files)}: {what} {record_id} occurs twice; give each an id of its own, or one of the "
                "sources an id_offset"
            ) from None

    def _add_licenses(self, source: SourceSettings, licenses: Any) -> None:
        for record in licenses if isinstance(licenses, list) else []:
            if isinstance(record, dict) and self._licenses.setdefault(record.get("id"), record) != record:
                raise ValueError(
                    f"{source.annotations}: license {record.get('id')} is another one than in the other annotation "
                    "file; number them alike"
                )

    # --- what splits are made from, and how they come back ---

    def ids(self) -> Iterator[tuple[int, int]]:
        """(source, image id) of every image, in order."""
        return iter(self._database.execute("SELECT source, image_id FROM images ORDER BY place"))

    def find(self, entry: str) -> int | None:
        """The image with that id or file name.

        Raises:
            ValueError: There are several.
        """
        number = int(entry) if entry.isascii() and entry.isdigit() and len(entry) < 19 else None
        sql = "SELECT image_id FROM images WHERE file_name = ? OR image_id = ? LIMIT 2"
        found = [image_id for (image_id,) in self._database.execute(sql, [entry, number])]
        if len(found) > 1:
            raise ValueError(f"{entry!r} may be image {found[0]} or {found[1]}; list the image's id")
        return found[0] if found else None

    def choose(self, split_of: Mapping[int, str]) -> None:
        """Keep these images and forget the others.

        Raises:
            ValueError: Two images of a split have one file name, or a picture is missing.
        """
        self._database.executemany(
            "UPDATE images SET split = ? WHERE image_id = ?", ((split, i) for i, split in split_of.items())
        )
        self._database.execute("DELETE FROM images WHERE split IS NULL")
        twice = self._database.execute(
            "SELECT split, file_name, min(image_id), max(image_id) FROM images GROUP BY file_name, split "
            "HAVING count(*) > 1 LIMIT 1"
        ).fetchone()
        if twice is not None:
            raise ValueError(
                f"images {twice[2]} and {twice[3]} of the split {twice[0]!r} have the same file name {twice[1]!r}; "
                "rename one of the pictures"
            )
        missing, first = 0, None
        for number, name in self._database.execute("SELECT source, file_name FROM images ORDER BY place"):
            path = Path(self.sources[number].images) / name
            if not path.is_file():
                missing, first = missing + 1, first or path
        if missing:
            raise ValueError(
                f"{missing} of {len(self)} pictures are not there, such as {first}; "
                "are the 'images' folders of the sources right?"
            )

    def chosen(self) -> Iterator[tuple[int, str, AnnotatedImage]]:
        """(source, split, image) of what was chosen, in order."""
        rows = self._database.execute("SELECT source, split, record FROM images ORDER BY place")
        return ((source, split, read_image(record)) for source, split, record in rows)


def _moved(image: AnnotatedImage, offset: int) -> AnnotatedImage:
    """The image with ``offset`` added to its id and to those of its objects."""
    if not offset:
        return image
    objects = tuple(
        dataclasses.replace(o, id=o.id + offset, occluded_by=tuple(i + offset for i in o.occluded_by))
        for o in image.objects
    )
    return dataclasses.replace(image, image_id=image.image_id + offset, objects=objects)
