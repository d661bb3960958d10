"""What checks have found, kept on disk: facts of pictures by path, size and time, bad records by file and tokenizer."""

from __future__ import annotations

import contextlib
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from aura.files import places_for
from aura.formats.pictures import PictureFacts, examine

ENDING = ".checks.sqlite"
TABLES = (
    "CREATE TABLE IF NOT EXISTS pictures (path TEXT PRIMARY KEY, size INTEGER, time INTEGER, height INTEGER, "
    "width INTEGER, orientation INTEGER, sha256 TEXT, flaw TEXT)",
    "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, text TEXT)",
)


class Findings:
    """A small database beside an annotation file, or in the cache folder where that one is read-only.

    Deleting it is always safe. Where none can be written, what is found lasts as long as this object.

    Args:
        source: The annotation file; ``None`` keeps nothing on disk.
    """

    def __init__(self, source: Path | None) -> None:
        self._database = _open(source)
        weakref.finalize(self, self._database.close)

    def facts(self, path: Path) -> PictureFacts:
        """Of a picture, from the file if it is new or has changed."""
        found = self.known(path)
        if found is None:
            found = examine(path)
            self.keep([(path, found)])
        return found

    def known(self, path: Path) -> PictureFacts | None:
        """What was found about a picture of this size and time, if anything."""
        stamp = _stamp(path)
        if stamp is None:
            return PictureFacts(flaw="does not exist")
        sql = "SELECT height, width, orientation, sha256, flaw FROM pictures WHERE path = ? AND size = ? AND time = ?"
        row = self._database.execute(sql, [str(path.absolute()), *stamp]).fetchone()
        return None if row is None else PictureFacts(*row)

    def keep(self, found: Iterable[tuple[Path, PictureFacts]]) -> None:
        """Remember facts of pictures; not of those that are missing or could not be read, which may come back."""
        rows = [
            (str(path.absolute()), *stamp, *facts)
            for path, facts in found
            if (facts.sha256 or "decoded" in facts.flaw) and (stamp := _stamp(path)) is not None
        ]
        self._write("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def result(self, key: str) -> str | None:
        """What was kept under a key."""
        row = self._database.execute("SELECT text FROM results WHERE key = ?", [key]).fetchone()
        return None if row is None else str(row[0])

    def keep_result(self, key: str, text: str) -> None:
        """Remember a text."""
        self._write("INSERT OR REPLACE INTO results VALUES (?, ?)", [(key, text)])

    def digests(self) -> Iterator[tuple[Path, tuple[int, int], str]]:
        """(path, (size, time), SHA-256) of every picture that was read."""
        for path, size, time, digest in self._database.execute("SELECT path, size, time, sha256 FROM pictures"):
            yield Path(path), (size, time), digest

    def _write(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        with contextlib.suppress(sqlite3.OperationalError), self._database:  # a full disk only costs the next start
            self._database.executemany(sql, rows)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _open(source: Path | None) -> sqlite3.Connection:
    for place in [] if source is None else places_for(source, ENDING):
        for _ in range(2):
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                return _connect(str(place))
            except sqlite3.OperationalError:  # read-only, or another machine's lock
                break
            except sqlite3.DatabaseError:
                with contextlib.suppress(OSError):
                    place.unlink()
            except OSError:
                break
    return _connect(":memory:")


def _connect(place: str) -> sqlite3.Connection:
    database = sqlite3.connect(place, timeout=60)
    try:
        with database:
            for statement in TABLES:
                database.execute(statement)
            database.execute("DELETE FROM results WHERE key = ''")  # fails here where the file cannot be written
    except sqlite3.Error:
        database.close()
        raise
    return database
