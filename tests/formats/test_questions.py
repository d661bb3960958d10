"""Phrases as conversations, for training and as LISA evaluates, and the split they are written to."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.checks import problems
from aura.formats.questions import UNIONS, UNNAMED, AskedImage, Question, conversations_of, joined, visible_object
from aura.formats.sources import AnnotatedImage
from aura.formats.split_writer import SplitWriter
from aura.masks import decode_rle, encode_rle
from aura.types import Turn

H, W = 10, 20


def mask(left: int, right: int) -> dict:
    area = np.zeros((H, W), bool)
    area[:, left:right] = True
    return encode_rle(area)


def asked(*questions: Question, number: int = 7) -> AskedImage:
    objects = (
        visible_object(1, "cup", mask(0, 4)),
        visible_object(2, "cup", mask(2, 8)),
        visible_object(3, UNNAMED, mask(9, 12)),
    )
    ids = {"cup": 47, UNNAMED: 1}
    return AskedImage(AnnotatedImage(number, f"{number}.jpg", H, W, objects, category_ids=ids), questions)


def turns(found: AskedImage, purpose: str = "training", **options) -> list[Turn]:
    talks = conversations_of(found, purpose=purpose, source="test", **options)
    assert all(len(talk.turns) == 1 for talk in talks)
    return [talk.turns[0] for talk in talks]


def test_the_words_of_an_evaluation_are_lisas():
    found = turns(asked(Question(" the left cup ", (1,)), Question("Where do I drink?", (3,), True)), "evaluation")
    assert [(t.question, t.answer, t.objects) for t in found] == [
        ("What is the left cup in this image? Please output segmentation mask.", "[SEG].", (1,)),
        ("Where do I drink? Please output segmentation mask.", "[SEG].", (3,)),
    ]


def test_an_answer_names_each_object_right_before_its_mark():
    for seed in range(20):
        one, some, unnamed, none = turns(
            asked(
                Question("the cup", (1,)),
                Question("every cup", (1, 2, 1)),
                Question("Which helps?", (3,), True),
                Question("a cat", ()),
            ),
            seed=seed,
        )
        assert "the cup" in one.question and one.answer.lower().endswith("the cup [seg].")
        assert some.answer.endswith("the cup [SEG], the cup [SEG] and the cup [SEG].") and some.objects == (1, 2, 1)
        assert unnamed.question.startswith("Which helps?") and UNNAMED not in unnamed.answer
        assert unnamed.answer.count("[SEG]") == 1 and "the [SEG]" not in unnamed.answer.lower()
        assert none.objects == () and "[SEG]" not in none.answer


def test_words_vary_and_depend_on_the_seed_and_the_image_alone():
    question = Question("the cup", (1,))
    found = {turns(asked(question, number=n))[0].question for n in range(30)}
    assert len(found) == 4
    assert turns(asked(question), seed=5) == turns(asked(question), seed=5)


def test_an_explanation_is_told_with_the_mask_and_without():
    plain, explained, told = turns(asked(Question("Which helps?", (3,), True, "It keeps the rain off.")))
    assert "[SEG]" in plain.answer and plain.objects == explained.objects == (3,)
    assert explained.answer == f"{plain.answer} It keeps the rain off."
    assert told == Turn("Which helps?", "It keeps the rain off.")


def test_several_objects_of_a_question_can_be_joined():
    found = joined(
        asked(Question("every cup", (2, 1)), Question("one", (3,)), Question("both", (1, 2)), Question("no", ()))
    )
    first, one, both, none = found.questions
    assert first.objects == both.objects and first.objects[0] >= UNIONS
    assert (one.objects, none.objects) == ((3,), ())
    assert [o.id for o in found.image.objects] == [3, *first.objects]
    union = found.image.objects[1]
    assert union.category == "cup" and (decode_rle(union.visible) == (decode_rle(mask(0, 8)))).all()


def split(path, *images: AskedImage) -> AmodalReasonSeg:
    with SplitWriter(path, info={"source": "test"}) as writer:
        following = 1
        for image in images:
            talks = conversations_of(image, purpose="training", source="test", first_id=following)
            following += len(talks)
            writer.add(image.image, talks)
    return AmodalReasonSeg.load(path)


def numbered(image: AskedImage, by: int) -> AskedImage:
    objects = tuple(dataclasses.replace(o, id=o.id + by) for o in image.image.objects)
    questions = tuple(dataclasses.replace(q, objects=tuple(i + by for i in q.objects)) for q in image.questions)
    return AskedImage(dataclasses.replace(image.image, objects=objects), questions)


def test_a_split_is_the_data_sets_file(tmp_path):
    path = tmp_path / "new" / "split.json"
    first = asked(Question("the cup", (1,)))
    second = numbered(asked(Question("a cat", ()), number=8), 10)
    second = AskedImage(dataclasses.replace(second.image, ignore=mask(15, 20)), second.questions)
    empty = AskedImage(AnnotatedImage(9, "9.jpg", H, W, ()), (), ((Turn("Hello?", "Hello."), Turn("So?", "So.")),))
    dataset = split(path, first, second, AskedImage(empty.image, (), empty.dialogues))
    document = json.loads(path.read_text())
    assert problems(document) == []
    assert [c["name"] for c in document["categories"]] == [UNNAMED, "cup"]
    assert [len(s.objects) for s in dataset] == [3, 3, 0] and [len(s.conversations) for s in dataset] == [1, 1, 1]
    assert decode_rle(dataset[1].ignore).sum() == 5 * H and dataset[0].ignore is None
    assert [len(c.turns) for c in dataset[2].conversations] == [2]
    assert sorted(p.name for p in path.parent.iterdir()) == [".split.json.rows.sqlite", "split.json"]


def test_nothing_appears_after_an_error(tmp_path):
    path = tmp_path / "split.json"
    with pytest.raises(KeyError), SplitWriter(path, info={}) as writer:
        writer.add(asked().image, ())
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_categories_of_one_number_are_refused(tmp_path):
    image = dataclasses.replace(asked().image, category_ids={"cup": 1, UNNAMED: 1})
    told = "image 7: the categories 'cup' and 'target' have the same number 1"
    with pytest.raises(ValueError, match=told), SplitWriter(tmp_path / "split.json", info={}) as writer:
        writer.add(image, ())
