"""The rule that every reader of files keeps, and the damage that tries it.

The rule: a result, or one ``ValueError`` that names the file. Anything else is a fault: another exception, more than 5
seconds of computing, a message without the file's name. Hypothesis makes the damage and shrinks what it finds.
"""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

SECONDS = 5.0
"""Of computing, for one file of a few kilobytes."""


class Fault(Exception):
    """A reader broke the rule."""


@dataclass(frozen=True)
class Reader:
    """What is read, from a valid content; ``suffix`` is the file's, none where no file is read.

    ``bad`` makes contents where damaging the valid one is not enough.
    """

    name: str
    content: Any
    read: Callable[[Any], object]
    suffix: str = ".json"
    bad: st.SearchStrategy[Any] | None = None


# --- damage -----------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from([2**31, 2**53 + 1, 2**63, -(2**63), 10**30, 10**400]), st.floats(width=64)
)
ODD = ["", " ", "[SEG]", "<image>", "\ud800", "../../etc/passwd", "1e999", "7", "\0"]
TEXTS = st.one_of(st.text(max_size=6), st.sampled_from(ODD))
EMPTY: st.SearchStrategy[Any] = st.sampled_from([[], {}, [[]], [{}], [[[]]]])
VALUES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.lists(NUMBERS, max_size=4), EMPTY)
EDITS = st.lists(
    st.tuples(st.integers(0, 999), st.sampled_from(["put", "put", "put", "drop", "twice", "swap"]), VALUES),
    min_size=1,
    max_size=3,
)
CUTS = st.lists(st.tuples(st.integers(0, 99_999), st.integers(0, 3), st.binary(max_size=4)), max_size=3)


def damaged_value(value: Any, edits: list[tuple[int, str, Any]]) -> Any:
    """A copy of a JSON value with some of its parts replaced, dropped, doubled or exchanged."""
    root = [deepcopy(value)]
    for place, what, new in edits:
        nodes = list(_places(root))
        holder, key = nodes[place % len(nodes)]
        if what == "drop" and holder is not root:
            del holder[key]
        elif what == "twice" and isinstance(holder, list) and holder is not root:
            holder.insert(key, deepcopy(holder[key]))
        elif what == "swap":
            other, at = nodes[(place * 7 + 3) % len(nodes)]
            holder[key] = deepcopy(other[at])
        else:
            holder[key] = deepcopy(new)
    return root[0]


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    for key in keys:
        yield holder, key
        if isinstance(holder[key], (dict, list)):
            yield from _places(holder[key])


def damaged_bytes(data: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    """Bytes replaced, put in, taken out, or cut off."""
    for place, what, new in cuts:
        at = place % (len(data) + 1)
        rest = (at + len(new), at, at + 1 + len(new), len(data))[what]
        data = data[:at] + new + data[rest:]
    return data


def damage(reader: Reader) -> st.SearchStrategy[Any]:
    """Damaged contents: bytes where a file is read, else a value."""
    if reader.bad is not None:
        return reader.bad
    if isinstance(reader.content, bytes):
        return st.builds(damaged_bytes, st.just(reader.content), CUTS)
    if isinstance(reader.content, str):
        cut = st.builds(damaged_bytes, st.just(reader.content.encode()), CUTS)
        return cut.map(lambda data: data.decode("utf-8", "replace"))
    values = st.builds(damaged_value, st.just(reader.content), EDITS)
    if not reader.suffix:
        return values.filter(lambda value: isinstance(value, dict))
    to_text = yaml.safe_dump if reader.suffix == ".yaml" else json.dumps
    # Three of four are well-formed files with wrong values.
    whole = values.map(lambda value: to_text(value).encode("utf-8", "surrogatepass"))
    return st.one_of(whole, whole, whole, st.builds(damaged_bytes, whole, CUTS))


# --- the rule ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Within ``with``: so much computing and no more, however busy the machine is."""

    def stop(*_: object) -> None:
        raise Fault(f"it computed for more than {seconds:.0f} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def outcome(reader: Reader, content: Any, folder: Path) -> str:
    """``read`` or ``refused``.

    Raises:
        Fault: The reader did anything else.
    """
    with tempfile.TemporaryDirectory(dir=folder) as own:
        path = Path(own) / f"subject{reader.suffix}"
        if reader.suffix:
            path.write_bytes(content)
        try:
            with time_limit(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader.read(path if reader.suffix else content)
        except ValueError as error:
            if reader.suffix and own not in str(error):
                raise Fault(f"{reader.name}: the message names no file: {error}") from error
            return "refused"
        except Exception as error:
            if isinstance(error, Fault):
                raise
            raise Fault(f"{reader.name}: {type(error).__name__}: {error}") from error
    return "read"


def fuzz(reader: Reader, num: int, folder: Path, number: int = 0) -> Counter[str]:
    """How ``num`` damaged contents were taken; the first fault raises, with the smallest content that shows it."""
    taken: Counter[str] = Counter()
    phases, checks = (Phase.generate, Phase.shrink), list(HealthCheck)

    @seed(number)
    @settings(max_examples=num, database=None, deadline=None, phases=phases, suppress_health_check=checks)
    @given(damage(reader))
    def hold(content: Any) -> None:
        taken[outcome(reader, content, folder)] += 1

    hold()
    return taken
