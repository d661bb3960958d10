"""Questions about photographs of which the visible masks alone are known."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

from aura.formats.amodal_reason_seg import AmodalReasonSeg

MAIN = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "generate_questions.py"))["main"]


@pytest.fixture
def instances(tmp_path) -> Path:
    """One photograph with a bench, a dog and a crowd of persons; one with nothing on it."""
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (100, 60)).save(tmp_path / "photos" / name)

    def record(number: int, category: int, x: int, crowd: int = 0) -> dict:
        outline = [[x, 10, x + 20, 10, x + 20, 40, x, 40]]
        return {"id": number, "image_id": 1, "category_id": category, "segmentation": outline, "iscrowd": crowd}

    document = {
        "info": {"description": "two photographs"},
        "licenses": [{"id": 4, "name": "CC BY 2.0"}],
        "images": [{"id": n, "file_name": f, "height": 60, "width": 100} for n, f in ((1, "a.jpg"), (2, "b.jpg"))],
        "categories": [{"id": 1, "name": "person"}, {"id": 15, "name": "bench"}, {"id": 18, "name": "dog"}],
        "annotations": [record(5, 15, 4), record(6, 18, 40), record(7, 1, 70, crowd=1)],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    return path


def test_visible_masks_alone_make_a_data_set_of_unknown_shapes(instances, tmp_path, capsys):
    out = tmp_path / "out" / "test.json"
    given = [f"--annotations={instances}", f"--images={tmp_path / 'photos'}", f"--out={out}"]
    assert MAIN([*given, "--visible-only"]) == 0
    (sample,) = AmodalReasonSeg.load(out)
    assert sample.image_path.is_file()
    assert [(o.id, o.category, o.amodal, o.occlusion_rate) for o in sample.objects] == [
        (5, "bench", None, None),
        (6, "dog", None, None),
    ]
    questions = [turn.question for c in sample.conversations for turn in c.turns]
    assert questions and not any("breathe" in q or "speak" in q for q in questions)
    assert MAIN([*given, "--visible-only"]) == 0 and "up to date" in capsys.readouterr().out


def test_masks_that_may_be_of_what_is_seen_are_told(instances, tmp_path, capsys):
    given = [f"--annotations={instances}", f"--images={tmp_path / 'photos'}", f"--out={tmp_path / 'test.json'}"]
    assert MAIN(given) == 0
    assert "say --visible-only" in capsys.readouterr().out


def test_questions_may_mean_one_kind_of_mask(instances, tmp_path, capsys):
    given = [f"--annotations={instances}", f"--images={tmp_path / 'photos'}", f"--out={tmp_path / 'test.json'}"]
    assert MAIN([*given, "--intents"]) == 0
    (sample,) = AmodalReasonSeg.load(tmp_path / "test.json")
    asked = {kind for c in sample.conversations for turn in c.turns for kind in turn.asked}
    assert asked == {"visible", "amodal"}
    assert MAIN([*given, "--intents"]) == 0 and "up to date" in capsys.readouterr().out
    assert MAIN(given) == 0, "another recipe writes anew"
    (plain,) = AmodalReasonSeg.load(tmp_path / "test.json")
    assert not any(turn.asked for c in plain.conversations for turn in c.turns)
