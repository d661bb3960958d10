"""Answers as models write them: what is around the JSON, and what is wrong in it."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from aura.datagen.records import PairDraft
from aura.datagen.service.prompt import AnswerPairs
from aura.datagen.service.reading import Unreadable, read_pairs

CUP = {"question": "What is here?", "answer": "A cup [SEG].", "objects": [1], "follows": None}
DOG = {"question": "And what barks?", "answer": "The dog [SEG].", "objects": [2], "follows": 0}
BOTH = json.dumps({"pairs": [CUP, DOG]})
DRAFTS = (
    PairDraft("What is here?", "A cup [SEG].", (1,)),
    PairDraft("And what barks?", "The dog [SEG].", (2,), 0),
)


def drafts(text: str) -> tuple[PairDraft, ...]:
    read = read_pairs(text)
    assert not any(pair.problems for pair in read)
    return tuple(pair.draft for pair in read)


def test_an_answer_after_the_schema_is_read_as_it_is():
    AnswerPairs.model_validate_json(BOTH)
    assert drafts(BOTH) == DRAFTS


@pytest.mark.parametrize(
    "text",
    [
        f"<think>The cup {{id 1}} is near: {json.dumps({'pairs': [CUP, DOG, CUP]})}</think>\n{BOTH}",
        f"The cup, I think, so:</think>\n\n{BOTH}",
        f"{BOTH}\n<think>Was that right?</think>",
        f"{BOTH}\n<think>Was that",
        f"◁think▷hm◁/think▷{BOTH}",
        f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{BOTH}",
        f"```json\n{BOTH}\n```",
        f"Here it is:\n\n```\n{BOTH}\n```\nGoodbye {{and}} [good] luck!",
        f'The form is {{"pairs": []}}. The answer is {BOTH}. It has [SEG] marks.',
        f"\ufeff{BOTH}",
        json.dumps([CUP, DOG], indent=2),
        json.dumps({"result": {"pairs": [CUP, DOG]}, "notes": []}),
        json.dumps([{"pairs": [CUP, DOG]}]),
        json.dumps({"conversations": [CUP, DOG]}),
        f"{json.dumps(CUP)}\n{json.dumps(DOG)}\n",
        BOTH.replace("}]}", "},],}").replace("[1]", "[1, ]"),
        BOTH.replace("here?", "here?\n").replace("\\n", "\n").replace("here?\n", "here?"),
        BOTH.replace("[1]", '["1"]').replace("[2]", '"2"'),
        BOTH.replace("[1]", "1").replace("[2]", "[2.0]").replace(": 0", ': "0"'),
        BOTH.replace("[1]", '[{"id": 1, "category": "cup"}]').replace("null", '"null"'),
        BOTH.replace(', "follows": null', ', "reason": "thirst"'),
        BOTH.replace('"question"', '"Question"'),
    ],
)
def test_what_is_unambiguous_is_read(text):
    assert drafts(text) == DRAFTS


def test_control_characters_within_a_text_are_taken():
    assert drafts(BOTH.replace("is here", "is\there"))[0].question == "What is\there?"


@pytest.mark.parametrize(
    ("bad", "draft", "said"),
    [
        ({"question": "q"}, PairDraft("q", "", ()), "answer: is missing"),
        ({**CUP, "answer": None}, PairDraft("What is here?", "", (1,)), "answer: is missing"),
        ({**CUP, "answer": 7}, PairDraft("What is here?", "", (1,)), "answer: is 7, not a text"),
        ({**CUP, "objects": ["cup", 1]}, DRAFTS[0], 'objects: is ["cup", 1], not a list of ids'),
        ({**CUP, "objects": [True, 1]}, DRAFTS[0], "objects: is"),
        ({**CUP, "objects": [1.5, 1]}, DRAFTS[0], "objects: is"),
        ({**CUP, "objects": [2**63, 1]}, DRAFTS[0], "objects: is"),
        ({**CUP, "follows": "the first"}, DRAFTS[0], "follows: is the first, not a position or null"),
        ("and so on", PairDraft("", "", ()), "and so on is no object"),
        (None, PairDraft("", "", ()), "null is no object"),
    ],
)
def test_a_bad_pair_keeps_its_place_and_says_what_is_wrong(bad, draft, said):
    read = read_pairs(json.dumps({"pairs": [CUP, bad, DOG]}))
    assert [pair.draft for pair in read] == [DRAFTS[0], draft, DRAFTS[1]]
    assert [bool(pair.problems) for pair in read] == [False, True, False]
    problem = read[1].problems[0]
    assert problem.code == "form" and said in problem.message and "pairs.1" in problem.message and problem.advice


def test_a_pair_that_is_no_json_leaves_those_around_it():
    broken = json.dumps({"pairs": [CUP, {**CUP, "answer": 'The "cup" [SEG].'}, DOG]}).replace('\\"', '"')
    read = read_pairs(broken)
    assert [pair.draft for pair in read] == [DRAFTS[0], PairDraft("", "", ()), DRAFTS[1]]
    assert "is no JSON" in read[1].problems[0].message
    cut = read_pairs(BOTH[:-12])
    assert cut[0].draft == DRAFTS[0] and cut[1].problems and len(cut) == 2


def test_halves_of_letters_are_replaced():
    read = read_pairs(json.dumps({"pairs": [{**CUP, "question": "Half a \ud83d letter?"}]}))
    assert read[0].draft.question == "Half a ? letter?"
    assert read_pairs(json.dumps({"pairs": [{**CUP, "question": "A whole \U0001f600?"}]}))[0].draft.question.endswith(
        "\U0001f600?"
    )


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("I see a cup and a dog.", "malformed", "no JSON"),
        ("<think>a cup, a dog, and", "malformed", "raise max_output_tokens"),
        ("{'pairs': [{'question': 'Q'}]}", "malformed", "no JSON"),
        ('{"pairs": []}', "empty", "no pairs"),
        ('{"pairs": [{"question": "Q"}, 3]}', "schema", "pairs.0.answer: is missing (3 in all)"),
        ('{"answers": "none"}', "schema", '"pairs"'),
        ("[1, 2, 3]", "malformed", "no JSON"),
        ("[" * 100_000, "malformed", "no JSON"),
        ('{"a":' * 50_000, "malformed", "no JSON"),
        ("<think>" * 20_000, "malformed", "no JSON"),
        ('{"question": ' * 30_000, "malformed", "no JSON"),
        ("{" + " " * 100_000, "malformed", "no JSON"),
        ('"' * 100_000, "malformed", "no JSON"),
    ],
)
def test_what_holds_no_pair_is_refused_soon(text, reason, said):
    begin = time.process_time()
    with pytest.raises(Unreadable) as caught:
        read_pairs(text)
    assert caught.value.reason == reason and said in str(caught.value) and len(str(caught.value)) < 400
    assert time.process_time() - begin < 20


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        (["visible"], ("visible",)),
        (["Amodal "], ("amodal",)),
        ("visible", ("visible",)),
        (["both"], ()),
        ("both", ()),
        (None, ()),
        ([], ()),
    ],
)
def test_the_mask_that_is_asked_for_is_read(said, asked):
    (draft,) = drafts(json.dumps({"pairs": [{**CUP, "asked": said}]}))
    assert draft == dataclasses.replace(DRAFTS[0], asked=asked)


@pytest.mark.parametrize("said", [["whole"], ["visible", "visible"], 3, {"1": "visible"}, [["visible"]], "seen"])
def test_a_mask_that_nobody_knows_is_a_problem_of_its_pair(said):
    first, second = read_pairs(json.dumps({"pairs": [{**CUP, "asked": said}, DOG]}))
    assert first.draft == DRAFTS[0] and second.draft == DRAFTS[1] and not second.problems
    assert [p.message.startswith("pairs.0.asked: 'asked'") for p in first.problems] == [True]
