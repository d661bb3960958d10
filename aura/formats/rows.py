"""An AmodalReasonSeg file as rows on disk: read once, record by record, then any sample is found by its position.

The rows stand in an SQLite file beside the annotation file (hidden, ``.NAME.rows.sqlite``), or in the cache folder
where that place is read-only. It appears whole or not at all, never changes, and any number of processes may read it.
It is made anew when the annotation file changes: its size and SHA-256 stand in it, and its own time is set to the
annotation file's, so that opening compares two numbers and hashes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from aura.files import places_for, plain_mode
from aura.formats.pictures import Picture, find_picture
from aura.formats.reading import RecordReader
from aura.formats.samples import KINDS, ImageRow, ObjectRow, RecordParser
from aura.formats.streaming import members
from aura.types import Conversation, Sample, Turn, identifying_bytes

ENDING = ".rows.sqlite"
VERSION = 3
"""Raise it when the rows change; older ones are then made anew."""
BUFFERED = 1000
"""Rows that are inserted together."""
ANNOTATION, CONVERSATION = 0, 1

_TABLES = (
    "PRAGMA page_size = 16384",
    "PRAGMA journal_mode = OFF",
    "PRAGMA synchronous = OFF",
    "PRAGMA cache_size = -65536",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)",
    "CREATE TABLE images (position INTEGER PRIMARY KEY, id INTEGER, file_name TEXT, height INTEGER, width INTEGER, "
    "ignored TEXT, conversations INTEGER NOT NULL DEFAULT 0)",
    # The rows of an image lie together, whatever their order in the file.
    "CREATE TABLE records (image INTEGER, kind INTEGER, place INTEGER, text TEXT, PRIMARY KEY (image, kind, place)) "
    "WITHOUT ROWID",
)


_IMAGE = "id, file_name, height, width, ignored"


def _image_row(number: int, name: str, height: int, width: int, ignored: str | None) -> ImageRow:
    return ImageRow(number, name, height, width, None if ignored is None else json.loads(ignored))


class Rows(Sequence[Sample]):
    """The samples of a file, read by position; what can be asked of them stands in :mod:`aura.data.selection`.

    Args:
        source: The annotation file.
        images: Folder that ``file_name`` entries are relative to.
        place: The file of rows, from :func:`find_rows`.
    """

    def __init__(self, source: Path, images: Path, place: Path) -> None:
        self.source, self.images, self.place = source, images, place
        self._parser = RecordParser(RecordReader(source))
        self._connections: dict[int, sqlite3.Connection] = {}
        meta = dict(self._rows("SELECT key, value FROM meta"))
        self._sha256, self._digest = meta["sha256"], meta.get("digest", "")
        self._names = {number: (name, above) for number, name, above in json.loads(meta["categories"])}
        self._length = int(meta["images"])

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        position = index + self._length if index < 0 else index
        if not 0 <= position < self._length:
            raise IndexError(f"{self.source} has {self._length} images, there is no position {index}")
        (found,) = self._rows(f"SELECT {_IMAGE} FROM images WHERE position = ?", position)
        return self._sample(_image_row(*found))

    def __iter__(self) -> Iterator[Sample]:
        for row in self._database().execute(f"SELECT {_IMAGE} FROM images ORDER BY position"):
            yield self._sample(_image_row(*row))

    def _sample(self, image: ImageRow) -> Sample:
        objects, conversations = [], []
        for kind, text in self._rows("SELECT kind, text FROM records WHERE image = ? ORDER BY kind, place", image.id):
            row = json.loads(text)
            if kind == ANNOTATION:
                objects.append(ObjectRow(*row))
            else:
                number, turns, provenance = row
                said = tuple(Turn(q, a, tuple(objects), tuple(asked)) for q, a, objects, asked in turns)
                conversations.append(Conversation(number, said, provenance))
        return self._parser.sample(image, self.images, objects, conversations, self._names)

    def conversation_counts(self) -> NDArray[np.int64]:
        counts = self._database().execute("SELECT conversations FROM images ORDER BY position")
        return np.fromiter((count for (count,) in counts), np.int64, self._length)

    def pictures(self) -> Iterator[Picture]:
        rows = self._database().execute("SELECT id, file_name, height, width FROM images ORDER BY position")
        for number, name, height, width in rows:
            path = find_picture(self.images, name, f"{self.source}: image {number}: ")
            yield Picture(number, path, height, width)

    def categories(self) -> dict[int, str]:
        return {number: name for number, (name, _) in self._names.items()}

    def digest(self) -> str:
        return self._digest

    def content(self) -> str | None:
        return self._sha256

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        return self._database().execute(sql, values).fetchall()

    def _database(self) -> sqlite3.Connection:
        """This process's own connection: one that was opened before a fork must not be used after it."""
        process = os.getpid()
        if process not in self._connections:
            database = _open(self.place)
            found = dict(database.execute("SELECT key, value FROM meta"))
            if found["sha256"] != getattr(self, "_sha256", found["sha256"]):
                raise ValueError(f"{self.source} was changed while it is in use; start again")
            self._connections[process] = database
        return self._connections[process]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connections": {}}


def find_rows(source: Path) -> Path:
    """The file of rows of an annotation file; made if it is missing or older than that.

    Raises:
        ValueError: The annotation file is missing or malformed; the message names the record and the remedy.
        OSError: Nowhere to write them.
    """
    try:
        status = source.stat()
        places = places_for(source, ENDING)
        for place in places:
            if _is_current(place, source, status):
                return place
    except OSError as error:
        raise ValueError(f"{source}: cannot be read ({error.strerror}); check the path") from error
    problem: Exception = OSError()
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _write(source, place)
            return place
        except (OSError, sqlite3.OperationalError) as error:
            problem = error
    raise OSError(
        f"the rows of {source} can be kept neither beside it nor in {places[-1].parent} ({problem}); set AURA_CACHE to "
        "a folder with as much room as that file takes"
    ) from problem


def info_of(place: Path) -> Any:
    """``info`` of the annotation file."""
    with contextlib.closing(_open(place)) as database:
        return json.loads(database.execute("SELECT value FROM meta WHERE key = 'info'").fetchone()[0])


def _open(place: Path) -> sqlite3.Connection:
    # Immutable: no lock is taken, so that read-only and network folders do.
    return sqlite3.connect(f"{place.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)


def _is_current(place: Path, source: Path, status: os.stat_result) -> bool:
    try:
        with contextlib.closing(_open(place)) as database:
            meta = dict(database.execute("SELECT key, value FROM meta"))
    except sqlite3.DatabaseError:
        return False
    if (meta.get("version"), meta.get("size")) != (str(VERSION), str(status.st_size)):
        return False
    if place.stat().st_mtime_ns == status.st_mtime_ns:
        return True
    if _sha256(source) != meta["sha256"]:
        return False
    with contextlib.suppress(OSError):  # copied or touched: the next opening need not hash it
        os.utime(place, ns=(status.st_mtime_ns, status.st_mtime_ns))
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- making them ------------------------------------------------------------------------------------------------------


def _write(source: Path, place: Path) -> None:
    before = source.stat()
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{source.name}.", suffix=".tmp")
    os.close(handle)
    unfinished = Path(temporary)
    try:
        with contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as database:
            for statement in (*_TABLES, "BEGIN"):
                database.execute(statement)
            facts = {"version": VERSION, "size": before.st_size, "sha256": _sha256(source)}
            _Builder(database, source).run(facts)
            database.execute("COMMIT")
        _count(source, unfinished)
        after = source.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise ValueError(f"{source} was written while it was read; start again")
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.chmod(plain_mode())
        os.utime(unfinished, ns=(before.st_mtime_ns, before.st_mtime_ns))
        unfinished.replace(place)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


class _Builder:
    """Puts the records of a file into the tables, one at a time."""

    def __init__(self, database: sqlite3.Connection, source: Path) -> None:
        self.database, self.source = database, source
        self.parser = RecordParser(RecordReader(source))
        self.reader = self.parser.reader
        self.names: dict[int, tuple[str, str]] = {}
        self.ids = {key: array("q") for key in KINDS}
        self.images: list[Any] = []
        self.records: list[Any] = []

    def run(self, facts: dict[str, Any]) -> None:
        """Read the file; ``facts`` go into the table ``meta`` with what the file says of itself."""
        other: dict[str, Any] = {}
        bar = tqdm(desc=f"reading {self.source.name}", unit=" records", leave=False, delay=2)
        with bar:
            for key, position, value in members(self.source, KINDS):
                if position is not None:
                    self._take(key, position, value)
                    bar.update()
                else:
                    other[key] = value
        self._flush()
        for key, kind in KINDS.items():
            self.reader.records(other, key)
            ids = np.sort(np.frombuffer(self.ids[key], np.int64))
            if len(again := ids[1:][ids[1:] == ids[:-1]]):
                raise self.reader.twice(kind, int(again[0]))
        self._refuse_strays()
        facts |= {"info": json.dumps(other.get("info")), "images": len(self.ids["images"])}
        facts["categories"] = json.dumps([[number, *name] for number, name in self.names.items()])
        self.database.executemany("INSERT INTO meta VALUES (?, ?)", [(k, str(v)) for k, v in facts.items()])

    def _take(self, key: str, position: int, record: Any) -> None:
        kind = KINDS[key]
        number = self.reader.id_of(record, key, kind, position)
        where = f"{kind} {number}"
        self.ids[key].append(number)
        if key == "categories":
            self.names[number] = self.parser.category(record, number)
        elif key == "images":
            *said, ignore = self.parser.image(record, number)
            self.images.append((position, *said, None if ignore is None else _text(ignore)))
        else:
            image = self.parser.image_id(record, where)
            if key == "annotations":
                row: Any = self.parser.object(record, number)
                self.records.append((image, ANNOTATION, position, _text(row)))
            else:
                conversation = self.parser.conversation(record, number)
                turns = [(turn.question, turn.answer, turn.objects, turn.asked) for turn in conversation.turns]
                self.records.append((image, CONVERSATION, position, _text([number, turns, conversation.provenance])))
        if len(self.images) + len(self.records) >= BUFFERED:
            self._flush()

    def _flush(self) -> None:
        sql = "INSERT INTO images (position, id, file_name, height, width, ignored) VALUES (?, ?, ?, ?, ?, ?)"
        self.database.executemany(sql, self.images)
        self.database.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", self.records)
        self.images, self.records = [], []

    def _refuse_strays(self) -> None:
        self.database.execute("CREATE UNIQUE INDEX images_by_id ON images (id)")
        sql = "SELECT image, kind, text FROM records WHERE image NOT IN (SELECT id FROM images) LIMIT 1"
        for image, kind, text in self.database.execute(sql):
            word = KINDS["annotations" if kind == ANNOTATION else "conversations"]
            raise self.parser.no_image(f"{word} {json.loads(text)[0]}", image)


def _count(source: Path, unfinished: Path) -> None:
    """Make every sample once, which checks what spans records, and keep what was counted."""
    rows, found = Rows(source, Path(), unfinished), hashlib.sha256()
    with contextlib.closing(rows._database()), contextlib.closing(sqlite3.connect(unfinished)) as database:
        counts = []
        for position, sample in enumerate(tqdm(rows, desc=f"checking {source.name}", leave=False, delay=2)):
            found.update(identifying_bytes(sample))
            counts.append((len(sample.conversations), position))
        database.execute("PRAGMA synchronous = OFF")
        with database:
            database.executemany("UPDATE images SET conversations = ? WHERE position = ?", counts)
            database.execute("INSERT INTO meta VALUES ('digest', ?)", [found.hexdigest()])


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
