"""Values out of a JSON file of records; what is wrong becomes one error that says where and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from aura.files import read_text
from aura.formats.pictures import name_flaw
from aura.masks import decode_rle, encode_rle, is_number, polygons_to_mask, rle_area, whole_number
from aura.types import Rle, text_flaw

Item = TypeVar("Item")
Made = TypeVar("Made")

LARGEST = 2**63 - 1
"""Of a whole number: databases and other programs hold no larger ones."""
_TRUTH = {0: False, 1: True, "": False, "0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}


def read_json(path: str | Path) -> Any:
    """The JSON value in a file.

    Raises:
        ValueError: No such file, or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(read_text(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); is the file complete?") from error


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: As :func:`read_json`, or not an object at the top.
    """
    root = read_json(path)
    if not isinstance(root, dict):
        raise ValueError(f"{path}: expected a JSON object with lists of records, got a {type(root).__name__}")
    return root


def truth(value: Any) -> bool | None:
    """A truth value as files write it: ``true``, ``1``, ``1.0``, ``"true"``, ``"1"``; false where there is none.

    ``None`` for what is no truth value.
    """
    if value is None:
        return False
    if not isinstance(value, (bool, int, float, str)):
        return None
    return _TRUTH.get(value.strip().lower() if isinstance(value, str) else value)


def to_rle(value: Any, size: tuple[int, int]) -> Rle:
    """A mask in any of COCO's notations as a compressed RLE of ``size`` (height, width).

    An RLE may lie alone in a list.

    Raises:
        ValueError: It is no mask, has another size, or is damaged.
    """
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        if len(value) > 1 or "counts" not in value[0]:
            what = "RLEs" if "counts" in value[0] else f"objects with {sorted(map(str, value[0]))}"
            raise ValueError(f"a list of {len(value)} {what} is no mask; give one RLE, or polygons as lists of x and y")
        value = value[0]
    if isinstance(value, Mapping):
        found = value.get("size")
        sides = [whole_number(side) for side in found] if isinstance(found, list) else None
        if sides != list(size):
            swapped = "; its sides are swapped" if sides == list(size)[::-1] else ""
            raise ValueError(f"the RLE's size is {found} but the image's is {list(size)} (height, width){swapped}")
        if isinstance(value.get("counts"), str):
            rle = {"size": list(size), "counts": value["counts"]}
            rle_area(rle)
            return rle
        return encode_rle(decode_rle(value))
    if isinstance(value, list):
        return encode_rle(polygons_to_mask(value, *size))
    raise ValueError(f"a mask is an RLE or a list of polygons, not a {type(value).__name__}")


class Flaws:
    """Bad records: the first one raises, or, with ``skip``, each is left out and told in ``told``."""

    def __init__(self, *, skip: bool = False) -> None:
        self.skip = skip
        self.told: list[str] = []

    @contextmanager
    def leaving_out(self) -> Iterator[None]:
        """What is read within is one record; a ``ValueError`` ends it."""
        try:
            yield
        except ValueError as error:
            if not self.skip:
                raise
            self.told.append(str(error))

    def kept(self, read: Callable[[Item], Made | None], items: Iterable[Item]) -> Iterator[Made]:
        """What ``read`` makes of each item, one record; not of those left out, nor of those it makes nothing of."""
        for item in items:
            made = None
            with self.leaving_out():
                made = read(item)
            if made is not None:
                yield made


class RecordReader:
    """Takes typed values out of records; every error names the file, the record and the remedy."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, where: str, what: str) -> ValueError:
        """The error to raise about the record ``where``."""
        return ValueError(f"{self.path}: {where}: {what}")

    def root(self) -> dict[str, Any]:
        """The parsed file."""
        return read_json_object(self.path)

    def records(self, root: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        """The list ``root[key]``, every item an object."""
        records = root.get(key)
        if not isinstance(records, list):
            found = "it is missing" if key not in root else f"it is a {type(records).__name__}"
            raise self.error(f"'{key}'", f"expected a list, but {found}; is this file in the right format?")
        for number, record in enumerate(records):
            self._object(record, key, number)
        return records

    def by_id(self, root: Mapping[str, Any], key: str, kind: str) -> dict[int, dict[str, Any]]:
        """The records of ``root[key]`` by their ``id``, in the file's order; an id may not occur twice."""
        found: dict[int, dict[str, Any]] = {}
        for position, record in enumerate(self.records(root, key)):
            record_id = self.id_of(record, key, kind, position)
            if record_id in found:
                raise self.twice(kind, record_id)
            found[record_id] = record
        return found

    def id_of(self, record: Any, key: str, kind: str, position: int) -> int:
        """The ``id`` of a list's item, which must be an object."""
        where = f"{kind} {record['id']}" if "id" in self._object(record, key, position) else f"'{key}' item {position}"
        return self.integer(record, "id", where)

    def twice(self, kind: str, record_id: int) -> ValueError:
        """The error about an id that two records have."""
        return self.error(f"{kind} {record_id}", "the id occurs twice; give every record an id of its own")

    def _object(self, record: Any, key: str, position: int) -> dict[str, Any]:
        if not isinstance(record, dict):
            raise self.error(f"'{key}' item {position}", f"expected an object, got a {type(record).__name__}")
        return record

    def integer(self, record: Mapping[str, Any], key: str, where: str, *, at_least: int | None = None) -> int:
        """The whole number ``record[key]``, which may be written ``96.0`` or ``"96"``."""
        value = whole_number(record.get(key))
        if value is None or (at_least is not None and value < at_least):
            wanted = "a whole number" if at_least is None else f"a whole number of at least {at_least}"
            raise self.error(where, f"'{key}' must be {wanted}, {_found(record, key)}")
        if abs(value) > LARGEST:
            raise self.error(where, f"'{key}' is {value}, which is too large; take numbers below 2^63")
        return value

    def number(self, record: Mapping[str, Any], key: str, where: str) -> float:
        """The number ``record[key]``, which may be written as text."""
        value = record.get(key)
        if not is_number(value):
            raise self.error(where, f"'{key}' must be a number, {_found(record, key)}")
        return float(value)  # type: ignore[arg-type]

    def flag(self, record: Mapping[str, Any], key: str, where: str) -> bool:
        """The truth value ``record[key]``, which may be written as a number or as text; false where it is absent."""
        found = truth(record.get(key))
        if found is None:
            raise self.error(where, f"'{key}' must be true or false, {_found(record, key)}")
        return found

    def text(self, record: Mapping[str, Any], key: str, where: str) -> str:
        """The non-empty text ``record[key]``."""
        value = self._letters(record, key, where)
        if flaw := text_flaw(value):
            raise self.error(where, f"'{key}' {flaw}")
        return value

    def _letters(self, record: Mapping[str, Any], key: str, where: str) -> str:
        value = record.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.error(where, f"'{key}' must be a text, {_found(record, key)}")
        return value

    def file_name(self, record: Mapping[str, Any], key: str, where: str) -> str:
        """The text ``record[key]``, which must name a file below the folder of the pictures."""
        # A file's name may hold bytes that are no text, which Python writes as halves of characters.
        return self.name_below(self._letters(record, key, where), where)

    def name_below(self, name: str, where: str) -> str:
        """``name``, which must be of a file below the folder of the pictures."""
        if flaw := name_flaw(name):
            raise self.error(where, flaw)
        return name

    def integers(self, record: Mapping[str, Any], key: str, where: str) -> tuple[int, ...]:
        """The list of whole numbers ``record[key]``."""
        value = record.get(key)
        numbers = [whole_number(item) for item in value] if isinstance(value, list) else [None]
        if any(number is None or abs(number) > LARGEST for number in numbers):
            raise self.error(where, f"'{key}' must be a list of whole numbers, {_found(record, key)}")
        return tuple(number for number in numbers if number is not None)

    def mask(self, value: Any, size: tuple[int, int], where: str) -> Rle | None:
        """A mask as an RLE of ``size`` (height, width); ``None`` where the file has none."""
        if value is None or value == []:
            return None
        try:
            return to_rle(value, size)
        except (ValueError, TypeError) as error:
            raise self.error(where, f"{error}; correct the mask or drop the annotation") from error


def _found(record: Mapping[str, Any], key: str) -> str:
    return f"got {record[key]!r:.60}" if key in record else "but it is missing"
