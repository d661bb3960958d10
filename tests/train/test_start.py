"""What a run is refused for before its model is loaded."""

from __future__ import annotations

import json

import pytest

from aura.config import SplitSettings
from aura.train.start import load_split
from aura.train.validation import check_metric

DOCUMENT = {
    "images": [{"id": 7, "file_name": "7.png", "height": 2, "width": 2}],
    "annotations": [],
    "categories": [],
    "conversations": [{"id": 1, "image_id": 7, "turns": [{"question": "Why?", "answer": "So.", "objects": []}]}],
}


def test_pictures_that_are_not_there_and_data_without_questions(tmp_path):
    path = tmp_path / "train.json"
    split = SplitSettings(str(path), str(tmp_path))
    path.write_text(json.dumps({**DOCUMENT, "conversations": []}))
    with pytest.raises(ValueError, match=r"train\.json \(data\.train\) has no conversation"):
        load_split(split, "train")
    path.write_text(json.dumps(DOCUMENT))
    with pytest.raises(ValueError, match=r"1 of 1 pictures .*7\.png of image 7; .*data\.train\.images"):
        load_split(split, "train")
    (tmp_path / "7.png").touch()
    assert len(load_split(split, "train")) == 1


@pytest.mark.parametrize("key", ["amodal.giou_object", "invisible.ciou", "seg_count_accuracy"])
def test_figures_that_can_choose_the_best_checkpoint(key):
    check_metric(key)


@pytest.mark.parametrize("key", ["amodal.giou", "amodal", "num_images", "occlusion_rate_mae", "invisible.num_objects"])
def test_figures_that_cannot(key):
    with pytest.raises(ValueError, match=r"best_metric.*visible\.giou_object"):
        check_metric(key)
