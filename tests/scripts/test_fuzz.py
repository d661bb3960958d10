"""Every reader holds to one rule about damaged files, and what broke it once."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from aura.config.parse import load_config
from aura.data.tokenization import load_tokenizer
from aura.formats.llava_instruct import LlavaFile
from aura.fuzz import models
from aura.fuzz.damage import Fault, Reader, outcome
from aura.train.logs import read_log

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "scripts" / "fuzz.py")
assert SPEC is not None
fuzz = importlib.util.module_from_spec(SPEC)
sys.modules["fuzz"] = fuzz
SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("reader", fuzz.READERS, ids=lambda reader: reader.name)
def test_damaged_contents_are_read_or_refused_with_the_file(reader, tmp_path):
    assert sum(fuzz.fuzz(reader, 8, tmp_path).values()) >= 8


@pytest.mark.parametrize("error", [KeyError("id"), ValueError("no file is named")])
def test_a_reader_that_breaks_the_rule_is_found(tmp_path, error):
    def read(path):
        raise error

    with pytest.raises(Fault):
        outcome(Reader("bad", {}, read), b"{}", tmp_path)


def test_a_role_that_is_no_text_is_named(tmp_path):
    talk = [{"from": {}, "value": "What?"}, {"from": "gpt", "value": "A cup."}]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([{"id": "a", "image": "a.jpg", "conversations": talk}]))
    with pytest.raises(ValueError, match=r"llava\.json: item 0 .*'from' must be human or gpt"):
        LlavaFile(path, tmp_path)


def test_a_number_beyond_all_floats_in_the_settings_is_named(tmp_path):
    (tmp_path / "own.yaml").write_text(f"loss: {{text: 1{'0' * 400}}}")
    with pytest.raises(ValueError, match=r"own\.yaml"):
        load_config(tmp_path / "own.yaml")


def test_a_damaged_log_is_read_up_to_the_damage(tmp_path):
    line = b'{"kind": "train", "step": 1}\n'
    for damage in (b"\x80\n", b"[]\n", b'{"kind": "train"}\n', b"7\n"):
        (tmp_path / "log.jsonl").write_bytes(line + damage + line)
        assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [1]


@pytest.mark.parametrize("text", ["{", "[]", '{"version": "7"}', '{"model": {"type": "none"}}', "\udcff"])
def test_a_damaged_tokenizer_is_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"the tokenizer of {tmp_path} cannot be read .*get it again"):
        load_tokenizer(tmp_path)


def test_no_text_becomes_a_special_token():
    for mark in models.special_tokens():
        models._prompt(f"What is {mark}?")
        with pytest.raises(ValueError, match="reserved token"):
            models._question(f"What is {mark}?")
    with pytest.raises(ValueError, match="tokens, at most 512 fit"):
        models._prompt("a cup " * (models.LONGEST_PROMPT // 6))
