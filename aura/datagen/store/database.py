"""A connection to the project's SQLite file, which several threads and processes may use at once."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aura.datagen.store.tables import ADD_ASKED, FILL_QUEUES, QUEUES, TABLES

SCHEMA_VERSION = 1
BUSY_SECONDS = 60.0
"""How long a transaction waits for another process's; each takes milliseconds."""


class Database:
    """One connection to a project file, shared by the threads of a process; a transaction holds it to its end.

    Write-ahead logging, so that readers and one writer do not wait for each other; every commit is flushed to disk.
    SQLite's locks do not hold on network file systems: the file belongs on a local disk. ``clock`` gives the seconds
    since 1970 that the tables write down.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        """Open the file, or make it (empty tables) with ``create``.

        Raises:
            ValueError: It does not exist, exists already (``create``), is no project or one of another version.
        """
        self.path = Path(path)
        self.clock: Callable[[], float] = time.time
        if create and self.path.exists():
            raise ValueError(f"{self.path}: exists already; choose another file for a new project")
        if not create and not self.path.is_file():
            raise ValueError(f"{self.path}: no such project; make it with scripts/build_dataset.py init")
        if create:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            if create:
                self._create()
            self._check_version()
            self._add_queues()
            self._add_asked()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path}: is not a project file of this program ({error})") from error

    def _create(self) -> None:
        with self.write() as cursor:
            for statement in _statements(TABLES + QUEUES):
                cursor.execute(statement)
            cursor.execute("INSERT INTO meta VALUES ('schema_version', ?)", [json.dumps(SCHEMA_VERSION)])

    def _check_version(self) -> None:
        version = self.meta("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{self.path}: has schema version {version}, this program reads {SCHEMA_VERSION}; "
                "use the version of the program that made it"
            )

    def _add_queues(self) -> None:
        """Give a project the tables of the queues, if it was made before there were any."""
        known = "SELECT 1 FROM sqlite_master WHERE name = 'tallies'"
        if self.row(known) is None:
            with self.write() as cursor:
                if cursor.execute(known).fetchone() is None:
                    for statement in _statements(QUEUES + FILL_QUEUES):
                        cursor.execute(statement)

    def _add_asked(self) -> None:
        known = "SELECT 1 FROM pragma_table_info('pair_versions') WHERE name = 'asked'"
        if self.row(known) is None:
            with self.write() as cursor:
                if cursor.execute(known).fetchone() is None:
                    for statement in _statements(ADD_ASKED):
                        cursor.execute(statement)

    def close(self) -> None:
        """Close the connection; the file is complete without it."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Cursor]:
        """A transaction that writes: all of it is kept, or, after an exception, nothing. Nests into the outer one."""
        with self._lock:
            if self._connection.in_transaction:
                yield self._connection.cursor()
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.cursor()
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A transaction that only reads: everything is seen as it was at the first read, whatever others write."""
        with self._lock:
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row of a query, if there is one."""
        with self._lock:
            row: sqlite3.Row | None = self._connection.execute(sql, values).fetchone()
            return row

    def value(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first column of the first row; ``None`` without a row."""
        row = self.row(sql, values)
        return None if row is None else row[0]

    def meta(self, key: str, default: Any = None) -> Any:
        """A note about the project as JSON gives it back."""
        text = self.value("SELECT value FROM meta WHERE key = ?", [key])
        return default if text is None else json.loads(text)

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a note: anything that JSON can hold."""
        with self.write() as cursor:
            cursor.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, json.dumps(value, sort_keys=True)])


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: ``executescript`` would commit the transaction around it."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
