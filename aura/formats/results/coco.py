"""COCO results: a list of segmentations with scores, as detectron2, VRSP, AISFormer and PSALM write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aura.formats.reading import RecordReader, to_rle
from aura.formats.results.found import FoundMask, once
from aura.formats.streaming import items
from aura.masks import whole_number
from aura.types import Rle

_WANTED = ("image_id", "category_id", "segmentation", "score")
_HINT = "COCO results are a list of records; annotations are no results"


def read_coco_results(path: str | Path) -> list[FoundMask]:
    """The segmentations of a file, in its order.

    A record has ``image_id`` (a number, or the name of the image's file), ``category_id``, ``segmentation`` (an RLE)
    and ``score``. One with ``annotation_id`` needs neither category nor score.

    Raises:
        ValueError: No such file, not such a list, a field is missing or wrong, or a record occurs twice.
    """
    return once(_records(Path(path)), Path(path))


def _records(path: Path) -> Iterator[FoundMask]:
    reader = RecordReader(path)
    seen: dict[Any, int] = {}
    for position, record in items(path, _HINT):
        where = f"result {position}"
        if not isinstance(record, dict):
            raise reader.error(where, f"expected an object, got a {type(record).__name__}")
        wanted = ("annotation_id", "segmentation") if "annotation_id" in record else _WANTED
        if missing := [key for key in wanted if key not in record]:
            raise reader.error(where, f"{', '.join(missing)} missing; COCO results have {', '.join(_WANTED)}")
        mask = _mask(reader, record["segmentation"], where)
        if "annotation_id" in record:
            yield FoundMask(f"{path}: {where}", mask, annotation=reader.integer(record, "annotation_id", where))
            continue
        found = _in_image(reader, record, mask, where)
        key = (found.image, found.category, found.score, mask["counts"], str(record.get("bbox")))
        if key in seen:
            raise reader.error(where, f"it repeats result {seen[key]}; was the file joined from parts that overlap?")
        seen[key] = position
        yield found


def _in_image(reader: RecordReader, record: Mapping[str, Any], mask: Rle, where: str) -> FoundMask:
    """A result that names its image and its category."""
    image = record["image_id"]
    if not isinstance(image, str):
        image = whole_number(image)
    if image is None:
        found = record["image_id"]
        raise reader.error(where, f"'image_id' must be a whole number or a file's name, got {found!r:.60}")
    return FoundMask(
        f"{reader.path}: {where}",
        mask,
        image=image,
        category=reader.integer(record, "category_id", where),
        score=reader.number(record, "score", where),
    )


def _mask(reader: RecordReader, value: Any, where: str) -> Rle:
    if not isinstance(value, dict):
        kind = "polygons" if isinstance(value, list) else f"a {type(value).__name__}"
        raise reader.error(where, f"'segmentation' must be an RLE with 'size' and 'counts', not {kind}")
    size = value.get("size")
    sides = [whole_number(side) for side in size] if isinstance(size, list) else []
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        raise reader.error(where, f"the RLE's 'size' must be [height, width], got {size!r:.60}")
    try:
        return to_rle(value, (sides[0], sides[1]))
    except (ValueError, TypeError) as error:
        raise reader.error(where, f"'segmentation': {error}") from error
