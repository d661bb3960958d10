"""The facts about an annotated image: places, occlusion, names. Questions and answers are written from these alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from pycocotools import mask as mask_util

from aura.datagen.facts.knowledge import PLURAL_NAMES, PURPOSES, SUPERCATEGORIES, purposes_of
from aura.formats.occlusion import (
    MIN_HIDDEN_FRACTION,
    MIN_HIDDEN_PIXELS,
    hidden_pixels,
    known_shapes,
    occlusion_matrix,
)
from aura.formats.sources import AnnotatedImage
from aura.types import SEG_TOKEN

APART = 0.06
"""Two of a kind are told apart by left and right when their centres differ by this fraction of the image's width."""

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


@dataclass(frozen=True)
class Facts:
    """The facts about K objects, numbered left to right by the centre of their visible box.

    ``names`` [K] have no article. ``loose`` are the objects that are told apart by a number only ("third cup"); they
    read best all together. ``x`` and ``y`` [K] are centres in [0, 1] of the image. ``rates`` [K] are occlusion rates,
    NaN where the whole shape is not known. ``areas`` [K] are visible pixels. ``hidden_share`` [K, K] holds at [b, a]
    the fraction of object a's invisible region that shows object b. ``front`` [K] names for each object those that
    occlude it, ``back`` [K] those that it occludes, both ascending. ``crowds`` are categories of which the image shows
    more than these objects, with their supercategories: what is asked of all things of a kind is not known of them.
    """

    ids: tuple[int, ...]
    categories: tuple[str, ...]
    supercategories: tuple[str, ...]
    names: tuple[str, ...]
    loose: frozenset[int]
    x: list[float]
    y: list[float]
    rates: list[float]
    areas: list[int]
    hidden_share: np.ndarray
    front: tuple[tuple[int, ...], ...]
    back: tuple[tuple[int, ...], ...]
    crowds: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def marked(self, indices: tuple[int, ...]) -> str:
        """ "the banana [SEG], the cat [SEG] and the dog [SEG]"."""
        phrases = [f"the {self.names[i]} {SEG_TOKEN}" for i in indices]
        return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]

    def is_plural(self, indices: tuple[int, ...]) -> bool:
        return len(indices) > 1 or self.categories[indices[0]] in PLURAL_NAMES

    def unique(self, index: int) -> bool:
        """Whether the object is the only one of its category, so that its bare name means it."""
        category = self.categories[index]
        return category not in self.crowds and self.categories.count(category) == 1

    def nameable(self, indices: tuple[int, ...]) -> bool:
        """Whether no object is named by its number among several alike, unless all of them are named.

        One among a crowd of its kind has no name at all.
        """
        if any(self.categories[i] in self.crowds for i in indices):
            return False
        if not self.loose.intersection(indices):
            return True
        categories = {self.categories[i] for i in indices if i in self.loose}
        return all(i in indices for i in self.loose if self.categories[i] in categories)

    @cached_property
    def hides(self) -> np.ndarray:
        """Which fraction of the whole of object a is hidden by object b, at [b, a]; NaN where a's shape is unknown."""
        shares: np.ndarray = self.hidden_share * np.asarray(self.rates)[None, :]
        return shares

    def explained(self, index: int) -> float:
        """Which fraction of the object's invisible region its labelled occluders account for."""
        return float(sum(self.hidden_share[b, index] for b in self.front[index]))

    def unexplained(self, index: int) -> float:
        """Which fraction of the whole object is hidden by something that is not labelled; 0 where that may be noise."""
        rate = self.rates[index]
        share = rate * max(0.0, 1.0 - float(self.hidden_share[:, index].sum()))
        pixels = share * self.areas[index] / max(1.0 - rate, 1e-9)
        return share if share >= MIN_HIDDEN_FRACTION and pixels >= MIN_HIDDEN_PIXELS else 0.0

    @cached_property
    def purposes(self) -> dict[int, tuple[int, ...]]:
        """Purpose number -> the objects that serve it, left to right; without those that a crowd serves too."""
        found: dict[int, list[int]] = defaultdict(list)
        for index, category in enumerate(self.categories):
            for number in purposes_of(category):
                found[number].append(index)
        known = {number for number in found if not PURPOSES[number].categories & self.crowds.keys()}
        return {number: tuple(found[number]) for number in sorted(known)}

    def group(self, supercategory: str) -> tuple[int, ...]:
        """The objects of a supercategory; none where a crowd of it is there too."""
        if supercategory in self.crowds.values():
            return ()
        return tuple(i for i, s in enumerate(self.supercategories) if s == supercategory)


def facts_of(image: AnnotatedImage, crowds: Mapping[str, str] | None = None) -> Facts:
    """The facts that the run-length masks of an image show; ``crowds`` as in :class:`Facts`."""
    objects = list(image.objects)
    boxes = np.asarray(mask_util.toBbox([o.visible for o in objects]), np.float64).reshape(-1, 4)
    centre_x = (boxes[:, 0] + boxes[:, 2] / 2) / image.width
    order = sorted(range(len(objects)), key=lambda i: (centre_x[i], objects[i].id))
    objects = [objects[i] for i in order]
    boxes, centre_x = boxes[order], centre_x[order]
    amodal = mask_util.area(known_shapes(objects)).astype(np.int64)
    visible = mask_util.area([o.visible for o in objects]).astype(np.int64)
    counts = hidden_pixels(objects)
    matrix = occlusion_matrix(counts, amodal)
    x, y = centre_x.tolist(), ((boxes[:, 1] + boxes[:, 3] / 2) / image.height).tolist()
    categories = tuple(o.category for o in objects)
    names, loose = _names(categories, x, y)
    return Facts(
        ids=tuple(o.id for o in objects),
        categories=categories,
        supercategories=tuple(o.supercategory or SUPERCATEGORIES.get(o.category, "") for o in objects),
        names=names,
        loose=loose,
        x=x,
        y=y,
        rates=[math.nan if o.occlusion_rate is None else float(o.occlusion_rate) for o in objects],
        areas=visible.tolist(),
        hidden_share=counts / np.maximum(amodal - visible, 1)[None, :],
        front=tuple(tuple(np.flatnonzero(column).tolist()) for column in matrix.T),
        back=tuple(tuple(np.flatnonzero(row).tolist()) for row in matrix),
        crowds=dict(crowds or {}),
    )


def _names(categories: tuple[str, ...], x: list[float], y: list[float]) -> tuple[tuple[str, ...], frozenset[int]]:
    """Names that tell objects of one category apart, ending in the category; objects are ordered left to right."""
    names = list(categories)
    loose: set[int] = set()
    for category in set(categories):
        members = [i for i, c in enumerate(categories) if c == category]
        if len(members) == 1:
            continue
        words: tuple[str, ...]
        if len(members) == 2 and x[members[1]] - x[members[0]] >= APART:
            words = ("left", "right")
        elif len(members) == 2 and abs(y[members[1]] - y[members[0]]) >= APART:
            words = ("top", "bottom") if y[members[0]] < y[members[1]] else ("bottom", "top")
        else:
            words = ORDINALS
            loose.update(members)
        for member, word in zip(members, words, strict=False):
            names[member] = f"{word} {category}"
    return tuple(names), frozenset(loose)
