"""The project's SQLite file: its tables, and connections that several threads and processes may use at once."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
BUSY_SECONDS = 60.0
"""How long a transaction waits for another process's; each takes milliseconds."""

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE images (
    id INTEGER PRIMARY KEY,
    image_id INTEGER NOT NULL UNIQUE,
    source INTEGER NOT NULL,
    split TEXT NOT NULL,
    file_name TEXT NOT NULL,
    digest TEXT NOT NULL,
    picture_sha256 TEXT NOT NULL,
    object_ids TEXT NOT NULL,
    record BLOB NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'generated', 'failed')),
    round INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,
    owner TEXT,
    lease REAL,
    key TEXT,
    reason TEXT,
    detail TEXT
);
CREATE INDEX images_by_state ON images (state, id);
CREATE INDEX images_by_owner ON images (owner) WHERE owner IS NOT NULL;

CREATE TABLE calls (
    id INTEGER PRIMARY KEY,
    image INTEGER NOT NULL REFERENCES images (id),
    round INTEGER NOT NULL,
    key TEXT NOT NULL,
    owner TEXT NOT NULL,
    outcome TEXT NOT NULL DEFAULT 'open'
        CHECK (outcome IN ('open', 'answered', 'reused', 'duplicate', 'failed', 'lost', 'not_sent')),
    started REAL NOT NULL,
    finished REAL,
    generator TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_version TEXT NOT NULL,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cost REAL NOT NULL DEFAULT 0,
    reason TEXT,
    detail TEXT,
    finish_reason TEXT,
    raw TEXT,
    pairs TEXT
);
CREATE UNIQUE INDEX one_open_call ON calls (image) WHERE outcome = 'open';
CREATE INDEX calls_by_key ON calls (key) WHERE outcome = 'answered';
CREATE INDEX calls_by_image ON calls (image);
CREATE INDEX calls_by_outcome ON calls (outcome);

CREATE TABLE pairs (
    id INTEGER PRIMARY KEY,
    image INTEGER NOT NULL REFERENCES images (id),
    position INTEGER NOT NULL,
    follows INTEGER REFERENCES pairs (id),
    state TEXT NOT NULL CHECK (state IN ('generated', 'failed', 'in_review', 'changed', 'accepted', 'rejected')),
    disputed INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL,
    UNIQUE (image, position)
);
CREATE INDEX pairs_by_state ON pairs (state, disputed, image, position);

CREATE TABLE pair_versions (
    pair INTEGER NOT NULL REFERENCES pairs (id),
    version INTEGER NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL,
    objects TEXT NOT NULL,
    author TEXT NOT NULL,
    reason TEXT NOT NULL,
    problems TEXT NOT NULL DEFAULT '[]',
    call INTEGER REFERENCES calls (id),
    created REAL NOT NULL,
    PRIMARY KEY (pair, version)
) WITHOUT ROWID;
CREATE TRIGGER versions_stay BEFORE DELETE ON pair_versions
    BEGIN SELECT RAISE(ABORT, 'the history of a pair is never deleted'); END;
CREATE TRIGGER versions_stand BEFORE UPDATE OF pair, version, question, answer, objects, author ON pair_versions
    BEGIN SELECT RAISE(ABORT, 'a version is never rewritten; add another'); END;

CREATE TABLE annotators (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    salt BLOB NOT NULL,
    token_hash BLOB NOT NULL,
    active INTEGER NOT NULL DEFAULT 1,
    created REAL NOT NULL
);

CREATE TABLE verdicts (
    id INTEGER PRIMARY KEY,
    pair INTEGER NOT NULL,
    version INTEGER NOT NULL,
    annotator INTEGER NOT NULL REFERENCES annotators (id),
    decision TEXT NOT NULL CHECK (decision IN ('accept', 'edit', 'reject')),
    text_version INTEGER NOT NULL,
    note TEXT NOT NULL DEFAULT '',
    final INTEGER NOT NULL DEFAULT 0,
    replaced INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    FOREIGN KEY (pair, version) REFERENCES pair_versions (pair, version),
    FOREIGN KEY (pair, text_version) REFERENCES pair_versions (pair, version)
);
CREATE UNIQUE INDEX one_verdict_each ON verdicts (pair, annotator) WHERE replaced = 0;
CREATE INDEX verdicts_by_annotator ON verdicts (annotator, replaced);
CREATE TRIGGER verdicts_stay BEFORE DELETE ON verdicts
    BEGIN SELECT RAISE(ABORT, 'a verdict is never deleted; it can be replaced'); END;

CREATE TABLE drafts (
    pair INTEGER NOT NULL REFERENCES pairs (id),
    annotator INTEGER NOT NULL REFERENCES annotators (id),
    version INTEGER NOT NULL,
    content TEXT NOT NULL,
    saved REAL NOT NULL,
    PRIMARY KEY (pair, annotator)
) WITHOUT ROWID;
"""


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
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path}: is not a project file of this program ({error})") from error

    def _create(self) -> None:
        with self.write() as cursor:
            for statement in _statements(TABLES):
                cursor.execute(statement)
            cursor.execute("INSERT INTO meta VALUES ('schema_version', ?)", [json.dumps(SCHEMA_VERSION)])

    def _check_version(self) -> None:
        version = self.meta("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{self.path}: has schema version {version}, this program reads {SCHEMA_VERSION}; "
                "use the version of the program that made it"
            )

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
