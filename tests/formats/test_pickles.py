"""Pickles are read, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from aura.formats.pickles import read_plain_pickle

PLAIN = [{"a": 1, "b": [1.5, None, True, "ü", b"x", (1, 2), {3, 4}]}, 2**70]


class Harmful:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read_in_every_protocol(tmp_path, protocol):
    # Older protocols make bytes (until 2) and sets (until 3) by a name.
    value = [PLAIN[0] | {"b": PLAIN[0]["b"][: 4 if protocol < 3 else 6 if protocol < 4 else 7]}, *PLAIN[1:]]
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert read_plain_pickle(path) == value


def test_texts_of_python_2_are_read(tmp_path):
    """``pickle.dumps([{'sent': 'caf\\xc3\\xa9', 'n': 1L}, u'\\xfc'], 2)`` in Python 2."""
    path = tmp_path / "refs.p"
    path.write_bytes(
        b"\x80\x02]q\x00(}q\x01(U\x04sentq\x02U\x05caf\xc3\xa9q\x03U\x01nq\x04\x8a\x01\x01uX\x02\x00\x00\x00\xc3\xbcq\x05e."
    )
    assert read_plain_pickle(path) == [{"sent": "café", "n": 1}, "ü"]
    path.write_bytes(b"U\x03a\xe9b.")
    assert read_plain_pickle(path) == "a\ufffdb"


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_what_would_run_is_refused_and_not_run(tmp_path, protocol):
    path, place = tmp_path / "refs.p", tmp_path / "made"
    path.write_bytes(pickle.dumps([1, Harmful(place)], protocol=protocol))
    with pytest.raises(ValueError, match=r"refs\.p: is refused, since it names \w+\.mkdir.*use the original file"):
        read_plain_pickle(path)
    assert not place.exists()
    path.write_bytes(pickle.dumps(np.float64(1), protocol=protocol))
    with pytest.raises(ValueError, match="is refused, since it names"):
        read_plain_pickle(path)


def test_no_opcode_reaches_a_name(tmp_path):
    """Every opcode that can fetch an object by name or from elsewhere."""
    path = tmp_path / "refs.p"
    for data in (
        b"cos\nsystem\n.",
        b"(S'ls'\nios\nsystem\n.",
        b"\x8c\x02os\x8c\x06system\x93.",
        b"Pwhere\n.",
        b"K\x01Q.",
    ):
        list(pickletools.genops(data))
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is refused"):
            read_plain_pickle(path)
    for data in (b"\x82\x01.", b"\x83\x01\x00.", b"\x84\x01\x00\x00\x00."):  # the extension registry is empty
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is not a pickle"):
            read_plain_pickle(path)


@pytest.mark.parametrize("data", [b"", b"no pickle", b"]", b"\x80\x63.", b"I12x\n.", b"\x8e" + b"\xff" * 8, b"h\x05."])
def test_damaged_files_are_told(tmp_path, data):
    path = tmp_path / "refs.p"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"refs\.p: is not a pickle .* is the file complete\?"):
        read_plain_pickle(path)
    with pytest.raises(ValueError, match=r"none\.p: cannot be read .* check the path"):
        read_plain_pickle(tmp_path / "none.p")
