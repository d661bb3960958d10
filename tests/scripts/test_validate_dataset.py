"""From a COCOA-cls file to a data set to a clean bill of health, by the scripts."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.masks import encode_rle

SCRIPTS = Path(__file__).parents[2] / "scripts"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "cocoa_cls_sample"
SIZE = (24, 32)


@pytest.fixture(scope="module")
def generate():
    return runpy.run_path(str(SCRIPTS / "generate_questions.py"))["main"]


@pytest.fixture(scope="module")
def validate():
    return runpy.run_path(str(SCRIPTS / "validate_dataset.py"))["main"]


def write_source(folder: Path, number: int) -> list[str]:
    """A picture and a COCOA-cls file about it; returns the arguments that turn it into a data set."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    picture = Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8))
    picture.save(folder / "pictures" / f"{number}.png")
    cup, table = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    cup[4:14, 2:12], table[8:22, 6:30] = True, True
    names = ("cup", "dining table")
    content = {
        "info": {"description": "two things"},
        "licenses": [{"id": 1, "name": "free"}],
        "categories": [{"id": i + 1, "name": name, "supercategory": ""} for i, name in enumerate(names)],
        "images": [{"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [
            {"id": 10 * number, "image_id": number, "category_id": 1, "segmentation": encode_rle(cup)},
            {
                "id": 10 * number + 1,
                "image_id": number,
                "category_id": 2,
                "segmentation": encode_rle(table),
                "visible_mask": encode_rle(table & ~cup),
            },
        ],
    }
    (folder / f"source{number}.json").write_text(json.dumps(content))
    return [
        f"--annotations={folder / f'source{number}.json'}",
        f"--images={folder / 'pictures'}",
        f"--out={folder / f'split{number}.json'}",
    ]


def test_generated_data_sets_pass_the_check(generate, validate, tmp_path, capsys):
    for number in (1, 2):
        assert generate([*write_source(tmp_path, number), "--pairs-per-image=6"]) == 0
    files = [str(tmp_path / f"split{number}.json") for number in (1, 2)]
    dataset = AmodalReasonSeg.load(files[0])
    assert sum(len(c.turns) for c in dataset[0].conversations) == 6
    assert dataset[0].image_path.is_file()
    assert dataset.document["licenses"] == [{"id": 1, "name": "free"}]
    assert dataset.document["info"]["source"] == {"description": "two things"}
    assert validate(files) == 0
    shown = capsys.readouterr().out
    assert "no problems" in shown and "pairs per image" in shown and "6.000" in shown


def test_the_same_arguments_give_the_same_bytes_and_work_once(generate, tmp_path, capsys):
    arguments = write_source(tmp_path, 1)
    out = tmp_path / "split1.json"
    assert generate(arguments) == 0
    first, time = out.read_bytes(), out.stat().st_mtime_ns
    assert generate(arguments) == 0
    assert out.stat().st_mtime_ns == time and "up to date" in capsys.readouterr().out
    assert generate([*arguments, "--force"]) == 0
    assert out.read_bytes() == first and out.stat().st_mtime_ns != time
    assert generate([*arguments, "--seed=3"]) == 0
    assert out.read_bytes() != first


def test_an_edited_file_is_not_overwritten(generate, tmp_path, capsys):
    arguments = write_source(tmp_path, 1)
    assert generate(arguments) == 0
    out = tmp_path / "split1.json"
    edited = json.loads(out.read_text())
    edited["conversations"][0]["turns"][0]["question"] = "What did a person write here?"
    out.write_text(json.dumps(edited))
    assert generate([*arguments, "--seed=3"]) == 2
    assert "was edited since; --force overwrites it" in capsys.readouterr().err
    assert json.loads(out.read_text()) == edited
    assert generate([*arguments, "--force"]) == 0


def test_wrong_paths_are_one_line_and_exit_2(generate, validate, tmp_path, capsys):
    annotations, images, out = write_source(tmp_path, 1)
    assert generate([annotations, f"--images={tmp_path / 'none'}", out]) == 2
    assert "none: no such folder" in capsys.readouterr().err
    assert generate([f"--annotations={tmp_path / 'none.json'}", images, out]) == 2
    assert "none.json: no such file" in capsys.readouterr().err
    (tmp_path / "pictures" / "1.png").unlink()
    assert generate([annotations, images, out]) == 2
    assert "1 of 1 pictures are not there, such as 1.png" in capsys.readouterr().err
    assert validate([str(tmp_path / "none.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_every_problem_is_listed_with_exit_1(generate, validate, tmp_path, capsys):
    assert generate(write_source(tmp_path, 1)) == 0
    path = tmp_path / "split1.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["area"] = 1
    content["conversations"][0]["turns"][0]["objects"] = []
    path.write_text(json.dumps(content))
    Image.new("RGB", (5, 5)).save(tmp_path / "pictures" / "1.png")
    assert validate([str(path)]) == 1
    shown = capsys.readouterr().out
    number = content["conversations"][0]["id"]
    assert "annotation 10: 'area' is 1" in shown
    assert f"conversation {number}, turn 0: the answer has" in shown
    assert "image 1: " in shown and "is 5 x 5 (height x width), the record says 24 x 32" in shown
    assert "3 problems" in shown


def test_pictures_that_are_missing_or_damaged(generate, validate, tmp_path, capsys):
    assert generate(write_source(tmp_path, 1)) == 0
    path = str(tmp_path / "split1.json")
    (tmp_path / "pictures" / "1.png").write_bytes(b"no picture")
    assert validate([path]) == 1
    assert "cannot be decoded" in capsys.readouterr().out
    assert validate([path, "--images", str(tmp_path)]) == 1
    assert "does not exist; give the right folder with --images" in capsys.readouterr().out
    assert validate([path, "--no-images"]) == 0


def test_texts_are_checked_without_a_tokenizer_and_with_one(generate, validate, tiny_llava_dir, tmp_path, capsys):
    assert generate(write_source(tmp_path, 1)) == 0
    path = tmp_path / "split1.json"
    content = json.loads(path.read_text())
    first, second, *_ = content["conversations"]
    first["turns"][0]["question"] = "<image> What could I drink from?"
    path.write_text(json.dumps(content))
    told = f"conversation {first['id']}, turn 0: the question contains the reserved token '<image>'"
    assert validate([str(path)]) == 1
    shown = capsys.readouterr().out
    assert told in shown and "1 problems" in shown
    second["turns"][0]["question"] += " Tell me." * 400
    path.write_text(json.dumps(content))
    layer = tmp_path / "layer.yaml"
    layer.write_text(f"model: {{mllm: {tiny_llava_dir}}}\ndata: {{max_length: 600}}\n")
    assert validate([str(path), "--config", str(layer)]) == 1
    shown = capsys.readouterr().out
    assert shown.count(told) == 1 and "2 problems" in shown
    assert f"conversation {second['id']}: " in shown and "exceed the limit of 600" in shown


def test_splits_with_a_common_picture(generate, validate, tmp_path, capsys):
    for number in (1, 2):
        assert generate(write_source(tmp_path, number)) == 0
    files = [str(tmp_path / f"split{number}.json") for number in (1, 2)]
    (tmp_path / "pictures" / "2.png").write_bytes((tmp_path / "pictures" / "1.png").read_bytes())
    assert validate(files) == 1
    assert "image 2: the picture equals image 1 of the other split" in capsys.readouterr().out


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real sample is not here")
def test_a_real_cocoa_cls_picture(generate, validate, tmp_path, capsys):
    out = tmp_path / "deep" / "real.json"
    annotations = SHARED / "COCO_amodal_val2014_with_classes.json"
    assert generate([f"--annotations={annotations}", f"--images={SHARED / 'val2014'}", f"--out={out}"]) == 0
    assert validate([str(out)]) == 0
    assert "4 objects, 10 pairs" in capsys.readouterr().out
