"""What a run is refused for before its model is loaded."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from aura.config import Config, DataSettings, ModelSettings, SourceSettings, SplitSettings, TrainSettings, to_yaml
from aura.data.mixture import STRIDE
from aura.data.selection import records_digest
from aura.files import write_text
from aura.train import splits as splits_module
from aura.train.engine import Process
from aura.train.splits import kept_for_validation, load_split, open_splits
from aura.train.validation import check_metric
from aura.weights.text import load_text_side

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


@pytest.fixture
def config(tiny_llava_dir, tmp_path):
    """Three images, of which the second has two conversations."""
    images, conversations = [], []
    for number in (1, 2, 3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 4, "width": 4})
    for number, image in enumerate((1, 2, 2, 3)):
        turns = [{"question": "Why?", "answer": "So.", "objects": []}]
        conversations.append({"id": 10 + number, "image_id": image, "turns": turns})
    document = {"images": images, "annotations": [], "categories": [], "conversations": conversations}
    (tmp_path / "train.json").write_text(json.dumps(document))
    train = SplitSettings(str(tmp_path / "train.json"), str(tmp_path))
    return Config(
        ModelSettings(mllm=tiny_llava_dir),
        DataSettings(train=train),
        train=TrainSettings(output_dir=str(tmp_path / "run"), precision="fp32"),
    )


PROCESS = Process(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


def opened(config, **data):
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
    return open_splits(config, load_text_side(config.model, config.data), PROCESS)


def spoil(folder):
    document = json.loads((folder / "train.json").read_text())
    document["conversations"][2]["turns"][0]["question"] = "<image> Why?"
    (folder / "train.json").write_text(json.dumps(document))
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:50])


def test_bad_records_stop_a_run_before_its_weights_are_read(config, tmp_path, capsys):
    assert len(opened(config).train) == 3
    spoil(tmp_path)
    with pytest.raises(
        ValueError, match=r"\(data\.train\): 2 bad records, .*conversation 12.*on_bad_record skip"
    ) as told:
        opened(config)
    assert "\n" not in str(told.value)
    shown = capsys.readouterr().out
    assert "image 2, conversation 12, turn 0: the question contains" in shown and "image 3: " in shown


def test_bad_records_are_left_out_and_listed(config, tmp_path):
    whole = records_digest(opened(config).train)
    spoil(tmp_path)
    splits = opened(config, on_bad_record="skip")
    assert [[c.id for c in sample.conversations] for sample in splits.train] == [[10], [11]]
    told, _ = splits.told
    assert told.startswith("left out 2 bad records of data.train") and "left_out.json" in told
    listed = json.loads((tmp_path / "run" / "left_out.json").read_text())["data.train"]
    assert [(record["image_id"], record["conversation_id"]) for record in listed] == [(2, 12), (3, None)]
    again = opened(config, on_bad_record="skip")
    assert records_digest(again.train) == records_digest(splits.train) != whole
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="nothing is left"):
        opened(config, on_bad_record="skip")


def test_a_picture_in_both_splits_is_refused_whatever_it_is_called(config, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "7.png").write_bytes((tmp_path / "2.png").read_bytes())
    document = {**DOCUMENT, "images": [{"id": 7, "file_name": "7.png", "height": 4, "width": 4}]}
    (tmp_path / "val.json").write_text(json.dumps(document))
    val = SplitSettings(str(tmp_path / "val.json"), str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"1 images are in data\.train and in data\.val, .*7\.png"):
        opened(config, val=val)
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "other" / "7.png")
    assert len(opened(config, val=val).val) == 1


def many(folder, config, **train):
    """The same with 30 images."""
    images = [{"id": n, "file_name": f"{n}.png", "height": 4, "width": 4} for n in range(30)]
    for n in range(30):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(folder / f"{n}.png")
    turns = [{"question": "Why?", "answer": "So.", "objects": []}]
    conversations = [{"id": n, "image_id": n, "turns": turns} for n in range(30)]
    document = {**DOCUMENT, "images": images, "conversations": conversations}
    (folder / "train.json").write_text(json.dumps(document))
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


def test_a_run_validates_on_images_that_it_holds_out(config, tmp_path):
    config = many(tmp_path, config)
    splits = opened(config)
    trained, held = ({s.image_id for s in samples} for samples in (splits.train, splits.val))
    assert len(held) == 3 and trained | held == set(range(30)) and not trained & held
    assert splits.told == [
        f"validates every 500 steps on 3 images held out of data.train, never trained on: {tmp_path}/run/held_out.json"
    ]
    write_text(tmp_path / "run" / "config.yaml", to_yaml(config))
    kept, name = kept_for_validation(tmp_path / "run")
    assert {s.image_id for s in kept} == held and name == config.data.train.annotations
    bad = min(held)
    (tmp_path / f"{bad}.png").write_bytes(b"")
    again = opened(config, on_bad_record="skip")
    assert {s.image_id for s in again.val} == held - {bad} and {s.image_id for s in again.train} == trained
    assert {s.image_id for s in kept_for_validation(tmp_path / "run")[0]} == held - {bad}


@pytest.mark.parametrize(
    ("data", "train", "told"),
    [
        ({"held_out": 0}, {}, "does not validate: data.val names no file and data.held_out is 0"),
        ({}, {"validate_every": 0}, "does not validate (train.validate_every is 0)"),
    ],
)
def test_a_run_that_does_not_validate_says_so(config, tmp_path, data, train, told):
    whole = opened(many(tmp_path, config, **train), **data)
    assert whole.told[0].startswith(told) and len(whole.train) == 30 and whole.val is None
    assert not (tmp_path / "run" / "held_out.json").exists()


def test_a_few_images_are_all_trained_on(config):
    splits = opened(config)
    assert len(splits.train) == 3 and splits.val is None and "too few images" in splits.told[0]


@pytest.fixture
def two(config, tmp_path):
    """Two sources of 30 images each, with the same ids; the pictures of images 5 and 105 are the same."""
    sources = []
    for number, name in enumerate(("photos", "scenes")):
        (tmp_path / name).mkdir()
        many(tmp_path / name, config)
        for image in range(30):
            Image.new("RGB", (4, 4), (image, number * (image != 5), 9)).save(tmp_path / name / f"{image}.png")
        sources.append(SourceSettings(str(tmp_path / name / "train.json"), str(tmp_path / name), 1.0 + number))
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, train=SplitSettings(sources=tuple(sources)))
    )


def test_several_sources_hold_images_out_and_name_the_source_of_a_mistake(two, tmp_path, capsys):
    splits = opened(two)
    trained, held = ({s.image_id for s in samples} for samples in (splits.train, splits.val))
    assert (
        len(held) == 6
        and len(trained) == 54
        and not trained & held
        and splits.val.names == ("photos/train", "scenes/train")
    )
    assert all(any(image // STRIDE == source for image in held) for source in (0, 1))
    assert "source 1, scenes/train: 27 images, 66.7% of the visits" in splits.told
    write_text(tmp_path / "run" / "config.yaml", to_yaml(two))
    kept, name = kept_for_validation(tmp_path / "run")
    assert {s.image_id for s in kept} == held and kept.names == splits.val.names and name.count("train.json") == 2
    bad = next(image for image in held if image >= STRIDE)
    (tmp_path / "scenes" / f"{bad - STRIDE}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"scenes/train\.json \(data\.train\[1\]\): 1 bad record"):
        opened(two)
    again = opened(two, on_bad_record="skip")
    assert {s.image_id for s in again.val} == held - {bad} and {s.image_id for s in again.train} == trained
    assert {s.image_id for s in kept_for_validation(tmp_path / "run")[0]} == held - {bad}
    listed = json.loads((tmp_path / "run" / "left_out.json").read_text())
    assert [record["image_id"] for record in listed["data.train[1]"]] == [bad - STRIDE]
    missing = SplitSettings(sources=(two.data.train.sources[0], SourceSettings(str(tmp_path / "none.json"))))
    with pytest.raises(ValueError, match=r"none\.json"):
        opened(two, train=missing)


def test_a_picture_that_is_held_out_of_one_source_is_not_trained_on_in_another(two, monkeypatch):
    def fifth(samples, number):
        places = np.arange(len(samples))
        return samples.select(places[places != 5]), samples.select(places[places == 5])

    monkeypatch.setattr(splits_module, "hold_out_of", fifth)
    splits = opened(two)
    assert [s.image_id for s in splits.val] == [5]
    assert {s.image_id for s in splits.train} == {n for n in range(30) if n != 5} | {
        STRIDE + n for n in range(30) if n != 5
    }
    assert "left out 1 images of data.train whose pictures are held out of another source" in splits.told


def test_several_files_to_validate_on(two, config, tmp_path):
    """Each keeps its name and its own ids; the checks and ``eval.py`` without ``--data`` know all of them."""
    train, scenes = two.data.train.sources[0], two.data.train.sources[1]
    for image in (5, 7):  # 5 is also in the training split
        Image.new("RGB", (4, 4), (image, image != 5, 11)).save(tmp_path / "scenes" / f"{image}.png")
    split = SplitSettings(train.annotations, train.images)
    (tmp_path / "more").mkdir()
    many(tmp_path / "more", config)
    for image in range(30):
        Image.new("RGB", (4, 4), (image, 200, 200)).save(tmp_path / "more" / f"{image}.png")
    more = SourceSettings(str(tmp_path / "more" / "train.json"), str(tmp_path / "more"), 5.0)
    val = SplitSettings(sources=(scenes, more))
    splits = opened(two, train=split, val=val)
    assert splits.val.names == ("scenes/train", "more/train") and len(splits.val) == 60 and len(splits.train) == 30
    assert [s.image_id for s in splits.val][29:31] == [29, STRIDE]
    assert f"on data.val, {scenes.annotations} + {more.annotations}" in splits.told[-1]
    run_config = dataclasses.replace(two, data=dataclasses.replace(two.data, train=split, val=val))
    write_text(tmp_path / "run" / "config.yaml", to_yaml(run_config))
    kept, name = kept_for_validation(tmp_path / "run")
    assert kept.names == splits.val.names and name == f"{scenes.annotations} + {more.annotations}"
    with pytest.raises(ValueError, match="validated on 2 files"):
        kept_for_validation(tmp_path / "run", "photos")
    (tmp_path / "more" / "3.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"more/train\.json \(data\.val\[1\]\): 1 bad record"):
        opened(two, train=split, val=val)
    again = opened(two, train=split, val=val, on_bad_record="skip")
    assert len(again.val) == 59 and STRIDE + 3 not in {s.image_id for s in again.val}
    (tmp_path / "scenes" / "9.png").write_bytes((tmp_path / "photos" / "9.png").read_bytes())
    with pytest.raises(ValueError, match=r"1 images are in data\.train and in data\.val"):
        opened(two, train=split, val=val, on_bad_record="skip")
