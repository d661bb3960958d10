"""Every invariant of an AmodalReasonSeg file, checked record by record: all problems, not just the first."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from aura.formats.objects import is_unknown
from aura.formats.occlusion import DEPTH_ORDER, intersections, occluders
from aura.formats.pictures import Picture, PictureFacts, find_picture, name_flaw, picture_flaw
from aura.formats.pictures import examine as read_picture
from aura.formats.reading import to_rle
from aura.masks import rle_area, rle_bbox
from aura.targets import rate_from_areas
from aura.types import RESERVED_TOKENS, SEG_TOKEN, AmodalObject, Rle, asked_flaw, text_flaw

RATE_TOLERANCE = 1e-4
BOX_TOLERANCE = 0.5


class Problem(NamedTuple):
    """What is wrong with which record ("annotation 12", "conversation 3, turn 0")."""

    record: str
    message: str

    def __str__(self) -> str:
        return f"{self.record}: {self.message}"


Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


def problems(
    document: Mapping[str, Any],
    *,
    images: Path | None = None,
    progress: Progress | None = None,
    examine: Callable[[Path], PictureFacts] = read_picture,
) -> list[Problem]:
    """Everything wrong with a parsed file; empty if it is sound.

    Args:
        document: The file's JSON.
        images: Folder of the pictures; they are opened and measured. ``None`` skips that.
        progress: Told after each image.
        examine: Gives what a picture's file says; by default the file is read.
    """
    return _Checker(document, images, examine).run(progress)


def shared_images(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    folders: tuple[Path, Path] | None = None,
    digest_of: Callable[[Path], str | None] = lambda path: _digest(path),
) -> list[Problem]:
    """Images that two splits share: by the pictures' bytes (with the two ``folders``), by id, or by file name.

    One problem for each such image of the second split. ``digest_of`` a picture is ``None`` if there is none.
    """
    ones, found = _image_records(first), []
    keys = {"id": "id", "file_name": "file name"}
    taken = {key: {str(record.get(key)) for record in ones} for key in keys}
    known = (
        {} if folders is None else {digest_of(find_picture(folders[0], record["file_name"])): record for record in ones}
    )
    for record in _image_records(second):
        digest = None if folders is None else digest_of(find_picture(folders[1], record["file_name"]))
        same = " and ".join(word for key, word in keys.items() if str(record.get(key)) in taken[key])
        if digest is not None and digest in known:
            message = f"the picture equals image {known[digest].get('id')} of the other split; keep it in one of them"
        elif same and digest is not None:
            message = f"the other split has an image of this {same}, with another picture; change the {same} of one"
        elif same:
            message = f"both splits have an image of this {same}; keep it in one of them"
        else:
            continue
        found.append(Problem(f"image {record.get('id')}", message))
    return found


def _image_records(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    records = document.get("images")
    if not isinstance(records, list):
        return []
    named = (r for r in records if isinstance(r, dict) and isinstance(r.get("file_name"), str))
    return [record for record in named if name_flaw(record["file_name"]) is None]


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


class _Checker:
    """Walks through a document and collects what is wrong with it."""

    def __init__(
        self, document: Mapping[str, Any], folder: Path | None, examine: Callable[[Path], PictureFacts]
    ) -> None:
        self.document = document
        self.folder = folder
        self.examine = examine
        self.found: list[Problem] = []
        self.categories = self._records("categories", "category")
        self.images = self._records("images", "image")
        self.annotations = self._records("annotations", "annotation")
        self.conversations = self._records("conversations", "conversation")

    def _report(self, record: str, message: str) -> None:
        self.found.append(Problem(record, message))

    def run(self, progress: Progress | None) -> list[Problem]:
        for key in ("info", "licenses"):
            if key not in self.document:
                self._report(f"'{key}'", "it is missing; COCO files have it, though it may be empty")
        for number, category in self.categories.items():
            if not _is_text(category.get("name")):
                self._report(f"category {number}", "'name' must be a text")
            elif flaw := text_flaw(category["name"]):
                self._report(f"category {number}", f"'name' {flaw}")
        of_image: dict[Any, list[int]] = defaultdict(list)
        for number, annotation in self.annotations.items():
            image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
            of_image[_key(image_id)].append(number)
            if _key(image_id) not in self.images:
                self._report(f"annotation {number}", f"image {image_id!r} is not in 'images'")
            if _key(category_id) not in self.categories:
                self._report(f"annotation {number}", f"category {category_id!r} is not in 'categories'")
        names = Counter(str(image.get("file_name")) for image in self.images.values())
        for done, (number, image) in enumerate(self.images.items(), start=1):
            if names[str(image.get("file_name"))] > 1:
                self._report(f"image {number}", f"the file name {image.get('file_name')!r} occurs twice")
            self._image(number, image, of_image[number])
            if progress:
                progress(done, len(self.images))
        for number, conversation in self.conversations.items():
            self._conversation(number, conversation)
        return self.found

    def _records(self, key: str, kind: str) -> dict[int, dict[str, Any]]:
        """The well-formed records of a list by id; each other one is a problem."""
        records = self.document.get(key)
        well_formed: dict[int, dict[str, Any]] = {}
        if not isinstance(records, list):
            self._report(f"'{key}'", "it must be a list")
            return well_formed
        for index, record in enumerate(records):
            if not isinstance(record, dict) or not _is_integer(record.get("id")):
                self._report(f"'{key}' item {index}", "it must be an object with a whole number as 'id'")
            elif record["id"] in well_formed:
                self._report(f"{kind} {record['id']}", "the id occurs twice; only its first record is checked")
            else:
                well_formed[record["id"]] = record
        return well_formed

    def _image(self, number: int, image: Mapping[str, Any], annotations: list[int]) -> None:
        where = f"image {number}"
        if not _is_text(image.get("file_name")):
            self._report(where, "'file_name' must be a text")
        elif flaw := name_flaw(image["file_name"]):
            self._report(where, flaw)
        elif self.folder is not None:
            path = find_picture(self.folder, image["file_name"])
            picture = Picture(number, path, image.get("height"), image.get("width"))  # type: ignore[arg-type]
            flaw = picture_flaw(picture, self.examine(path))
            if flaw is not None:
                self._report(where, flaw)
        height, width = image.get("height"), image.get("width")
        if not (_is_integer(height) and _is_integer(width) and height > 0 and width > 0):
            self._report(where, f"'height' and 'width' must be positive whole numbers, got {height!r} and {width!r}")
            return
        if image.get("ignore") is not None:
            self._mask(image, "ignore", (height, width), where)
        objects = []
        for annotation_id in annotations:
            masks = self._annotation(annotation_id, (height, width))
            if masks is not None:
                visible, amodal = masks
                objects.append(AmodalObject(annotation_id, "", visible, amodal, None if amodal is None else 0.0))
        info = self.document.get("info")
        by_depth = isinstance(info, Mapping) and info.get("occluded_by") == DEPTH_ORDER
        for obj, expected in zip(objects, occluders(objects), strict=True):
            stored = self.annotations[obj.id].get("occluded_by")
            if by_depth:  # an annotator's order may know what the masks cannot: only the ids can be checked
                if not isinstance(stored, list) or not set(map(str, stored)) <= {
                    str(o.id) for o in objects if o != obj
                }:
                    self._report(f"annotation {obj.id}", f"'occluded_by' is {stored!r}, not other objects of the image")
                continue
            if not isinstance(stored, list) or set(map(str, stored)) != set(map(str, expected)):
                message = f"'occluded_by' is {stored!r} but by the masks it is {list(expected)}"
                self._report(f"annotation {obj.id}", message)

    def _annotation(self, number: int, size: tuple[int, int]) -> tuple[Rle, Rle | None] | None:
        """Check one annotation; returns its (visible, amodal) masks, or ``None`` where they cannot be used."""
        where, annotation = f"annotation {number}", self.annotations[number]
        masks: dict[str, Rle] = {}
        unknown = is_unknown(annotation, "segmentation")
        for key in ("visible_mask", "segmentation", "invisible_mask"):
            if (key == "invisible_mask" and key not in annotation) or (key == "segmentation" and unknown):
                continue
            mask = self._mask(annotation, key, size, where)
            if mask is not None:
                masks[key] = mask
        if unknown and "visible_mask" in masks:
            self.found += [Problem(where, message) for message in _unknown_flaws(annotation, masks["visible_mask"])]
            return masks["visible_mask"], None
        if "visible_mask" not in masks or "segmentation" not in masks:
            return None
        visible, amodal = masks["visible_mask"], masks["segmentation"]
        hidden = masks.get("invisible_mask")
        if hidden is not None or "invisible_mask" not in annotation:
            self.found += [Problem(where, message) for message in _mask_flaws(visible, amodal, hidden)]
        self.found += [Problem(where, message) for message in _figure_flaws(annotation, visible, amodal)]
        return visible, amodal

    def _mask(self, record: Mapping[str, Any], key: str, size: tuple[int, int], where: str) -> Rle | None:
        """The RLE ``record[key]``; a damaged one is a problem, and ``None``."""
        try:
            if not isinstance(record.get(key), dict):
                raise ValueError("it must be an RLE with 'size' and 'counts'")
            return to_rle(record[key], size)
        except (ValueError, TypeError) as error:
            self._report(where, f"'{key}': {error}")
            return None

    def _conversation(self, number: int, conversation: Mapping[str, Any]) -> None:
        where = f"conversation {number}"
        image_id = _key(conversation.get("image_id"))
        if image_id not in self.images:
            self._report(where, f"image {conversation.get('image_id')!r} is not in 'images'")
        if not isinstance(conversation.get("provenance"), dict):
            self._report(where, "'provenance' must be an object that says who wrote it")
        turns = conversation.get("turns")
        if not isinstance(turns, list) or not turns:
            self._report(where, "'turns' must be a list of at least one turn")
            return
        for index, turn in enumerate(turns):
            if isinstance(turn, dict):
                self._turn(f"{where}, turn {index}", turn, image_id)
            else:
                self._report(f"{where}, turn {index}", "it must be an object")

    def _turn(self, where: str, turn: Mapping[str, Any], image_id: int | None) -> None:
        for key in ("question", "answer"):
            if not _is_text(turn.get(key)):
                self._report(where, f"'{key}' must be a text")
            elif flaw := text_flaw(turn[key]):
                self._report(where, f"'{key}' {flaw}")
        if SEG_TOKEN in str(turn.get("question")):
            self._report(where, f"the question holds {SEG_TOKEN}; only answers mark objects")
        for key in ("question", "answer"):
            if found := next((token for token in RESERVED_TOKENS if token in str(turn.get(key))), None):
                self._report(where, f"the {key} contains the reserved token {found!r}; remove it")
        objects = turn.get("objects")
        if not isinstance(objects, list):
            self._report(where, "'objects' must be a list of annotation ids")
            return
        marks = str(turn.get("answer")).count(SEG_TOKEN)
        if marks != len(objects):
            self._report(where, f"the answer has {marks} {SEG_TOKEN} but 'objects' lists {len(objects)}")
        for annotation_id in objects:
            annotation = self.annotations.get(annotation_id) if _is_integer(annotation_id) else None
            if annotation is None:
                self._report(where, f"annotation {annotation_id!r} does not exist")
            elif _key(annotation.get("image_id")) != image_id:
                self._report(where, f"annotation {annotation_id} belongs to image {annotation.get('image_id')!r}")
        self._asked(where, [] if turn.get("asked") is None else turn["asked"], objects)

    def _asked(self, where: str, asked: Any, objects: list[Any]) -> None:
        """Which masks are meant; a shape that is not known cannot be asked for."""
        if flaw := asked_flaw(asked, len(objects)):
            self._report(where, flaw)
            return
        for annotation_id, kind in zip(objects, asked, strict=False):
            annotation = self.annotations.get(annotation_id) if _is_integer(annotation_id) else None
            if kind == "amodal" and annotation is not None and is_unknown(annotation, "segmentation"):
                self._report(where, f"'asked' wants the amodal mask of annotation {annotation_id}, which is not known")


def _mask_flaws(visible: Rle, amodal: Rle, invisible: Rle | None) -> Iterator[str]:
    area, seen = rle_area(amodal), rle_area(visible)
    for key, pixels in (("segmentation", area), ("visible_mask", seen)):
        if not pixels:
            yield f"'{key}' is empty"
    outside = seen - int(intersections([visible], [amodal])[0, 0])
    if outside:
        yield f"{outside} visible pixels lie outside the amodal mask"
    elif invisible is not None:
        hidden = rle_area(invisible)
        rightly = int(intersections([invisible], [amodal])[0, 0] - intersections([invisible], [visible])[0, 0])
        if not hidden == rightly == area - seen:
            yield f"'invisible_mask' ({hidden} pixels) is not amodal minus visible ({area - seen} pixels)"
    elif seen < area:
        yield f"'invisible_mask' is missing though {area - seen} pixels are hidden"


def _figure_flaws(annotation: Mapping[str, Any], visible: Rle, amodal: Rle) -> Iterator[str]:
    area, seen = rle_area(amodal), rle_area(visible)
    rate = rate_from_areas(seen, area)
    for key, expected, tolerance in (("occlude_rate", rate, RATE_TOLERANCE), ("area", area, BOX_TOLERANCE)):
        value: Any = annotation.get(key)
        if not _is_number(value) or not abs(value - expected) <= tolerance:
            yield f"'{key}' is {value!r} but by the masks it is {expected:.6g}"
    yield from _box_flaws(annotation, {"bbox": amodal, "visible_bbox": visible})
    if annotation.get("iscrowd", 0) not in (0, False):
        yield "'iscrowd' must be 0: crowds have no amodal mask"


def _unknown_flaws(annotation: Mapping[str, Any], visible: Rle) -> Iterator[str]:
    """Of an object whose whole shape is not known: ``area`` and ``bbox`` are the visible mask's."""
    if not rle_area(visible):
        yield "'visible_mask' is empty"
    for key in ("occlude_rate", "invisible_mask"):
        if annotation.get(key) is not None:
            yield f"'{key}' must be null or absent, since 'segmentation' is null"
    area: Any = annotation.get("area")
    if not _is_number(area) or not abs(area - rle_area(visible)) <= BOX_TOLERANCE:
        yield f"'area' is {area!r} but by the visible mask it is {rle_area(visible)}"
    yield from _box_flaws(annotation, {"bbox": visible, "visible_bbox": visible})


def _box_flaws(annotation: Mapping[str, Any], masks: Mapping[str, Rle]) -> Iterator[str]:
    for key, mask in masks.items():
        box: Any = annotation.get(key)
        right = rle_bbox(mask)
        valid = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
        if not valid or not max(abs(a - b) for a, b in zip(box, right, strict=True)) <= BOX_TOLERANCE:
            yield f"'{key}' is {box!r} but by the mask it is {right} (x, y, width, height)"


def _key(value: Any) -> int | None:
    """An id that can be looked up; damaged files may hold anything."""
    return value if _is_integer(value) else None


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
