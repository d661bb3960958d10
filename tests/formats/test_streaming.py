"""Large JSON files, read through a small window."""

import io
import json
import sqlite3
import tracemalloc

import ijson
import numpy as np
import pytest

from aura.formats import streaming
from aura.formats.reading import read_json_object
from aura.formats.sources import AnnotationFile
from aura.formats.streaming import DEPTH, Spool, members
from aura.masks import encode_rle

DOCUMENT = {
    "info": {"a": [1, {"b": "]}"}], "n": -1.5e-7},
    "images": [{"id": 1, "file_name": 'ä\n"\\ é.jpg'}, {"id": 2, "x": None}, 3, "text", [True, False]],
    "empty": [],
    "annotations": [{"id": n, "counts": "x" * (7 * n), "rate": n / 7} for n in range(20)],
    "number": 1234567.5,
    "categories": [],
}


@pytest.fixture(params=["default", "python"])
def backend(request, monkeypatch):
    """The parser that ijson chose, and the one that it has where there is no compiled one."""
    if request.param != "default":
        monkeypatch.setattr(ijson, "basic_parse", ijson.get_backend(request.param).basic_parse)


@pytest.fixture(params=[1, 7, 1 << 20])
def window(request, backend, monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK", request.param)
    return request.param


def write(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("layout", [{}, {"indent": 3}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_whatever_the_window_the_members_are_the_file_s(tmp_path, window, layout):
    path = write(tmp_path, json.dumps(DOCUMENT, **layout) + " \n")
    found: dict = {}
    for key, position, value in members(path, ("images", "annotations", "categories")):
        if position is None:
            found[key] = value
        else:
            assert len(found[key]) == position
            found[key].append(value)
    assert found == DOCUMENT and list(found) == list(DOCUMENT)
    assert type(found["number"]) is float


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[1]", "expected a JSON object with lists of records, got a list"),
        ("12", "expected a JSON object with lists of records, got a int"),
        ('{"images": [{"id": 1}, {"id": 2', "is not JSON"),
        ('{"images": [{"id": 1} {"id": 2}]}', "is not JSON"),
        ('{"images": [{"id": 1},]}', "is not JSON"),
        ('{"images" [1]}', "is not JSON"),
        ("{1: 2}", "is not JSON"),
        ('{"images": [{"id": nil}]}', "is not JSON"),
        ('{"a": 1}}', "is not JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    ],
)
def test_what_is_no_annotation_file_is_one_error(tmp_path, window, text, words):
    with pytest.raises(ValueError) as error:
        list(members(write(tmp_path, text), ("images",)))
    assert words in str(error.value) and "file.json" in str(error.value) and "\n" not in str(error.value)
    if "twice" not in words:
        with pytest.raises(ValueError):
            read_json_object(tmp_path / "file.json")


def test_other_encodings_and_missing_files(tmp_path, window):
    for content in ('{"a": "é"}'.encode("latin-1"), '{"a": 1}'.encode("utf-16"), b'{"a": "\xed\xa0\x80"}'):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.json: is not JSON"):
            list(members(tmp_path / "x.json", ()))
    with pytest.raises(ValueError, match=r"none\.json: cannot be read"):
        list(members(tmp_path / "none.json", ()))


@pytest.mark.parametrize("value", ["NaN", "-Infinity", '"a\tb"', "01", "1."])
def test_what_only_looks_like_json_is_none(tmp_path, window, value):
    with pytest.raises(ValueError, match=r"file\.json: is not JSON"):
        list(members(write(tmp_path, f'{{"images": [{{"id": {value}}}]}}'), ("images",)))


@pytest.mark.parametrize("key", ["images", "info"])
def test_nesting_without_end_is_told(tmp_path, window, key):
    def nested(depth):
        return list(members(write(tmp_path, f'{{"{key}": [{"[" * depth}{"]" * depth}]}}'), ("images",)))

    json.dumps(nested(DEPTH - 1))
    with pytest.raises(ValueError, match=r"file\.json: has more than"):
        nested(20_000)


def test_a_flaw_is_told_with_its_place_and_without_reading_the_rest(tmp_path, backend, monkeypatch):
    class File(io.BytesIO):
        reads = 0

        def read(self, size=-1):
            File.reads += bool(size)
            return super().read(size)

        def readinto(self, buffer):
            File.reads += 1
            return super().readinto(buffer)

    monkeypatch.setattr(streaming, "CHUNK", 100)
    path = write(tmp_path, '{"images": [{"id": x},' + "1," * 10_000 + "1]}")
    content = path.read_bytes()
    monkeypatch.setattr(type(path), "open", lambda self, mode: File(content))
    with pytest.raises(ValueError, match=r"""\[\{"id": x\}|'x' at 19"""):
        list(members(path, ("images",)))
    assert File.reads == 2  # the first for a byte order mark


def test_records_wait_on_disk_in_their_order(tmp_path):
    spool = Spool(write(tmp_path, json.dumps(DOCUMENT)), ("images", "annotations", "categories", "none"))
    assert spool.lists == {"images", "annotations", "categories"} and list(spool.other) == ["info", "empty", "number"]
    assert [record for _, record in spool.records("images")] == DOCUMENT["images"]
    for row, record in spool.records("annotations"):
        assert spool.identify("annotations", record["id"], row)
        assert not spool.identify("annotations", record["id"], row)
        spool.give("annotations", record["id"], record["id"] % 2)
    spool.index()
    assert spool.has("annotations", 19) and not spool.has("annotations", 20) and not spool.has("images", 1)
    assert spool.count("annotations") == 20
    assert [number for number, _ in spool.identified("annotations")] == list(range(20))
    assert spool.of("annotations", 1) == DOCUMENT["annotations"][1::2] and spool.of("annotations", 7) == []


def test_of_a_large_file_little_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK", 1 << 14)
    rle = encode_rle(np.random.default_rng(0).random((64, 64)) > 0.5)
    annotations = [
        {"id": n, "image_id": n // 4, "category_id": 1, "segmentation": rle, "visible_mask": rle} for n in range(1200)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 64, "width": 64} for n in range(300)]
    content = {"annotations": annotations, "images": images, "categories": [{"id": 1, "name": "cup"}]}
    path = write(tmp_path, json.dumps(content))
    del content, annotations, images
    tracemalloc.start()
    try:
        found = sum(len(image.objects) for image in AnnotationFile(path, strict=True))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == 1200 and most < path.stat().st_size / 4


def test_a_full_disk_is_told_with_its_remedy(tmp_path, monkeypatch):
    def full(self, name, text):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Spool, "add", full)
    with pytest.raises(OSError, match=r"disk is full\); set SQLITE_TMPDIR"):
        Spool(write(tmp_path, json.dumps(DOCUMENT)), ("images",))
