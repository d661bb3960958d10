"""A data set as COCO instances of one kind of mask, or as COCOA-cls with both; masks stay RLE, ids stay the same.

The file is changed record by record and never held as a whole. Conversations have no place in these formats.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aura.files import to_json, write_parts
from aura.formats.amodal_reason_seg import AmodalReasonSeg, invisible_rle
from aura.formats.exports.common import UNKNOWN_SHAPE, Account, MaskKind, check_mask
from aura.formats.objects import is_unknown
from aura.formats.streaming import Member, members
from aura.masks import rle_area, rle_bbox
from aura.targets import rate_from_areas
from aura.types import Rle

LISTS = ("images", "annotations", "categories", "conversations")

Change = Callable[[Mapping[str, Any]], dict[str, Any] | None]
Watch = Callable[[Iterable[Member]], Iterable[Member]]


def export_instances(dataset: AmodalReasonSeg, out: Path, *, kind: MaskKind, watch: Watch = iter) -> Account:
    """Write COCO instances: ``segmentation`` is the visible or the amodal mask of each object.

    Args:
        dataset: An opened file.
        out: The file to write; it appears whole or not at all.
        kind: Which mask.
        watch: Wraps the records, for a progress bar.

    Raises:
        ValueError: A mask is empty or damaged.
    """

    def instance(annotation: Mapping[str, Any]) -> dict[str, Any] | None:
        if kind == "amodal" and is_unknown(annotation, "segmentation"):
            return None
        mask: Rle = annotation["visible_mask" if kind == "visible" else "segmentation"]
        check_mask(mask, f"{dataset.source}: annotation {annotation['id']}: its {kind} mask")
        own = {key: annotation[key] for key in ("id", "image_id", "category_id")}
        return {**own, "segmentation": mask, "area": rle_area(mask), "bbox": rle_bbox(mask), "iscrowd": 0}

    return _export(dataset, out, instance, watch)


def export_amodal(dataset: AmodalReasonSeg, out: Path, *, watch: Watch = iter) -> Account:
    """Write COCOA-cls: ``segmentation`` is the amodal mask, ``visible_mask`` and ``invisible_mask`` stand beside it.

    Arguments and errors as in :func:`export_instances`.
    """

    def amodal(annotation: Mapping[str, Any]) -> dict[str, Any] | None:
        if is_unknown(annotation, "segmentation"):
            return None
        whole, seen = annotation["segmentation"], annotation["visible_mask"]
        for name, mask in (("amodal", whole), ("visible", seen)):
            check_mask(mask, f"{dataset.source}: annotation {annotation['id']}: its {name} mask")
        area, visible = rle_area(whole), rle_area(seen)
        record = {**annotation, "area": area, "bbox": rle_bbox(whole), "visible_bbox": rle_bbox(seen), "iscrowd": 0}
        record["occlude_rate"] = rate_from_areas(visible, area)
        if visible < area:
            record["invisible_mask"] = invisible_rle(seen, whole)
        return record

    return _export(dataset, out, amodal, watch)


def _export(dataset: AmodalReasonSeg, out: Path, change: Change, watch: Watch) -> Account:
    if out.suffix != ".json":
        raise ValueError(f"{out}: COCO is one file; give --out a name that ends with .json")
    if out.exists():
        raise ValueError(f"{out} is there already; remove it or choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    account = Account("objects")
    write_parts(out, _parts(dataset, out, change, account, watch))
    return account


def _parts(dataset: AmodalReasonSeg, out: Path, change: Change, account: Account, watch: Watch) -> Iterator[str]:
    others: dict[str, Any] = {"licenses": []}
    opening, before = "{", ""
    for key, position, value in watch(members(dataset.source, LISTS)):
        if key == "conversations":
            continue
        if key not in LISTS:
            others[key] = value
        elif position is None:
            yield f"{opening}\n{to_json(key)}: ["
            opening, before = "],", ""
        else:
            record = change(value) if key == "annotations" else value
            if record is None:
                account.left_out[UNKNOWN_SHAPE] += 1
                continue
            account.written += key == "annotations"
            yield f"{before}\n{to_json(record, compact=True)}"
            before = ","
    folder = Path(os.path.relpath(dataset.images, out.parent)).as_posix()
    given = others.pop("info", None)
    info = {**(given if isinstance(given, Mapping) else {}), "image_folder": folder}
    yield "]"
    for key, value in {"info": info, **others}.items():
        yield f",\n{to_json(key)}: {to_json(value, compact=True)}"
    yield "\n}\n"
