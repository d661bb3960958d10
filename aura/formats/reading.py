"""Values out of a JSON file of records; what is wrong becomes one error that says where and what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aura.masks import decode_rle, encode_rle, polygons_to_mask, rle_area
from aura.types import Rle


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: No such file, not JSON, or not an object at the top.
    """
    path = Path(path)
    try:
        root = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); is the file complete?") from error
    if not isinstance(root, dict):
        raise ValueError(f"{path}: expected a JSON object with lists of records, got a {type(root).__name__}")
    return root


def to_rle(value: Any, size: tuple[int, int]) -> Rle:
    """A mask in any of COCO's notations as a compressed RLE of ``size`` (height, width).

    Raises:
        ValueError: It is no mask, has another size, or is damaged.
    """
    if isinstance(value, Mapping):
        if list(value.get("size") or ()) != list(size):
            raise ValueError(f"the RLE's size is {value.get('size')} but the image's is {list(size)} (height, width)")
        if isinstance(value.get("counts"), str):
            rle_area(value)
            return {"size": list(size), "counts": value["counts"]}
        return encode_rle(decode_rle(value))
    if isinstance(value, list):
        return encode_rle(polygons_to_mask(value, *size))
    raise ValueError(f"a mask is an RLE or a list of polygons, not a {type(value).__name__}")


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
        """The whole number ``record[key]``."""
        value = record.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or (at_least is not None and value < at_least):
            wanted = "a whole number" if at_least is None else f"a whole number of at least {at_least}"
            raise self.error(where, f"'{key}' must be {wanted}, {_found(record, key)}")
        return value

    def number(self, record: Mapping[str, Any], key: str, where: str) -> float:
        """The number ``record[key]``."""
        value = record.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(where, f"'{key}' must be a number, {_found(record, key)}")
        return float(value)

    def text(self, record: Mapping[str, Any], key: str, where: str) -> str:
        """The non-empty text ``record[key]``."""
        value = record.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.error(where, f"'{key}' must be a text, {_found(record, key)}")
        return value

    def integers(self, record: Mapping[str, Any], key: str, where: str) -> tuple[int, ...]:
        """The list of whole numbers ``record[key]``."""
        value = record.get(key)
        if not isinstance(value, list) or any(not isinstance(v, int) or isinstance(v, bool) for v in value):
            raise self.error(where, f"'{key}' must be a list of whole numbers, {_found(record, key)}")
        return tuple(value)

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
