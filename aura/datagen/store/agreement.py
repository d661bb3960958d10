"""The agreement of annotators about a pair and in all: pure functions of their verdicts."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from aura.types import Masks

Decision = Literal["accept", "edit", "reject"]
DECISIONS: tuple[Decision, ...] = ("accept", "edit", "reject")

_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " "})


@dataclass(frozen=True)
class PairText:
    """What a pair says: ``objects`` are annotation ids in the order of the answer's ``[SEG]``.

    ``asked`` is the mask of each object that the question means; empty where all mean both.
    """

    question: str
    answer: str
    objects: tuple[int, ...]
    asked: tuple[Masks, ...] = ()

    def normalised(self) -> PairText:
        """The same with Unicode composed, straight quotes and single spaces: what counts when texts are compared.

        Nobody edits the asked masks, so that they do not count.
        """
        return PairText(_plain(self.question), _plain(self.answer), self.objects)

    def asked_of(self, objects: Sequence[int]) -> tuple[Masks, ...]:
        """The masks that an edit asks for which points at ``objects``: each keeps its own, a new one has both."""
        if not self.asked:
            return ()
        kept = dict(zip(self.objects, self.asked, strict=False))
        return tuple(kept.get(number, "both") for number in objects)


@dataclass(frozen=True)
class Opinion:
    """One annotator's verdict; ``text`` is the proposed text of an edit, else the text that was judged."""

    decision: Decision
    text: PairText


@dataclass(frozen=True)
class Agreement:
    """How much the independent verdicts agree; kappas are ``None`` where they are not defined.

    ``pairs`` judged by all their reviewers; ``unanimous`` of them agree in decision and text; ``fleiss`` is over the
    decisions; ``cohen`` maps two annotators' names to (pairs that both judged, kappa).
    """

    pairs: int
    unanimous: int
    fleiss: float | None
    cohen: dict[tuple[str, str], tuple[int, float | None]]


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).translate(_QUOTES).split())


def same_text(one: PairText, other: PairText) -> bool:
    """Whether two texts differ at most in spaces, quotes and the spelling of accents in Unicode."""
    return one.normalised() == other.normalised()


def majority(opinions: Sequence[Opinion]) -> int | None:
    """The first of those opinions that more than half share; ``None`` without such a majority.

    To share an opinion is to decide alike and, with an edit, to write the same text with the same objects. Of two
    annotators both must.
    """
    for number, one in enumerate(opinions):
        if 2 * sum(_alike(one, other) for other in opinions) > len(opinions):
            return number
    return None


def agree(opinions: Sequence[Opinion]) -> bool:
    """Whether all share one opinion."""
    return all(_alike(opinions[0], other) for other in opinions)


def _alike(one: Opinion, other: Opinion) -> bool:
    return one.decision == other.decision and (one.decision != "edit" or same_text(one.text, other.text))


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Cohen's kappa of two annotators who judged the same items, in [-1, 1]; ``None`` where it is not defined.

    (p_o - p_e) / (1 - p_e): p_o the share of equal judgements, p_e what two annotators with these shares of each
    category would agree on by chance (Cohen, 1960). Undefined without items, and when both only ever gave one and the
    same category.
    """
    if len(one) != len(other):
        raise ValueError(f"two annotators of the same items: {len(one)} and {len(other)} judgements")
    items = len(one)
    if items == 0:
        return None
    observed = sum(a == b for a, b in zip(one, other, strict=True))
    counts, others = Counter(one), Counter(other)
    # In whole numbers, so that "always the same category" is exactly that.
    chance = sum(counts[category] * others[category] for category in counts)
    if chance == items * items:
        return None
    return (observed * items - chance) / (items * items - chance)


def fleiss_kappa(table: Sequence[Sequence[int]]) -> float | None:
    """Fleiss' kappa; ``table[i][j]`` annotators put item i into category j. ``None`` where it is not defined.

    The annotators may differ from item to item but not in number, at least two (Fleiss, 1971).

    Raises:
        ValueError: Items with different numbers of judgements, or with fewer than two.
    """
    if not table:
        return None
    raters = sum(table[0])
    if raters < 2 or any(sum(row) != raters for row in table):
        raise ValueError("every item needs the same number of judgements, at least two")
    items = len(table)
    agreeing = sum(n * (n - 1) for row in table for n in row)
    shares = [sum(column) for column in zip(*table, strict=True)]
    total = items * raters
    chance = sum(share * share for share in shares)
    if chance == total * total:
        return None
    observed = agreeing / (items * raters * (raters - 1))
    expected = chance / (total * total)
    return (observed - expected) / (1 - expected)


def measure(
    decisions: Mapping[int, Mapping[str, Decision]], contested: Collection[int], names: Sequence[str], reviewers: int
) -> Agreement:
    """The agreement of independent verdicts.

    Args:
        decisions: Pair -> annotator's name -> decision.
        contested: Pairs that the annotators disagreed about, in decision or text.
        names: Of all annotators.
        reviewers: Verdicts that a pair needs; pairs with fewer count for Cohen's kappa only.
    """
    complete = {pair: by_name for pair, by_name in decisions.items() if len(by_name) == reviewers}
    table = [[list(by.values()).count(d) for d in DECISIONS] for by in complete.values()]
    cohen = {}
    for one, other in combinations(names, 2):
        both = [by for by in decisions.values() if one in by and other in by]
        kappa = cohen_kappa([by[one] for by in both], [by[other] for by in both])
        cohen[one, other] = (len(both), kappa)
    return Agreement(
        pairs=len(complete),
        unanimous=sum(pair not in contested for pair in complete),
        fleiss=fleiss_kappa(table) if reviewers >= 2 else None,
        cohen=cohen,
    )
