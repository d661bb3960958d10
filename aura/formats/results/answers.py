"""Files with a method's own answers: GLaMM's and Sa2VA's JSON, PSALM's pickled list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aura.formats.pickles import ARRAYS, read_plain_pickle
from aura.formats.reading import RecordReader, read_json_object, to_rle
from aura.formats.results.coco import read_coco_results
from aura.formats.results.found import FoundMask, as_arrays, by_name, mask_of_array, once
from aura.formats.streaming import items
from aura.masks import whole_number
from aura.types import Rle

_MAX_BYTES = 1 << 35
"""Of PSALM's list: it holds two whole masks for each question."""


def read_glamm(path: str | Path) -> list[FoundMask]:
    """A folder of JSON files, one a picture: ``image_id`` (its name), ``pred_masks`` (RLEs), ``phrases``, ``caption``.

    The masks are in the order of the answer's ``[SEG]``. A picture is one of a question, or an image.

    Raises:
        ValueError: No such folder or no file in it, a file that is none of these, or a picture twice.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder}: is no folder; give the one with the JSON files that GLaMM's infer.py wrote")
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(f"{folder}: has no JSON file; is it the right folder?")
    return once((found for file in files for found in _glamm_answer(file)), folder)


def _glamm_answer(file: Path) -> Iterator[FoundMask]:
    record = read_json_object(file)
    if len(record) == 1 and isinstance(next(iter(record.values())), dict):
        record = next(iter(record.values()))  # some versions put the answer under the picture's name
    reader = RecordReader(file)
    if missing := [key for key in ("image_id", "pred_masks") if key not in record]:
        raise reader.error("the answer", f"{', '.join(missing)} missing; GLaMM's infer.py writes both")
    masks = record["pred_masks"]
    if not isinstance(masks, list):
        raise reader.error("the answer", f"'pred_masks' must be a list of RLEs, got a {type(masks).__name__}")
    yield from by_name(
        record["image_id"], [_mask(mask, f"{file}: mask {n}") for n, mask in enumerate(masks)], str(file)
    )


def read_sa2va(path: str | Path) -> list[FoundMask]:
    """A folder as GLaMM's (``sa2va_eval_gcg.py``), or ``results.json`` (``r2s_eval.py``).

    The latter is a list of records with ``image_path`` (the picture) and ``prediction_masks``: for each text that was
    asked, its masks (nested lists [1, H, W], or RLEs) or null. Their ``img_id`` only counts the records.

    Raises:
        ValueError: As the readers of GLaMM's and of COCO's files.
    """
    return read_glamm(path) if Path(path).is_dir() else once(_sa2va_records(Path(path)), Path(path))


def _sa2va_records(path: Path) -> Iterator[FoundMask]:
    reader = RecordReader(path)
    for position, record in items(path, "Sa2VA's r2s_eval.py writes a list of records"):
        where = f"result {position}"
        if not isinstance(record, dict):
            raise reader.error(where, f"expected an object, got a {type(record).__name__}")
        if missing := [key for key in ("image_path", "prediction_masks") if key not in record]:
            raise reader.error(where, f"{', '.join(missing)} missing; Sa2VA's r2s_eval.py writes both")
        groups = record["prediction_masks"]
        if not isinstance(groups, list):
            raise reader.error(where, f"'prediction_masks' must be a list, got a {type(groups).__name__}")
        masks: list[tuple[str, Rle]] = []
        for group in groups:
            for value in group or ():
                masks += _any_masks(value, f"{path}: {where}, mask {len(masks)}")
        yield from by_name(record["image_path"], masks, f"{path}: {where}")


def _any_masks(value: Any, where: str) -> list[tuple[str, Rle]]:
    if isinstance(value, dict):
        return [_mask(value, where)]
    return [(where, mask_of_array(array, where)) for array in as_arrays(value, where)]


def _mask(value: Any, where: str) -> tuple[str, Rle]:
    size = value.get("size") if isinstance(value, dict) else None
    sides = [whole_number(side) for side in size] if isinstance(size, list) else []
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        raise ValueError(f"{where}: expected an RLE with 'size' [height, width] and 'counts', got {value!r:.60}")
    try:
        return where, to_rle(value, (sides[0], sides[1]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def read_psalm(path: str | Path) -> list[FoundMask]:
    """``coco_instances_results.json`` of PSALM's instance task, or ``pred_*.pkl`` of its referring task.

    The latter is a list of ``{"pred": [H, W], "gt": [H, W], "name": the picture's file}``, one mask a question.

    Raises:
        ValueError: As the reader of COCO results, or the pickle holds anything but such a list.
    """
    path = Path(path)
    if path.suffix != ".pkl":
        return read_coco_results(path)
    rows = read_plain_pickle(path, names=ARRAYS, max_bytes=_MAX_BYTES)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected a list of predictions, got {type(rows).__name__} {rows!r:.40}")
    return once(_psalm_rows(path, rows), path)


def _psalm_rows(path: Path, rows: list[Any]) -> Iterator[FoundMask]:
    for position, row in enumerate(rows):
        where = f"{path}: result {position}"
        if not isinstance(row, dict) or not {"pred", "name"} <= row.keys():
            raise ValueError(f"{where}: 'pred' and 'name' are needed; PSALM's eval_grefcoco.py writes both")
        arrays = as_arrays(row["pred"], where)
        yield from by_name(row["name"], [(where, mask_of_array(array, where)) for array in arrays], where)
