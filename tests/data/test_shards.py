"""Rows and blobs that are written by many and read by all."""

import hashlib
import os
import signal

import pytest

from aura.data import shards
from aura.data.shards import RowTable, Shards


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def test_blobs_fill_one_file_after_another_and_all_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BLOBS", 10)
    own = Shards(tmp_path)
    for number in range(35):
        own.add(key(number), b"blob %d" % number)
    own.close()
    sizes = sorted(file.stat().st_size for file in tmp_path.glob("*.rows"))
    assert [size // 56 for size in sizes] == [5, 10, 10, 10]
    for reader in (own, Shards(tmp_path)):
        assert len(reader) == 35
        assert [reader.get(key(number)) for number in range(35)] == [b"blob %d" % number for number in range(35)]
        assert reader.get(key(99)) is None and key(99) not in reader


def test_keys_with_equal_first_words_are_told_apart(tmp_path):
    table = RowTable(tmp_path, payload=1)
    keys = [bytes(8) + bytes([number]) + bytes(23) for number in range(3)]
    for number, one in enumerate(keys):
        table.append(one, (number,), "a")
    table.refresh()
    assert [table.find(one) for one in keys] == [("a", (number,)) for number in range(3)]
    assert table.find(bytes(32)) == ("a", (0,)) and table.find(bytes(31) + b"x") is None


@pytest.mark.parametrize("tail", [b"", b"\x01" * 20, bytes(112), b"\xff" * 112])
def test_a_torn_end_of_a_table_is_not_read(tmp_path, tail):
    table = RowTable(tmp_path, payload=2)
    table.append(key(1), (5, 6), "a")
    table.close()
    file = tmp_path / "a.rows"
    file.write_bytes(file.read_bytes() + tail)
    again = RowTable(tmp_path, payload=2)
    assert len(again) == 1 and again.find(key(1)) == ("a", (5, 6))


def test_what_others_add_is_seen_after_a_refresh_and_the_oldest_counts(tmp_path):
    first, second = Shards(tmp_path), Shards(tmp_path)
    first.add(key(1), b"older")
    second.add(key(1), b"newer")
    second.add(key(2), b"other")
    assert first.get(key(2)) is None
    first.refresh()
    assert first.get(key(2)) == b"other"
    second.refresh()
    assert second.get(key(1)) == b"older"


def test_a_process_that_is_killed_loses_one_blob_at_most(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        own, number = Shards(tmp_path), 0
        while True:
            own.add(key(number), b"x" * 1000)
            os.write(writing, b".")
            number += 1
    done = sum(len(os.read(reading, 1)) for _ in range(300))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writing)
    done += len(os.read(reading, 1 << 20))
    left = Shards(tmp_path)
    assert done <= len(left) <= done + 1
    assert all(left.get(key(number)) == b"x" * 1000 for number in range(len(left)))


def test_a_fork_writes_files_of_its_own(tmp_path):
    own = Shards(tmp_path)
    own.add(key(0), b"parent")
    child = os.fork()
    if child == 0:
        own.add(key(1), b"child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    own.add(key(2), b"parent again")
    own.refresh()
    assert [own.get(key(number)) for number in range(3)] == [b"parent", b"child", b"parent again"]
    assert len(list(tmp_path.glob("*.shard"))) == 2


def test_a_full_disk_is_told_and_the_next_blob_is_whole(tmp_path, monkeypatch):
    own = Shards(tmp_path)
    own.add(key(0), b"first")

    def full(writer, blob):
        writer._file.write(blob[:2])
        writer._file.flush()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards._Writer, "append", full)
        with pytest.raises(OSError, match="No space"):
            own.add(key(1), b"second")
    assert own.get(key(1)) is None
    own.add(key(1), b"second")
    assert [Shards(tmp_path).get(key(number)) for number in range(2)] == [b"first", b"second"]
