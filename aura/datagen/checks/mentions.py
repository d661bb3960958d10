"""The places where a text names objects of an image, with and without ``[SEG]``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from aura.datagen.facts.facts import Facts
from aura.datagen.facts.knowledge import names_of
from aura.types import SEG_TOKEN

DETERMINERS = "the|a|an|this|that|these|those|its|his|her|their|my|your|our|another|one|each|every|both|some"
_DETERMINED = re.compile(rf"\b(?:{DETERMINERS})\s+((?:[\w'’-]+\s+){{0,5}})\Z", re.IGNORECASE)
_NOT_IN_PHRASE = re.compile(
    rf"\b(?:{DETERMINERS}|is|are|was|were|by|of|behind|under|on|in|at|with|to|for|from|and|or|but|than|which|who|while|"
    r"hides?|covers?|blocks?|occludes?|obscures?|can|could|would|you|it)\b",
    re.IGNORECASE,
)
_JOINT = re.compile(r"[\s,]*(?:and|or|&)?[\s,]*")


@dataclass(frozen=True)
class Name:
    """A category's name, plural or synonym at ``[start, end)`` of a text; a word may stand for several categories."""

    start: int
    end: int
    text: str
    categories: frozenset[str]


@dataclass(frozen=True)
class Mention:
    """A noun phrase at ``[start, end)`` of a text.

    ``objects`` are the indices of the objects that it may mean; with a ``[SEG]`` it means one. ``inner`` is what stands
    between its article and its name: "partly hidden" in "the partly hidden cup". ``name`` is ``None`` where no name of
    the image's categories stands before the ``[SEG]``.
    """

    start: int
    end: int
    objects: tuple[int, ...]
    inner: str = ""
    name: Name | None = None
    marked: bool = False


def plain(category: str) -> str:
    """A category as it is written in a sentence: ``traffic_light`` is a traffic light."""
    return " ".join(re.split(r"[\s_-]+", category.strip().lower()))


@cache
def _naming(categories: frozenset[str]) -> tuple[re.Pattern[str], dict[str, frozenset[str]]]:
    """A pattern for any name of the categories, longer names first, and what each name may stand for."""
    meaning: dict[str, set[str]] = {}
    for category in categories:
        for word in names_of(plain(category)):
            meaning.setdefault(word.lower(), set()).add(category)
    words = sorted(meaning, key=lambda w: (-len(w), w))
    pattern = "|".join(re.escape(word).replace(r"\ ", r"[\s_-]+").replace(" ", r"[\s_-]+") for word in words)
    return re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE), {w: frozenset(c) for w, c in meaning.items()}


def names_in(text: str, categories: Sequence[str]) -> list[Name]:
    """All names of ``categories`` in ``text``, in order; of overlapping ones the leftmost, then the longest."""
    if not categories:
        return []
    pattern, meaning = _naming(frozenset(categories))
    return [Name(m.start(), m.end(), m.group(), meaning[plain(m.group())]) for m in pattern.finditer(text)]


def mentions_in(answer: str, objects: Sequence[int | None], facts: Facts) -> list[Mention]:
    """Every mention of an object in ``answer``, in order.

    Args:
        answer: Text with ``[SEG]`` marks.
        objects: For each mark the index of its object in ``facts``, ``None`` for one that does not exist. Surplus
            marks mean nothing.
        facts: Of the image.
    """
    names = names_in(answer, facts.categories)
    mentions: list[Mention] = []
    used: set[Name] = set()
    previous, before = 0, None
    for number, mark in enumerate(re.finditer(re.escape(SEG_TOKEN), answer)):
        inside = [name for name in names if previous <= name.start and name.end <= mark.start()]
        name = inside[-1] if inside else None
        if name is None and before is not None and _JOINT.fullmatch(answer[previous : mark.start()]):
            mentions.append(_mention(answer, mark.start(), mark.end(), _at(objects, number), before, True, previous))
        else:
            if name is not None:
                used.add(name)
            start = name.start if name is not None else mark.start()
            mentions.append(_mention(answer, start, mark.end(), _at(objects, number), name, True, previous))
            before = name
        previous = mark.end()
    for name in names:
        if name not in used:
            means = tuple(i for i, category in enumerate(facts.categories) if category in name.categories)
            floor = max((m.end for m in mentions if m.marked and m.end <= name.start), default=0)
            mentions.append(_mention(answer, name.start, name.end, means, name, False, floor))
    return _apart(sorted(mentions, key=lambda m: (m.start, m.end)))


def _at(objects: Sequence[int | None], number: int) -> tuple[int, ...]:
    index = objects[number] if number < len(objects) else None
    return () if index is None else (index,)


def _mention(
    text: str, start: int, end: int, objects: tuple[int, ...], name: Name | None, marked: bool, floor: int
) -> Mention:
    """The mention with its article and what lies between, not reaching before ``floor``."""
    found = _DETERMINED.search(text[floor:start])
    while found and _NOT_IN_PHRASE.search(found.group(1)):
        found = _DETERMINED.search(text[floor:start], found.start() + 1)
    if found is None:
        return Mention(start, end, objects, "", name, marked)
    return Mention(floor + found.start(), end, objects, found.group(1).strip(), name, marked)


def _apart(mentions: list[Mention]) -> list[Mention]:
    """Without those that lie within another one ("orange" in "the orange cat [SEG]")."""
    kept: list[Mention] = []
    for mention in mentions:
        inside = any(m is not mention and m.start <= mention.start and mention.end <= m.end for m in mentions)
        if not inside and (not kept or kept[-1].end <= mention.start):
            kept.append(mention)
    return kept
