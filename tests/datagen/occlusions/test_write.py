"""The data set of scenes: splits, files, and the same bytes each time."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.datagen.occlusions.stock import split_of
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.masks import decode_rle

MAIN = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "make_occlusions.py"))["main"]
H, W = 90, 120
NUM_PHOTOS = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Forty plain photographs, each with one or two whole squares and one square at the border."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, NUM_PHOTOS + 1):
        pixels = np.full((H, W, 3), rng.integers(60, 200, 3), np.uint8)
        for kind, (x, y, side) in enumerate(((8, 20, 50), (66, 10, 48), (100, 70, 20))[: int(rng.integers(2, 4))]):
            pixels[y : y + side, x : x + side] = rng.integers(0, 255, 3)
            outline = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": kind + 1, "segmentation": [outline]}
            )
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        images.append({"id": number, "file_name": f"{number:03d}.png", "height": H, "width": W, "license": 4})
    categories = [{"id": 1, "name": "book"}, {"id": 2, "name": "cup"}, {"id": 3, "name": "clock"}]
    document = {"images": images, "annotations": annotations, "categories": categories, "licenses": [{"id": 4}]}
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


def make(photos: Path, out: Path, *options: str) -> int:
    given = [f"--annotations={photos / 'instances.json'}", f"--images={photos}", f"--out={out}"]
    return int(MAIN([*given, "--num-images=24", "--num-val=4", "--num-test=6", "--val-share=0.2", *options]))


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made")
    assert make(photos, out, "--workers=1") == 0
    return out


def visible_names(folder: Path) -> set[str]:
    """Without the indices that reading a data set leaves beside it."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_splits_are_data_sets(made):
    for split, number in (("train", 24), ("val", 4), ("test", 6)):
        dataset = AmodalReasonSeg.load(made / f"{split}.json")
        assert len(dataset) == number and all(sample.image_path.is_file() for sample in dataset)
        assert all(sample.conversations for sample in dataset)
        assert dataset.document["licenses"] == [{"id": 4}]
    assert visible_names(made) == {
        "images",
        "train.json",
        "val.json",
        "test.json",
        "occlusions.json",
    }


def test_masks_are_those_of_the_pictures(made):
    hidden = 0
    for sample in AmodalReasonSeg.load(made / "train.json"):
        for obj in sample.objects:
            if obj.amodal is None:
                continue
            visible, amodal = decode_rle(obj.visible), decode_rle(obj.amodal)
            assert not (visible & ~amodal).any()
            assert obj.occlusion_rate == pytest.approx(1 - visible.sum() / amodal.sum())
            hidden += obj.occlusion_rate > 0
    assert hidden >= 24


def test_no_photograph_is_in_two_splits(made):
    used = {}
    for split in ("train", "val", "test"):
        records = json.loads((made / f"{split}.json").read_text())["images"]
        used[split] = {r["photograph"] for r in records} | {name for r in records for name in r["pasted_from"]}
        assert all(r["photograph"] not in r["pasted_from"] for r in records)
        assert all(split_of(int(name[:3]), (0.2, 0.1)) == split for name in used[split])
    assert not used["train"] & used["val"] and not used["train"] & used["test"] and not used["val"] & used["test"]


def test_the_same_arguments_give_the_same_bytes_with_any_number_of_processes(photos, made, tmp_path):
    assert make(photos, tmp_path / "again", "--workers=2") == 0
    assert digest(tmp_path / "again") == digest(made)
    assert make(photos, tmp_path / "other", "--workers=1", "--seed=1") == 0
    assert digest(tmp_path / "other") != digest(made)


def test_one_split_of_all_photographs(photos, tmp_path):
    assert make(photos, tmp_path, "--split=test", "--workers=1") == 0
    assert visible_names(tmp_path) == {"images", "test.json", "occlusions.json"}
    assert len(AmodalReasonSeg.load(tmp_path / "test.json")) == 24


def test_flaws_are_told_in_one_line(photos, tmp_path, capsys):
    document = json.loads((photos / "instances.json").read_text())
    broken = tmp_path / "instances.json"
    broken.write_text(json.dumps({**document, "annotations": []}))
    given = [f"--images={photos}", f"--out={tmp_path / 'out'}", "--num-images=2", "--split=train", "--workers=1"]
    assert MAIN([f"--annotations={broken}", *given]) == 2
    assert "whole objects to cut out" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    given[0] = f"--images={empty}"
    assert MAIN([f"--annotations={photos / 'instances.json'}", *given]) == 2
    assert "012.png does not exist" in capsys.readouterr().err
