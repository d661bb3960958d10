"""Questions that mean one kind of mask: only what can be seen of a thing, or its whole shape (as R2SM's do).

A question that is written already gets a clause that says so, and its answer stays as it is: the masks alone differ.
Most clauses speak of all objects of the answer. Where an answer names a thing and what hides it, one may ask for the
whole shape of the one and for what can be seen of the others.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from aura.datagen.facts.facts import Facts
from aura.datagen.facts.knowledge import names_category
from aura.datagen.offline.ideas import Idea
from aura.types import Masks, Turn

SHARE = 0.6
"""Of the turns; a part of them finds no clause, as where the whole shape is not known."""
MIXED = 0.75
"""Of the turns that get a clause and could have one with two kinds."""
HIDERS = frozenset({"blocked", "hidden_by", "most_hidden_by", "then_hidden_by"})
"""Kinds of ideas whose ``others`` hide the ``focus``."""

CLAUSES: dict[Masks, tuple[str, ...]] = {
    "visible": (
        "Mark only what can be seen.",
        "Show only the visible part.",
        "I only want what is in sight, nothing that is hidden.",
        "Leave out whatever is covered.",
        "Only the parts that can be seen, please.",
        "Do not guess at hidden parts.",
    ),
    "amodal": (
        "Mark the whole shape.",
        "Show the complete shape, hidden parts too.",
        "I want the full outline, as if nothing were in front.",
        "Include whatever is covered.",
        "The whole shape, please, even where it cannot be seen.",
        "Do guess at hidden parts.",
    ),
}
TWO_KINDS = (
    "Mark the whole shape of what is hidden, and only the visible part of what hides it.",
    "Complete what is hidden; of what is in front show only what can be seen.",
    "I want the full outline of what is behind, and only the parts in sight of what is in front.",
)
"""The focus's whole shape, and of what hides it only what can be seen."""


def with_intent(idea: Idea, turn: Turn, facts: Facts, rng: np.random.Generator) -> Turn:
    """The turn, or the same one asking for one kind of mask."""
    if rng.random() >= SHARE:
        return turn
    kind: Masks = "visible" if rng.random() < 0.5 else "amodal"
    mixed = rng.random() < MIXED and idea.kind in HIDERS
    clauses = TWO_KINDS if mixed else CLAUSES[kind]
    clause = clauses[int(rng.integers(len(clauses)))]
    whole = idea.parts["focus"] if mixed else idea.objects if kind == "amodal" else ()
    if any(math.isnan(facts.rates[i]) for i in whole):
        return turn
    if any(names_category(clause, facts.categories[i]) for i in idea.objects):
        return turn
    asked: tuple[Masks, ...] = tuple("amodal" if i in whole else "visible" for i in idea.objects)
    return dataclasses.replace(turn, question=f"{turn.question} {clause}", asked=asked)
