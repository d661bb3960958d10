"""Amodal annotation files of other projects, as one kind of record: :class:`AnnotatedImage`.

One ``load_*`` function per file format; each returns ``list[AnnotatedImage]`` and turns every flaw of the file into one
``ValueError`` that names the file, the record and the remedy.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as mask_util

from aura.data.occlusion import intersections, occluders
from aura.data.reading import RecordReader
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
    """A composed scene as if it had been read from a file; its objects are numbered from ``first_id``."""
    height, width = scene.image.shape[:2]
    if not scene.objects:
        return AnnotatedImage(image_id, f"{image_id:06d}.jpg", height, width, ())
    visible = _encode([o.visible for o in scene.objects])
    amodal = _encode([o.amodal for o in scene.objects])
    rates = _rates(visible, amodal)
    objects = [
        AmodalObject(first_id + i, scene_object.category, visible[i], amodal[i], rates[i])
        for i, scene_object in enumerate(scene.objects)
    ]
    return AnnotatedImage(image_id, f"{image_id:06d}.jpg", height, width, with_occluders(objects))


def _encode(masks: Sequence[np.ndarray]) -> list[Rle]:
    """Bool [H, W] masks to RLEs with text counts, all in one call."""
    rles = mask_util.encode(np.asfortranarray(np.stack(masks, axis=-1).astype(np.uint8)))
    return [{"size": list(r["size"]), "counts": r["counts"].decode("ascii")} for r in rles]


def _rates(visible: Sequence[Rle], amodal: Sequence[Rle]) -> list[float]:
    """1 - |visible| / |amodal| of each pair."""
    return [1.0 - _area(v) / max(_area(a), 1) for v, a in zip(visible, amodal, strict=True)]


# --- COCOA-cls --------------------------------------------------------------------------------------------------------


def load_cocoa_cls(path: str | Path) -> list[AnnotatedImage]:
    """Read a COCOA-cls file (COCO layout; ``segmentation`` amodal, ``visible_mask``, ``invisible_mask``).

    Masks may be compressed or plain RLEs, a list of polygons, or one flat polygon. Without ``visible_mask`` an object
    is unoccluded, unless it has an ``invisible_mask``: then visible = amodal minus invisible. Where a file gives all
    three, they must agree. Annotations with an empty amodal or visible mask are left out: there is nothing to point at.
    Images come in the file's order, with or without objects; ``occlusion_rate`` and ``occluded_by`` are derived from
    the masks.

    Raises:
        ValueError: The file is missing, is not such a file, or an annotation contradicts itself.
    """
    reader = RecordReader(Path(path))
    root = reader.root()
    names: dict[int, tuple[str, str]] = {}
    for number, category in reader.by_id(root, "categories", "category").items():
        name = reader.text(category, "name", f"category {number}")
        names[number] = (name, str(category.get("supercategory") or ""))
    images = reader.by_id(root, "images", "image")
    for number, image in images.items():
        reader.text(image, "file_name", f"image {number}")
        for key in ("height", "width"):
            reader.integer(image, key, f"image {number}", at_least=1)

    objects: dict[int, list[AmodalObject]] = defaultdict(list)
    for number, annotation in reader.by_id(root, "annotations", "annotation").items():
        where = f"annotation {number}"
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
    reader: RecordReader, annotation: dict[str, Any], where: str, image: dict[str, Any], name: tuple[str, str]
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


def _check_invisible(reader: RecordReader, where: str, amodal: Rle, visible: Rle, invisible: Rle) -> None:
    """amodal minus visible must be the invisible mask, up to the stray pixels allowed above."""
    area, hidden = _area(amodal), _area(invisible)
    both = int(intersections([visible], [invisible])[0, 0])
    outside = hidden - int(intersections([invisible], [amodal])[0, 0])
    missing = area - _area(visible) - (hidden - both - outside)
    if both + outside + abs(missing) > MAX_STRAY_FRACTION * area:
        raise reader.error(
            where,
            f"'invisible_mask' is not amodal minus visible ({both} pixels are also visible, {outside} outside the "
            f"amodal mask, {missing} in neither); correct the masks, or leave 'invisible_mask' out",
        )


def _area(rle: Rle) -> int:
    return int(mask_util.area(rle))


def _minus(amodal: Rle, invisible: Rle) -> Rle:
    return _encode([mask_util.decode(amodal).astype(bool) & ~mask_util.decode(invisible).astype(bool)])[0]
