"""What may be asked about an image."""

import dataclasses
import math

import numpy as np

from aura.datagen.facts.facts import facts_of
from aura.datagen.offline.ideas import follow_ups, ideas_of, spare_ideas
from aura.formats.sources import AnnotatedImage
from aura.masks import encode_rle
from aura.types import AmodalObject
from tests.datagen.offline.corpus import corpus


def test_nothing_is_claimed_about_how_much_of_an_unknown_shape_is_hidden():
    """Every second object loses its whole shape. It may hide others, which its visible mask shows, and no more."""
    claimed = {
        **dict.fromkeys(("blocked", "free", "use_degree", "hidden_by", "most_hidden_by"), ("focus",)),
        **dict.fromkeys(("then_hidden_by", "then_visible", "then_degree"), ("focus",)),
        **dict.fromkeys(("most_hidden", "least_hidden", "visible", "hidden", "mostly_hidden"), ("objects",)),
        **dict.fromkeys(("behind", "behind_thing", "then_behind", "then_most_hidden"), ("objects",)),
        "pair": ("focus", "others"),
    }
    found = dict.fromkeys((True, False), 0)
    for image, _ in corpus()[:120]:
        objects = [
            o if number % 2 else dataclasses.replace(o, amodal=None, occlusion_rate=None)
            for number, o in enumerate(image.objects)
        ]
        facts = facts_of(dataclasses.replace(image, objects=tuple(objects)))
        unknown = {index for index, rate in enumerate(facts.rates) if math.isnan(rate)}
        assert len(unknown) == sum(o.amodal is None for o in objects)
        ideas = [*ideas_of(facts), *spare_ideas(facts)]
        for idea in [*ideas, *(after for first in ideas for after in follow_ups(facts, first))]:
            about = {index for slot in claimed.get(idea.kind, ()) for index in idea.parts[slot]}
            assert not about & unknown, idea
            found[bool(about)] += 1
    assert found[False] > 1000 and found[True] > 100


def test_nothing_is_asked_whose_answer_a_crowd_would_belong_to():
    """Two persons and a crowd of them, a bench, and a dog: the dog and the bench can be asked for, nobody else."""
    image = plain_image("person", "person", "bench", "dog")
    names = ("person", "person", "bench", "dog")
    without = ideas_of(facts_of(image))
    facts = facts_of(image, {"person": "person"})
    ideas = [*ideas_of(facts), *spare_ideas(facts)]
    ideas += [after for first in ideas for after in follow_ups(facts, first)]
    asked = {(idea.kind, idea.words.get("phrase")) for idea in ideas}
    assert ("use", "sit on") in asked and ("ability", "can bark") in asked
    assert ("ability", "can breathe") in {(idea.kind, idea.words.get("phrase")) for idea in without}
    assert ("ability", "can breathe") not in asked and ("ability", "can speak") not in asked
    assert {names[i] for idea in ideas for i in idea.objects} == {"bench", "dog"}
    assert not {idea.kind for idea in ideas} & {"side", "size", "extreme", "everything", "visible", "hidden"}


def test_a_crowd_of_a_group_leaves_the_others_of_the_group_unasked():
    image = plain_image("car", "bus", "dog")
    assert {i.words["things"] for i in ideas_of(facts_of(image)) if i.kind == "group"} == {"vehicles", "animals"}
    crowded = facts_of(image, {"truck": "vehicle"})
    assert {i.words["things"] for i in ideas_of(crowded) if i.kind == "group"} == {"animals"}


def plain_image(*categories: str) -> AnnotatedImage:
    """Squares from left to right, none hidden; their ids are 1, 2, ..."""
    objects = []
    for number, category in enumerate(categories):
        mask = np.zeros((20, 200), bool)
        mask[4:14, 5 + 40 * number : 15 + 40 * number] = True
        objects.append(AmodalObject(number + 1, category, encode_rle(mask), encode_rle(mask), 0.0))
    return AnnotatedImage(1, "a.jpg", 20, 200, tuple(objects))
