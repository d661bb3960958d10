"""The photographs that scenes are made of, in a file on disk that several processes read.

One row per photograph, with its instances as they were read, and one per object that may be cut out. Memory stays the
same however many there are.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from aura.datagen.occlusions.compose import Cutout
from aura.formats.decoding import read_picture
from aura.formats.instances import Instance, InstanceFile, InstanceImage
from aura.formats.pictures import find_picture
from aura.masks import decode_rle, rle_bbox

MIN_CUTOUT = 0.008
"""Least area of an object that is cut out, as a fraction of its photograph."""
MIN_SIDE = 48
"""Least longest side of such an object, in pixels."""

SPLITS = ("train", "val", "test")

TABLES = """
CREATE TABLE photos (split TEXT, place INTEGER, record TEXT, PRIMARY KEY (split, place)) WITHOUT ROWID;
CREATE TABLE cutouts (split TEXT, place INTEGER, photo INTEGER, instance INTEGER, PRIMARY KEY (split, place))
    WITHOUT ROWID;
"""


def split_of(image_id: int, shares: tuple[float, float]) -> str:
    """The split of a photograph, by a hash of its id: the same whatever else is in the file.

    Args:
        image_id: The photograph's.
        shares: Of validation and of test, each in [0, 1).
    """
    place = int.from_bytes(hashlib.sha256(str(image_id).encode()).digest()[:8], "big") / 2**64
    val, test = shares
    return "val" if place < val else "test" if place < val + test else "train"


def fill_stock(
    path: Path, file: InstanceFile, choose: Callable[[int], str], on_image: Callable[[], object] | None = None
) -> dict[str, tuple[int, int]]:
    """Write the stock to ``path``.

    Args:
        path: A new file.
        file: What to read.
        choose: The split of an image id.
        on_image: Called after each photograph, for a progress bar.

    Returns:
        Photographs and objects to cut out, by split.
    """
    photos, cutouts = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.executescript(TABLES)
        database.execute("BEGIN")
        for image in file:
            split = choose(image.image_id)
            place = photos[split]
            record = json.dumps(asdict(image), separators=(",", ":"))
            database.execute("INSERT INTO photos VALUES (?, ?, ?)", [split, place, record])
            photos[split] += 1
            for number, instance in enumerate(image.instances):
                if _can_be_cut_out(instance, image):
                    row = [split, cutouts[split], place, number]
                    database.execute("INSERT INTO cutouts VALUES (?, ?, ?, ?)", row)
                    cutouts[split] += 1
            if on_image:
                on_image()
        database.execute("COMMIT")
    finally:
        database.close()
    return {split: (photos[split], cutouts[split]) for split in SPLITS}


def _can_be_cut_out(instance: Instance, image: InstanceImage) -> bool:
    large = instance.area >= MIN_CUTOUT * image.height * image.width
    return instance.is_whole and large and max(rle_bbox(instance.mask)[2:]) >= MIN_SIDE


class Stock:
    """A stock as one process reads it.

    Args:
        path: What :func:`fill_stock` wrote.
        images: Folder of the pictures.
    """

    def __init__(self, path: Path, images: Path) -> None:
        self.images = images
        self._database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def photo(self, split: str, place: int) -> InstanceImage:
        """Photograph number ``place`` of a split."""
        sql = "SELECT record FROM photos WHERE split = ? AND place = ?"
        record = json.loads(self._database.execute(sql, [split, place]).fetchone()[0])
        instances = tuple(Instance(**instance) for instance in record.pop("instances"))
        return InstanceImage(**record, instances=instances)

    def cutout(self, split: str, place: int) -> tuple[Cutout, InstanceImage]:
        """Cut-out number ``place`` of a split, and the photograph that it comes from.

        Raises:
            ValueError: Its picture cannot be read, or has another size than the record says.
        """
        sql = "SELECT photo, instance FROM cutouts WHERE split = ? AND place = ?"
        photo, number = self._database.execute(sql, [split, place]).fetchone()
        image = self.photo(split, photo)
        instance = image.instances[number]
        x, y, width, height = (int(side) for side in rle_bbox(instance.mask))
        window = np.s_[y : y + height, x : x + width]
        pixels, mask = self.pixels(image)[window], decode_rle(instance.mask)[window]
        whole = (image.height, image.width)
        return Cutout(instance.category, instance.supercategory, pixels, mask, whole), image

    def pixels(self, image: InstanceImage) -> np.ndarray:
        """The picture as stored, uint8 RGB [H, W, 3]; errors as in :meth:`cutout`."""
        path = find_picture(self.images, image.file_name)
        pixels = np.asarray(read_picture(path))
        if pixels.shape[:2] != (image.height, image.width):
            raise ValueError(
                f"{path}: the picture is {pixels.shape[0]} x {pixels.shape[1]} (height x width), the record of image "
                f"{image.image_id} says {image.height} x {image.width}"
            )
        return pixels


def shuffled(count: int, seed: Sequence[int]) -> np.ndarray:
    """Numbers below ``count`` in an order that follows from the seed: int64 [count]."""
    return np.random.default_rng(np.random.SeedSequence(tuple(seed))).permutation(count)
