"""The ideas about an image. Each :class:`Idea` is one true answer, with the ways of asking for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from aura.datagen.facts.facts import Facts
from aura.datagen.facts.grammar import DEGREES, FULLY_VISIBLE, degree
from aura.datagen.facts.knowledge import GROUPS, PURPOSES, Purpose

MAX_OBJECTS = 4
RATE_MARGIN = 0.1
"""Two occlusion rates are compared only if they differ by this much, so that the difference can be seen."""
HIDING = (0.01, 0.1)
"""Between these two fractions of a thing, people do not agree whether it is hidden.

"What hides it?" and "what does it hide?" are asked only where no fraction lies between them.
"""
PLACE_MARGIN = 0.07
"""Two places are compared only if they differ by this fraction of the image's side."""
SIZE_RATIO = 1.4
EXPLAINED = 0.75
"""An answer says how much named objects hide of a thing only if they cause at least this share of it."""
SIDES = (
    ("on the left side", 0, False),
    ("on the right side", 0, True),
    ("in the upper half", 1, False),
    ("in the lower half", 1, True),
)
EXTREMES = (
    ("furthest to the left", 0, False),
    ("furthest to the right", 0, True),
    ("highest up", 1, False),
    ("lowest down", 1, True),
)


@dataclass(frozen=True)
class Idea:
    """One true answer.

    ``objects`` are the ``[SEG]`` objects in the answer's order. ``parts`` fills the slots for objects, ``words`` the
    other slots (:mod:`aura.datagen.facts.grammar`). ``weight`` is how readily the idea is chosen.
    """

    kind: str
    objects: tuple[int, ...]
    parts: Mapping[str, tuple[int, ...]]
    words: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0

    @cached_property
    def content(self) -> tuple[str, tuple[int, ...], str]:
        """Ideas with equal content would say the same thing twice."""
        kind = "use" if self.kind == "situation" else self.kind.removeprefix("then_")
        about = next((self.words[key] for key in ("context", "phrase", "things") if key in self.words), "")
        return kind, self.objects, about


def _plain(kind: str, objects: tuple[int, ...], weight: float, **words: str) -> Idea:
    return Idea(kind, objects, {"objects": objects}, words, weight)


def ideas_of(facts: Facts, *, counted: bool = False) -> list[Idea]:
    """All first questions about the image whose answers are true, can be seen, and name 1 to 4 objects.

    ``counted`` also takes answers that pick one of several alike by its number ("the third person"): for crowds, which
    leave little else to say.
    """
    found = [*_purpose_ideas(facts), *_relation_ideas(facts), *_comparison_ideas(facts), *_place_ideas(facts)]
    found += _state_ideas(facts)
    return [idea for idea in found if _sayable(facts, idea, counted)]


def spare_ideas(facts: Facts) -> list[Idea]:
    """Ideas for images that leave little to ask: what is there, and objects by their number from the left."""
    ideas = ideas_of(facts, counted=True)
    if len(facts) <= MAX_OBJECTS and not facts.crowds:
        ideas.append(_plain("everything", tuple(range(len(facts))), 0.1))
    return ideas


def _sayable(facts: Facts, idea: Idea, counted: bool = False) -> bool:
    distinct = len(set(idea.objects)) == len(idea.objects)
    named = facts.nameable(idea.objects) or (counted and not facts.crowds)
    return distinct and 1 <= len(idea.objects) <= MAX_OBJECTS and named


def _by_use(purpose: Purpose) -> str:
    return "ability" if purpose.is_ability else "use"


def _verbs(purpose: Purpose) -> dict[str, str]:
    return {"phrase": purpose.phrase, "do": purpose.answer_phrase}


def _purpose_ideas(facts: Facts) -> Iterator[Idea]:
    for number, members in facts.purposes.items():
        purpose = PURPOSES[number]
        verbs = _verbs(purpose)
        several = 1.0 if len(members) == 1 else 3.0
        yield _plain(_by_use(purpose), members, several, **verbs)
        for situation in purpose.situations:
            yield _plain("situation", members, 0.4 * several, **verbs, situation=situation)
        if purpose.is_ability or len(members) > 1:
            continue
        focus, front = members[0], _seen_in_front(facts, members[0])
        parts = {"focus": members}
        if front and facts.explained(focus) >= EXPLAINED:
            yield Idea("blocked", (focus, *front), {**parts, "others": front}, verbs, 1.5)
        elif _stands_free(facts, focus):
            yield Idea("free", members, parts, verbs, 0.4)
        if _clear_degree(facts.rates[focus]):
            words = {**verbs, "degree": degree(facts.rates[focus])}
            yield Idea("use_degree", members, parts, words, 0.5)
    for supercategory, things in GROUPS.items():
        members = facts.group(supercategory)
        if members:
            yield _plain("group", members, 0.6 if len(members) == 1 else 3.0, things=things)
    yield from _two_uses(facts)


def _two_uses(facts: Facts) -> Iterator[Idea]:
    """Two purposes at once, served by different things."""
    uses = [(PURPOSES[n], members) for n, members in facts.purposes.items() if not PURPOSES[n].is_ability]
    pairs = [(a, b) for i, a in enumerate(uses) for b in uses[i + 1 :] if not set(a[1]) & set(b[1])]
    for (first, some), (second, others) in pairs:
        words = {**_verbs(first), "other_phrase": second.phrase, "other_do": second.answer_phrase}
        words["context"] = f"{first.phrase} {second.phrase}"
        yield Idea("two_uses", (*some, *others), {"focus": some, "others": others}, words, 4.0 / len(pairs))


def _clear_degree(rate: float) -> bool:
    """Whether the rate is known, and not at the border of two wordings."""
    return (
        not math.isnan(rate)
        and all(abs(rate - limit) > 0.02 for limit, _ in DEGREES[1:])
        and not FULLY_VISIBLE <= rate < 0.05
    )


def _seen_in_front(facts: Facts, index: int) -> tuple[int, ...]:
    """What occludes an object; nothing where that cannot be told from a glance."""
    return facts.front[index] if _plain_to_see(facts.hides[:, index]) else ()


def _seen_behind(facts: Facts, index: int) -> tuple[int, ...]:
    """What an object occludes; nothing where that cannot be told from a glance."""
    return facts.back[index] if _plain_to_see(facts.hides[index]) else ()


def _stands_free(facts: Facts, index: int) -> bool:
    """Whether it is plain to see that nothing hides an object."""
    return facts.rates[index] < FULLY_VISIBLE and _plain_to_see(facts.hides[:, index])


def _plain_to_see(hides: np.ndarray) -> bool:
    low, high = HIDING
    return not (np.isnan(hides) | ((hides >= low) & (hides < high))).any()


def _relation_ideas(facts: Facts) -> Iterator[Idea]:
    only = {members[0]: number for number, members in facts.purposes.items() if len(members) == 1}
    for index in range(len(facts)):
        front, back = _seen_in_front(facts, index), _seen_behind(facts, index)
        if facts.unique(index):
            name = f"the {facts.names[index]}"
            if front:
                yield _plain("in_front", front, 1.2, context=name)
            if back:
                yield _plain("behind", back, 1.2, context=name)
    for number, members in facts.purposes.items():
        if len(members) > 1:
            continue
        focus, thing = members[0], PURPOSES[number].thing
        weight = 1.2 if only[focus] == number else 0.4
        front, back = _seen_in_front(facts, focus), _seen_behind(facts, focus)
        if front and facts.explained(focus) >= EXPLAINED and _clear_degree(facts.rates[focus]):
            words = {"thing": thing, "degree": degree(facts.rates[focus]), "context": thing}
            yield Idea("hidden_by", (focus, *front), {"focus": members, "others": front}, words, weight)
        if back:
            parts = {"objects": back, "focus": members}
            yield Idea("behind_thing", (*back, focus), parts, {"thing": thing, "context": thing}, 0.8 * weight)


def _groups(facts: Facts) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Descriptions of at least two objects, with their weight."""
    for supercategory, things in GROUPS.items():
        members = facts.group(supercategory)
        if len(members) > 1:
            yield f"the {things}", members, 1.5
    for number, members in facts.purposes.items():
        if len(members) > 1:
            yield PURPOSES[number].things, members, 1.0
    if len(facts) > 1 and not facts.crowds:
        yield "all these things", tuple(range(len(facts))), 1.0


def extreme(values: list[float], members: tuple[int, ...], largest: bool, margin: float) -> int | None:
    """The member with the largest (smallest) value, if all are known and the next one is at least ``margin`` away."""
    if any(math.isnan(values[i]) for i in members):
        return None
    ranked = sorted(members, key=lambda i: values[i], reverse=largest)
    return ranked[0] if abs(values[ranked[0]] - values[ranked[1]]) >= margin else None


def _comparison_ideas(facts: Facts) -> Iterator[Idea]:
    for things, members, weight in _groups(facts):
        most = extreme(facts.rates, members, True, RATE_MARGIN)
        if most is not None:
            yield _plain("most_hidden", (most,), weight, things=things)
            front = _seen_in_front(facts, most)
            if front and facts.explained(most) >= EXPLAINED:
                parts = {"focus": (most,), "others": front}
                yield Idea("most_hidden_by", (most, *front), parts, {"things": things}, weight)
        least = extreme(facts.rates, members, False, RATE_MARGIN)
        if least is not None:
            yield _plain("least_hidden", (least,), 0.7 * weight, things=things)
    yield from _pair_ideas(facts)


def _pair_ideas(facts: Facts) -> Iterator[Idea]:
    """One thing against another, each described by the first purpose that it alone serves."""
    described: dict[int, str] = {}
    for number, members in facts.purposes.items():
        if len(members) == 1:
            described.setdefault(members[0], PURPOSES[number].thing)
    for a, thing in described.items():
        for b, other_thing in described.items():
            if a >= b or not abs(facts.rates[a] - facts.rates[b]) >= RATE_MARGIN:
                continue
            more, less = (a, b) if facts.rates[a] > facts.rates[b] else (b, a)
            words = {"thing": thing, "other_thing": other_thing, "context": thing}
            yield Idea("pair", (more, less), {"focus": (more,), "others": (less,)}, words, 0.35)


def _place_ideas(facts: Facts) -> Iterator[Idea]:
    places = (facts.x, facts.y)
    for side, axis, upper in () if facts.crowds else SIDES:
        members = tuple(i for i, v in enumerate(places[axis]) if (v > 0.5) == upper)
        if members and min(abs(v - 0.5) for v in places[axis]) >= PLACE_MARGIN / 2 and len(members) < len(facts):
            yield _plain("side", members, 0.5, side=side, things=side)
    for most, axis, largest in EXTREMES:
        for things, members, weight in _groups(facts):
            found = extreme(places[axis], members, largest, PLACE_MARGIN)
            if found is None:
                continue
            if len(members) == len(facts):
                yield _plain("extreme", (found,), 0.3, most=most, things=most)
            else:
                yield _plain("extreme_of", (found,), 0.15 * weight, most=most, things=things)


def _state_ideas(facts: Facts) -> Iterator[Idea]:
    def split(kind: str, low: float, high: float, weight: float, above: bool = True) -> Iterator[Idea]:
        """Objects on one side of a gap in the occlusion rates."""
        if any(math.isnan(rate) or low <= rate < high for rate in facts.rates):
            return
        members = tuple(i for i, rate in enumerate(facts.rates) if (rate >= high) == above)
        if members:
            yield _plain(kind, members, weight)

    if facts.crowds:
        return
    yield from split("visible", FULLY_VISIBLE, RATE_MARGIN, 0.8, above=False)
    yield from split("hidden", FULLY_VISIBLE, RATE_MARGIN, 0.8)
    yield from split("mostly_hidden", 0.6 - RATE_MARGIN, 0.6, 0.8)
    if len(facts) > 1:
        logs = [float(area) for area in facts.areas]
        ranked = sorted(range(len(facts)), key=lambda i: logs[i])
        if logs[ranked[-1]] >= SIZE_RATIO * logs[ranked[-2]]:
            yield _plain("size", (ranked[-1],), 0.5, most="largest", things="largest")
        if logs[ranked[0]] * SIZE_RATIO <= logs[ranked[1]]:
            yield _plain("size", (ranked[0],), 0.5, most="smallest", things="smallest")


def follow_ups(facts: Facts, previous: Idea) -> list[Idea]:
    """What can be asked next: about "it" or "them" when the previous answer marked one or several things."""
    found = [*_about_it(facts, previous.objects[0])] if len(previous.objects) == 1 else []
    if len(previous.objects) > 1 and previous.objects == previous.parts.get("objects"):
        found += _about_them(facts, previous.objects)
    for number, members in facts.purposes.items():
        purpose = PURPOSES[number]
        if not set(members) & set(previous.objects):
            kind = "then_ability" if purpose.is_ability else "then_use"
            found.append(_plain(kind, members, 0.25 * len(members), **_verbs(purpose)))
    return [idea for idea in found if _sayable(facts, idea)]


def _about_it(facts: Facts, it: int) -> Iterator[Idea]:
    name = f"the {facts.names[it]}"
    front, back, rate = _seen_in_front(facts, it), _seen_behind(facts, it), facts.rates[it]
    parts = {"focus": (it,)}
    if front:
        yield _plain("then_in_front", front, 1.5, context=name)
        if facts.explained(it) >= EXPLAINED and _clear_degree(rate):
            words = {"degree": degree(rate), "context": name}
            yield Idea("then_hidden_by", (it, *front), {**parts, "others": front}, words, 1.5)
    elif _stands_free(facts, it):
        yield Idea("then_visible", (it,), parts, {"context": name}, 1.0)
    if back:
        yield _plain("then_behind", back, 1.5, context=name)
    if _clear_degree(rate):
        yield Idea("then_degree", (it,), parts, {"degree": degree(rate), "context": name}, 1.0)


def _about_them(facts: Facts, them: tuple[int, ...]) -> Iterator[Idea]:
    most = extreme(facts.rates, them, True, RATE_MARGIN)
    if most is not None:
        yield _plain("then_most_hidden", (most,), 2.0, context=str(them))
    for word, axis, largest in EXTREMES:
        found = extreme((facts.x, facts.y)[axis], them, largest, PLACE_MARGIN)
        if found is not None:
            yield _plain("then_extreme", (found,), 0.5, most=word, context=str(them))
