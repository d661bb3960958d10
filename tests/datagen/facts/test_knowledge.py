"""Purposes, groups and names of categories."""

import json

import pytest

from aura.datagen.facts.knowledge import GROUPS, PURPOSES, SUPERCATEGORIES, names_category, purposes_of
from aura.mini.pictures import DEFAULT_ASSETS, load_cutouts


def test_every_coco_category_has_a_purpose():
    coco = """
        person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
        parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
        handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
        surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
        broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
        laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
        scissors, teddy bear, hair drier, toothbrush
    """
    names = [" ".join(name.split()) for name in coco.split(",")]
    assert len(set(names)) == 80
    assert [name for name in names if not purposes_of(name)] == []
    assert set(SUPERCATEGORIES.values()) <= set(GROUPS)


def test_every_mini_category_has_a_purpose():
    categories = {cutout.category for cutout in load_cutouts()}
    assert len(categories) >= 40
    assert {c for c in categories if not purposes_of(c)} == set()


def test_groups_are_the_same_for_composed_scenes_and_for_files():
    stored = {c["name"]: c["supercategory"] for c in json.loads((DEFAULT_ASSETS / "categories.json").read_text())}
    grouped = {name: supercategory for name, supercategory in stored.items() if supercategory in GROUPS}
    assert grouped == {name: SUPERCATEGORIES[name] for name in stored if name in SUPERCATEGORIES}


def test_a_purpose_does_not_name_a_category_that_serves_it():
    for purpose in PURPOSES:
        for category in purpose.categories:
            for text in (purpose.phrase, *purpose.situations):
                assert not names_category(text, category), (text, category)


@pytest.mark.parametrize(
    ("text", "category", "expected"),
    [
        ("Where are the knives?", "knife", True),
        ("Which bus is it?", "bus", True),
        ("Which buses are here?", "bus", True),
        ("What is on my bike?", "bicycle", True),
        ("The catalogue is open", "cat", False),
        ("What comes by train", "car", False),
        ("What about the Teddy Bears?", "teddy bear", True),
    ],
)
def test_naming(text, category, expected):
    assert names_category(text, category) is expected
