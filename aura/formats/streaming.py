"""The records of a large JSON file one at a time: the file is read through once, and never held as a whole."""

from __future__ import annotations

import codecs
import json
import sqlite3
import weakref
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ijson

CHUNK = 1 << 16
"""Bytes that are read at once."""
DEPTH = 100
"""Brackets within each other: the parser has no limit, but ``json`` could not write the value again."""

Member = tuple[str, int | None, Any]
"""(key, position, value)."""


def members(path: str | Path, lists: Collection[str]) -> Iterator[Member]:
    """The members of the JSON object in a file, in its order.

    Of a list named in ``lists`` every item comes by itself, with its position from 0, after the empty list itself with
    the position ``None``. Every other value comes whole, with the position ``None``.

    Raises:
        ValueError: No such file, not JSON (nor is ``NaN``), not an object at the top, or a key that occurs twice.
    """
    path, place = Path(path), [""]
    events = _events(path, place)
    event, value = next(events)
    if event != "start_map":
        kind = "list" if event == "start_array" else type(value).__name__
        raise ValueError(f"{path}: expected a JSON object with lists of records, got a {kind}")
    seen: set[str] = set()
    for event, key in events:
        if event == "end_map":
            continue  # The parser still has to see that nothing follows.
        if key in seen:
            raise ValueError(f"{path}: the key {key!r} occurs twice; join the two")
        seen.add(key)
        first = next(events)
        if key in lists and first[0] == "start_array":
            yield key, None, []
            for position, begin in enumerate(iter(partial(next, events), ("end_array", None))):
                place[0] = f"'{key}' item {position}: "
                yield key, position, _value(path, begin, events)
            place[0] = ""
        else:
            yield key, None, _value(path, first, events)


def items(path: str | Path, hint: str = "is this file in the right format?") -> Iterator[tuple[int, Any]]:
    """(position, item) of a JSON file that is one list; ``hint`` ends the error about a file that is none.

    Raises:
        ValueError: No such file, not JSON, or no list at the top.
    """
    path, place = Path(path), [""]
    events = _events(path, place)
    event, value = next(events)
    if event != "start_array":
        kind = "object" if event == "start_map" else type(value).__name__
        raise ValueError(f"{path}: expected a JSON list of records, got a {kind}; {hint}")
    for position, begin in enumerate(iter(partial(next, events), ("end_array", None))):
        place[0] = f"item {position}: "
        yield position, _value(path, begin, events)
    place[0] = ""
    for _ in events:  # The parser still has to see that nothing follows.
        pass


def _events(path: Path, place: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """What the parser sees; ``place[0]`` says in which record it is."""
    try:
        with path.open("rb") as file:
            mark = file.read(3)
            if mark[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise ValueError("it is UTF-16; save it as UTF-8")
            file.seek(len(mark) if mark == codecs.BOM_UTF8 else 0)
            yield from ijson.basic_parse(file, use_float=True, buf_size=CHUNK)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ijson.JSONError, ValueError) as error:
        what = error.args[0] if isinstance(error, ijson.JSONError) else error
        text = what.decode(errors="replace") if isinstance(what, bytes) else str(what)
        # The C backend's second line is the text around the flaw, its third an arrow.
        told = ": ".join(line.strip() for line in text.splitlines()[:2] if line.strip())
        if "integer overflow" in told:
            raise ValueError(
                f"{path}: {place[0]}a whole number is too large ({told}); take numbers below 2^63"
            ) from error
        raise ValueError(f"{path}: is not JSON ({told}); is the file complete?") from error


def _value(path: Path, begin: tuple[str, Any], events: Iterator[tuple[str, Any]]) -> Any:
    builder, depth = ijson.ObjectBuilder(), 0
    event, value = begin
    while True:
        builder.event(event, value)
        depth += event.startswith("start_") - event.startswith("end_")
        if depth > DEPTH:
            raise ValueError(f"{path}: has more than {DEPTH} brackets within each other; is this the right file?")
        if not depth:
            return builder.value
        event, value = next(events)


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
            for key, position, value in members(path, lists):
                if position is not None:
                    self.add(key, json.dumps(value))
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
