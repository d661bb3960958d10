"""Offline questions and answers, held against the masks that they speak of."""

import dataclasses
import re

import numpy as np
import pytest

from aura.datagen.facts.knowledge import PURPOSES, names_category
from aura.datagen.offline.generator import generate_conversations
from aura.formats.sources import AnnotatedImage
from aura.types import Turn
from tests.datagen.offline.corpus import MARK, blobs, corpus, each_turn
from tests.scenes import annotated_image_from_scene


def test_every_image_gets_ten_pairs_in_a_few_longer_conversations():
    longer = []
    for image, turns in corpus():
        lengths = [len(c.turns) for c in generate_conversations(image, seed=1)]
        assert len(turns) == sum(lengths) <= 10
        if len({o.category for o in image.objects} - {"gizmo"}) >= 3:
            assert len(turns) == 10
            assert max(lengths) <= 3
            longer.append(sum(length > 1 for length in lengths))
    assert max(longer) == 2
    assert np.mean(longer) > 1.9


def test_answers_mark_one_to_four_objects_by_name():
    count = []
    for truth, turn in each_turn():
        count.append(len(turn.objects))
        assert 1 <= len(turn.objects) <= 4
        assert len(set(turn.objects)) == len(turn.objects)
        names = MARK.findall(turn.answer)
        assert len(names) == len(turn.objects), turn
        for name, annotation in zip(names, turn.objects, strict=True):
            assert name.endswith(truth.category[annotation]), turn
        assert turn.answer[0].isupper() and turn.answer[-1] == "." and "{" not in turn.answer + turn.question
    assert 1.4 < np.mean(count) < 2.2


def test_no_question_names_what_it_asks_for():
    for truth, turn in each_turn():
        for annotation in turn.objects:
            category = truth.category[annotation]
            assert not re.search(rf"\b{category}(s|es)?\b", turn.question, re.IGNORECASE), turn
            assert not names_category(turn.question, category), turn


def test_a_question_that_says_how_many_says_the_truth():
    numbers = {"thing": 1, "one": 1, "two": 2, "three": 3, "four": 4}
    # A "which" or "show me the" that is not about all the answer's objects is about those after the first.
    told = re.compile(r"(?:which|the|is|are|in the picture,) (thing|one|two|three|four)\b", re.IGNORECASE)
    checked = {1: 0, 2: 0, 3: 0}
    for _, turn in each_turn():
        asked = re.sub(r"the thing (?:that|I) .*?(?=,|\?|$)", "", turn.question)  # a description, not a number
        asked = re.sub(r"which one is", "", asked, flags=re.IGNORECASE)
        if re.match(r"(?:Please show me|I am looking for|Can you find) the ", turn.question):
            asked = re.sub(r"(behind|in front of) the thing (?:that|I) .*", r"\1 it", turn.question)
        if two := re.match(r"Which (thing|two|three) .* and which (thing|two|three) .*could I", turn.question):
            assert numbers[two[1]] + numbers[two[2]] == len(turn.objects), turn
            continue
        for found in told.findall(asked):
            count = numbers[found.lower()]
            partly = (
                "which" in asked[1:] or "and the" in asked or turn.answer.count("hidden") or "behind" in turn.answer
            )
            assert count == len(turn.objects) or (partly and count == len(turn.objects) - 1), turn
            checked[count] = checked.get(count, 0) + 1
    assert min(checked.values()) > 10, checked


def test_no_question_occurs_twice_in_an_image():
    for _, turns in corpus():
        questions = [t.question for t in turns]
        assert len(questions) == len(set(questions))


def test_words_for_the_degree_of_occlusion_agree_with_the_masks():
    limits = {
        "slightly hidden": (0.02, 0.2),
        "partly hidden": (0.2, 0.4),
        "about half hidden": (0.4, 0.6),
        "mostly hidden": (0.6, 1.0),
    }
    checked = 0
    for truth, turn in each_turn():
        if found := re.search(
            r"\[SEG\],? (?:which )?(?:is|are) ((?:slightly|partly|about half|mostly) hidden)", turn.answer
        ):
            subjects = turn.objects[: turn.answer[: found.start() + 5].count("[SEG]")]
            if turn.question.startswith("What could I"):
                subjects = subjects[-1:]
            for annotation in subjects:
                low, high = limits[found.group(1)]
                assert low <= truth.rate[annotation] < high, turn
                checked += 1
        if "fully visible" in turn.answer:
            assert all(truth.rate[i] < 0.02 for i in turn.objects), turn
            checked += 1
        if "nothing is in the way" in turn.answer:
            assert not truth.in_front_of(turn.objects[0])
    assert checked > 150


def test_what_hides_what_agrees_with_the_masks():
    checked = dict.fromkeys(("by", "front", "behind", "way"), 0)
    for truth, turn in each_turn():
        if re.search(r"hidden(?: the most,)? by the ", turn.answer):
            assert set(turn.objects[1:]) == truth.in_front_of(turn.objects[0]), turn
            checked["by"] += 1
        if found := re.search(r"(?:in front of|a part of) the (.+)\.$", turn.answer):
            context = found.group(1)
            if "[SEG]" not in context and context in truth.category.values():
                assert set(turn.objects) == truth.in_front_of(truth.only(context)), turn
                checked["front"] += 1
        if found := re.search(r"behind the (.+?)( \[SEG\])?\.$", turn.answer):
            if found.group(2):
                assert set(turn.objects[:-1]) == truth.behind(turn.objects[-1]), turn
            elif found.group(1) in truth.category.values():
                assert set(turn.objects) == truth.behind(truth.only(found.group(1))), turn
            checked["behind"] += 1
        if "in the way" in turn.answer and "nothing" not in turn.answer:
            assert set(turn.objects[1:]) == truth.in_front_of(turn.objects[0]), turn
            checked["way"] += 1
    assert min(checked.values()) > 10, checked


def test_comparisons_agree_with_the_masks():
    checked = 0
    for truth, turn in each_turn():
        if "all these things" in turn.question:
            first = turn.objects[0]
            others = [i for i in truth.rate if i != first]
            if "hidden the most" in turn.answer:
                assert truth.rate[first] > max(truth.rate[i] for i in others)
            elif "hidden the least" in turn.answer:
                assert truth.rate[first] < min(truth.rate[i] for i in others)
            checked += 1
        if "hidden more than" in turn.answer:
            assert truth.rate[turn.objects[0]] > truth.rate[turn.objects[1]]
            checked += 1
        if "looks the largest" in turn.answer:
            assert truth.visible[turn.objects[0]].sum() == max(m.sum() for m in truth.visible.values())
    assert checked > 25


def test_places_agree_with_the_masks():
    def told(turn: Turn, words: str) -> bool:
        return turn.question in (f"What is {words}?", f"Which thing is {words}?")

    checked = 0
    for truth, turn in each_turn():
        for words, values, choose in (
            ("furthest to the left", truth.x, min),
            ("furthest to the right", truth.x, max),
            ("highest up", truth.y, min),
            ("lowest down", truth.y, max),
        ):
            if told(turn, words):
                assert values[turn.objects[0]] == choose(values.values()), turn
                checked += 1
        for words, values, upper in (
            ("On the left side", truth.x, False),
            ("On the right side", truth.x, True),
            ("In the upper half", truth.y, False),
            ("In the lower half", truth.y, True),
        ):
            if turn.answer.startswith(words):
                assert set(turn.objects) == {i for i, v in values.items() if (v > 0.5) == upper}, turn
                checked += 1
    assert checked > 15


def test_two_of_a_kind_are_told_apart_by_their_places():
    checked = 0
    for truth, turn in each_turn():
        for name, annotation in zip(MARK.findall(turn.answer), turn.objects, strict=True):
            word, _, category = name.partition(" ")
            twins = [i for i, c in truth.category.items() if c == truth.category[annotation]]
            if len(twins) == 2 and word in ("left", "right", "top", "bottom"):
                (other,) = [i for i in twins if i != annotation]
                values = truth.x if word in ("left", "right") else truth.y
                assert category == truth.category[annotation]
                assert (values[annotation] < values[other]) == (word in ("left", "top")), turn
                checked += 1
            elif word == "first":
                assert truth.x[annotation] == min(truth.x[i] for i in twins)
                checked += 1
            elif len(twins) == 1:
                assert name == truth.category[annotation]
    assert checked > 25


def test_a_purpose_is_answered_by_everything_that_serves_it_from_left_to_right():
    asked = {f"What could I {p.phrase}?": p for p in PURPOSES if not p.is_ability}
    asked.update({f"What {p.phrase}?": p for p in PURPOSES if p.is_ability})
    checked = 0
    for truth, turn in each_turn():
        if turn.question in asked:
            serving = [i for i, c in truth.category.items() if c in asked[turn.question].categories]
            assert sorted(serving, key=lambda i: truth.x[i]) == sorted(turn.objects, key=lambda i: truth.x[i]), turn
            assert [truth.x[i] for i in turn.objects] == sorted(truth.x[i] for i in turn.objects)
            checked += 1
    assert checked > 15


def test_the_same_seed_gives_the_same_and_another_seed_other_questions():
    image = corpus()[3][0]
    assert generate_conversations(image, seed=5) == generate_conversations(image, seed=5)
    assert generate_conversations(image, seed=5) != generate_conversations(image, seed=6)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    generate_conversations(image, seed=5)
    assert (np.random.get_state()[1] == before).all()


def test_other_images_get_other_questions_for_the_same_seed():
    image = corpus()[3][0]
    other = dataclasses.replace(image, image_id=image.image_id + 1)
    assert generate_conversations(image, seed=5) != generate_conversations(other, seed=5)


def test_ids_and_provenance():
    conversations = generate_conversations(corpus()[3][0], seed=5, first_id=40)
    assert [c.id for c in conversations] == list(range(40, 40 + len(conversations)))
    assert all(dict(c.provenance) == {"generator": "offline", "version": "4", "seed": 5} for c in conversations)


@pytest.mark.parametrize("pairs", [1, 3, 6, 17])
def test_the_number_of_pairs_is_a_setting(pairs):
    image = annotated_image_from_scene(blobs(4, count=8), 9)
    assert sum(len(c.turns) for c in generate_conversations(image, pairs=pairs, seed=0)) == pairs


def test_without_objects_there_is_nothing_to_ask_and_zero_pairs_are_an_error():
    empty = AnnotatedImage(1, "a.jpg", 8, 8, ())
    assert generate_conversations(empty, seed=0) == []
    with pytest.raises(ValueError, match="pairs must be positive"):
        generate_conversations(empty, pairs=0, seed=0)


def test_unknown_categories_still_get_questions():
    image = annotated_image_from_scene(blobs(8, ("gizmo", "gadget", "doohickey"), count=6), 1)
    turns = [t for c in generate_conversations(image, seed=0) for t in c.turns]
    assert len(turns) >= 6
    assert not any(re.search(rf"\b{p.phrase}\b", t.question) for p in PURPOSES for t in turns)


def test_crowds_are_counted_from_the_left():
    image = annotated_image_from_scene(blobs(12, ("person",), count=14), 1)
    assert len(image.objects) > 5
    turns = [t for c in generate_conversations(image, seed=0) for t in c.turns]
    assert turns
    assert any(re.search(r"the (\w+th|first|second|third) person \[SEG\]", t.answer, re.IGNORECASE) for t in turns)


def test_the_vocabulary_is_small():
    words = {w for _, t in each_turn() for w in re.findall(r"\w+", f"{t.question} {t.answer}".lower())}
    assert len(words) < 500
