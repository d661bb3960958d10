"""RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and gRefCOCO: expressions that refer to objects of COCO's pictures.

A folder holds ``instances.json``, COCO's images, categories and annotations, and the expressions::

    refs(unc).p, refs(google).p, refs(umd).p     a pickle: a list of refs (RefCOCO, RefCOCO+, RefCOCOg, RefCLEF)
    grefs(unc).json, grefs(unc).p                the same as JSON or pickle (gRefCOCO)

    {"ref_id", "ann_id", "category_id", "image_id", "file_name", "split", "sent_ids",
     "sentences": [{"sent_id", "sent", "raw", "tokens"}]}

``split`` is ``train``, ``val``, ``test``, ``testA`` or ``testB``; RefCLEF has ``testAB`` and the like, which belong to
both. In gRefCOCO ``ann_id`` and ``category_id`` are lists: of several objects, or ``[-1]`` where an expression fits
nothing in the image (``no_target`` says so too). RefCLEF's masks are RLEs in a list. Only the visible masks are known.

Sources: lichengunc/refer ``refer.py``, ``README.md`` at e3bbaa30; henghuiding/gRefCOCO ``grefer.py`` at 41a8f008;
dvlab-research/LISA ``utils/refer_seg_dataset.py`` at 3cb2d430.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aura.formats.instances import InstanceFile, InstanceImage
from aura.formats.pickles import read_plain_pickle
from aura.formats.questions import AskedImage, Question, visible_object
from aura.formats.reading import Flaws, RecordReader, read_json
from aura.formats.sources import AnnotatedImage

NO_TARGET = -1
"""gRefCOCO's ``ann_id`` of an expression that fits nothing."""


class Reference(NamedTuple):
    """Expressions for the same objects of an image; none where they fit nothing in it."""

    number: int
    image_id: int
    objects: tuple[int, ...]
    sentences: tuple[str, ...]


class ReferFolder:
    """The expressions of one split and the images they are about, one at a time.

    Iterating gives the images that the split asks about, in the order of ``instances.json``, with the objects that are
    asked for.

    Args:
        folder: Of the two files.
        by: Who made the splits: ``unc``, ``google``, ``umd`` or ``berkeley``.
        split: The split.
        flaws: What becomes of bad records.

    Raises:
        ValueError: A file is missing or is no such file, there is no such split, or a record is not valid.
    """

    def __init__(self, folder: str | Path, by: str, split: str, *, flaws: Flaws | None = None) -> None:
        self.folder, self.flaws = Path(folder), flaws or Flaws()
        self.refs_path = _refs_path(self.folder, by)
        self._reader = RecordReader(self.refs_path)
        self._of_image: dict[int, list[Reference]] = defaultdict(list)
        for reference in self._references(split):
            self._of_image[reference.image_id].append(reference)
        self._file = InstanceFile(self.folder / "instances.json")
        self.licenses = self._file.licenses
        self._refuse_strays()

    def __len__(self) -> int:
        """Images."""
        return len(self._of_image)

    def __iter__(self) -> Iterator[AskedImage]:
        wanted = {
            image_id: {number for reference in references for number in reference.objects}
            for image_id, references in self._of_image.items()
        }
        for image in self._file.outlined(wanted, self.flaws):
            asked = self._asked(image)
            if asked.questions:
                yield asked

    def _asked(self, image: InstanceImage) -> AskedImage:
        found = {i.id: visible_object(i.id, i.category, i.mask, i.supercategory) for i in image.instances if i.area}
        questions = []
        for reference in self._of_image[image.image_id]:
            with self.flaws.leaving_out():
                missing = [number for number in reference.objects if number not in found]
                if missing:
                    raise self._reader.error(
                        f"ref {reference.number}",
                        f"annotation {missing[0]} of image {image.image_id} is not in instances.json, or its mask is "
                        "empty; leave the ref out, or correct the annotation",
                    )
                questions += [Question(sentence, reference.objects) for sentence in reference.sentences]
        used = {number for question in questions for number in question.objects}
        objects = tuple(found[number] for number in found if number in used)
        categories = {name: number for name, (number, _) in self._file.categories.items()}
        own = AnnotatedImage(
            image.image_id, image.file_name, image.height, image.width, objects, image.info, categories
        )
        return AskedImage(own, tuple(questions))

    # --- the expressions ---

    def _references(self, split: str) -> Iterator[Reference]:
        records = self._records()
        splits: dict[str, None] = {}
        seen: set[int] = set()
        taken = 0
        for position, record in enumerate(records):
            with self.flaws.leaving_out():
                where = f"item {position}"
                if not isinstance(record, dict):
                    raise self._reader.error(where, f"expected a ref, got a {type(record).__name__}")
                where = f"ref {record['ref_id']}" if "ref_id" in record else where
                own = self._reader.text(record, "split", where)
                splits[own] = None
                if not belongs(own, split):
                    continue
                taken += 1
                reference = self._reference(record, where)
                if reference.number in seen:
                    raise self._reader.error(where, "the ref_id occurs twice; give every ref an id of its own")
                seen.add(reference.number)
                yield reference
        if not taken:
            known = ", ".join(splits) or "none"
            raise ValueError(f"{self.refs_path}: no ref has the split {split!r}; the splits there are: {known}")

    def _records(self) -> Sequence[Any]:
        is_json = self.refs_path.suffix == ".json"
        records = read_json(self.refs_path) if is_json else read_plain_pickle(self.refs_path)
        if not isinstance(records, list):
            raise ValueError(
                f"{self.refs_path}: expected a list of refs, got a {type(records).__name__}; is this the right file?"
            )
        return records

    def _reference(self, record: Mapping[str, Any], where: str) -> Reference:
        reader = self._reader
        number, image_id = (reader.integer(record, key, where) for key in ("ref_id", "image_id"))
        several = isinstance(record.get("ann_id"), list)
        objects = reader.integers(record, "ann_id", where) if several else (reader.integer(record, "ann_id", where),)
        if objects == (NO_TARGET,) and several:
            objects = ()
        elif NO_TARGET in objects or not objects:
            raise reader.error(
                where, f"'ann_id' is {record['ann_id']!r}; give annotation ids, or [-1] alone where nothing is meant"
            )
        sentences = reader.records(record, "sentences") if "sentences" in record else None
        if not sentences:
            raise reader.error(where, "'sentences' must be a list of at least one sentence; leave the ref out")
        texts = []
        for place, sentence in enumerate(sentences):
            with self.flaws.leaving_out():
                texts.append(reader.text(sentence, "sent", f"{where}, sentence {place}").strip().lower())
        return Reference(number, image_id, tuple(dict.fromkeys(objects)), tuple(texts))

    def _refuse_strays(self) -> None:
        """A ref may be about an image of the file only."""
        known = set(self._file.image_ids)
        for image_id in [number for number in self._of_image if number not in known]:
            with self.flaws.leaving_out():
                number = self._of_image.pop(image_id)[0].number
                raise self._reader.error(
                    f"ref {number}", f"image {image_id} is not in instances.json; are the two files of one data set?"
                )


def _refs_path(folder: Path, by: str) -> Path:
    names = [f"{kind}({by}).{ending}" for kind in ("refs", "grefs") for ending in ("p", "json")]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        there = ", ".join(sorted(p.name for p in folder.glob("*refs(*).*"))) or "none"
        raise ValueError(
            f"{folder}: no {' or '.join(names)} there; files of refs there: {there}; give the data set's folder, and "
            "who made the splits"
        )
    return found


def belongs(own: str, split: str) -> bool:
    """Whether a ref of the split ``own`` is in the split that is asked for, by refer.py's rule."""
    if split in ("testA", "testB", "testC"):
        return own.startswith("test") and split[-1] in own[4:]
    return "test" in own if split == "test" else own == split
