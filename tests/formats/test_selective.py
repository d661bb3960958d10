"""Queries for one kind of mask, about COCOA-cls and D2SA as they are released, and what is wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aura.formats.questions import conversations_of
from aura.formats.reading import Flaws
from aura.formats.selective import SelectiveQueries
from aura.masks import encode_rle, rle_area
from tests.formats.asked import H, W, written

CUP, TABLE = np.zeros((2, H, W), bool)
CUP[2:12, 2:12], TABLE[4:14, 8:24] = True, True

QUERIES: list[dict[str, Any]] = [
    {"annotation_id": 2, "query": "Outline the part of the table that can be seen.", "mask": "modal"},
    {"annotation_id": 2, "image_id": 7, "query": "the whole table", "is_sentence": False, "mask": "amodal"},
    {"annotation_id": 1, "query": "Mark the cup.", "mask": "visible"},
]


def annotations(folder: Path, **image: Any) -> Path:
    """A cup in front of a table, and a picture that nobody asks about."""
    shared = {"image_id": 7, "iscrowd": 0}
    table = {"visible_mask": encode_rle(TABLE & ~CUP), "invisible_mask": encode_rle(TABLE & CUP)}
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "height": H, "width": W, **image} for number in (7, 8)],
        "categories": [{"id": 4, "name": "cup"}, {"id": 6, "name": "table"}],
        "annotations": [
            {"id": 1, "category_id": 4, "segmentation": encode_rle(CUP), "occlude_rate": 0.0, **shared},
            {"id": 2, "category_id": 6, "segmentation": encode_rle(TABLE), "occlude_rate": 0.2, **table, **shared},
        ],
    }
    return written(folder / "annotations.json", content)


def read(folder: Path, queries: Any, *, skip: bool = False) -> tuple[list[Any], list[str]]:
    flaws = Flaws(skip=skip)
    found = SelectiveQueries(annotations(folder), written(folder / "queries.json", queries), flaws=flaws)
    return list(found), flaws.told


def test_each_query_is_a_turn_that_means_one_mask_of_one_object(tmp_path):
    (asked,), told = read(tmp_path, QUERIES)
    assert told == [] and asked.image.image_id == 7
    table = next(o for o in asked.image.objects if o.id == 2)
    assert (rle_area(table.visible), rle_area(table.amodal)) == (160 - 32, 160)
    found = {t.question: t for t in (c.turns[0] for c in conversations_of(asked, purpose="evaluation", source="x"))}
    assert {question: (turn.answer, turn.objects, turn.asked) for question, turn in found.items()} == {
        "Mark the cup. Please output segmentation mask.": ("[SEG].", (1,), ("visible",)),
        "Outline the part of the table that can be seen. Please output segmentation mask.": (
            "[SEG].",
            (2,),
            ("visible",),
        ),
        "What is the whole table in this image? Please output segmentation mask.": ("[SEG].", (2,), ("amodal",)),
    }
    trained = [c.turns[0] for c in conversations_of(asked, purpose="training", source="x")]
    assert sorted(turn.asked for turn in trained) == [("amodal",), ("visible",), ("visible",)]
    assert all(turn.answer.count("[SEG]") == 1 for turn in trained)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"annotation_id": 9}, r"queries\.json: query 1: annotation 9 is not in .*annotations\.json"),
        ({"annotation_id": None}, "query 1: 'annotation_id' must be a whole number"),
        ({"image_id": 8}, "query 1: annotation 2 is of image 7, not 8"),
        ({"mask": "both"}, "query 1: 'mask' must be modal or amodal, got 'both'"),
        ({"mask": None}, "query 1: 'mask' must be a text"),
        ({"query": " "}, "query 1: 'query' must be a text"),
        ({"is_sentence": "perhaps"}, "query 1: 'is_sentence' must be true or false"),
    ],
)
def test_a_bad_query_stops_the_reading_or_costs_itself_alone(tmp_path, changed, message):
    queries = [QUERIES[0], QUERIES[1] | changed, QUERIES[2]]
    with pytest.raises(ValueError, match=message):
        read(tmp_path, queries)
    (asked,), (told,) = read(tmp_path, queries, skip=True)
    assert len(asked.questions) == 2 and "query 1: " in told


def test_wrong_files(tmp_path):
    for queries, message in (({"queries": []}, "expected a list of queries, got a dict"), ([7], "got a int")):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, queries)
    regions = {"images": [], "annotations": [{"id": 1, "image_id": 7, "regions": []}]}
    with pytest.raises(ValueError, match="COCOA's regions have no ids"):
        SelectiveQueries(written(tmp_path / "cocoa.json", regions), tmp_path / "queries.json")
