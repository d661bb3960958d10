"""The division of images into ``train`` and ``test``: by their source, by a list, or by the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aura.datagen.settings import SPLITS, ProjectSettings, SplitSettings

Find = Callable[[str], int | None]
"""The id of the image that a list calls by its id or file name."""


@dataclass(frozen=True)
class Division:
    """The split of each chosen image, and how many images the lists and the limits left out."""

    split_of: dict[int, str]
    not_listed: int
    not_taken: int


def divide(settings: ProjectSettings, images: Iterable[tuple[int, int]], find: Find) -> Division:
    """Say for each (source, image id) whether it is in ``train`` or ``test``.

    What the seed draws depends on the image's id alone, so it does not change when other images are added.

    Raises:
        ValueError: A list names an image that is not there, both lists name the same, or an image has a split by its
            source and by a list.
    """
    split = settings.split
    listed = _listed(split, find)
    split_of: dict[int, str] = {}
    open_images: list[int] = []
    not_listed = 0
    for number, image_id in images:
        own, by_list = settings.sources[number].split, listed.get(image_id)
        if own is not None and by_list not in (None, own):
            raise ValueError(
                f"image {image_id} is in {own!r} by its source and in {by_list!r} by a list; drop one of them"
            )
        if by_list is not None:
            split_of[image_id] = by_list
        elif _must_be_listed(split, own):
            not_listed += 1
        elif own is not None:
            split_of[image_id] = own
        else:
            open_images.append(image_id)
    num_test = 0 if split.test_list else round(split.test_fraction * len(open_images))
    for place, image_id in enumerate(sorted(open_images, key=lambda i: _lot(split.seed, i))):
        split_of[image_id] = "test" if place < num_test else "train"
    taken = _take(split, split_of)
    return Division(taken, not_listed, len(split_of) - len(taken))


def _must_be_listed(split: SplitSettings, own: str | None) -> bool:
    """Whether an image that no list names is left out."""
    if own == "train" or own is None:
        return split.train_list is not None
    return split.test_list is not None


def _listed(split: SplitSettings, find: Find) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, path in (("train", split.train_list), ("test", split.test_list)):
        if path is None:
            continue
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read ({error}); check split.{name}_list") from error
        for number, line in enumerate(lines, start=1):
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            try:
                image_id = find(entry)
            except ValueError as error:
                raise ValueError(f"{path}: line {number}: {error}") from error
            if image_id is None:
                raise ValueError(f"{path}: line {number}: no image with objects is called {entry!r}")
            if found.setdefault(image_id, name) != name:
                raise ValueError(f"{path}: line {number}: {entry!r} is in both lists; keep it in one")
    return found


def _take(split: SplitSettings, split_of: Mapping[int, str]) -> dict[int, str]:
    taken: set[int] = set()
    for name in SPLITS:
        members = [image_id for image_id, own in split_of.items() if own == name]
        limit = split.take_train if name == "train" else split.take_test
        if limit is not None and limit > len(members):
            raise ValueError(f"split.take_{name} is {limit}, but there are {len(members)} images; lower it")
        taken |= set(sorted(members, key=lambda i: _lot(split.seed, i))[:limit])
    return {image_id: name for image_id, name in split_of.items() if image_id in taken}


def _lot(seed: int, image_id: int) -> str:
    return hashlib.sha256(f"{seed}/{image_id}".encode()).hexdigest()
