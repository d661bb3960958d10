"""AmodalReasonSeg: images, objects with visible and amodal masks, and conversations about them, in one JSON file.

The file is COCO-compatible (``pycocotools.coco.COCO`` loads it): ``info``, ``licenses``, ``categories``, ``images``,
``annotations`` with the fields of COCOA-cls (``segmentation`` amodal, ``visible_mask``, ``invisible_mask`` where
something is hidden, ``area`` and ``bbox`` of the amodal mask, ``occlude_rate``, ``iscrowd``) plus ``visible_bbox`` and
``occluded_by`` (annotation ids, see :mod:`aura.formats.occlusion`), and ``conversations``::

    {"id", "image_id", "turns": [{"question", "answer", "objects": [annotation ids in [SEG] order]}], "provenance": {}}

A turn may have ``asked``, which mask each of its objects means: ``visible``, ``amodal`` or, as without it, ``both``.
``info["image_folder"]`` tells where the images lie, relative to the file. An image may have ``ignore``, a mask of
pixels that no evaluation counts. The invariants are in
:mod:`aura.formats.checks`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from aura.files import write_json
from aura.formats.pictures import Picture
from aura.formats.reading import RecordReader
from aura.formats.rows import Rows, find_rows, info_of
from aura.formats.samples import ListedSamples, samples_of
from aura.formats.sources import AnnotatedImage
from aura.masks import decode_rle, encode_rle, rle_area, rle_bbox
from aura.targets import rate_from_areas
from aura.types import AmodalObject, Conversation, Rle, Sample, Turn

FORMAT_VERSION = "1"
OCCLUSION_BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class AmodalReasonSeg(Sequence[Sample]):
    """A split of the data set: a sequence of samples, one per image, in the file's order.

    Made by :meth:`load` or :meth:`build`. ``images`` is the folder of the pictures.
    """

    def __init__(self, document: Mapping[str, Any], *, images: str | Path | None = None, source: str | Path) -> None:
        """Read the records of ``document``; ``source`` is the file they came from or will go to.

        ``images`` is the folder that ``file_name`` entries are relative to; without it ``info["image_folder"]``,
        relative to the file, and without that the file's own folder.

        Raises:
            ValueError: A record lacks a field, a field has the wrong type, or ids do not match; one error, which names
                the file, the record and the remedy.
        """
        self.source = Path(source)
        self.images = Path(images) if images is not None else image_folder(document, self.source)
        self._document: dict[str, Any] | None = dict(document)
        self._samples: ListedSamples | Rows = samples_of(document, RecordReader(self.source), self.images)

    @classmethod
    def load(cls, annotations: str | Path, images: str | Path | None = None) -> AmodalReasonSeg:
        """Open a file; arguments and errors as in the constructor. Pictures are not opened.

        Its records stay on disk (:mod:`aura.formats.rows`): the first opening reads the file once, later ones take no
        time, and a sample is in memory only while it is used.
        """
        dataset = cls.__new__(cls)
        dataset.source = Path(annotations)
        place = find_rows(dataset.source)
        own = image_folder({"info": info_of(place)}, dataset.source)
        dataset.images = own if images is None else Path(images)
        dataset._document = None
        dataset._samples = Rows(dataset.source, dataset.images, place)
        return dataset

    @property
    def document(self) -> dict[str, Any]:
        """The parsed file, as a whole; of one that was opened it is read when it is asked for."""
        if self._document is None:
            self._document = RecordReader(self.source).root()
        return self._document

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

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def conversation_counts(self) -> NDArray[np.int64]:
        """Conversations of each image, [images]."""
        return self._samples.conversation_counts()

    def pictures(self) -> Iterator[Picture]:
        """What the records say about each image's picture."""
        return self._samples.pictures()

    def categories(self) -> dict[int, str]:
        """Number -> name."""
        return self._samples.categories()

    def digest(self) -> str:
        """Of the images' ids and their conversations, in their order."""
        return self._samples.digest()

    def content(self) -> str | None:
        """Of the file that was opened; ``None`` of what was built or parsed by others."""
        return self._samples.content()

    def statistics(self) -> dict[str, Any]:
        """Counts of images, objects, pairs and words; ``occlusion_histogram`` has ten bins over [0, 1].

        ``objects_per_answer_histogram`` and ``turns_histogram`` map a number to how often it occurs. ``asked_visible``
        and ``asked_amodal``, where there are any, count the ``[SEG]`` that mean one kind of mask.
        """
        rates, words = array("d"), {"question": 0, "answer": 0}
        categories: set[str] = set()
        questions: set[bytes] = set()
        per_answer, per_conversation, counts = Counter[int](), Counter[int](), Counter[str]()
        for sample in self:
            counts["with"] += bool(sample.conversations)
            counts["occluded"] += sum(bool(o.occluded_by) for o in sample.objects)
            counts["objects"] += len(sample.objects)
            rates.extend(o.occlusion_rate for o in sample.objects if o.occlusion_rate is not None)
            categories.update(o.category for o in sample.objects)
            per_conversation.update(len(c.turns) for c in sample.conversations)
            for turn in (t for c in sample.conversations for t in c.turns):
                per_answer[len(turn.objects)] += 1
                counts.update(turn.asked)
                words["question"] += len(turn.question.split())
                words["answer"] += len(turn.answer.split())
                questions.add(hashlib.blake2b(turn.question.encode("utf-8", "replace"), digest_size=16).digest())
        images, pairs = max(len(self), 1), sum(per_answer.values())
        histogram, _ = np.histogram(rates, bins=OCCLUSION_BINS)
        return {
            "images": len(self),
            "images_with_conversations": counts["with"],
            "objects": counts["objects"],
            "objects_of_unknown_shape": counts["objects"] - len(rates),
            "categories": len(categories),
            "objects_per_image": counts["objects"] / images,
            "conversations": sum(per_conversation.values()),
            "pairs": pairs,
            "pairs_per_image": pairs / images,
            "objects_per_answer": sum(n * count for n, count in per_answer.items()) / max(pairs, 1),
            "objects_per_answer_histogram": dict(sorted(per_answer.items())),
            "turns_histogram": dict(sorted(per_conversation.items())),
            "distinct_questions": len(questions),
            "words_per_question": words["question"] / max(pairs, 1),
            "words_per_answer": words["answer"] / max(pairs, 1),
            "mean_occlusion_rate": float(np.mean(rates)) if rates else 0.0,
            "occlusion_histogram": [int(n) for n in histogram],
            "occluded_objects": counts["occluded"],
            **{f"asked_{kind}": counts[kind] for kind in ("visible", "amodal") if counts[kind]},
        }


def image_folder(document: Mapping[str, Any], source: Path) -> Path:
    """Where the pictures of a file lie, by its own account."""
    info = document.get("info")
    folder = info.get("image_folder") if isinstance(info, Mapping) else None
    return source.parent / (folder if isinstance(folder, str) else ".")


# --- writing ----------------------------------------------------------------------------------------------------------


def annotation_record(obj: AmodalObject, image_id: int, category_id: int) -> dict[str, Any]:
    """One object as a COCOA-cls annotation with ``visible_bbox`` and ``occluded_by``; everything from the masks."""
    known = obj.visible if obj.amodal is None else obj.amodal
    area, seen = rle_area(known), rle_area(obj.visible)
    record: dict[str, Any] = {
        "id": obj.id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": obj.amodal,
        "visible_mask": obj.visible,
        "area": area,
        "bbox": rle_bbox(known),
        "visible_bbox": rle_bbox(obj.visible),
        "occlude_rate": None if obj.amodal is None else rate_from_areas(seen, area),
        "occluded_by": list(obj.occluded_by),
        "iscrowd": 0,
    }
    if obj.amodal is not None and seen < area:
        record["invisible_mask"] = invisible_rle(obj.visible, obj.amodal)
    return record


def invisible_rle(visible: Rle, amodal: Rle) -> Rle:
    """The hidden part: amodal minus visible."""
    return encode_rle(decode_rle(amodal) & ~decode_rle(visible))


def turn_record(turn: Turn) -> dict[str, Any]:
    """A turn as it stands in the file; without ``asked`` where every object means both masks."""
    record = {"question": turn.question, "answer": turn.answer, "objects": list(turn.objects)}
    return {**record, "asked": list(turn.asked)} if turn.asked else record


def conversation_record(conversation: Conversation, image_id: int) -> dict[str, Any]:
    """A conversation as it stands in the file."""
    return {
        "id": conversation.id,
        "image_id": image_id,
        "turns": [turn_record(turn) for turn in conversation.turns],
        "provenance": dict(conversation.provenance),
    }


def image_record(image: AnnotatedImage) -> dict[str, Any]:
    """An image as it stands in the file, with what its source says about it."""
    own = {"id": image.image_id, "file_name": image.file_name, "height": image.height, "width": image.width}
    if image.ignore is not None:
        own["ignore"] = image.ignore
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
