"""Questions and answers from annotations alone: no service, no randomness but the seed's, no claim the masks deny."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from aura.datagen.facts.facts import Facts, facts_of
from aura.datagen.facts.grammar import FORMS
from aura.datagen.facts.knowledge import names_category
from aura.datagen.offline.ideas import Idea, follow_ups, ideas_of, spare_ideas
from aura.datagen.offline.intents import with_intent
from aura.formats.sources import AnnotatedImage
from aura.types import Conversation, Turn

GENERATOR = "offline"
VERSION = "4"
MAX_PER_KIND = 2
"""Turns of one kind in an image while other kinds are left."""
NUMBERS = ("one", "two", "three", "four")
SEVERAL = 0.5
"""Answers with n objects are preferred by n to this power."""

_Said = tuple[Idea, Turn]
"""A turn, and the idea that it puts into words."""


def generate_conversations(
    image: AnnotatedImage,
    *,
    pairs: int = 10,
    seed: int,
    first_id: int = 0,
    crowds: Mapping[str, str] | None = None,
    intents: bool = False,
) -> list[Conversation]:
    """``pairs`` question-answer pairs about ``image``: single questions, and two conversations of two or three turns.

    The same image id, annotations and seed give the same conversations. Every answer follows from the masks; no
    question names what it asks for; no question occurs twice. An image with little in it gets fewer pairs, one without
    objects none.

    Args:
        image: The image's objects; their ``occluded_by`` is not read, the masks are.
        pairs: Turns in all.
        seed: Any non-negative integer; combined with the image id.
        first_id: Id of the first conversation; the others follow.
        crowds: Categories of which more is in the picture than ``objects`` says, with their supercategories. Nothing
            is asked whose answer they would belong to.
        intents: Many questions mean one kind of mask (:mod:`aura.datagen.offline.intents`); they are otherwise the
            same.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be positive, got {pairs}")
    if not image.objects:
        return []
    writer = _Writer(facts_of(image, crowds), np.random.default_rng([seed, image.image_id]))
    lengths = _lengths(pairs, writer.rng)
    written: list[list[_Said]] = [turns for length in lengths if (turns := writer.conversation(length))]
    missing = pairs - sum(map(len, written))
    while missing > 0 and (turns := writer.conversation(1, spare=True)):
        written.append(turns)
        missing -= 1
    # The longer conversations are written first, so that they find their ideas unused; then all are mixed.
    order = writer.rng.permutation(len(written)).tolist()
    provenance: dict[str, object] = {"generator": GENERATOR, "version": VERSION, "seed": seed}
    turns_of = [[turn for _, turn in turns] for turns in written]
    if intents:
        provenance["intents"] = True
        chance = np.random.default_rng([seed, image.image_id, 1])  # its own, so that all else stays as it was
        turns_of = [[with_intent(*said, writer.facts, chance) for said in turns] for turns in written]
    return [Conversation(first_id + n, tuple(turns_of[i]), dict(provenance)) for n, i in enumerate(order)]


def _lengths(pairs: int, rng: np.random.Generator) -> list[int]:
    """Turns of each conversation, longest first: two with two or three turns, the rest with one."""
    longer = sorted((2 + int(rng.random() < 0.4) for _ in range(2)), reverse=True) if pairs >= 6 else []
    return [*longer, *[1] * (pairs - sum(longer))]


class _Writer:
    """Chooses ideas for one image and puts them into words, remembering what was already asked."""

    def __init__(self, facts: Facts, rng: np.random.Generator) -> None:
        self.facts = facts
        self.rng = rng
        self.ideas = ideas_of(facts)
        self.asked: set[str] = set()
        self.told: set[tuple[str, tuple[int, ...], str]] = set()
        self.kinds: dict[str, int] = {}

    def conversation(self, length: int, spare: bool = False) -> list[_Said]:
        """Up to ``length`` turns, none if no idea is left; ``spare`` takes plain and repeated ideas too."""
        pool = spare_ideas(self.facts) if spare else self.ideas
        first = self._next(pool, repeat=spare)
        if first is None:
            return []
        turns = [first]
        while len(turns) < length:
            following = self._next(follow_ups(self.facts, turns[-1][0]), repeat=False)
            if following is None:
                break
            turns.append(following)
        return turns

    def _next(self, ideas: Sequence[Idea], repeat: bool) -> _Said | None:
        """A new idea, drawn by weight, with its turn; with ``repeat`` an idea may return in other words."""
        left = [i for i in ideas if repeat or (i.content not in self.told and self._count(i) < MAX_PER_KIND)]
        while left:
            weights = np.array([i.weight * len(i.objects) ** SEVERAL / (1 + 2 * self._count(i)) for i in left])
            position = int(np.searchsorted(np.cumsum(weights), self.rng.random() * weights.sum(), side="right"))
            idea = left.pop(min(position, len(left) - 1))
            turn = self._turn(idea)
            if turn is not None:
                self.told.add(idea.content)
                self.asked.add(turn.question)
                self.kinds[idea.kind] = self._count(idea) + 1
                return idea, turn
        return None

    def _count(self, idea: Idea) -> int:
        return self.kinds.get(idea.kind, 0)

    def _turn(self, idea: Idea) -> Turn | None:
        """The idea in one of its wordings that is new and does not name what it asks for."""
        facts = self.facts
        slots = dict(idea.words)
        for slot, members in idea.parts.items():
            slots[slot] = facts.marked(members)
        for slot, which in (("objects", "which"), ("focus", "which_focus"), ("others", "which_others")):
            if slot in idea.parts:
                number = NUMBERS[len(idea.parts[slot]) - 1]
                slots[which] = "thing" if number == "one" else f"{number} things"
        if "objects" in idea.parts:
            slots["how_many"] = NUMBERS[len(idea.parts["objects"]) - 1]
        if "objects" in idea.parts:
            plural = facts.is_plural(idea.parts["objects"])
            slots.update({"is": "are"} if plural else {"is": "is"})
            slots.update(look="look" if plural else "looks", hide="hide" if plural else "hides")
        for slot, verb in (("focus", "focus_is"), ("others", "others_are")):
            if slot in idea.parts:
                slots[verb] = "are" if facts.is_plural(idea.parts[slot]) else "is"
        forms = FORMS[idea.kind]
        start = int(self.rng.integers(len(forms)))
        for question, answer in (*forms[start:], *forms[:start]):
            question = _sentence(question.format_map(slots))
            if question in self.asked or any(names_category(question, facts.categories[i]) for i in idea.objects):
                continue
            ids = tuple(facts.ids[i] for i in idea.objects)
            return Turn(question, _sentence(answer.format_map(slots)), ids)
        return None


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
