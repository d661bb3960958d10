"""Amodal annotation files of other projects, as one kind of record: :class:`AnnotatedImage`.

One ``load_*`` function per file format; each returns ``list[AnnotatedImage]`` and turns every flaw of the file into one
``ValueError`` that names the file, the record and the remedy.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as mask_util

from aura.data.occlusion import intersections, occluders
from aura.types import AmodalObject, Rle

if TYPE_CHECKING:
    from aura.data.mini import Scene

MAX_STRAY_FRACTION = 0.01
"""Visible pixels outside the amodal mask, as a fraction of the visible ones, that are repaired instead of refused."""


@dataclass(frozen=True)
class AnnotatedImage:
    """One image of an annotation file with its objects.

    ``image_info`` holds the file's other fields of the image (``license``, ``coco_url``, ...), ``category_ids`` the
    file's own number of each category that occurs in ``objects``.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    objects: tuple[AmodalObject, ...]
    image_info: Mapping[str, Any] = field(default_factory=dict)
    category_ids: Mapping[str, int] = field(default_factory=dict)


def with_occluders(objects: Sequence[AmodalObject]) -> tuple[AmodalObject, ...]:
    """The objects with ``occluded_by`` derived from their masks (see :mod:`aura.data.occlusion`)."""
    return tuple(dataclasses.replace(o, occluded_by=by) for o, by in zip(objects, occluders(objects), strict=True))


def annotated_image_from_scene(scene: Scene, image_id: int, *, first_id: int = 1) -> AnnotatedImage:
    """A composed scene as if it had been read from a file; its objects get the ids ``first_id``, ``first_id`` + 1, ..."""
    height, width = scene.image.shape[:2]
    if not scene.objects:
        return AnnotatedImage(image_id, f"{image_id:06d}.jpg", height, width, ())
    visible = _encode([o.visible for o in scene.objects])
    amodal = _encode([o.amodal for o in scene.objects])
    rates = _rates(visible, amodal)
    objects = [
        AmodalObject(first_id + i, scene_object.category, visible[i], amodal[i], float(rates[i]))
        for i, scene_object in enumerate(scene.objects)
    ]
    return AnnotatedImage(image_id, f"{image_id:06d}.jpg", height, width, with_occluders(objects))


def _encode(masks: Sequence[np.ndarray]) -> list[Rle]:
    """Bool [H, W] masks to RLEs with text counts, all in one call."""
    rles = mask_util.encode(np.asfortranarray(np.stack(masks, axis=-1).astype(np.uint8)))
    return [{"size": list(r["size"]), "counts": r["counts"].decode("ascii")} for r in rles]


def _rates(visible: Sequence[Rle], amodal: Sequence[Rle]) -> np.ndarray:
    """1 - |visible| / |amodal|, float64 [K]."""
    areas = mask_util.area(list(amodal)).astype(np.float64)
    return 1.0 - mask_util.area(list(visible)) / np.maximum(areas, 1)


# --- COCOA-cls --------------------------------------------------------------------------------------------------------


def load_cocoa_cls(path: str | Path) -> list[AnnotatedImage]:
    """Read a COCOA-cls file (COCO layout; ``segmentation`` amodal, ``visible_mask``, ``invisible_mask``).

    Masks may be compressed or plain RLEs, a list of polygons, or one flat polygon. Without ``visible_mask`` an object is
    unoccluded, unless it has an ``invisible_mask``: then visible = amodal minus invisible. Where a file gives all three,
    they must agree. Annotations with an empty amodal or visible mask are left out: there is nothing to point at. Images
    come in the file's order, with or without objects; ``occlusion_rate`` and ``occluded_by`` are derived from the masks.

    Raises:
        ValueError: The file is missing, is not such a file, or an annotation contradicts itself.
    """
    reader = _Reader(Path(path))
    root = reader.root()
    names: dict[int, tuple[str, str]] = {}
    for category in reader.records(root, "categories"):
        where = f"category {category.get('id')}"
        supercategory = str(category.get("supercategory") or "")
        names[reader.integer(category, "id", where)] = (reader.text(category, "name", where), supercategory)
    images: dict[int, dict[str, Any]] = {}
    for image in reader.records(root, "images"):
        where = f"image {image.get('id')}"
        image_id = reader.integer(image, "id", where)
        if image_id in images:
            raise reader.error(where, "the id occurs twice; give every image an id of its own")
        reader.text(image, "file_name", where)
        for key in ("height", "width"):
            reader.integer(image, key, where, at_least=1)
        images[image_id] = image

    objects: dict[int, list[AmodalObject]] = defaultdict(list)
    seen: set[int] = set()
    for annotation in reader.records(root, "annotations"):
        where = f"annotation {annotation.get('id')}"
        number = reader.integer(annotation, "id", where)
        if number in seen:
            raise reader.error(where, "the id occurs twice; give every annotation an id of its own")
        seen.add(number)
        image_id = reader.integer(annotation, "image_id", where)
        category_id = reader.integer(annotation, "category_id", where)
        if image_id not in images:
            raise reader.error(where, f"image {image_id} is not in 'images'; add it or drop the annotation")
        if category_id not in names:
            raise reader.error(where, f"category {category_id} is not in 'categories'; add it")
        made = _cocoa_object(reader, annotation, where, images[image_id], names[category_id])
        if made is not None:
            objects[image_id].append(made)
    ids = {name: number for number, (name, _) in names.items()}
    return [_annotated(image, objects[image_id], ids) for image_id, image in images.items()]


def _annotated(image: dict[str, Any], objects: list[AmodalObject], ids: Mapping[str, int]) -> AnnotatedImage:
    own = {"id", "file_name", "height", "width"}
    return AnnotatedImage(
        image_id=image["id"],
        file_name=image["file_name"],
        height=image["height"],
        width=image["width"],
        objects=with_occluders(objects),
        image_info={k: v for k, v in image.items() if k not in own},
        category_ids={o.category: ids[o.category] for o in objects},
    )


def _cocoa_object(
    reader: _Reader, annotation: dict[str, Any], where: str, image: dict[str, Any], name: tuple[str, str]
) -> AmodalObject | None:
    size = (image["height"], image["width"])
    amodal = reader.mask(annotation.get("segmentation"), size, f"{where}: segmentation")
    if amodal is None:
        raise reader.error(where, "'segmentation' (the amodal mask) is missing; add it")
    invisible = reader.mask(annotation.get("invisible_mask"), size, f"{where}: invisible_mask")
    visible = reader.mask(annotation.get("visible_mask"), size, f"{where}: visible_mask")
    if visible is None:
        visible = amodal if invisible is None else _minus(amodal, invisible)
    area, seen = _area(amodal), _area(visible)
    if not area or not seen:
        return None
    inside = int(intersections([visible], [amodal])[0, 0])
    if inside < seen:
        if seen - inside > MAX_STRAY_FRACTION * seen:
            raise reader.error(
                where, f"{seen - inside} of {seen} visible pixels lie outside the amodal mask; correct one of the masks"
            )
        visible, seen = mask_util.merge([visible, amodal], intersect=True), inside
        visible = {"size": list(visible["size"]), "counts": visible["counts"].decode("ascii")}
    if invisible is not None:
        _check_invisible(reader, where, amodal, visible, invisible)
    return AmodalObject(annotation["id"], name[0], visible, amodal, 1.0 - seen / area, supercategory=name[1])


def _check_invisible(reader: _Reader, where: str, amodal: Rle, visible: Rle, invisible: Rle) -> None:
    """amodal minus visible must be the invisible mask, up to the stray pixels allowed above."""
    area, hidden = _area(amodal), _area(invisible)
    both = int(intersections([visible], [invisible])[0, 0])
    outside = hidden - int(intersections([invisible], [amodal])[0, 0])
    missing = area - _area(visible) - (hidden - both - outside)
    if both + outside + abs(missing) > MAX_STRAY_FRACTION * area:
        raise reader.error(
            where,
            f"'invisible_mask' is not amodal minus visible ({both} pixels are also visible, {outside} outside the amodal "
            f"mask, {missing} in neither); correct the masks, or leave 'invisible_mask' out",
        )


def _area(rle: Rle) -> int:
    return int(mask_util.area(rle))


def _minus(amodal: Rle, invisible: Rle) -> Rle:
    return _encode([mask_util.decode(amodal).astype(bool) & ~mask_util.decode(invisible).astype(bool)])[0]


class _Reader:
    """Takes values out of a parsed file and names file, record and remedy when one is not what it should be."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, where: str, what: str) -> ValueError:
        return ValueError(f"{self.path}: {where}: {what}")

    def root(self) -> dict[str, Any]:
        """The parsed file, an object."""
        try:
            root = json.loads(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read ({error.strerror}); check the path") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path}: is not JSON ({error}); is the download complete?") from error
        if not isinstance(root, dict):
            raise self.error("top level", f"expected an object with lists, got {type(root).__name__}")
        return root

    def records(self, root: dict[str, Any], key: str) -> Iterable[dict[str, Any]]:
        """The list ``root[key]``, every item an object."""
        records = root.get(key)
        if not isinstance(records, list):
            found = "it is missing" if key not in root else f"it is a {type(records).__name__}"
            raise self.error(f"'{key}'", f"expected a list, but {found}; is this file in the right format?")
        for number, record in enumerate(records):
            if not isinstance(record, dict):
                raise self.error(f"'{key}' item {number}", f"expected an object, got {type(record).__name__}")
        return records

    def integer(self, record: dict[str, Any], key: str, where: str, *, at_least: int | None = None) -> int:
        value = record.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or (at_least is not None and value < at_least):
            wanted = "an integer" if at_least is None else f"an integer of at least {at_least}"
            raise self.error(where, f"'{key}' must be {wanted}, got {value!r}")
        return value

    def text(self, record: dict[str, Any], key: str, where: str) -> str:
        value = record.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.error(where, f"'{key}' must be a text, got {value!r}")
        return value

    def mask(self, value: Any, size: tuple[int, int], where: str) -> Rle | None:
        """A mask in any of COCO's notations as an RLE of ``size`` (height, width); ``None`` for a missing mask."""
        if value is None or value == []:
            return None
        convert: Callable[[], Rle] = lambda: _to_rle(value, size)  # noqa: E731
        try:
            return convert()
        except _MaskError as error:
            raise self.error(where, str(error)) from error


class _MaskError(Exception):
    pass


def _to_rle(value: Any, size: tuple[int, int]) -> Rle:
    height, width = size
    if isinstance(value, dict):
        return _checked_rle(value, size)
    if not isinstance(value, list):
        raise _MaskError(f"expected an RLE or polygons, got {type(value).__name__}")
    polygons = [value] if not isinstance(value[0], list) else value
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(isinstance(v, int | float) for v in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise _MaskError("a polygon needs at least three points as [x1, y1, x2, y2, ...]")
    rle = mask_util.merge(mask_util.frPyObjects([[float(v) for v in p] for p in polygons], height, width))
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _checked_rle(value: dict[str, Any], size: tuple[int, int]) -> Rle:
    """pycocotools reads past the end of damaged counts without a word, so the runs are added up here."""
    if list(value.get("size", ())) != list(size):
        raise _MaskError(f"the RLE's size is {value.get('size')} but the image is {list(size)} (height, width)")
    counts = value.get("counts")
    if isinstance(counts, list):
        if not all(isinstance(c, int) and c >= 0 for c in counts) or sum(counts) != size[0] * size[1]:
            raise _MaskError("the runs of the RLE do not add up to the image's area; the mask is damaged")
        rle = mask_util.frPyObjects({"size": list(size), "counts": counts}, *size)
        return {"size": list(size), "counts": rle["counts"].decode("ascii")}
    if not isinstance(counts, str) or not counts:
        raise _MaskError("the RLE has no 'counts'")
    if sum(_runs(counts)) != size[0] * size[1]:
        raise _MaskError("the runs of the RLE do not add up to the image's area; the mask is damaged")
    return {"size": list(size), "counts": counts}


def _runs(counts: str) -> list[int]:
    """The run lengths of COCO's compressed text: 5 bits a character, signed, delta to the run before last."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise _MaskError(f"the RLE's counts hold the character {character!r}; the mask is damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            if len(runs) > 2:
                value += runs[-2]
            if value < 0:
                raise _MaskError("the RLE has a negative run; the mask is damaged")
            runs.append(value)
            value = shift = 0
    if shift:
        raise _MaskError("the RLE's counts end in the middle of a number; the mask is damaged")
    return runs
