"""AmodalReasonSeg: images, objects with visible and amodal masks, and conversations about them, in one JSON file.

The file is COCO-compatible (``pycocotools.coco.COCO`` loads it): ``info``, ``licenses``, ``categories``, ``images``,
``annotations`` with the fields of COCOA-cls (``segmentation`` amodal, ``visible_mask``, ``invisible_mask`` where
something is hidden, ``area`` and ``bbox`` of the amodal mask, ``occlude_rate``, ``iscrowd``) plus ``visible_bbox`` and
``occluded_by`` (annotation ids, see :mod:`aura.formats.occlusion`), and ``conversations``::

    {"id", "image_id", "turns": [{"question", "answer", "objects": [annotation ids in [SEG] order]}], "provenance": {}}

``info["image_folder"]`` tells where the images lie, relative to the file. The invariants are in
:mod:`aura.formats.checks`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from aura.files import write_json
from aura.formats.reading import RecordReader
from aura.formats.sources import AnnotatedImage
from aura.masks import decode_rle, encode_rle, rle_area, rle_bbox
from aura.targets import rate_from_areas
from aura.types import AmodalObject, Conversation, Rle, Sample, Turn

FORMAT_VERSION = "1"
OCCLUSION_BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class AmodalReasonSeg(Sequence[Sample]):
    """A split of the data set: a sequence of samples, one per image, in the file's order.

    Made by :meth:`load` or :meth:`build`. ``document`` is the parsed file; ``images`` the folder of the pictures.
    """

    def __init__(self, document: Mapping[str, Any], *, images: str | Path | None = None, source: str | Path) -> None:
        """Read the records of ``document``; ``source`` is the file they came from or will go to.

        ``images`` is the folder that ``file_name`` entries are relative to; without it ``info["image_folder"]``,
        relative to the file, and without that the file's own folder.

        Raises:
            ValueError: A record lacks a field, a field has the wrong type, or ids do not match; one error, which names
                the file, the record and the remedy.
        """
        self.document = dict(document)
        self.source = Path(source)
        self.images = Path(images) if images is not None else image_folder(document, self.source)
        self._samples = _Parser(RecordReader(self.source), self.images).samples(document)

    @classmethod
    def load(cls, annotations: str | Path, images: str | Path | None = None) -> AmodalReasonSeg:
        """Read a file; arguments and errors as in the constructor. Pictures are not opened."""
        return cls(RecordReader(Path(annotations)).root(), images=images, source=annotations)

    @classmethod
    def build(
        cls,
        images: Iterable[AnnotatedImage],
        conversations: Mapping[int, Sequence[Conversation]],
        *,
        source: str | Path,
        image_folder: str | None = None,
        info: Mapping[str, Any] | None = None,
        licenses: Sequence[Mapping[str, Any]] = (),
    ) -> AmodalReasonSeg:
        """Put annotated images and conversations (by image id) into the data set's form.

        ``source`` is where the file will be saved, ``image_folder`` the folder of the pictures relative to it.
        Categories keep the numbers that their source gave them.
        """
        images = list(images)
        numbers = _category_numbers(images)
        supercategories = {o.category: o.supercategory for image in images for o in image.objects}
        described = {"description": "AmodalReasonSeg", "version": FORMAT_VERSION, **(info or {})}
        if image_folder is not None:
            described["image_folder"] = image_folder
        document = {
            "info": described,
            "licenses": [dict(item) for item in licenses],
            "categories": [
                {"id": number, "name": name, "supercategory": supercategories.get(name, "")}
                for name, number in sorted(numbers.items(), key=lambda item: item[1])
            ],
            "images": [image_record(image) for image in images],
            "annotations": [
                annotation_record(o, image.image_id, numbers[o.category]) for image in images for o in image.objects
            ],
            "conversations": [
                conversation_record(conversation, image.image_id)
                for image in images
                for conversation in conversations.get(image.image_id, ())
            ],
        }
        return cls(document, source=source)

    def save(self, path: str | Path | None = None) -> Path:
        """Write the file, atomically, to ``path`` (default: ``source``) and return where it is."""
        path = Path(path) if path is not None else self.source
        write_json(path, self.document)
        return path

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        return self._samples[index]

    def statistics(self) -> dict[str, Any]:
        """Counts of images, objects, pairs and words; ``occlusion_histogram`` has ten bins over [0, 1].

        ``objects_per_answer_histogram`` and ``turns_histogram`` map a number to how often it occurs.
        """
        turns = [t for sample in self for c in sample.conversations for t in c.turns]
        rates = [o.occlusion_rate for sample in self for o in sample.objects]
        per_answer = Counter(len(t.objects) for t in turns)
        histogram, _ = np.histogram(rates, bins=OCCLUSION_BINS)
        return {
            "images": len(self),
            "images_with_conversations": sum(bool(s.conversations) for s in self),
            "objects": len(rates),
            "categories": len({o.category for s in self for o in s.objects}),
            "objects_per_image": _mean(len(s.objects) for s in self),
            "conversations": sum(len(s.conversations) for s in self),
            "pairs": len(turns),
            "pairs_per_image": len(turns) / max(len(self), 1),
            "objects_per_answer": _mean(len(t.objects) for t in turns),
            "objects_per_answer_histogram": dict(sorted(per_answer.items())),
            "turns_histogram": dict(sorted(Counter(len(c.turns) for s in self for c in s.conversations).items())),
            "distinct_questions": len({t.question for t in turns}),
            "words_per_question": _mean(len(t.question.split()) for t in turns),
            "words_per_answer": _mean(len(t.answer.split()) for t in turns),
            "mean_occlusion_rate": _mean(rates),
            "occlusion_histogram": [int(n) for n in histogram],
            "occluded_objects": sum(bool(o.occluded_by) for s in self for o in s.objects),
        }


def _mean(values: Iterable[float]) -> float:
    collected = list(values)
    return float(np.mean(collected)) if collected else 0.0


def image_folder(document: Mapping[str, Any], source: Path) -> Path:
    """Where the pictures of a file lie, by its own account."""
    info = document.get("info")
    folder = info.get("image_folder") if isinstance(info, Mapping) else None
    return source.parent / (folder if isinstance(folder, str) else ".")


# --- writing ----------------------------------------------------------------------------------------------------------


def annotation_record(obj: AmodalObject, image_id: int, category_id: int) -> dict[str, Any]:
    """One object as a COCOA-cls annotation with ``visible_bbox`` and ``occluded_by``; everything from the masks."""
    area, seen = rle_area(obj.amodal), rle_area(obj.visible)
    record: dict[str, Any] = {
        "id": obj.id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": obj.amodal,
        "visible_mask": obj.visible,
        "area": area,
        "bbox": rle_bbox(obj.amodal),
        "visible_bbox": rle_bbox(obj.visible),
        "occlude_rate": rate_from_areas(seen, area),
        "occluded_by": list(obj.occluded_by),
        "iscrowd": 0,
    }
    if seen < area:
        record["invisible_mask"] = invisible_rle(obj.visible, obj.amodal)
    return record


def invisible_rle(visible: Rle, amodal: Rle) -> Rle:
    """The hidden part: amodal minus visible."""
    return encode_rle(decode_rle(amodal) & ~decode_rle(visible))


def conversation_record(conversation: Conversation, image_id: int) -> dict[str, Any]:
    """A conversation as it stands in the file."""
    turns = [{"question": t.question, "answer": t.answer, "objects": list(t.objects)} for t in conversation.turns]
    return {
        "id": conversation.id,
        "image_id": image_id,
        "turns": turns,
        "provenance": dict(conversation.provenance),
    }


def image_record(image: AnnotatedImage) -> dict[str, Any]:
    """An image as it stands in the file, with what its source says about it."""
    own = {"id": image.image_id, "file_name": image.file_name, "height": image.height, "width": image.width}
    return {**own, **{k: v for k, v in image.image_info.items() if k not in own}}


def _category_numbers(images: Sequence[AnnotatedImage]) -> dict[str, int]:
    """Name -> number: the sources' own; names without one, in alphabetical order, take the next free numbers."""
    numbers: dict[str, int] = {}
    for image in images:
        for name, number in image.category_ids.items():
            if numbers.setdefault(name, number) != number:
                raise ValueError(
                    f"image {image.image_id}: category {name!r} has the number {number} here and {numbers[name]} in "
                    "another image; merge only sources that share their categories"
                )
    following = max(numbers.values(), default=0) + 1
    unnumbered = sorted({o.category for image in images for o in image.objects} - set(numbers))
    return {**numbers, **{name: following + i for i, name in enumerate(unnumbered)}}


# --- reading ----------------------------------------------------------------------------------------------------------


class _Parser:
    """From the parsed JSON to samples; stops at the first flaw."""

    def __init__(self, reader: RecordReader, images: Path) -> None:
        self.reader = reader
        self.images = images

    def samples(self, root: Mapping[str, Any]) -> list[Sample]:
        reader = self.reader
        names = {
            number: (reader.text(c, "name", f"category {number}"), str(c.get("supercategory") or ""))
            for number, c in reader.by_id(root, "categories", "category").items()
        }
        images = reader.by_id(root, "images", "image")
        objects: dict[int, list[AmodalObject]] = defaultdict(list)
        for number, annotation in reader.by_id(root, "annotations", "annotation").items():
            where = f"annotation {number}"
            image_id = self._image_id(annotation, images, where)
            objects[image_id].append(self._object(annotation, number, names, where))
        conversations: dict[int, list[Conversation]] = defaultdict(list)
        for number, conversation in reader.by_id(root, "conversations", "conversation").items():
            image_id = self._image_id(conversation, images, f"conversation {number}")
            conversations[image_id].append(self._conversation(conversation, number))
        return [self._sample(number, images[number], objects[number], conversations[number]) for number in images]

    def _image_id(self, record: Mapping[str, Any], images: Mapping[int, Any], where: str) -> int:
        image_id = self.reader.integer(record, "image_id", where)
        if image_id not in images:
            raise self.reader.error(where, f"image {image_id} is not in 'images'; add it or drop the record")
        return image_id

    def _object(
        self, annotation: Mapping[str, Any], number: int, names: Mapping[int, tuple[str, str]], where: str
    ) -> AmodalObject:
        category_id = self.reader.integer(annotation, "category_id", where)
        if category_id not in names:
            raise self.reader.error(where, f"category {category_id} is not in 'categories'; add it")
        masks = [self._rle(annotation, key, where) for key in ("visible_mask", "segmentation")]
        rate = self.reader.number(annotation, "occlude_rate", where)
        if not 0 <= rate <= 1:
            raise self.reader.error(where, f"'occlude_rate' must be in [0, 1], got {rate}")
        occluded_by = self.reader.integers(annotation, "occluded_by", where) if "occluded_by" in annotation else ()
        name, supercategory = names[category_id]
        return AmodalObject(number, name, masks[0], masks[1], rate, occluded_by, supercategory)

    def _rle(self, annotation: Mapping[str, Any], key: str, where: str) -> Rle:
        """Masks are taken as they stand: the checks decode them, loading a large file should not."""
        rle = annotation.get(key)
        if not (isinstance(rle, dict) and isinstance(rle.get("counts"), str) and isinstance(rle.get("size"), list)):
            raise self.reader.error(
                where,
                f"'{key}' must be a compressed RLE with 'size' and 'counts'; "
                "scripts/generate_questions.py converts files with polygons",
            )
        return rle

    def _conversation(self, record: Mapping[str, Any], number: int) -> Conversation:
        where = f"conversation {number}"
        turns = []
        for index, turn in enumerate(self.reader.records(record, "turns") if "turns" in record else []):
            at = f"{where}, turn {index}"
            question, answer = self.reader.text(turn, "question", at), self.reader.text(turn, "answer", at)
            objects = self.reader.integers(turn, "objects", at)
            try:
                turns.append(Turn(question, answer, objects))
            except ValueError as error:
                raise self.reader.error(at, str(error)) from error
        provenance = record.get("provenance", {})
        if not turns or not isinstance(provenance, dict):
            what = "'turns' must be a list of at least one turn" if not turns else "'provenance' must be an object"
            raise self.reader.error(where, what)
        return Conversation(number, tuple(turns), provenance)

    def _sample(
        self, number: int, image: Mapping[str, Any], objects: list[AmodalObject], conversations: list[Conversation]
    ) -> Sample:
        where = f"image {number}"
        height, width = (self.reader.integer(image, key, where, at_least=1) for key in ("height", "width"))
        path = self.images / self.reader.text(image, "file_name", where)
        try:
            return Sample(number, path, height, width, tuple(objects), tuple(conversations))
        except ValueError as error:
            raise ValueError(f"{self.reader.path}: {error}; run scripts/validate_dataset.py for a full list") from error
