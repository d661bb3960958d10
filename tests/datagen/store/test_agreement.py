"""Agreement against worked examples from the literature, and against the definitions computed the long way."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from aura.datagen.store.agreement import Opinion, PairText, agree, cohen_kappa, fleiss_kappa, same_text

FLEISS_1971_STYLE = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
"""Ten items, fourteen raters, five categories: the usual worked example, kappa 0.210."""


def test_cohen_worked_examples():
    # Two readers of 50 proposals: both yes 20, both no 15, 5 and 10 apart; p_o 0.7, p_e 0.5, kappa 0.4.
    one = ["yes"] * 25 + ["no"] * 25
    other = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(one, other) == pytest.approx(0.4)
    # 45 15 / 25 15: p_o 0.6, p_e 0.54, kappa 0.1304; 25 35 / 5 35: p_o 0.6, p_e 0.46, kappa 0.2593.
    one = ["yes"] * 60 + ["no"] * 40
    assert cohen_kappa(one, ["yes"] * 45 + ["no"] * 15 + ["yes"] * 25 + ["no"] * 15) == pytest.approx(0.1304, abs=5e-5)
    assert cohen_kappa(one, ["yes"] * 25 + ["no"] * 35 + ["yes"] * 5 + ["no"] * 35) == pytest.approx(0.2593, abs=5e-5)


def test_cohen_at_the_limits():
    assert cohen_kappa([], []) is None and cohen_kappa(["a"] * 9, ["a"] * 9) is None
    assert cohen_kappa(["a", "b"], ["a", "b"]) == 1 and cohen_kappa(["a", "b"], ["b", "a"]) == -1
    assert cohen_kappa(["a"] * 4, ["a", "a", "a", "b"]) == 0
    with pytest.raises(ValueError, match="2 and 1"):
        cohen_kappa(["a", "b"], ["a"])


def test_cohen_by_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        one, other = rng.integers(0, 3, (2, int(rng.integers(5, 40))))
        matrix = np.zeros((3, 3))
        np.add.at(matrix, (one, other), 1 / len(one))
        chance = float(matrix.sum(1) @ matrix.sum(0))
        expected = (np.trace(matrix) - chance) / (1 - chance)
        assert cohen_kappa([str(x) for x in one], [str(x) for x in other]) == pytest.approx(expected)


def test_fleiss_worked_example():
    assert fleiss_kappa(FLEISS_1971_STYLE) == pytest.approx(0.210, abs=5e-4)


def test_fleiss_by_counting_pairs_of_raters():
    rng = np.random.default_rng(1)
    for _ in range(30):
        items, raters = int(rng.integers(3, 9)), int(rng.integers(2, 5))
        votes = rng.integers(0, 3, (items, raters))
        if len(set(votes.ravel().tolist())) == 1:
            continue
        alike = [Fraction(sum(a == b for a, b in combinations(row, 2)), raters * (raters - 1) // 2) for row in votes]
        observed = sum(alike) / items
        chance = sum(Fraction(int((votes == c).sum()), votes.size) ** 2 for c in range(3))
        expected = (observed - chance) / (1 - chance)
        table = [[int((row == c).sum()) for c in range(3)] for row in votes]
        assert fleiss_kappa(table) == pytest.approx(float(expected))


def test_fleiss_at_the_limits():
    assert fleiss_kappa([]) is None and fleiss_kappa([[2, 0], [2, 0]]) is None
    assert fleiss_kappa([[2, 0], [0, 2]]) == 1
    for table in ([[2, 0], [3, 0]], [[1, 0]]):
        with pytest.raises(ValueError, match="same number of judgements"):
            fleiss_kappa(table)


def test_texts_are_compared_without_their_spaces_quotes_and_unicode_forms():
    text = PairText("What's the café's?", 'The  "cup" [SEG].', (1,))
    assert same_text(text, PairText(" What’s the cafe\u0301’s?\n", "The “cup” [SEG].", (1,)))
    for other in (
        ("what's the café's?", text.answer, (1,)),
        (text.question, "The cup [SEG].", (1,)),
        (*text_of(text), (2,)),
    ):
        assert not same_text(text, PairText(*other))


def text_of(text):
    return text.question, text.answer


def test_agreement_is_about_decisions_and_about_the_texts_of_edits():
    base, one, other = (PairText("Q?", f"The cup [SEG]{end}", (1,)) for end in ("", " .", " !"))
    assert agree([Opinion("accept", base), Opinion("accept", base)])
    assert agree([Opinion("reject", base), Opinion("reject", base)])
    assert not agree([Opinion("accept", base), Opinion("reject", base)])
    assert agree([Opinion("edit", one), Opinion("edit", PairText("Q? ", "The  cup [SEG] .", (1,)))])
    assert not agree([Opinion("edit", one), Opinion("edit", other)])
    assert not agree([Opinion("edit", one), Opinion("accept", base)])
    assert not agree([Opinion("accept", base)] * 2 + [Opinion("reject", base)])
