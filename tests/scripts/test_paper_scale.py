"""docs/paper_scale.md at toy size: COCO's folders, COCOA-cls, a release, a training, its table, by shipped paths."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from aura.config import load_config
from aura.datagen.settings import settings_from, settings_parser
from aura.masks import encode_rle

ROOT = Path(__file__).parents[2]
SIZE = (24, 32)


def program(name: str):
    spec = importlib.util.spec_from_file_location(f"aura_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_coco(split: str, first: int, number: int) -> None:
    """COCO's pictures of a year's split, and COCOA-cls about them: a cup before a table."""
    folder = Path("data/coco") / f"{split}2014"
    folder.mkdir(parents=True)
    cup, table = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    cup[4:14, 2:12], table[8:22, 6:30] = True, True
    names = [(47, "cup"), (67, "dining table")]
    content = {
        "info": {"description": "COCOA-cls"},
        "licenses": [{"id": 1, "name": "free"}],
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in names],
        "images": [],
        "annotations": [],
    }
    for image in range(first, first + number):
        name = f"COCO_{split}2014_{image:012d}.jpg"
        pixels = np.random.default_rng(image).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        content["images"].append({"id": image, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for n, (amodal, seen) in enumerate(((cup, cup), (table, table & ~cup))):
            record = {"id": 10 * image + n, "image_id": image, "category_id": names[n][0], "iscrowd": 0}
            masks = {"segmentation": encode_rle(amodal), "visible_mask": encode_rle(seen)}
            rate = {"area": int(amodal.sum()), "occlude_rate": 1 - float(seen.sum() / amodal.sum())}
            content["annotations"].append({**record, **masks, **rate})
    annotations = Path("data/coco/annotations")
    annotations.mkdir(exist_ok=True)
    (annotations / f"COCO_amodal_{split}2014_with_classes.json").write_text(json.dumps(content))


def test_the_shipped_paths_are_one_chain():
    parser = settings_parser("test", "")
    options = parser.parse_args([f"--config={ROOT / 'configs/datagen/amodal_reason_seg.yaml'}"])
    release = settings_from(parser, options)
    folder = Path(release.export.out) / release.export.version
    config = load_config(ROOT / "configs/aura_7b.yaml")
    assert config.data.train.annotations == str(folder / "train.json") and config.data.train.images is None
    assert [source.images for source in release.sources] == ["data/coco/train2014", "data/coco/val2014"]
    assert f'"{folder}/test.json"' in (ROOT / "scripts/reproduce_table.py").read_text()
    page = (ROOT / "docs/paper_scale.md").read_text()
    for path in (folder / "train.json", folder / "test.json", *(source.annotations for source in release.sources)):
        assert str(path) in page


@pytest.mark.parametrize("pictures", ["copy", "reference"])
def test_from_coco_to_a_table(pictures, tiny_llava_dir, tiny_sam_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_coco("train", 1, 12)
    write_coco("val", 101, 2)
    prepare = runpy.run_path(str(ROOT / "scripts/prepare_cocoa.py"))["main"]
    assert prepare(["--annotations=data/coco/annotations", "--images=data/coco", "--out=data/cocoa_cls"]) == 0
    build = runpy.run_path(str(ROOT / "scripts/build_dataset.py"))["main"]
    options = [f"--config={ROOT / 'configs/datagen/amodal_reason_seg.yaml'}", "--generator.kind=offline"]
    for step in ("init", "generate"):
        assert build([step, *options]) == 0
    assert build(["export", *options, "--export.include=all", f"--export.pictures={pictures}"]) == 0
    release = Path("data/amodal_reason_seg/0.1")
    assert (release / "images/train").is_dir() == (pictures == "copy")
    validate = runpy.run_path(str(ROOT / "scripts/validate_dataset.py"))["main"]
    assert validate([str(release / "train.json"), str(release / "test.json")]) == 0
    if pictures == "reference":
        return  # one training is enough

    tiny = {
        "model": {"mllm": tiny_llava_dir, "vision_tower": None, "sam": tiny_sam_dir},
        "data": {"num_workers": 0},
        "train": {
            **{"steps": 2, "warmup_steps": 1, "accumulation": 1, "precision": "fp32", "zero_stage": 0},
            **{"gradient_checkpointing": False, "tensorboard": False, "validate_every": 1},
        },
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    config = f"--config={ROOT / 'configs/aura_7b.yaml'}"
    assert program("train_ds").main([config, "--config=tiny.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "validates every 1 steps on 1 images held out of data.train" in shown
    evaluate = program("eval").main
    table = Path("runs/aura_7b/eval")
    assert evaluate(["--checkpoint=runs/aura_7b", f"--data={release}/test.json", f"--out={table}"]) == 0
    assert "gIoU" in (table / "report.md").read_text()
    assert evaluate(["--checkpoint=runs/aura_7b", "--out=held_out"]) == 0
    assert json.loads(Path("held_out/report.json").read_text())["num_images"] == 1
