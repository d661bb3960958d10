"""Offline questions that mean one kind of mask: the same questions with a clause, and what the clause says."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections import Counter
from functools import cache
from pathlib import Path

from aura.datagen.checks.rules import PairChecker
from aura.datagen.facts.knowledge import names_category
from aura.datagen.generators import OfflineGenerator
from aura.datagen.offline.generator import generate_conversations
from aura.datagen.offline.intents import CLAUSES, TWO_KINDS
from aura.datagen.records import GenerationRequest, PairDraft
from aura.formats.sources import AnnotatedImage
from aura.types import Conversation, Turn
from tests.datagen.offline.corpus import corpus


@cache
def asking() -> tuple[tuple[AnnotatedImage, tuple[Conversation, ...]], ...]:
    return tuple((image, tuple(generate_conversations(image, seed=1, intents=True))) for image, _ in corpus()[:70])


def turns_of(conversations) -> list[Turn]:
    return [turn for conversation in conversations for turn in conversation.turns]


def test_they_are_the_same_questions_with_a_clause_more():
    for (image, conversations), (_, plain) in zip(asking(), corpus(), strict=False):
        turns = turns_of(conversations)
        assert [(t.answer, t.objects) for t in turns] == [(t.answer, t.objects) for t in plain]
        for turn, before in zip(turns, plain, strict=True):
            assert turn.question.startswith(before.question)
            assert (turn.question == before.question) == (not turn.asked)
        assert conversations == tuple(generate_conversations(image, seed=1, intents=True))
        assert all(c.provenance["intents"] is True for c in conversations)
        assert all("intents" not in c.provenance for c in generate_conversations(image, seed=1))


def test_the_clause_says_what_is_asked():
    kinds, clauses = Counter[str](), Counter[str]()
    for image, conversations in asking():
        hidden = {o.id: o.occlusion_rate for o in image.objects}
        for turn in turns_of(conversations):
            kinds.update([",".join(sorted(set(turn.asked))) or "both"])
            if not turn.asked:
                continue
            found = [c for c in (*CLAUSES["visible"], *CLAUSES["amodal"], *TWO_KINDS) if turn.question.endswith(c)]
            clauses.update(found)
            if found[0] in TWO_KINDS:
                first, *others = turn.asked
                assert first == "amodal" and set(others) == {"visible"}
                assert hidden[turn.objects[0]] > 0, "what is in front hides it"
            else:
                (kind,) = set(turn.asked)
                assert found[0] in CLAUSES[kind]
    assert set(clauses) == {*CLAUSES["visible"], *CLAUSES["amodal"], *TWO_KINDS}
    total = sum(kinds.values())
    assert 0.3 < kinds["both"] / total < 0.5, kinds
    assert 0.2 < kinds["visible"] / total < 0.4 and 0.2 < kinds["amodal"] / total < 0.4, kinds
    assert kinds["amodal,visible"] > 15, kinds


def test_the_checks_have_nothing_against_them():
    found = Counter[str]()
    plain = Counter[str]()
    for (image, conversations), (_, turns) in zip(asking(), corpus(), strict=False):
        checker = PairChecker(image)
        for counts, said in ((found, turns_of(conversations)), (plain, turns)):
            drafts = [PairDraft(t.question, t.answer, t.objects, asked=t.asked) for t in said]
            counts.update(p.code for problems in checker.check_all(drafts) for p in problems)
        for turn in turns_of(conversations):
            names = {o.id: o.category for o in image.objects}
            assert not any(names_category(turn.question, names[i]) for i in turn.objects), turn
    # Short questions are alike once they share a clause; nothing else may come of it.
    assert set(found - plain) <= {"duplicate"} and found["duplicate"] - plain["duplicate"] < 12, (found, plain)


def test_no_unknown_shape_is_asked_for():
    image, _ = corpus()[0]
    unknown = dataclasses.replace(
        image, objects=tuple(dataclasses.replace(o, amodal=None, occlusion_rate=None) for o in image.objects)
    )
    made = [turns_of(generate_conversations(unknown, seed=seed, intents=True)) for seed in range(6)]
    asked = [kind for turns in made for turn in turns for kind in turn.asked]
    assert "visible" in asked and "amodal" not in asked


def test_the_generator_of_projects_takes_the_setting():
    image, _ = corpus()[1]
    request = GenerationRequest(image, Path("x.jpg"))
    pairs = asyncio.run(OfflineGenerator(1, intents=True).generate(request)).pairs
    assert [p.asked for p in pairs] == [t.asked for t in turns_of(generate_conversations(image, seed=1, intents=True))]
    assert any(p.asked for p in pairs)
    assert all(re.search(r"[?.]$", p.question) for p in pairs)
    plain = asyncio.run(OfflineGenerator(1).generate(request)).pairs
    assert not any(p.asked for p in plain)
