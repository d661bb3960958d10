"""Instance segmentations as COCO writes them, read image by image: masks of what can be seen, and no amodal truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from aura.formats.reading import Flaws, RecordReader
from aura.formats.sources import AnnotatedImage
from aura.formats.streaming import Spool
from aura.masks import decode_rle, rle_area, rle_bbox
from aura.types import AmodalObject, Rle

BORDER = 2.0
"""An object whose box comes this close to the border, in pixels, may go on beyond it."""
REACH = 2
"""Pixels around an object in which another one touches it."""
MAX_TOUCHED = 0.1
"""The share of an object's rim that other annotated objects may touch before it counts as partly hidden."""
MIN_ANNOTATED = 0.0004
"""Objects smaller than this fraction of the image are not asked about: nobody could name them."""


@dataclass(frozen=True)
class Instance:
    """One annotated object: what can be seen of it, ``mask``, and whether that is all of it (``is_whole``).

    A crowd stands for several objects. Its mask is a region, not a shape.
    """

    id: int
    category: str
    mask: Rle
    is_crowd: bool = False
    is_whole: bool = False
    supercategory: str = ""

    @property
    def area(self) -> int:
        """Pixels."""
        return rle_area(self.mask)


@dataclass(frozen=True)
class InstanceImage:
    """One image and its instances, in the file's order. ``info`` holds the file's other fields of the image."""

    image_id: int
    file_name: str
    height: int
    width: int
    instances: tuple[Instance, ...]
    info: dict[str, Any]

    @property
    def crowds(self) -> dict[str, str]:
        """Categories of which there is a crowd, with their supercategories."""
        return {instance.category: instance.supercategory for instance in self.instances if instance.is_crowd}

    def as_annotated(self, category_ids: Mapping[str, int]) -> AnnotatedImage:
        """The image with its objects, as the visible masks alone tell them: of no object is the whole shape known.

        Crowds and what is smaller than :data:`MIN_ANNOTATED` are left out.
        """
        least = MIN_ANNOTATED * self.height * self.width
        objects = tuple(
            AmodalObject(i.id, i.category, i.mask, None, None, supercategory=i.supercategory)
            for i in self.instances
            if not i.is_crowd and i.area >= least
        )
        return AnnotatedImage(
            self.image_id, self.file_name, self.height, self.width, objects, self.info, dict(category_ids)
        )


class InstanceFile:
    """A COCO instances file. Its records wait in a temporary file on disk, so that it may be of any size.

    Iterating gives the images in the file's order, with or without instances. ``categories`` maps a name to its number
    and supercategory.

    Args:
        path: The file.

    Raises:
        ValueError: The file is missing or no such file, or a record is not valid; the message names the record.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._reader = RecordReader(self.path)
        self._spool = Spool(path, ("images", "categories", "annotations"))
        for name in ("images", "categories", "annotations"):
            if name not in self._spool.lists:
                self._reader.records(self._spool.other, name)
        self.licenses: Any = self._spool.other.get("licenses")
        self._names: dict[int, tuple[str, str]] = {}
        for number, record in self._identify("categories", "category"):
            name = self._reader.text(record, "name", f"category {number}")
            self._names[number] = (name, str(record.get("supercategory") or ""))
        self.image_ids = [number for number, _ in self._identify("images", "image")]
        for number, record in self._identify("annotations", "annotation"):
            owner = self._reader.integer(record, "image_id", f"annotation {number}")
            if not self._spool.has("images", owner):
                raise self._reader.error(
                    f"annotation {number}", f"image {owner} is not in 'images'; add it or drop the annotation"
                )
            self._spool.give("annotations", number, owner)
        self._spool.index()

    @property
    def categories(self) -> dict[str, tuple[int, str]]:
        return {name: (number, above) for number, (name, above) in self._names.items()}

    def __len__(self) -> int:
        return len(self.image_ids)

    def __iter__(self) -> Iterator[InstanceImage]:
        for number, record in self._spool.identified("images"):
            image = self._image(number, record)
            found = self._instances(image)
            yield dataclasses.replace(image, instances=_with_wholes(found, image.height, image.width))

    def outlined(
        self, wanted: Mapping[int, Collection[int]] | None = None, flaws: Flaws | None = None
    ) -> Iterator[InstanceImage]:
        """The images as iterating gives them, without a look at what is whole (``is_whole`` is false).

        Args:
            wanted: Image id -> ids of the annotations to read; without it all of all images.
            flaws: What becomes of a bad image or annotation; without it the first one raises.
        """
        flaws = flaws or Flaws()
        for number, record in self._spool.identified("images"):
            if wanted is not None and number not in wanted:
                continue
            image = None
            with flaws.leaving_out():
                image = self._image(number, record)
            if image is not None:
                found = self._instances(image, None if wanted is None else wanted[number], flaws)
                yield dataclasses.replace(image, instances=tuple(instance for instance, _ in found))

    def _identify(self, name: str, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for position, (row, record) in enumerate(self._spool.records(name)):
            if not isinstance(record, dict):
                raise self._reader.error(
                    f"'{name}' item {position}", f"expected an object, got a {type(record).__name__}"
                )
            where = f"{kind} {record['id']}" if "id" in record else f"'{name}' item {position}"
            number = self._reader.integer(record, "id", where)
            if not self._spool.identify(name, number, row):
                raise self._reader.error(where, "the id occurs twice; give every record an id of its own")
            yield number, record

    def _image(self, number: int, record: dict[str, Any]) -> InstanceImage:
        where = f"image {number}"
        file_name = self._file_name(record, where)
        height = self._reader.integer(record, "height", where, at_least=1)
        width = self._reader.integer(record, "width", where, at_least=1)
        own = {"id", "file_name", "height", "width"}
        info = {key: value for key, value in record.items() if key not in own}
        return InstanceImage(number, file_name, height, width, (), info)

    def _file_name(self, record: dict[str, Any], where: str) -> str:
        """LVIS has none: there it is the end of the picture's address, such as ``train2017/000000391895.jpg``."""
        if "file_name" not in record and isinstance(address := record.get("coco_url"), str) and "/" in address:
            return self._reader.name_below("/".join(address.split("/")[-2:]), where)
        return self._reader.file_name(record, "file_name", where)

    def _instances(
        self, image: InstanceImage, wanted: Collection[int] | None = None, flaws: Flaws | None = None
    ) -> list[tuple[Instance, int]]:
        flaws = flaws or Flaws()
        found = []
        for record in self._spool.of("annotations", image.image_id):
            if wanted is None or record["id"] in wanted:
                with flaws.leaving_out():
                    found.append(self._instance(record, (image.height, image.width)))
        return found

    def _instance(self, record: dict[str, Any], size: tuple[int, int]) -> tuple[Instance, int]:
        """The instance, and of how many parts its outline consists."""
        where = f"annotation {record['id']}"
        number = self._reader.integer(record, "category_id", where)
        if number not in self._names:
            raise self._reader.error(where, f"category {number} is not in 'categories'; add it")
        value = record.get("segmentation")
        mask = self._reader.mask(value, size, where)
        if mask is None:
            raise self._reader.error(where, "'segmentation' is missing; add it or drop the annotation")
        name, above = self._names[number]
        parts = len(value) if isinstance(value, list) and value and isinstance(value[0], list) else 1
        return Instance(record["id"], name, mask, bool(record.get("iscrowd")), supercategory=above), parts


def _with_wholes(found: list[tuple[Instance, int]], height: int, width: int) -> tuple[Instance, ...]:
    """The instances, with ``is_whole`` set by what can be told from outlines alone.

    Not whole: a crowd; what comes near the border; what consists of several parts, for something lies across it; what
    others touch along more than :data:`MAX_TOUCHED` of its rim, for one of the two hides the other.
    """
    masks = [decode_rle(instance.mask) for instance, _ in found]
    count = np.zeros((height, width), np.uint16)
    for mask in masks:
        count += mask
    return tuple(
        Instance(
            instance.id,
            instance.category,
            instance.mask,
            instance.is_crowd,
            not instance.is_crowd
            and parts == 1
            and _is_inside(instance.mask, height, width)
            and _touched(mask, count) <= MAX_TOUCHED,
            instance.supercategory,
        )
        for (instance, parts), mask in zip(found, masks, strict=True)
    )


def _is_inside(mask: Rle, height: int, width: int) -> bool:
    x, y, w, h = rle_bbox(mask)
    return w > 0 and x >= BORDER and y >= BORDER and x + w <= width - BORDER and y + h <= height - BORDER


def _touched(mask: np.ndarray, count: np.ndarray) -> float:
    """The share of the ring of :data:`REACH` pixels around ``mask`` that others' masks cover, 0 to 1.

    ``count`` [H, W] says how many masks cover each pixel, this one included.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = np.s_[max(rows[0] - REACH, 0) : rows[-1] + REACH + 1, max(columns[0] - REACH, 0) : columns[-1] + REACH + 1]
    own = mask[window]
    wide = _grown(own)
    ring = wide & ~own
    others = count[window] - own > 0
    touched, covered = others[ring], others[own]  # where a mask lies upon this one, it is not seen
    return max(float(part.mean()) if part.size else 0.0 for part in (touched, covered))


def _grown(mask: np.ndarray) -> np.ndarray:
    kernel = np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8)
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)
