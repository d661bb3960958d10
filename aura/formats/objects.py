"""An annotation's masks as an object: read in any notation, checked against each other, put right where they may be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from aura.formats.layouts import Layout, Tell
from aura.formats.occlusion import intersections
from aura.formats.reading import RecordReader
from aura.masks import is_number, rle_bbox
from aura.targets import rate_from_areas
from aura.types import AmodalObject, Rle

MAX_STRAY_FRACTION = 0.01
"""Visible pixels outside the amodal mask, as a fraction of the visible ones, that are repaired instead of refused."""
RATE_TOLERANCE = 1e-3
AREA_TOLERANCE, MIN_AREA_TOLERANCE = 0.02, 16
BOX_TOLERANCE = 2.0
"""How far a file's figures may be from its masks before a note tells: polygons are drawn between pixels."""


def encode_masks(masks: Sequence[np.ndarray]) -> list[Rle]:
    """Bool [H, W] masks to RLEs with text counts, all in one call."""
    rles = mask_util.encode(np.asfortranarray(np.stack(masks, axis=-1).astype(np.uint8)))
    return [{"size": list(r["size"]), "counts": r["counts"].decode("ascii")} for r in rles]


def object_of(
    reader: RecordReader,
    annotation: dict[str, Any],
    where: str,
    size: tuple[int, int],
    name: tuple[str, str],
    layout: Layout,
    note: Tell,
) -> AmodalObject | None:
    """The object of an annotation; ``None``, with a note, if it is a crowd or there is nothing to see of it."""
    if reader.flag(annotation, "iscrowd", where):
        note(where, "left out: a crowd has no amodal mask")
        return None
    if is_unknown(annotation, layout.amodal):
        return _visible_only(reader, annotation, where, size, name, layout, note)
    amodal = reader.mask(annotation.get(layout.amodal), size, f"{where}: {layout.amodal}")
    if amodal is None:
        raise reader.error(where, f"'{layout.amodal}' (the amodal mask) is missing; add it")
    visible = reader.mask(annotation.get(layout.visible), size, f"{where}: {layout.visible}")
    invisible = None
    if layout.invisible is not None:
        invisible = reader.mask(annotation.get(layout.invisible), size, f"{where}: {layout.invisible}")
    if visible is None:
        if invisible is None and not _is_whole(reader, annotation, where, layout):
            note(where, "left out: its visible mask is empty, there is nothing to point at")
            return None
        visible = amodal if invisible is None else _minus(amodal, invisible)
    area, seen = area_of(amodal), area_of(visible)
    if not area or not seen:
        note(where, f"left out: its {'visible' if area else 'amodal'} mask is empty, there is nothing to point at")
        return None
    inside = int(intersections([visible], [amodal])[0, 0])
    if inside < seen:
        if seen - inside > MAX_STRAY_FRACTION * seen:
            raise reader.error(
                where, f"{seen - inside} of {seen} visible pixels lie outside the amodal mask; correct one of the masks"
            )
        note(where, f"{seen - inside} of {seen} visible pixels lay outside the amodal mask; they were cut off")
        visible, seen = mask_util.merge([visible, amodal], intersect=True), inside
        visible = {"size": list(visible["size"]), "counts": visible["counts"].decode("ascii")}
    if invisible is not None:
        _check_invisible(reader, where, amodal, visible, invisible)
    rate = rate_from_areas(seen, area)
    for what in _wrong_figures(annotation, layout, amodal, rate):
        note(where, f"{what}; computed from the masks")
    number = reader.integer(annotation, "id", where)
    return AmodalObject(number, name[0], visible, amodal, rate, supercategory=name[1])


def _is_whole(reader: RecordReader, annotation: Mapping[str, Any], where: str, layout: Layout) -> bool:
    """Whether an object without visible and invisible mask is in full view (else nothing of it is)."""
    emptied, stated = annotation.get(layout.visible) is not None, annotation.get("occlude_rate")
    if stated is None and emptied:
        raise reader.error(
            where,
            f"'{layout.visible}' is empty, which can mean that nothing is visible or that nothing is hidden; leave it "
            "out where nothing is hidden",
        )
    rate = 0.0 if stated is None else reader.number(annotation, "occlude_rate", where)
    if abs(rate) <= RATE_TOLERANCE:
        return True
    if emptied and abs(1 - rate) <= RATE_TOLERANCE:
        return False
    raise reader.error(where, f"'occlude_rate' is {stated} but there is no visible or invisible mask; add it")


def is_unknown(annotation: Mapping[str, Any], amodal: str) -> bool:
    """Whether a record says that the object's whole shape is not known: its amodal mask is there, and null."""
    return amodal in annotation and annotation[amodal] is None


def _visible_only(
    reader: RecordReader,
    annotation: Mapping[str, Any],
    where: str,
    size: tuple[int, int],
    name: tuple[str, str],
    layout: Layout,
    note: Tell,
) -> AmodalObject | None:
    """An object whose whole shape is not known."""
    visible = reader.mask(annotation.get(layout.visible), size, f"{where}: {layout.visible}")
    if visible is None:
        raise reader.error(where, f"'{layout.amodal}' is null, so '{layout.visible}' must be there; add it")
    if annotation.get("occlude_rate") is not None:
        raise reader.error(where, f"'{layout.amodal}' is null, so 'occlude_rate' must be null too or absent")
    if not area_of(visible):
        note(where, "left out: its visible mask is empty, there is nothing to point at")
        return None
    return AmodalObject(annotation["id"], name[0], visible, None, None, supercategory=name[1])


def _stated_rate(annotation: Mapping[str, Any]) -> float:
    value: Any = annotation.get("occlude_rate")
    return float(value) if is_number(value) else math.nan


def _wrong_figures(annotation: Mapping[str, Any], layout: Layout, amodal: Rle, rate: float) -> Iterator[str]:
    """What the file says about an object and its masks deny."""
    if "occlude_rate" in annotation and not abs(_stated_rate(annotation) - rate) <= RATE_TOLERANCE:
        yield f"'occlude_rate' was {annotation['occlude_rate']!r:.20} instead of {rate:.4f}"
    area, stated = area_of(amodal), annotation.get("area")
    if isinstance(stated, int | float) and not abs(stated - area) <= max(AREA_TOLERANCE * area, MIN_AREA_TOLERANCE):
        yield f"'area' was {stated} instead of {area}"
    box, right = annotation.get(layout.bbox), rle_bbox(amodal)
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)
    if is_box and not max(abs(a - b) for a, b in zip(box or (), right, strict=True)) <= BOX_TOLERANCE:
        yield f"'{layout.bbox}' was {box} instead of {right} (the amodal mask's x, y, width, height)"


def _check_invisible(reader: RecordReader, where: str, amodal: Rle, visible: Rle, invisible: Rle) -> None:
    """amodal minus visible must be the invisible mask, up to the stray pixels allowed above."""
    area, hidden = area_of(amodal), area_of(invisible)
    both = int(intersections([visible], [invisible])[0, 0])
    outside = hidden - int(intersections([invisible], [amodal])[0, 0])
    missing = area - area_of(visible) - (hidden - both - outside)
    if both + outside + abs(missing) > MAX_STRAY_FRACTION * area:
        raise reader.error(
            where,
            f"'invisible_mask' is not amodal minus visible ({both} pixels are also visible, {outside} outside the "
            f"amodal mask, {missing} in neither); correct the masks, or leave 'invisible_mask' out",
        )


def area_of(rle: Rle) -> int:
    return int(mask_util.area(rle))


def _minus(amodal: Rle, invisible: Rle) -> Rle:
    return encode_masks([mask_util.decode(amodal).astype(bool) & ~mask_util.decode(invisible).astype(bool)])[0]
