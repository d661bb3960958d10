"""Examples of the page: from a folder, and from the mini benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.chat import examples
from aura.chat.examples import MOST, QUESTION, Example, load_examples
from aura.masks import encode_rle


def test_a_folder_gives_its_pictures_and_the_questions_beside_them(tmp_path: Path):
    for name in ("b.png", "a.jpg", ".hidden.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("\ufeffWhat is\nbehind the cup?\n", encoding="utf-8")
    (tmp_path / "more").mkdir()
    found = [Example(tmp_path / "a.jpg", "What is behind the cup?"), Example(tmp_path / "b.png", QUESTION)]
    assert load_examples(tmp_path) == found
    for number in range(20):
        Image.new("RGB", (8, 6)).save(tmp_path / f"c{number}.png")
    assert len(load_examples(tmp_path)) == MOST


def test_what_is_no_example_is_told_with_its_file(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none does not exist; give a folder"):
        load_examples(tmp_path / "none")
    with pytest.raises(ValueError, match=r"there is no picture; put NAME\.jpg there"):
        load_examples(tmp_path)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xe9")
    with pytest.raises(ValueError, match=r"a\.txt: is no text in UTF-8"):
        load_examples(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.md"):
        load_examples(tmp_path)


def test_a_data_set_gives_its_first_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    mask = encode_rle(np.ones((6, 8), bool))
    box = {"area": 48, "bbox": [0, 0, 8, 6]}
    document = {
        "images": [{"id": i, "file_name": "a.png", "width": 8, "height": 6} for i in (1, 2)],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {
                "id": 5,
                "image_id": 2,
                "category_id": 1,
                "segmentation": mask,
                "visible_mask": mask,
                "occlude_rate": 0,
                **box,
            }
        ],
        "conversations": [
            {"id": 1, "image_id": 2, "turns": [{"question": "Which?", "answer": "The cup [SEG].", "objects": [5]}]}
        ],
    }
    path = tmp_path / "mini_test.json"
    path.write_text(json.dumps(document))
    assert load_examples(path) == [Example(tmp_path / "a.png", "Which?")]
    monkeypatch.setattr(examples, "MINI", path)
    assert load_examples(None) == [Example(tmp_path / "a.png", "Which?")]
    monkeypatch.setattr(examples, "MINI", tmp_path / "none.json")
    assert load_examples(None) == []
