"""How other projects lay out amodal annotations (``docs/formats.md``), brought to the layout of COCOA-cls.

COCOA-cls and D2SA are COCO files with ``segmentation`` (amodal), ``visible_mask`` and ``invisible_mask``; KINS names
its masks otherwise; COCOA holds one record per image and annotator, with all regions in it and their depth order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from aura.formats.reading import truth
from aura.masks import whole_number


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

LAYOUTS = {layout.name: layout for layout in (COCOA_CLS, COCOA, D2SA, KINS_2019, KINS_2020)}
"""Every layout by its name."""

AMODAL_FIELDS = {"visible_mask", "invisible_mask", "occlude_rate"}
Tell = Callable[[str, str], None]
"""Called with a record ("annotation 12, region 3") and what is to be said about it."""


def recognise(root: Mapping[str, Any]) -> Layout | None:
    """The layout of a parsed file; ``None`` if it holds no amodal annotations that are known here."""
    annotations, images = root.get("annotations"), root.get("images")
    if not isinstance(annotations, list):
        return None
    found = next(filter(None, map(recognise_record, annotations)), None)
    return D2SA if found == COCOA_CLS and are_d2s(images if isinstance(images, list) else ()) else found


def recognise_record(record: Any) -> Layout | None:
    """The layout that an annotation shows; D2SA's look as COCOA-cls's do. ``None`` for one that could be anything."""
    if not isinstance(record, dict):
        return None
    if "regions" in record:
        return COCOA
    if KINS_2020.amodal in record:
        return KINS_2020
    if KINS_2019.visible in record:
        return KINS_2019
    return COCOA_CLS if record.keys() & AMODAL_FIELDS and "segmentation" in record else None


def are_d2s(images: Iterable[Any]) -> bool:
    """Whether image records are D2S's, by the first of them."""
    names = (image.get("file_name") for image in islice(images, 20) if isinstance(image, dict))
    return any(isinstance(name, str) and name.rpartition("/")[2].startswith("D2S_") for name in names)


@dataclass(frozen=True)
class Region:
    """A region of COCOA as an annotation of its own.

    ``record`` is as in COCOA-cls, with the region's ``name`` made plain instead of a category; regions are numbered
    through the file. ``where`` is its place in the file, ``behind`` the numbers of the regions that it is in front of.
    """

    record: dict[str, Any]
    where: str
    behind: tuple[int, ...]


def regions_of(
    records: Iterable[Any], *, first_id: int = 1, with_stuff: bool, bad: Tell, note: Tell
) -> Iterator[tuple[int, list[Region]]]:
    """The regions of COCOA's annotation records, of one annotator per image (the first in the file), record by record.

    Args:
        records: ``root["annotations"]``.
        first_id: Number of the first region.
        with_stuff: Take regions marked ``isStuff`` too (grass, sky); without, each is told to ``note``.
        bad: Told of what cannot be read.
        note: Told of what is left out for another reason.

    Yields:
        (the number that comes next, regions).
    """
    seen: set[str] = set()
    for position, record in enumerate(records):
        name = _name_of(record, position)
        if not isinstance(record, dict) or not isinstance(record.get("regions"), list):
            bad(name, "'regions' must be a list; correct the record or drop it")
            continue
        following = first_id + len(record["regions"])
        image = str(whole_number(record.get("image_id")) or record.get("image_id"))
        if image in seen:
            note(name, f"image {record.get('image_id')} has another annotator's regions already; these are not used")
            yield following, []
        else:
            seen.add(image)
            yield following, _regions(record, name, first_id, with_stuff, bad, note)
        first_id = following


def _regions(
    record: Mapping[str, Any], name: str, first_id: int, with_stuff: bool, bad: Tell, note: Tell
) -> list[Region]:
    found: list[tuple[dict[str, Any], str]] = []
    by_order: dict[int, int] = {}
    for index, region in enumerate(record["regions"]):
        at, number = f"{name}, region {index + 1}", first_id + index
        if not isinstance(region, dict):
            bad(at, "it is not an object; correct or drop it")
            continue
        order, is_stuff = whole_number(region.get("order", index + 1)), truth(region.get("isStuff"))
        if order is not None:
            by_order[order] = number
        if is_stuff is None:
            bad(at, f"'isStuff' must be true or false, got {region['isStuff']!r:.40}")
            continue
        if is_stuff and not with_stuff:
            note(at, f"it is stuff ({region.get('name')!r:.40}); --with-stuff keeps it")
            continue
        own = {"id": number, "image_id": record.get("image_id"), "name": _category(region)}
        found.append(({**region, **own}, at))
    behind = _order(record.get("depth_constraint"), by_order, partial(note, name))
    return [Region(made, at, tuple(behind.get(made["id"], ()))) for made, at in found]


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
