"""Amodal annotation files of other projects, as one kind of record: :class:`AnnotatedImage`.

:class:`AnnotationFile` reads every known layout and collects what is wrong, record by record; :func:`load_cocoa_cls`
stops at the first flaw with a ``ValueError`` that names the file, the record and the remedy.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as mask_util

from aura.data.checks import Problem
from aura.data.layouts import COCOA, COCOA_CLS, Layout, Tell, recognise, regions_of
from aura.data.occlusion import intersections, occluders
from aura.data.reading import RecordReader
from aura.masks import rle_bbox
from aura.types import AmodalObject, Rle

if TYPE_CHECKING:
    from aura.data.mini import Scene

MAX_STRAY_FRACTION = 0.01
"""Visible pixels outside the amodal mask, as a fraction of the visible ones, that are repaired instead of refused."""
RATE_TOLERANCE = 1e-3
AREA_TOLERANCE, MIN_AREA_TOLERANCE = 0.02, 16
BOX_TOLERANCE = 2.0
"""How far a file's figures may be from its masks before a note tells: polygons are drawn between pixels."""


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


def with_occluders(
    objects: Sequence[AmodalObject], in_front: Collection[tuple[int, int]] = ()
) -> tuple[AmodalObject, ...]:
    """The objects with ``occluded_by`` derived from their masks, or from a depth order (:mod:`aura.data.occlusion`)."""
    found = occluders(objects, in_front)
    return tuple(dataclasses.replace(o, occluded_by=by) for o, by in zip(objects, found, strict=True))


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


# --- annotation files -------------------------------------------------------------------------------------------------


class AnnotationFile:
    """An annotation file of a known layout (:mod:`aura.data.layouts`), read image by image.

    Iterating gives every image in the file's order, with or without objects; what is wrong is collected by record. A
    bad record is left out and stands in ``problems``; what was put right, or left out on purpose, stands in ``notes``.
    Masks may be RLEs (compressed or plain), lists of polygons, or one flat polygon. Without a visible mask an object is
    unoccluded, unless it has an ``invisible_mask``: then visible = amodal minus invisible. Rates, boxes and areas come
    from the masks; where the file says otherwise, a note tells.

    Args:
        path: The file.
        layout: Recognised from the file without.
        with_stuff: Take COCOA's regions of stuff too.
        strict: Raise at the first problem.

    Raises:
        ValueError: The file is missing, is no JSON, or holds no amodal annotations of a known layout.
    """

    def __init__(
        self, path: str | Path, layout: Layout | None = None, *, with_stuff: bool = False, strict: bool = False
    ) -> None:
        self.reader = RecordReader(Path(path))
        self.strict = strict
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        root = self.reader.root()
        found = layout or recognise(root)
        if found is None:
            raise ValueError(
                f"{path}: no amodal annotations of a known layout (COCOA-cls, COCOA, D2SA, KINS): no annotation has "
                "'visible_mask', 'occlude_rate', 'regions', 'inmodal_seg' or 'a_segm'"
            )
        self.layout = found
        self.info: Any = root.get("info")
        self.licenses: Any = root.get("licenses")
        self._where: dict[int, str] = {}
        self._behind: dict[int, list[int]] = {}
        if found == COCOA:
            regions = regions_of(self._list(root, "annotations"), with_stuff=with_stuff, bad=self._bad, note=self._note)
            root = {**root, "annotations": regions.annotations, "categories": regions.categories}
            self._where, self._behind = regions.where, regions.behind
        self._names: dict[int, tuple[str, str]] = {}
        for number, category in self._by_id(root, "categories", "category").items():
            with self._collecting(f"category {number}"):
                name = self.reader.text(category, "name", f"category {number}")
                self._names[number] = (name, str(category.get("supercategory") or ""))
        self._images = self._by_id(root, "images", "image")
        self._annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self.num_annotations = 0
        for number, annotation in self._by_id(root, "annotations", "annotation").items():
            self.num_annotations += 1
            with self._collecting(self._place(number)) as where:
                image_id = self.reader.integer(annotation, "image_id", where)
                category_id = self.reader.integer(annotation, "category_id", where)
                if image_id not in self._images:
                    raise self.reader.error(
                        where, f"image {image_id} is not in 'images'; add it or drop the annotation"
                    )
                if category_id not in self._names:
                    raise self.reader.error(where, f"category {category_id} is not in 'categories'; add it")
                self._annotations[image_id].append(annotation)

    def __len__(self) -> int:
        """Images."""
        return len(self._images)

    def file_names(self) -> list[str]:
        """The images' file names, as far as they have one."""
        return [name for image in self._images.values() if isinstance(name := image.get("file_name"), str)]

    @property
    def has_depth_order(self) -> bool:
        """Whether ``occluded_by`` follows the annotators' depth order."""
        return bool(self._behind)

    def __iter__(self) -> Iterator[AnnotatedImage]:
        ids = {name: number for number, (name, _) in self._names.items()}
        for number, image in self._images.items():
            annotations = self._annotations.pop(number, [])
            made: AnnotatedImage | None = None
            with self._collecting(f"image {number}") as where:
                self.reader.text(image, "file_name", where)
                size = (
                    self.reader.integer(image, "height", where, at_least=1),
                    self.reader.integer(image, "width", where, at_least=1),
                )
                objects = self._objects(annotations, size)
                in_front = [(o.id, farther) for o in objects for farther in self._behind.get(o.id, ())]
                made = _annotated(image, with_occluders(objects, in_front), {} if self.layout == COCOA else ids)
            if made is not None:
                yield made
            else:
                for annotation in annotations:
                    self._note(self._place(annotation["id"]), f"left out with its image {number}")

    def _objects(self, annotations: Sequence[dict[str, Any]], size: tuple[int, int]) -> list[AmodalObject]:
        objects = []
        for annotation in annotations:
            with self._collecting(self._place(annotation["id"])) as where:
                name = self._names[annotation["category_id"]]
                made = _object(self.reader, annotation, where, size, name, self.layout, self._note)
                if made is not None:
                    objects.append(made)
        return objects

    def _place(self, number: int) -> str:
        return self._where.get(number, f"annotation {number}")

    def _note(self, where: str, what: str) -> None:
        self.notes.append(Problem(where, what))

    def _bad(self, where: str, what: str) -> None:
        if self.strict:
            raise self.reader.error(where, what)
        self.problems.append(Problem(where, what))

    @contextlib.contextmanager
    def _collecting(self, where: str) -> Iterator[str]:
        """Turn an error about the record ``where`` into a problem, unless the file is read strictly."""
        try:
            yield where
        except ValueError as error:
            if self.strict:
                raise
            self.problems.append(Problem(where, str(error).removeprefix(f"{self.reader.path}: {where}: ")))

    def _list(self, root: Mapping[str, Any], key: str) -> list[Any]:
        if self.strict or not isinstance(root.get(key), list):
            return list(self.reader.records(root, key))
        return list(root[key])

    def _by_id(self, root: Mapping[str, Any], key: str, kind: str) -> dict[int, dict[str, Any]]:
        """The records of a list by id, in the file's order; those without one, or with one that was there, are bad."""
        found: dict[int, dict[str, Any]] = {}
        for number, record in enumerate(self._list(root, key)):
            if not isinstance(record, dict):
                self._bad(f"'{key}' item {number}", f"expected an object, got a {type(record).__name__}")
                continue
            where = f"{kind} {record['id']}" if "id" in record else f"'{key}' item {number}"
            with self._collecting(where):
                record_id = self.reader.integer(record, "id", where)
                if record_id in found:
                    raise self.reader.error(where, "the id occurs twice; give every record an id of its own")
                found[record_id] = record
        return found


def load_cocoa_cls(path: str | Path) -> list[AnnotatedImage]:
    """Read a COCOA-cls file: :class:`AnnotationFile`, with an error at the first problem.

    Annotations with an empty amodal or visible mask are left out: there is nothing to point at. Images come in the
    file's order, with or without objects; ``occlusion_rate`` and ``occluded_by`` are derived from the masks.

    Raises:
        ValueError: The file is missing, is not such a file, or an annotation contradicts itself.
    """
    return list(AnnotationFile(path, COCOA_CLS, strict=True))


def _annotated(image: dict[str, Any], objects: tuple[AmodalObject, ...], ids: Mapping[str, int]) -> AnnotatedImage:
    own = {"id", "file_name", "height", "width"}
    return AnnotatedImage(
        image_id=image["id"],
        file_name=image["file_name"],
        height=image["height"],
        width=image["width"],
        objects=objects,
        image_info={k: v for k, v in image.items() if k not in own},
        category_ids={o.category: ids[o.category] for o in objects if o.category in ids},
    )


def _object(
    reader: RecordReader,
    annotation: dict[str, Any],
    where: str,
    size: tuple[int, int],
    name: tuple[str, str],
    layout: Layout,
    note: Tell,
) -> AmodalObject | None:
    """The object of an annotation; ``None``, with a note, if it is a crowd or there is nothing to see of it."""
    if annotation.get("iscrowd"):
        note(where, "left out: a crowd has no amodal mask")
        return None
    amodal = reader.mask(annotation.get(layout.amodal), size, f"{where}: {layout.amodal}")
    if amodal is None:
        raise reader.error(where, f"'{layout.amodal}' (the amodal mask) is missing; add it")
    visible = reader.mask(annotation.get(layout.visible), size, f"{where}: {layout.visible}")
    invisible = None
    if layout.invisible is not None:
        invisible = reader.mask(annotation.get(layout.invisible), size, f"{where}: {layout.invisible}")
    if visible is None:
        if invisible is None and _stated_rate(annotation) > RATE_TOLERANCE:
            raise reader.error(
                where,
                f"'occlude_rate' is {annotation['occlude_rate']} but there is no visible or invisible mask; add it",
            )
        visible = amodal if invisible is None else _minus(amodal, invisible)
    area, seen = _area(amodal), _area(visible)
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
    for what in _wrong_figures(annotation, layout, amodal, 1.0 - seen / area):
        note(where, f"{what}; computed from the masks")
    return AmodalObject(annotation["id"], name[0], visible, amodal, 1.0 - seen / area, supercategory=name[1])


def _stated_rate(annotation: Mapping[str, Any]) -> float:
    value = annotation.get("occlude_rate")
    return float(value) if isinstance(value, int | float) else 0.0


def _wrong_figures(annotation: Mapping[str, Any], layout: Layout, amodal: Rle, rate: float) -> Iterator[str]:
    """What the file says about an object and its masks deny."""
    if "occlude_rate" in annotation and not abs(_stated_rate(annotation) - rate) <= RATE_TOLERANCE:
        yield f"'occlude_rate' was {annotation['occlude_rate']!r:.20} instead of {rate:.4f}"
    area, stated = _area(amodal), annotation.get("area")
    if isinstance(stated, int | float) and not abs(stated - area) <= max(AREA_TOLERANCE * area, MIN_AREA_TOLERANCE):
        yield f"'area' was {stated} instead of {area}"
    box, right = annotation.get(layout.bbox), rle_bbox(amodal)
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)
    if is_box and not max(abs(a - b) for a, b in zip(box or (), right, strict=True)) <= BOX_TOLERANCE:
        yield f"'{layout.bbox}' was {box} instead of {right} (the amodal mask's x, y, width, height)"


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
