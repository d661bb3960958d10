"""ADE20K, COCO-Stuff and Mapillary Vistas: pictures with a map that gives the class of each pixel.

- ``ade20k``: ``annotations/training/NAME.png``; value v is the class v (from 1) of ``objectInfo150.txt``, whose lines
  are ``Idx Ratio Train Val Stuff Name`` with tabs between, or the v-th name of a JSON list; 0 is nothing.
- ``cocostuff``: ``train2017/NAME.png``; value v is the line ``v + 1: name`` of ``labels.txt``; 255 is nothing. Names
  with "-", such as "wall-brick", are left out, as LISA does.
- ``mapillary``: ``training/v2.0/labels/NAME.png``; value v is the entry v (from 0) of ``labels`` in
  ``config_v2.0.json``, by its name ``readable``; "Unlabeled" is nothing.

All pixels of a class are one object, as LISA has it: these sets do not tell apart the objects of a class. Where a name
has synonyms ("wall, brick wall"), the first is taken. Only what can be seen is labelled.

Source: dvlab-research/LISA ``utils/sem_seg_dataset.py`` at 3cb2d430.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aura.files import read_text
from aura.formats.decoding import loaded, open_stream
from aura.formats.pictures import picture_size
from aura.formats.questions import AskedImage, Question, number_of, visible_object
from aura.formats.reading import Flaws, read_json
from aura.formats.sources import AnnotatedImage
from aura.masks import encode_rle

Layout = Literal["ade20k", "cocostuff", "mapillary"]
CLASSES = 1000
"""More than any of the sets has: an object's id is the image's times so many, and its class."""


class LabelMaps:
    """The pictures of a folder of maps, by name.

    Args:
        labels: Folder of the maps, ``NAME.png``.
        images: Folder of the pictures, ``NAME.jpg``.
        classes: The file of the classes' names.
        layout: Of which set.
        flaws: What becomes of bad pictures.

    Raises:
        ValueError: No maps there, the classes' file is of another layout, or a map is not valid.
    """

    def __init__(
        self,
        labels: str | Path,
        images: str | Path,
        classes: str | Path,
        layout: Layout,
        *,
        flaws: Flaws | None = None,
    ) -> None:
        self.labels, self.images, self.flaws = Path(labels), Path(images), flaws or Flaws()
        self.layout, self.classes = layout, Path(classes)
        self.names = read_classes(classes, layout)
        self._category_ids = {name: value + 1 for value, name in reversed(self.names.items())}
        self.maps = sorted(self.labels.glob("*.png"))
        if not self.maps:
            raise ValueError(f"{self.labels}: no NAME.png there; give the folder of the label maps")

    def __len__(self) -> int:
        return len(self.maps)

    def __iter__(self) -> Iterator[AskedImage]:
        return (image for image in self.flaws.kept(self._read, self.maps) if image.questions)

    def _read(self, path: Path) -> AskedImage:
        try:
            with open_stream(path, f"{path}:") as picture:
                values = np.array(loaded(picture, f"{path}:"))
        except ValueError as error:
            raise ValueError(f"{error}; unpack it again") from error
        if values.ndim != 2:
            raise ValueError(f"{path}: a label map has one number a pixel, this picture has {values.shape[-1]} colours")
        photo = self.images / f"{path.stem}.jpg"
        try:
            size = picture_size(photo)
        except ValueError as error:
            raise ValueError(f"{path}: its picture {error}; give the pictures' folder") from error
        if values.shape != size:
            raise ValueError(
                f"{path}: the map is {values.shape} but its picture {photo} is {size} (height, width); use the picture "
                "that was labelled"
            )
        number = number_of(f"{self.layout}/{path.stem}")
        # One name may stand for two values.
        by_name: dict[str, np.ndarray] = {}
        for value in np.unique(values).tolist():
            name = self._name(value, path)
            if name:
                by_name[name] = by_name.get(name, False) | (values == value)
        objects = tuple(
            visible_object(number * CLASSES + self._category_ids[name], name, encode_rle(mask))
            for name, mask in by_name.items()
        )
        questions = tuple(Question(f"the {o.category}", (o.id,)) for o in objects)
        image = AnnotatedImage(number, photo.name, *size, objects, category_ids=self._category_ids)
        return AskedImage(image, questions)

    def _name(self, value: int, path: Path) -> str:
        """The name of a class; empty if it is left out."""
        if (self.layout, value) in (("ade20k", 0), ("cocostuff", 255)):
            return ""
        if value not in self.names:
            raise ValueError(
                f"{path}: has the value {value}, which is no class of {self.classes}; is that the file of this set?"
            )
        return self.names[value]


def read_classes(path: str | Path, layout: Layout) -> dict[int, str]:
    """Value in a map -> the class's name; the name is empty where the class is left out."""
    path = Path(path)
    if layout == "mapillary":
        root = read_json(path)
        labels = root.get("labels") if isinstance(root, dict) else None
        if not isinstance(labels, list) or not all(isinstance(entry, dict) for entry in labels):
            raise ValueError(f"{path}: expected Mapillary's config with a list 'labels'; give config_v2.0.json")
        return {value: _readable(entry, f"{path}: 'labels' item {value}") for value, entry in enumerate(labels)}
    if layout == "ade20k" and path.suffix == ".json":
        names = read_json(path)
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"{path}: expected a list of names")
        return {value: _first(name) for value, name in enumerate(names, start=1)}
    pattern = r"(\d+)\s.*\t(.+)" if layout == "ade20k" else r"(\d+): (.+)"
    try:
        lines = [re.fullmatch(pattern, line.strip()) for line in read_text(path).splitlines()]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text in UTF-8 ({error}); is this the right file?") from error
    found = {int(line[1]): _first(line[2]) for line in lines if line}
    if not found:
        wanted = "objectInfo150.txt or a JSON list of names" if layout == "ade20k" else "labels.txt"
        raise ValueError(f"{path}: no line is a class of {layout}; give its {wanted}")
    if layout == "ade20k":
        return found
    return {number - 1: "" if "-" in name else name for number, name in found.items() if number}


def _readable(entry: Mapping[str, Any], where: str) -> str:
    name = entry.get("readable")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: 'readable' must be a text, it is {name!r}")
    return "" if name.lower() == "unlabeled" else name.lower()


def _first(name: str) -> str:
    """Without synonyms."""
    return re.split(r"[;,]", name)[0].strip()
