"""A pair that asks for one kind of mask says so in its question."""

from __future__ import annotations

import dataclasses

import pytest

from aura.datagen.checks.rules import PairChecker
from aura.datagen.records import PairDraft
from tests.datagen.checks.test_rules import BOOK, CUP, table

ANSWER = "The cup [SEG] is mostly hidden by the book [SEG]."


def codes(question: str, *asked: str) -> list[str]:
    pair = PairDraft(question, ANSWER, (CUP, BOOK), asked=asked)  # type: ignore[arg-type]
    return [problem.code for problem in PairChecker(table()).check(pair)]


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("What could I drink from, and what is in the way?", ()),
        ("What could I drink from, and what is in the way? Show only what can be seen.", ("visible", "visible")),
        ("What could I drink from, and what is in the way? Leave out whatever is covered.", ("visible", "both")),
        ("What could I drink from, and what is in the way? Mark the whole shape.", ("amodal", "amodal")),
        ("What could I drink from, and what is in the way, as if nothing hid it?", ("amodal", "both")),
        ("Complete what I could drink from; of what is in the way show the visible part.", ("amodal", "visible")),
    ],
)
def test_a_question_that_says_what_it_asks_is_good(question, asked):
    assert codes(question, *asked) == []


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("What could I drink from, and what is in the way?", ("visible", "visible")),
        ("What could I drink from, and what is in the way?", ("both", "amodal")),
        ("What could I drink from, and what is in the way? Mark the whole shape.", ("amodal", "visible")),
        ("What could I drink from, and what is in the way? Mark the whole shape.", ("amodal",)),
        ("What could I drink from, and what is in the way? Mark the whole shape.", ("amodal", "everything")),
    ],
)
def test_one_that_does_not_is_not(question, asked):
    assert codes(question, *asked) == ["asked"]


def test_an_unknown_shape_cannot_be_asked_for():
    image = table()
    objects = tuple(
        dataclasses.replace(o, amodal=None, occlusion_rate=None) if o.id == CUP else o for o in image.objects
    )
    checker = PairChecker(dataclasses.replace(image, objects=objects))
    pair = PairDraft("What could I drink from? Mark the whole shape.", "The cup [SEG].", (CUP,), asked=("amodal",))
    (problem,) = checker.check(pair)
    assert problem.code == "asked" and f"object {CUP}" in problem.message and "not known" in problem.advice
    assert checker.check(dataclasses.replace(pair, question="What could I drink from?", asked=())) == ()


def test_the_same_question_for_another_mask_is_no_duplicate():
    whole = PairDraft("What could I drink from, whole shape?", "The cup [SEG].", (CUP,), asked=("amodal",))
    seen = PairDraft("What could I drink from, whole shape seen?", "The cup [SEG].", (CUP,), asked=("visible",))
    checker = PairChecker(table())
    assert [len(problems) for problems in checker.check_all([whole, seen])] == [0, 0]
    again = dataclasses.replace(seen, asked=("amodal",))
    assert [p.code for p in checker.check_all([whole, again])[1]] == ["duplicate"]
