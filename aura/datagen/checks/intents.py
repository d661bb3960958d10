"""The check of the masks that a pair asks for: its question must say what its ``asked`` says.

It looks for words alone. "Show the whole cup" is known by "whole"; what a question without any such word means is not
guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from aura.datagen.facts.facts import Facts
from aura.datagen.records import PairDraft, PairProblem
from aura.types import Masks, asked_flaw

_SAID: dict[Masks, re.Pattern[str]] = {
    "visible": re.compile(
        r"\b(?:visible|visibly|seen?|in sight|in view|on show|showing|shows|exposed|uncovered|unobstructed|"
        r"(?:not|nothing|without|leave out|leaving out|except|ignor\w+|skip\w*|guess)\b.*\b"
        r"(?:hidden|covered|behind|guess\w*))\b",
        re.IGNORECASE,
    ),
    "amodal": re.compile(
        r"\b(?:whole|entire|entirely|complete|completely|full|fully|all of|hidden|covered|behind|as if|imagin\w+|"
        r"guess\w*|unseen|beneath|underneath|extent|shape)\b",
        re.IGNORECASE,
    ),
}
"""Words of which a question that means one kind of mask has at least one."""
_WORDS: dict[Masks, str] = {"visible": "only what can be seen", "amodal": "the whole shape"}


def asked_is_said(pair: PairDraft, facts: Facts) -> Iterator[PairProblem]:
    """``asked`` fits the objects, the question has words for each kind it asks for, and no unknown shape is wanted."""
    if flaw := asked_flaw(pair.asked, len(pair.objects)):
        yield PairProblem("asked", flaw, f"{flaw[0].upper()}{flaw[1:]}.")
        return
    for kind, pattern in _SAID.items():
        if kind in pair.asked and not pattern.search(pair.question):
            yield PairProblem(
                "asked",
                f"the {kind} mask is asked for, but the question does not say so",
                f'Let the question say that {_WORDS[kind]} is wanted, or set "asked" to "both".',
            )
    index = {number: i for i, number in enumerate(facts.ids)}
    for number, kind in zip(pair.objects, pair.asked, strict=False):
        if kind == "amodal" and number in index and math.isnan(facts.rates[index[number]]):
            yield PairProblem(
                "asked",
                f"the whole shape of object {number} is asked for, which is not known",
                f"Ask for no whole shape of object {number}; it is not known.",
            )
