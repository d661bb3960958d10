"""Files that appear whole or not at all: written beside their place, flushed to disk, then moved over it."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, TypeGuard

LONGEST_NAME = 255
"""Bytes of a file's own name that every file system takes."""


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark; the mark is passed over.

    Raises:
        UnicodeDecodeError: It is neither (a ``ValueError``).
    """
    with Path(path).open("rb") as file:
        marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return Path(path).read_text(encoding="utf-16" if marked else "utf-8-sig")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically; parent folders are made. A reader sees the old file or the new one."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{path.parent} is, or lies below, a file; choose another folder") from error
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(plain_mode())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_parts(path: str | Path, parts: Iterable[str]) -> None:
    """Write a text that comes in parts, never held as a whole, as UTF-8 and atomically."""
    with unfinished(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def list_parts(records: Iterable[str]) -> Iterator[str]:
    """For :func:`write_parts`: a JSON list of ``records``, which are JSON already, each on its line."""
    before = "["
    for record in records:
        yield f"{before}\n{record}"
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"


@contextlib.contextmanager
def unfinished(path: str | Path) -> Iterator[Path]:
    """A hidden place beside ``path`` to write to, which becomes ``path`` when all is written.

    After an error, Ctrl-C among them, nothing of it is left. It is not flushed to disk here.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, obj: Any, *, indent: int | None = None) -> None:
    """Write ``obj`` as JSON with a final newline, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, to_json(obj, indent=indent, compact=indent is None) + "\n")


def to_json(obj: Any, *, indent: int | None = None, compact: bool = False) -> str:
    """``obj`` as JSON. NaN and infinity are refused: they are not JSON."""
    return json.dumps(obj, indent=indent, separators=(",", ":") if compact else None, allow_nan=False)


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record that can be JSON: NaN and infinity become ``null``, and ``not_finite`` lists their keys (``a/b``)."""
    names: list[str] = []

    def clean(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {key: clean(item, f"{path}/{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item, f"{path}/{number}") for number, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            names.append(path[1:])
            return None
        return value

    cleaned: dict[str, Any] = clean(record, "")
    return cleaned | ({"not_finite": names} if names else {})


def places_for(path: Path, ending: str) -> list[Path]:
    """Where something derived from ``path`` may be kept, best first: hidden beside it, else in the user's cache folder.

    The cache folder is ``$AURA_CACHE``, else ``$XDG_CACHE_HOME/aura``, else ``~/.cache/aura``.
    """
    own = os.environ.get("AURA_CACHE")
    cache = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aura"
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return [path.with_name(f".{path.name}{ending}"), cache / f"{name}{ending}"]


def is_neighbour(name: object) -> TypeGuard[str]:
    """Whether a file may name another one of its own folder so: a text that leads neither below nor out of it.

    Files come from others. What an index, a pointer or a list in one of them calls a file must not be another's.
    """
    if not isinstance(name, str) or "\0" in name:
        return False
    path = PureWindowsPath(name)  # knows both kinds of slashes, and drives
    if path.parts != (name,) or name == ".." or path.drive or path.root:
        return False
    try:
        return len(os.fsencode(name)) <= LONGEST_NAME
    except UnicodeEncodeError:
        return False


def make_weights_plain(folder: str | Path) -> None:
    """Give every ``.safetensors`` file below ``folder`` a new file's mode: safetensors writes for the owner alone."""
    for file in Path(folder).rglob("*.safetensors"):
        file.chmod(plain_mode())


def plain_mode() -> int:
    """The mode a new file would have had: ``mkstemp`` makes files private, results should not be."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
