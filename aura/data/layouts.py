"""How other projects lay out amodal annotations (external formats, section 6), brought to the one of COCOA-cls.

COCOA-cls and D2SA are COCO files with ``segmentation`` (amodal), ``visible_mask`` and ``invisible_mask``; KINS names
its masks otherwise; COCOA holds one record per image and annotator, with all regions in it and their depth order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any


@dataclass(frozen=True)
class Layout:
    """Where a layout keeps the masks of an annotation; ``visible`` and ``invisible`` may be absent in a record."""

    name: str
    amodal: str = "segmentation"
    visible: str = "visible_mask"
    invisible: str | None = "invisible_mask"
    bbox: str = "bbox"


COCOA_CLS = Layout("COCOA-cls")
D2SA = Layout("D2SA")
COCOA = Layout("COCOA")
KINS_2019 = Layout("KINS 2019", visible="inmodal_seg", invisible=None)
KINS_2020 = Layout("KINS 2020", amodal="a_segm", visible="i_segm", invisible=None, bbox="a_bbox")

AMODAL_FIELDS = {"visible_mask", "invisible_mask", "occlude_rate"}
Tell = Callable[[str, str], None]
"""Called with a record ("annotation 12, region 3") and what is to be said about it."""


def recognise(root: Mapping[str, Any]) -> Layout | None:
    """The layout of a parsed file; ``None`` if it holds no amodal annotations that are known here."""
    annotations = root.get("annotations")
    if not isinstance(annotations, list):
        return None
    for record in annotations:
        if not isinstance(record, dict):
            continue
        if "regions" in record:
            return COCOA
        if KINS_2020.amodal in record:
            return KINS_2020
        if KINS_2019.visible in record:
            return KINS_2019
        if record.keys() & AMODAL_FIELDS and "segmentation" in record:
            return D2SA if _are_d2s(root.get("images")) else COCOA_CLS
    return None


def _are_d2s(images: Any) -> bool:
    names = (image.get("file_name") for image in islice(images, 20) if isinstance(image, dict)) if images else ()
    return any(isinstance(name, str) and name.rpartition("/")[2].startswith("D2S_") for name in names)


@dataclass(frozen=True)
class Regions:
    """COCOA's regions as annotations of their own.

    ``annotations`` are records as in COCOA-cls, numbered from 1 through the file; ``categories`` the distinct names;
    ``where`` the place of each annotation id in the file; ``behind`` the ids that each id is in front of.
    """

    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    where: dict[int, str]
    behind: dict[int, list[int]]


def regions_of(records: Iterable[Any], *, with_stuff: bool, bad: Tell, note: Tell) -> Regions:
    """The regions of COCOA's annotation records, of one annotator per image (the first in the file).

    Args:
        records: ``root["annotations"]``.
        with_stuff: Take regions marked ``isStuff`` too (grass, sky); without, each is told to ``note``.
        bad: Told of what cannot be read.
        note: Told of what is left out for another reason.
    """
    found: list[dict[str, Any]] = []
    where: dict[int, str] = {}
    behind: dict[int, list[int]] = {}
    seen: set[Any] = set()
    following = 1
    for position, record in enumerate(records):
        name = _name_of(record, position)
        if not isinstance(record, dict) or not isinstance(record.get("regions"), list):
            bad(name, "'regions' must be a list; correct the record or drop it")
            continue
        regions, first_id = record["regions"], following
        following += len(regions)
        if str(record.get("image_id")) in seen:
            note(name, f"image {record.get('image_id')} has another annotator's regions already; these are not used")
            continue
        seen.add(str(record.get("image_id")))
        by_order: dict[int, int] = {}
        for index, region in enumerate(regions):
            at, number = f"{name}, region {index + 1}", first_id + index
            if not isinstance(region, dict):
                bad(at, "it is not an object; correct or drop it")
                continue
            order = region.get("order", index + 1)
            if isinstance(order, int):
                by_order[order] = number
            if region.get("isStuff") and not with_stuff:
                note(at, f"it is stuff ({region.get('name')!r:.40}); --with-stuff keeps it")
                continue
            where[number] = at
            found.append({**region, "id": number, "image_id": record.get("image_id")})
        behind |= _order(record.get("depth_constraint"), by_order, partial(note, name))
    names = sorted({_category(region) for region in found})
    numbers = {category: number for number, category in enumerate(names, start=1)}
    annotations = [{**region, "category_id": numbers[_category(region)]} for region in found]
    categories = [{"id": number, "name": category} for category, number in numbers.items()]
    return Regions(annotations, categories, where, behind)


def _name_of(record: Any, position: int) -> str:
    return f"annotation {record['id']}" if isinstance(record, dict) and "id" in record else f"annotation #{position}"


def _category(region: Mapping[str, Any]) -> str:
    """The annotator's free text; regions without any are objects of no known kind."""
    name = region.get("name")
    return " ".join(name.split()) or "object" if isinstance(name, str) else "object"


def _order(constraint: Any, by_order: Mapping[int, int], note: Callable[[str], None]) -> dict[int, list[int]]:
    """``"1-2,1-5"`` (region 1 is in front of 2 and of 5) as the ids behind each id."""
    pairs: dict[tuple[int, int], None] = {}
    for part in str(constraint or "").replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)-(\d+)", part)
        if match and match[1] != match[2] and int(match[1]) in by_order and int(match[2]) in by_order:
            pairs[by_order[int(match[1])], by_order[int(match[2])]] = None
        elif part:
            note(f"'depth_constraint' says {part!r:.20}, which is no pair of regions; the masks decide there")
    behind: dict[int, list[int]] = {}
    for nearer, farther in pairs:
        if (farther, nearer) in pairs:
            if nearer < farther:
                note("'depth_constraint' has two regions each in front of the other; the masks decide there")
        else:
            behind.setdefault(nearer, []).append(farther)
    return behind
