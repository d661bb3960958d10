"""Records that training would refuse are all found before it, once, by one process or by several."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from aura.data import findings as kept
from aura.data import preflight
from aura.data.findings import Findings
from aura.data.preflight import inspect, text_fingerprint
from aura.types import Conversation, Turn


@pytest.fixture
def samples(sample):
    return [replace(sample, image_id=i) for i in range(6)]


class Indexed(list):
    """Samples that come from a file."""

    def conversation_counts(self):
        return preflight.conversation_counts(list(self))

    def pictures(self):
        return preflight.pictures(list(self))

    def digest(self):
        return "digest"

    def content(self):
        return "content"


def spoil(samples):
    """Two bad conversations, a bad picture, a damaged mask; returns what is wrong where."""
    folder = samples[0].image_path.parent
    cut = folder / "cut.png"
    cut.write_bytes(samples[0].image_path.read_bytes()[:300])
    asked = Conversation(8, (Turn("<image> What?", "It."),))
    long = Conversation(9, (Turn("What? " * 600, "It."),))
    samples[1] = replace(samples[1], conversations=(*samples[1].conversations, asked, long))
    samples[3] = replace(samples[3], image_path=cut)
    broken = {"size": [40, 60], "counts": "!!"}
    objects = (replace(samples[4].objects[0], amodal=broken), *samples[4].objects[1:])
    samples[4] = replace(samples[4], objects=objects)
    return [(1, 8, "reserved token '<image>'"), (1, 9, "exceed the limit"), (3, None, "cut.png"), (4, None, "amodal")]


def agree(found, expected):
    assert [(record.image_id, record.conversation_id) for record in found] == [(i, c) for i, c, _ in expected]
    for record, (image, _, words) in zip(found, expected, strict=True):
        assert record.reason.startswith(f"image {image}") and words in record.reason
        assert "\n" not in record.reason


def test_sound_records_have_nothing(samples, processor):
    assert inspect(samples, processor.text, Findings(None), quiet=True) == ([], [])


@pytest.mark.parametrize("cores", [1, 2])
def test_every_bad_record_is_found(samples, processor, monkeypatch, cores):
    expected = spoil(samples)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(preflight, "CHUNK", 1)
    agree(inspect(samples, processor.text, Findings(None), quiet=True).bad, expected)


def test_what_no_conversation_uses_is_not_looked_at(samples, processor, tmp_path):
    samples[0] = replace(samples[0], conversations=(), image_path=tmp_path / "none.png")
    broken = {"size": [40, 60], "counts": "!!"}
    unused = replace(samples[1].objects[3], visible=broken)
    samples[1] = replace(samples[1], objects=(*samples[1].objects[:3], unused))
    assert inspect(samples, processor.text, Findings(None), quiet=True).bad == []


def test_a_second_look_reads_what_has_changed_only(samples, processor, tmp_path, monkeypatch):
    expected = spoil(samples)
    source = tmp_path / "data" / "train.json"
    source.parent.mkdir()
    agree(inspect(Indexed(samples), processor.text, Findings(source), quiet=True).bad, expected)
    read, checked = [], []
    examine, check = preflight.examine, preflight.check_sample
    monkeypatch.setattr(preflight, "examine", lambda path: read.append(path.name) or examine(path))
    monkeypatch.setattr(kept, "examine", lambda path: read.append(path.name) or examine(path))
    monkeypatch.setattr(preflight, "check_sample", lambda *given: checked.append(given) or check(*given))
    agree(inspect(Indexed(samples), processor.text, Findings(source), quiet=True).bad, expected)
    assert not read and not checked
    samples[3].image_path.write_bytes(samples[0].image_path.read_bytes())
    again = inspect(Indexed(samples), processor.text, Findings(source), quiet=True).bad
    agree(again, [entry for entry in expected if entry[0] != 3])
    assert read == ["cut.png"] and not checked
    processor.text.max_length += 10_000
    longer = inspect(Indexed(samples), processor.text, Findings(source), quiet=True).bad
    agree(longer, [entry for entry in expected if entry[0] != 3 and entry[1] != 9])
    assert len(checked) == len(samples)


def test_findings_go_where_they_can(tmp_path, monkeypatch):
    monkeypatch.setenv("AURA_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "data" / "train.json"
    (tmp_path / "data").write_text("a file where the folder should be")
    Findings(source).keep_result("key", "text")
    assert Findings(source).result("key") == "text"
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".sqlite"]
    (tmp_path / "cache" / next((tmp_path / "cache").iterdir()).name).write_bytes(b"no database, but long enough" * 50)
    assert Findings(source).result("key") is None


def test_the_fingerprint_follows_what_changes_tokens(processor):
    first = text_fingerprint(processor.text)
    processor.text.tokenizer.add_tokens(["<new>"], special_tokens=True)
    assert text_fingerprint(processor.text) != first
