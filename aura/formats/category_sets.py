"""COCO, LVIS, PACO-LVIS, PASCAL-Part and the like as questions: where is every object of a category?

The files are COCO's instances. What differs:

- LVIS has no ``file_name``; the picture's is the end of ``coco_url``. ``not_exhaustive_category_ids`` of an image are
  categories of which not every object is outlined. Names are written ``trash_can`` or ``bat_(animal)``.
- PACO-LVIS and PASCAL-Part have parts as categories, ``bottle:cap``; these are asked for as "the cap of the bottle".
- COCO's crowds stand for several objects.

A category is asked for where every object of it is outlined by itself: not in an image with a crowd of it, nor where
the file says that the list is not exhaustive, nor where there are too many of them. Only the visible masks are known.

Sources: lvis-dataset/lvis-api ``lvis/lvis.py`` at 077d51fd; facebookresearch/detectron2
``detectron2/data/datasets/lvis.py``; dvlab-research/LISA ``utils/sem_seg_dataset.py`` at 3cb2d430.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from aura.formats.instances import Instance, InstanceFile, InstanceImage
from aura.formats.questions import AskedImage, Question, visible_object
from aura.formats.reading import Flaws, RecordReader
from aura.formats.sources import AnnotatedImage
from aura.masks import rle_bbox
from aura.types import AmodalObject

_SENSE = re.compile(r"_\((.*)\)")
"""LVIS's ``bat_(animal)``."""


class CategorySet:
    """A file's images that have a category to ask for.

    Args:
        path: COCO's instances file.
        most: Most objects that one question may stand for.
        flaws: What becomes of bad records.

    Raises:
        ValueError: The file is missing or no such file, or a record is not valid.
    """

    def __init__(self, path: str | Path, *, most: int = 6, flaws: Flaws | None = None) -> None:
        self.flaws, self.most = flaws or Flaws(), most
        self._file = InstanceFile(path)
        self._reader = RecordReader(Path(path))
        self.licenses = self._file.licenses
        senses = Counter(plain_name(name) for name in self._file.categories)
        # Two senses of a word would be one category: there the sense stays with it.
        self._names = {
            name: plain_name(name) if senses[plain_name(name)] == 1 else plain_name(name, with_sense=True)
            for name in self._file.categories
        }
        self._numbers = {name: number for name, (number, _) in self._file.categories.items()}

    def __len__(self) -> int:
        """Images, with or without a category to ask for."""
        return len(self._file)

    def __iter__(self) -> Iterator[AskedImage]:
        asked = self.flaws.kept(self._asked, self._file.outlined(flaws=self.flaws))
        return (image for image in asked if image.questions)

    def _asked(self, image: InstanceImage) -> AskedImage:
        where = f"image {image.image_id}"
        partly: tuple[int, ...] = ()
        if "not_exhaustive_category_ids" in image.info:
            partly = self._reader.integers(image.info, "not_exhaustive_category_ids", where)
        by_category: dict[str, list[Instance]] = defaultdict(list)
        for instance in image.instances:
            by_category[instance.category].append(instance)
        objects: list[AmodalObject] = []
        questions = []
        for category, found in by_category.items():
            countable = all(i.area and not i.is_crowd for i in found) and self._numbers[category] not in partly
            if not countable or len(found) > self.most:
                continue
            found.sort(key=lambda instance: rle_bbox(instance.mask)[:2])  # from left to right
            objects += [visible_object(i.id, self._names[category], i.mask, i.supercategory) for i in found]
            name = self._names[category]
            text = f"the {name}" if ":" in category and len(found) == 1 else f"every {name}"
            questions.append(Question(text, tuple(i.id for i in found)))
        info = {key: value for key, value in image.info.items() if not key.endswith("category_ids")}
        numbers = {self._names[name]: number for name, number in self._numbers.items()}
        own = AnnotatedImage(image.image_id, image.file_name, image.height, image.width, tuple(objects), info, numbers)
        return AskedImage(own, tuple(questions))


def plain_name(name: str, *, with_sense: bool = False) -> str:
    """A category's name in words: ``trash_can`` is "trash can", ``bottle:cap`` "cap of the bottle".

    The sense of a word, as in ``bat_(animal)``, is dropped, or kept in brackets.
    """
    whole, _, part = name.strip().partition(":")
    words = [_SENSE.sub(r" (\1)" if with_sense else "", word).replace("_", " ").strip() for word in (whole, part)]
    return f"{words[1]} of the {words[0]}" if part else words[0]
