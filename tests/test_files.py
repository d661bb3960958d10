"""Atomic writes."""

import json

import pytest

from aura.files import (
    finite,
    is_neighbour,
    list_parts,
    read_text,
    to_json,
    unfinished,
    write_bytes,
    write_json,
    write_parts,
    write_text,
)


def test_a_list_in_parts_is_json():
    for records in ([], [1], [1, {"a": [2]}, "x"]):
        assert json.loads("".join(list_parts(map(to_json, records)))) == records


def test_writes_make_folders_and_replace_the_old_file(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "first é")
    write_text(path, "second é")
    assert path.read_bytes() == "second é".encode()
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_json(path, {"score": 1})

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"score": 2})
    assert json.loads(path.read_text()) == {"score": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_file_in_a_folder_s_place_is_named(tmp_path):
    (tmp_path / "taken").touch()
    for path in (tmp_path / "taken" / "x.json", tmp_path / "taken" / "deeper" / "x.json"):
        with pytest.raises(OSError, match=r"taken.* is, or lies below, a file"):
            write_json(path, {})


def test_json_refuses_what_is_not_json(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"rate": float("nan")})
    assert not list(tmp_path.iterdir())


def test_new_files_are_readable_as_any_other(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    write_text(tmp_path / "atomic", "x")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_are_passed_over(tmp_path, encoding):
    path = tmp_path / "text.txt"
    path.write_text("crème, 컵\nline two", encoding=encoding)
    assert read_text(path) == "crème, 컵\nline two"


def test_what_is_not_finite_is_null_and_listed():
    record = {"step": 3, "norm": float("inf"), "losses": {"a": float("nan"), "b": [1.0, -float("inf")]}}
    expected = {"step": 3, "norm": None, "losses": {"a": None, "b": [1.0, None]}}
    assert finite(record) == {**expected, "not_finite": ["norm", "losses/a", "losses/b/1"]}
    assert json.loads(to_json(finite(record))) == finite(record) and finite(expected) == expected
    with pytest.raises(ValueError, match="JSON"):
        to_json(record)


def test_a_text_in_parts_that_cannot_be_finished_leaves_nothing(tmp_path):
    def parts():
        yield "half"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_parts(tmp_path / "a.json", parts())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_unfinished_file_is_gone_and_the_old_one_stays(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_text("old")
    with pytest.raises(error), unfinished(path) as partial:
        partial.write_text("new")
        raise error
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"] and path.read_text() == "old"
    with unfinished(path) as partial:
        partial.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"] and path.read_text() == "new"


def test_what_a_file_may_call_its_neighbours():
    for name in ("model-00001-of-00002.safetensors", "..a", "a..", ".hidden", "컵.json", "a b", "step_000001"):
        assert is_neighbour(name), name
    up = ["..", "../a", "a/../../b", "..\\a"]
    rooted = ["/etc/passwd", "C:a", "C:", "\\\\host\\share\\a", "//host/share/a", "\\", "/"]
    for name in [*up, *rooted, "", ".", "./a", "a/b", "a\\b", "a\0b", "\ud800", "x" * 256, None, 7, ["a"]]:
        assert not is_neighbour(name), name
