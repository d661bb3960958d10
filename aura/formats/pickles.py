"""Pickles of plain values, read without running what is in them.

A pickle is a program: it may name any function and call it. The data sets that come as pickles hold lists, dicts,
texts and numbers, which need none, so every name in a pickle is refused. Predictions hold numpy arrays too, which need
a few names; these can be allowed.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

MAX_BYTES = 1 << 30
"""Of a file; the largest known one, of RefCOCOg, has about 50 MB."""


ARRAYS = frozenset(
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
) | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
"""The names (module, name) that numpy arrays are rebuilt with; their data are bytes."""

_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError, struct.error),
    *(OverflowError, MemoryError, RecursionError),
)
"""What Python raises at a damaged pickle."""


class _RefusedError(Exception):
    """Something in a pickle that is no plain value."""


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], names: Collection[tuple[str, str]]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._names:
            return super().find_class(module, name)
        raise _RefusedError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("it refers to something outside of it")


def read_plain_pickle(path: str | Path, *, names: Collection[tuple[str, str]] = (), max_bytes: int = MAX_BYTES) -> Any:
    """The value in a pickle of lists, dicts, sets, texts, bytes, numbers, truth values and ``None``.

    Texts of Python 2 are read as UTF-8; what is not UTF-8 becomes U+FFFD.

    Args:
        path: The file.
        names: What it may name all the same, such as :data:`ARRAYS`.
        max_bytes: Larger files are refused.

    Raises:
        ValueError: No such file, not a pickle, or one with anything else in it.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ValueError(f"{path}: has {size} bytes, more than {max_bytes}; is this the right file?")
        file = path.open("rb")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        with file:
            return _PlainUnpickler(file, names).load()
    except _RefusedError as error:
        raise ValueError(
            f"{path}: is refused, since {error}, and reading that could run code; use the original file, which holds "
            "plain lists, dicts, texts and numbers only"
        ) from error
    except _DAMAGE as error:
        raise ValueError(f"{path}: is not a pickle ({error or type(error).__name__}); is the file complete?") from error
