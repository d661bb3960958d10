"""Append-only files that many processes write and read at once: tables of fixed rows, and blobs found through one.

Each process appends to files of its own, so that nothing is ever locked. A row is written after the blob it points to,
and it ends with a checksum: a process that is killed loses the blob it was writing and no other. File names begin with
the time the file was made. Of several rows with the same key the one in the oldest file counts, so that what a process
adds never replaces what others have read before.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

SHARD_BLOBS = 1000
"""Blobs in one file, at most."""
KEY_WORDS = 4
"""A key is a SHA-256 digest: four words of 64 bits."""
SEAL = np.uint64(0x9E3779B97F4A7C15)
"""What the words of a whole row give when joined by exclusive or; a row of zeros does not."""


class DamagedError(Exception):
    """A blob is not what was written; the message says where."""


def new_name() -> str:
    """A file name that sorts after all earlier ones and that no other process takes."""
    return f"{time.time_ns():020d}-{secrets.token_hex(4)}"


class RowTable:
    """Rows of 64-bit words found by key, in memory and in the ``*.rows`` files of a folder.

    Args:
        folder: Made if it is not there.
        payload: Words of a row beside its key.
        companion: Suffix of a file that each file of rows needs beside it; rows without count as deleted.
    """

    def __init__(self, folder: Path, payload: int, companion: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._companion = folder, companion
        self._width = KEY_WORDS + payload + 1
        self._fresh: dict[bytes, tuple[str, tuple[int, ...]]] = {}  # written by this process since the last refresh
        self._dropped: set[str] = set()
        self._file: tuple[str, IO[bytes]] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read what all processes have written so far."""
        rows: list[NDArray[np.uint64]] = [np.zeros((0, self._width), np.uint64)]
        self._dropped |= {path.stem for path in self.folder.glob("*.dropped")}
        names = []
        for path in sorted(self.folder.glob("*.rows")):
            if self._companion and not path.with_suffix(self._companion).is_file():
                continue
            words = np.fromfile(path, "<u8")
            found = words[: len(words) // self._width * self._width].reshape(-1, self._width)
            whole = np.bitwise_xor.reduce(found, axis=1) == SEAL
            offsets = [int(gone.split("_")[1]) for gone in self._dropped if gone.startswith(f"{path.stem}_")]
            rows.append(found[whole & ~np.isin(found[:, KEY_WORDS], np.array(offsets, np.uint64))])
            names.append(path.stem)
        owners = np.repeat(np.arange(len(names), dtype=np.int32), [len(part) for part in rows[1:]])
        joined = np.concatenate(rows)
        order = np.argsort(joined[:, 0], kind="stable")
        self._table = joined[order], owners[order], names
        self._fresh = {}

    def find(self, key: bytes) -> tuple[str, tuple[int, ...]] | None:
        """The name of the file and the payload of the row that has this key."""
        rows, owners, names = self._table
        wanted = np.frombuffer(key, "<u8")
        at = int(np.searchsorted(rows[:, 0], wanted[0]))
        while at < len(rows) and rows[at, 0] == wanted[0]:
            if (rows[at, :KEY_WORDS] == wanted).all():
                return names[owners[at]], tuple(rows[at, KEY_WORDS:-1].tolist())
            at += 1
        return self._fresh.get(key)

    def append(self, key: bytes, payload: tuple[int, ...], name: str) -> None:
        """Add a row to this process's file ``name``.

        Raises:
            OSError: It cannot be written.
        """
        row = np.zeros(self._width, np.uint64)
        row[:KEY_WORDS], row[KEY_WORDS:-1] = np.frombuffer(key, "<u8"), payload
        row[-1] = np.bitwise_xor.reduce(row) ^ SEAL
        if self._file is None or self._file[0] != name:
            self.close()
            self._file = name, (self.folder / f"{name}.rows").open("ab", buffering=0)
        self._file[1].write(row.astype("<u8").tobytes())
        self._fresh[key] = (name, payload)

    def drop(self, key: bytes) -> None:
        """Forget the row of this key, for all processes and for good; the first word of its payload tells which."""
        found = self.find(key)
        if found is not None:
            mark = f"{found[0]}_{found[1][0]}"
            self._dropped.add(mark)
            with contextlib.suppress(OSError):  # a folder that is read-only: this process forgets it all the same
                (self.folder / f"{mark}.dropped").touch()
            self.refresh()

    def close(self) -> None:
        """End the file that this process writes."""
        if self._file is not None:
            self._file[1].close()
            self._file = None

    def __len__(self) -> int:
        """Keys that there were when the table was last refreshed, and this process's own."""
        return len(np.unique(self._table[0][:, :KEY_WORDS], axis=0)) + len(self._fresh)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # another process appends to a file of its own


class Shards:
    """Blobs by key in the ``*.shard`` files of a folder, up to :data:`SHARD_BLOBS` in each.

    Threads of one process may share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = RowTable(folder, payload=2, companion=".shard")
        self._lock = threading.Lock()
        self._writer: _Writer | None = None

    def __contains__(self, key: bytes) -> bool:
        return self._index.find(key) is not None

    def refresh(self) -> None:
        """See what other processes have added."""
        with self._lock:
            self._index.refresh()

    def get(self, key: bytes) -> bytes | None:
        """The blob of this key, or ``None``.

        Raises:
            DamagedError: It is not what was written.
        """
        found = self._index.find(key)
        if found is None:
            return None
        name, (offset, packed) = found
        length, checksum = packed >> 32, packed & 0xFFFFFFFF
        path = self.folder / f"{name}.shard"
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                blob = file.read(length)
        except FileNotFoundError:  # deleted since; so are the rows then
            self.refresh()
            return None
        except OSError as error:
            raise DamagedError(f"{path} at byte {offset}: {error}") from error
        if len(blob) != length or zlib.crc32(blob) != checksum:
            raise DamagedError(f"{path} at byte {offset}: {len(blob)} of {length} bytes, wrong checksum")
        return blob

    def add(self, key: bytes, blob: bytes) -> None:
        """Append a blob, unless the key has one.

        Raises:
            OSError: It cannot be written.
        """
        with self._lock:
            if key in self:
                return
            writer = self._writer
            if writer is None or writer.pid != os.getpid() or writer.count >= SHARD_BLOBS:
                self._end()
                writer = self._writer = _Writer(self.folder)
            try:
                offset = writer.append(blob)
                self._index.append(key, (offset, len(blob) << 32 | zlib.crc32(blob)), writer.name)
            except OSError:
                self._writer = None  # its file may end in a part of a blob
                self._index.close()
                raise

    def drop(self, key: bytes) -> None:
        """Forget a damaged blob, for all processes and for good."""
        with self._lock:
            self._index.drop(key)

    def close(self) -> None:
        """End the files that this process writes, and flush them to disk."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._writer is not None and self._writer.pid == os.getpid():
            self._writer.close()
        self._writer = None
        self._index.close()
        self._index.refresh()

    def __len__(self) -> int:
        return len(self._index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_writer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class _Writer:
    """A shard that this process appends to."""

    def __init__(self, folder: Path) -> None:
        self.name, self.pid, self.count = new_name(), os.getpid(), 0
        self._file = (folder / f"{self.name}.shard").open("xb")

    def append(self, blob: bytes) -> int:
        offset = self._file.tell()
        self._file.write(blob)
        self._file.flush()
        self.count += 1
        return offset

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
