"""Amodal annotation files of other projects, as one kind of record: :class:`AnnotatedImage`.

:class:`AnnotationFile` reads every known layout and collects what is wrong, record by record; :func:`load_cocoa_cls`
stops at the first flaw with a ``ValueError`` that names the file, the record and the remedy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aura.formats.checks import Problem
from aura.formats.layouts import COCOA, COCOA_CLS, D2SA, Layout, are_d2s, recognise_record, regions_of
from aura.formats.objects import area_of, object_of
from aura.formats.occlusion import occluders
from aura.formats.pictures import name_flaw
from aura.formats.reading import RecordReader
from aura.formats.streaming import Spool
from aura.targets import rate_from_areas
from aura.types import AmodalObject, Rle


@dataclass(frozen=True)
class AnnotatedImage:
    """One image of an annotation file with its objects.

    ``image_info`` holds the file's other fields of the image (``license``, ``coco_url``, ...), ``category_ids`` the
    file's own number of each category that occurs in ``objects``. ``ignore`` are pixels that an evaluation does not
    count (:class:`aura.types.Sample`).
    """

    image_id: int
    file_name: str
    height: int
    width: int
    objects: tuple[AmodalObject, ...]
    image_info: Mapping[str, Any] = field(default_factory=dict)
    category_ids: Mapping[str, int] = field(default_factory=dict)
    ignore: Rle | None = None


def with_occluders(
    objects: Sequence[AmodalObject], in_front: Collection[tuple[int, int]] = ()
) -> tuple[AmodalObject, ...]:
    """The objects with ``occluded_by`` derived from their masks or a depth order (:mod:`aura.formats.occlusion`)."""
    found = occluders(objects, in_front)
    return tuple(dataclasses.replace(o, occluded_by=by) for o, by in zip(objects, found, strict=True))


def _rates(visible: Sequence[Rle], amodal: Sequence[Rle]) -> list[float]:
    return [rate_from_areas(area_of(v), area_of(a)) for v, a in zip(visible, amodal, strict=True)]


# --- annotation files -------------------------------------------------------------------------------------------------


class AnnotationFile:
    """An annotation file of a known layout (:mod:`aura.formats.layouts`), read image by image.

    Iterating gives every image in the file's order, with or without objects; what is wrong is collected by record. A
    bad record is left out and stands in ``problems``; what was put right, or left out on purpose, stands in ``notes``.
    Masks may be RLEs (compressed or plain), lists of polygons, or one flat polygon. Without a visible mask an object is
    unoccluded, unless it has an ``invisible_mask``: then visible = amodal minus invisible. Rates, boxes and areas come
    from the masks; where the file says otherwise, a note tells.

    The file is never held as a whole: its records wait in a temporary file on disk, about as large.

    Args:
        path: The file.
        layout: Recognised from the file without.
        with_stuff: Take COCOA's regions of stuff too.
        strict: Raise at the first problem.
        first_region: Number of the first region of COCOA, which have none of their own.

    Raises:
        ValueError: The file is missing, is no JSON, or holds no amodal annotations of a known layout, or of another
            one than ``layout``.
    """

    def __init__(
        self,
        path: str | Path,
        layout: Layout | None = None,
        *,
        with_stuff: bool = False,
        strict: bool = False,
        first_region: int = 1,
    ) -> None:
        self.reader = RecordReader(Path(path))
        self.strict = strict
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self._spool = Spool(path, ("images", "categories", "annotations"))
        self.layout = self._layout(layout)
        self.info: Any = self._spool.other.get("info")
        self.licenses: Any = self._spool.other.get("licenses")
        self.has_depth_order = False
        """Whether ``occluded_by`` follows the annotators' depth order."""
        self.next_region = first_region
        """The number after the last region's."""
        self._names: dict[int, tuple[str, str]] = {}
        if self.layout == COCOA:
            self._require_list("annotations")
            self._index_regions(with_stuff)
        else:
            self._index_categories()
        self._index_images()
        self.num_annotations = self._index_annotations()
        self._spool.index()

    def _layout(self, wanted: Layout | None) -> Layout:
        for position, (_, record) in enumerate(self._spool.records("annotations")):
            found = recognise_record(record)
            if found is None:
                continue
            if found == COCOA_CLS and (
                wanted == D2SA or (wanted is None and are_d2s(r for _, r in self._spool.records("images")))
            ):
                found = D2SA
            if wanted not in (None, found):
                where = f"annotation {record['id']}" if "id" in record else f"'annotations' item {position}"
                raise self.reader.error(where, f"is laid out as in {found.name}, not as in {wanted.name}")
            return found
        if wanted is None:
            raise ValueError(
                f"{self.reader.path}: no amodal annotations of a known layout (COCOA-cls, COCOA, D2SA, KINS): no "
                "annotation has 'visible_mask', 'occlude_rate', 'regions', 'inmodal_seg' or 'a_segm'"
            )
        return wanted

    # --- which records there are, and what belongs to what ---

    def _index_categories(self) -> None:
        for number, category in self._by_id("categories", "category"):
            with self._collecting(f"category {number}"):
                name = self.reader.text(category, "name", f"category {number}")
                self._names[number] = (name, str(category.get("supercategory") or ""))

    def _index_regions(self, with_stuff: bool) -> None:
        records = (record for _, record in self._spool.records("annotations"))
        found = regions_of(records, first_id=self.next_region, with_stuff=with_stuff, bad=self._bad, note=self._note)
        for self.next_region, regions in found:
            for region in regions:
                self._spool.add("regions", json.dumps({**region.record, PLACE: region.where, BEHIND: region.behind}))
                self.has_depth_order |= bool(region.behind)

    def _index_images(self) -> None:
        for _ in self._by_id("images", "image"):
            pass

    def _index_annotations(self) -> int:
        found = 0
        for number, annotation in self._by_id(self._annotations, "annotation"):
            found += 1
            with self._collecting(_place(annotation)) as where:
                image_id = self.reader.integer(annotation, "image_id", where)
                if not self._spool.has("images", image_id):
                    raise self.reader.error(
                        where, f"image {image_id} is not in 'images'; add it or drop the annotation"
                    )
                self._name_of(annotation, where)
                self._spool.give(self._annotations, number, image_id)
        return found

    @property
    def _annotations(self) -> str:
        return "regions" if self.layout == COCOA else "annotations"

    def _by_id(self, name: str, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """(id, record) of a list, in its order; those without an id, or with one that was there, are bad."""
        if name != "regions":
            self._require_list(name)
        for position, (row, record) in enumerate(self._spool.records(name)):
            if not isinstance(record, dict):
                self._bad(f"'{name}' item {position}", f"expected an object, got a {type(record).__name__}")
                continue
            where = f"{kind} {record['id']}" if "id" in record else f"'{name}' item {position}"
            with self._collecting(where):
                number = self.reader.integer(record, "id", where)
                if not self._spool.identify(name, number, row):
                    raise self.reader.error(where, "the id occurs twice; give every record an id of its own")
                yield number, record

    def _require_list(self, name: str) -> None:
        if name not in self._spool.lists:
            self.reader.records(self._spool.other, name)

    # --- images ---

    def __len__(self) -> int:
        """Images."""
        return self._spool.count("images")

    def file_names(self) -> list[str]:
        """The images' file names, as far as they have one that can be used."""
        return [
            name.replace("\\", "/")
            for _, image in self._spool.identified("images")
            if isinstance(name := image.get("file_name"), str) and name_flaw(name) is None
        ]

    def __iter__(self) -> Iterator[AnnotatedImage]:
        ids = {} if self.layout == COCOA else {name: number for number, (name, _) in self._names.items()}
        for number, image in self._spool.identified("images"):
            annotations = self._spool.of(self._annotations, number)
            made: AnnotatedImage | None = None
            with self._collecting(f"image {number}") as where:
                name = self.reader.file_name(image, "file_name", where).replace("\\", "/")
                size = (
                    self.reader.integer(image, "height", where, at_least=1),
                    self.reader.integer(image, "width", where, at_least=1),
                )
                objects = self._objects(annotations, size)
                in_front = [(a["id"], farther) for a in annotations for farther in a.get(BEHIND, ())]
                made = AnnotatedImage(
                    image_id=number,
                    file_name=name,
                    height=size[0],
                    width=size[1],
                    objects=with_occluders(objects, in_front),
                    image_info={k: v for k, v in image.items() if k not in OWN},
                    category_ids={o.category: ids[o.category] for o in objects if o.category in ids},
                )
            if made is not None:
                yield made
            else:
                for annotation in annotations:
                    self._note(_place(annotation), f"left out with its image {number}")

    def _objects(self, annotations: Sequence[dict[str, Any]], size: tuple[int, int]) -> list[AmodalObject]:
        objects = []
        for annotation in annotations:
            with self._collecting(_place(annotation)) as where:
                name = self._name_of(annotation, where)
                made = object_of(self.reader, annotation, where, size, name, self.layout, self._note)
                if made is not None:
                    objects.append(made)
        return objects

    def _name_of(self, annotation: Mapping[str, Any], where: str) -> tuple[str, str]:
        """(category, supercategory) of an annotation."""
        if self.layout == COCOA:
            return annotation["name"], ""
        category_id = self.reader.integer(annotation, "category_id", where)
        if category_id not in self._names:
            raise self.reader.error(where, f"category {category_id} is not in 'categories'; add it")
        return self._names[category_id]

    # --- what is wrong ---

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


OWN = {"id", "file_name", "height", "width"}
"""Fields of an image's record that have a place of their own."""
PLACE, BEHIND = "place in the file", "ids behind it"
"""What a waiting record of a region has besides its own."""


def _place(annotation: Mapping[str, Any]) -> str:
    return str(annotation.get(PLACE) or f"annotation {annotation['id']}")


def load_cocoa_cls(path: str | Path) -> list[AnnotatedImage]:
    """Read a COCOA-cls file: :class:`AnnotationFile`, with an error at the first problem.

    Annotations with an empty amodal or visible mask are left out: there is nothing to point at. Images come in the
    file's order, with or without objects; ``occlusion_rate`` and ``occluded_by`` are derived from the masks.

    Raises:
        ValueError: The file is missing, is not such a file, or an annotation contradicts itself.
    """
    return list(AnnotationFile(path, COCOA_CLS, strict=True))
