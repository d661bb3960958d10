"""The records of a large JSON file one at a time: the file is read through once, and never held as a whole."""

from __future__ import annotations

import json
import re
import sqlite3
import weakref
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

CHUNK = 1 << 20
"""Characters that are read at once."""
MARGIN = 32
"""A value that ends so close to the end of what was read may go on: a number, or half a literal."""
_SPACE = re.compile(r"[ \t\n\r]*")


Member = tuple[str, int | None, Any, str]
"""(key, position, value, text)."""


def members(path: str | Path, lists: Collection[str]) -> Iterator[Member]:
    """The members of the JSON object in a file, in its order.

    Of a list named in ``lists`` every item comes by itself, with its position from 0, after the empty list itself with
    the position ``None``. Every other value comes whole, with the position ``None``.

    Raises:
        ValueError: No such file, not JSON, not an object at the top, or a key that occurs twice.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            yield from _Reader(path, file, lists)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); is the file complete?") from error


class _Reader:
    """A window over the file's text that moves with what is read."""

    def __init__(self, path: Path, file: TextIO, lists: Collection[str]) -> None:
        self.path, self.file, self.lists = path, file, lists
        self._decoder = json.JSONDecoder()
        self._buffer, self._at, self._before = "", 0, 0
        self._ended = False

    def __iter__(self) -> Iterator[Member]:
        if self._next() != "{":
            value, _ = self._value()
            raise ValueError(f"{self.path}: expected a JSON object with lists of records, got a {type(value).__name__}")
        self._at += 1
        seen: set[str] = set()
        for _ in self._until("}"):
            key, _ = self._value()
            if not isinstance(key, str):
                raise self._error("Expecting property name enclosed in double quotes")
            if key in seen:
                raise ValueError(f"{self.path}: the key {key!r} occurs twice; join the two")
            seen.add(key)
            if self._next() != ":":
                raise self._error("Expecting ':' delimiter")
            self._at += 1
            if key in self.lists and self._next() == "[":
                self._at += 1
                yield key, None, [], "[]"
                for position, _ in enumerate(self._until("]")):
                    yield key, position, *self._value()
            else:
                yield key, None, *self._value()
        if self._next():
            raise self._error("Extra data")

    def _until(self, end: str) -> Iterator[None]:
        """Once for each item up to the bracket ``end``; the caller reads the item."""
        if self._next() == end:
            self._at += 1
            return
        while True:
            yield
            following = self._next()
            if following not in (",", end):
                raise self._error("Expecting ',' delimiter")
            self._at += 1
            if following == end:
                return

    def _next(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            found = _SPACE.match(self._buffer, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            self._read()

    def _value(self) -> tuple[Any, str]:
        """The value that begins here, and its text."""
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                # What is cut off fails at its end, or, within a string, at the string's beginning.
                cut_off = error.pos > len(self._buffer) - MARGIN or error.msg.startswith("Unterminated string")
                if self._ended or not cut_off:
                    raise self._error(error.msg, error.pos) from None
            else:
                if self._ended or end <= len(self._buffer) - MARGIN:
                    text, self._at = self._buffer[self._at : end], end
                    return value, text
            self._read()

    def _read(self) -> None:
        """Read on, each time as much again, so that a long value is not decoded many times."""
        self._before += self._at
        self._buffer = self._buffer[self._at :]
        more = self.file.read(max(CHUNK, len(self._buffer)))
        self._buffer, self._at, self._ended = self._buffer + more, 0, not more

    def _error(self, message: str, at: int | None = None) -> ValueError:
        place = self._before + (self._at if at is None else at)
        return ValueError(f"{self.path}: is not JSON ({message}: char {place}); is the file complete?")


class Spool:
    """The lists of an annotation file in a temporary database, which SQLite keeps on disk and removes by itself.

    ``other`` holds what is in none of the lists. Rows are numbered through; those of a list ascend in its order.
    """

    def __init__(self, path: str | Path, lists: Collection[str]) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        weakref.finalize(self, self._database.close)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "CREATE TABLE records (row INTEGER PRIMARY KEY, list TEXT NOT NULL, text TEXT NOT NULL)",
            "CREATE TABLE ids (list TEXT, id INTEGER, row INTEGER, owner INTEGER, PRIMARY KEY (list, id)) "
            "WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(statement)
        self.other: dict[str, Any] = {}
        self.lists: set[str] = set()
        try:
            for key, position, value, text in members(path, lists):
                if position is not None:
                    self.add(key, text)
                elif key in lists and value == []:
                    self.lists.add(key)
                else:
                    self.other[key] = value
        except sqlite3.OperationalError as error:
            raise OSError(
                f"{path}: its records cannot be put aside ({error}); set SQLITE_TMPDIR to a folder with as much room"
            ) from error

    def add(self, name: str, text: str) -> int:
        """Add a record to a list; its row."""
        row = self._database.execute("INSERT INTO records (list, text) VALUES (?, ?)", [name, text]).lastrowid
        assert row is not None
        return row

    def records(self, name: str) -> Iterator[tuple[int, Any]]:
        """(row, record) of a list."""
        last = 0
        sql = "SELECT row, text FROM records WHERE list = ? AND row > ? ORDER BY row LIMIT 100"
        while rows := self._database.execute(sql, [name, last]).fetchall():
            for row, text in rows:
                yield row, json.loads(text)
            last = rows[-1][0]

    def identify(self, name: str, number: int, row: int) -> bool:
        """Give a record its id; ``False`` where the list has that id already."""
        sql = "INSERT OR IGNORE INTO ids (list, id, row) VALUES (?, ?, ?)"
        return self._database.execute(sql, [name, number, row]).rowcount == 1

    def give(self, name: str, number: int, owner: int) -> None:
        """Say to what a record belongs."""
        self._database.execute("UPDATE ids SET owner = ? WHERE list = ? AND id = ?", [owner, name, number])

    def has(self, name: str, number: int) -> bool:
        """Whether a list has a record of that id."""
        sql = "SELECT 1 FROM ids WHERE list = ? AND id = ?"
        return self._database.execute(sql, [name, number]).fetchone() is not None

    def count(self, name: str) -> int:
        """Records of a list that have an id."""
        return int(self._database.execute("SELECT count(*) FROM ids WHERE list = ?", [name]).fetchone()[0])

    def index(self) -> None:
        """To be called once all are identified, before :meth:`of`."""
        self._database.execute("CREATE INDEX ids_by_row ON ids (list, row)")
        self._database.execute("CREATE INDEX ids_by_owner ON ids (list, owner, row)")

    def identified(self, name: str) -> Iterator[tuple[int, Any]]:
        """(id, record) of a list, in its order, without those that have none."""
        last = 0
        sql = (
            "SELECT i.row, i.id, r.text FROM ids i JOIN records r ON r.row = i.row "
            "WHERE i.list = ? AND i.row > ? ORDER BY i.row LIMIT 100"
        )
        while rows := self._database.execute(sql, [name, last]).fetchall():
            for _, number, text in rows:
                yield number, json.loads(text)
            last = rows[-1][0]

    def of(self, name: str, owner: int) -> list[Any]:
        """The records of a list that belong to ``owner``, in its order."""
        sql = "SELECT r.text FROM ids i JOIN records r ON r.row = i.row WHERE i.list = ? AND i.owner = ? ORDER BY i.row"
        return [json.loads(text) for (text,) in self._database.execute(sql, [name, owner])]
