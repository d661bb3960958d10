"""Pickles of plain values, read without running what is in them.

A pickle is a program: it may name any function and call it. The data sets that come as pickles hold lists, dicts,
texts and numbers, which need none, so every name in a pickle is refused.
"""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 30
"""Of a file; the largest known one, of RefCOCOg, has about 50 MB."""


_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError, struct.error),
    *(OverflowError, MemoryError, RecursionError),
)
"""What Python raises at a damaged pickle."""


class _RefusedError(Exception):
    """Something in a pickle that is no plain value."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise _RefusedError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("it refers to something outside of it")


def read_plain_pickle(path: str | Path) -> Any:
    """The value in a pickle of lists, dicts, sets, texts, bytes, numbers, truth values and ``None``.

    Texts of Python 2 are read as UTF-8; what is not UTF-8 becomes U+FFFD.

    Raises:
        ValueError: No such file, not a pickle, or one with anything else in it.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if size > MAX_BYTES:
        raise ValueError(f"{path}: has {size} bytes, more than {MAX_BYTES}; is this the right file?")
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8", errors="replace").load()
    except _RefusedError as error:
        raise ValueError(
            f"{path}: is refused, since {error}, and reading that could run code; use the original file, which holds "
            "plain lists, dicts, texts and numbers only"
        ) from error
    except _DAMAGE as error:
        raise ValueError(f"{path}: is not a pickle ({error or type(error).__name__}); is the file complete?") from error
