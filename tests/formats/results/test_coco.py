"""COCO results: what is read, and every way in which a file is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aura.formats.results.coco import read_coco_results
from aura.masks import encode_rle

MASK = encode_rle(np.eye(4, 5, dtype=bool))


def result(**changes) -> dict:
    return {"image_id": 3, "category_id": 6, "segmentation": MASK, "score": 0.5, **changes}


@pytest.fixture
def read(tmp_path):
    def of(value):
        path = tmp_path / "results.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return read_coco_results(path)

    return of


def test_results_with_scores_as_detectron2_writes_them(read):
    plain = {"size": [4, 5], "counts": [0, 1, 4, 1, 4, 1, 4, 1, 4]}
    found = read([result(bbox=[0, 0, 4, 4]), result(image_id="COCO_val_7.jpg", segmentation=plain, score=0.25)])
    assert [(m.image, m.category, m.score, m.known_by) for m in found] == [
        (3, 6, 0.5, "image"),
        ("COCO_val_7.jpg", 6, 0.25, "image"),
    ]
    assert found[0].mask == found[1].mask == MASK and found[1].where.endswith("results.json: result 1")


def test_results_of_annotations_need_no_score(read):
    (found,) = read([{"annotation_id": 12, "segmentation": MASK}])
    assert (found.annotation, found.known_by) == (12, "annotation id")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"annotations": []}, "expected a JSON list of records, got a object; COCO results are a list"),
        ("[{", "is not JSON"),
        ([], "holds no mask; is it the right file"),
        ([7], "result 0: expected an object, got a int"),
        ([result(), {"image_id": 3}], "result 1: category_id, segmentation, score missing"),
        ([{"annotation_id": 3}], "result 0: segmentation missing"),
        ([{"annotation_id": "x", "segmentation": MASK}], "result 0: 'annotation_id' must be a whole number"),
        ([result(image_id=None)], "result 0: 'image_id' must be a whole number or a file's name, got None"),
        ([result(category_id="bus")], "result 0: 'category_id' must be a whole number"),
        ([result(score="high")], "result 0: 'score' must be a number"),
        ([result(segmentation=[[1, 1, 2, 1, 2, 2]])], "result 0: 'segmentation' must be an RLE with .*, not polygons"),
        ([result(segmentation={"counts": "S1"})], r"result 0: the RLE's 'size' must be \[height, width\], got None"),
        ([result(segmentation={"size": [4, 5], "counts": "S1"})], "result 0: 'segmentation': .* add up to"),
        ([result(), result()], "result 1: it repeats result 0"),
        ([{"annotation_id": 3, "segmentation": MASK}] * 2, "result 1: the same annotation is given by .*result 0"),
    ],
)
def test_what_is_wrong_is_named(read, value, message):
    with pytest.raises(ValueError, match=message) as error:
        read(value)
    assert "results.json" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no\.json: cannot be read"):
        read_coco_results(tmp_path / "no.json")
