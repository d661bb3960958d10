"""The rows of an annotation file: the parsed file's samples, made once, kept, made anew when it changes."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from aura.formats import rows
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.masks import encode_rle

SIZE = (6, 8)


def document(images: int = 5) -> dict:
    """Image 2 has no conversation, image 3 no object."""
    mask = np.zeros(SIZE, bool)
    mask[1:4, 2:6] = True
    content: dict = {"info": {"image_folder": "pictures"}, "licenses": []}
    content["categories"] = [{"id": 7, "name": "cup", "supercategory": "kitchen"}, {"id": 3, "name": "Tür"}]
    content["images"] = [{"id": i, "file_name": f"{i}.jpg", "height": 6, "width": 8} for i in range(images)]
    content["annotations"] = [
        {
            "id": 100 * k + i,
            "image_id": i,
            "category_id": (7, 3)[k],
            "segmentation": encode_rle(mask),
            "visible_mask": encode_rle(mask),
            "occlude_rate": 0.1 * k,
            "occluded_by": [100 * (1 - k) + i],
        }
        for k in (1, 0)
        for i in range(images)
        if i != 3
    ]
    content["conversations"] = [
        {
            "id": 10 * i + k,
            "image_id": i,
            "turns": [
                {"question": f"Was ist „{k}“?", "answer": "So." if i == 3 else "It [SEG].", "objects": [i][i == 3 :]}
            ],
            "provenance": {"seed": k},
        }
        for k in (2, 0, 1)
        for i in range(images)
        if i != 2
    ]
    return content


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(document()))
    return path


@pytest.fixture
def built(monkeypatch) -> list[Path]:
    """The rows that were made, in order."""
    made: list[Path] = []
    write = rows._write
    monkeypatch.setattr(rows, "_write", lambda source, place: made.append(place) or write(source, place))
    return made


@pytest.mark.parametrize("order", [None, ["conversations", "annotations", "images", "categories", "info", "licenses"]])
def test_rows_are_the_parsed_file(tmp_path, order):
    content = document()
    content["images"].reverse()
    path = tmp_path / "train.json"
    path.write_text(json.dumps({key: content[key] for key in order or content}))
    parsed, opened = AmodalReasonSeg(content, source=path), AmodalReasonSeg.load(path)
    assert [s.image_id for s in opened] == [4, 3, 2, 1, 0] and len(opened) == 5
    assert list(opened) == list(parsed) == opened[:] and opened[-1] == parsed[-1] and opened[1:4:2] == parsed[1:4:2]
    assert opened.conversation_counts().tolist() == parsed.conversation_counts().tolist() == [3, 3, 0, 3, 3]
    assert list(opened.pictures()) == list(parsed.pictures())
    assert opened.digest() == parsed.digest() and opened.statistics() == parsed.statistics()
    assert opened.images == parsed.images == tmp_path / "pictures"
    with pytest.raises(IndexError, match="has 5 images"):
        opened[5]


def test_rows_are_made_once(source, built):
    first = AmodalReasonSeg.load(source)
    assert built == [source.with_name(".train.json.rows.sqlite")]
    again = AmodalReasonSeg.load(source, "/elsewhere")
    assert len(built) == 1 and again.content() == first.content()
    assert again[0].image_path == Path("/elsewhere/0.jpg")
    assert sorted(path.name for path in source.parent.iterdir()) == [".train.json.rows.sqlite", "train.json"]


def test_a_touched_file_is_recognised_and_a_changed_one_read_again(source, built, monkeypatch):
    AmodalReasonSeg.load(source)
    os.utime(source, ns=(1, 1))
    hashed = []
    digest = rows._sha256
    monkeypatch.setattr(rows, "_sha256", lambda path: hashed.append(path) or digest(path))
    for _ in range(2):
        assert len(AmodalReasonSeg.load(source)) == 5
    assert len(built) == 1 and len(hashed) == 1
    status = source.stat()
    source.write_text(source.read_text().replace('"cup"', '"mug"'))
    os.utime(source, ns=(2, 2))
    assert source.stat().st_size == status.st_size
    assert AmodalReasonSeg.load(source)[0].objects[1].category == "mug" and len(built) == 2


def test_damaged_rows_and_those_of_another_version_are_made_again(source, built, monkeypatch):
    AmodalReasonSeg.load(source)
    built[0].write_bytes(b"not a database" * 300)
    assert len(AmodalReasonSeg.load(source)) == 5 and len(built) == 2
    monkeypatch.setattr(rows, "VERSION", 99)
    assert len(AmodalReasonSeg.load(source)) == 5 and len(built) == 3


def test_where_the_folder_cannot_be_written_the_cache_is_taken(source, built, tmp_path, monkeypatch):
    monkeypatch.setenv("AURA_CACHE", str(tmp_path / "cache"))
    source.with_name(".train.json.rows.sqlite").mkdir()  # nothing can be put there
    for _ in range(2):
        assert len(AmodalReasonSeg.load(source)) == 5
    assert [place.parent for place in built] == [tmp_path, tmp_path / "cache"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("AURA_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="set AURA_CACHE to a folder"):
        AmodalReasonSeg.load(source)


def test_a_malformed_file_leaves_nothing_behind(source):
    content = document()
    content["annotations"][0]["image_id"] = 2**70
    for damage in (content, {**content, "images": 3}):
        source.write_text(json.dumps(damage))
        with pytest.raises(ValueError, match=r"train\.json: "):
            AmodalReasonSeg.load(source)
    assert [path.name for path in source.parent.iterdir()] == ["train.json"]


def read(dataset, position):
    return dataset[position].image_id


def test_processes_share_the_rows(source):
    dataset = AmodalReasonSeg.load(source)
    assert dataset[0].image_id == 0
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(read, [(dataset, i) for i in range(5)]) == [0, 1, 2, 3, 4]
    copy = pickle.loads(pickle.dumps(dataset))
    assert list(copy) == list(dataset)
    child = os.fork()
    if child == 0:
        os._exit(0 if dataset[1].image_id == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_file_that_changes_under_a_run_is_refused(source):
    dataset = AmodalReasonSeg.load(source)
    worker = pickle.dumps(dataset)
    source.write_text(json.dumps(document(images=6)))
    assert len(AmodalReasonSeg.load(source)) == 6
    assert dataset[4].image_id == 4, "who has opened the rows keeps them"
    with pytest.raises(ValueError, match=r"train\.json was changed while it is in use"):
        pickle.loads(worker)[4]
