"""The loop that kills finds what does not endure it."""

from __future__ import annotations

import random
import sqlite3
import time

import pytest

from aura.torture.endure import endure
from aura.torture.generation import GenerationKind
from aura.torture.processes import Command
from aura.torture.review import NAMES, ReviewKind, _Server, fields_of
from aura.torture.service import _Books

NUMBERS = 40


class Counting:
    """A process that writes numbers one after the other, and goes on where it was, unless it has a fault."""

    name = "counting"
    victims = ("all processes", "all processes, by SIGTERM")

    def __init__(self, fault=""):
        self.fault, self.closed = fault, False

    def new(self, run):
        (run / "numbers").touch()

    def start(self, run):
        return Command([lambda: self.count(run)], run / "output.txt")

    def count(self, run):
        done = len((run / "numbers").read_text().split()) - (self.fault == "forgets")
        if self.fault == "fails" and done:
            return 3
        for number in range(max(done, 0), NUMBERS):
            with (run / "numbers").open("a") as file:
                file.write(f"{number}\n")
            time.sleep(0.003)
        return 0

    def trace(self, run):
        return run / "numbers"

    def result(self, run):
        return (run / "numbers").read_text()

    def lost(self, run):
        return ["a number"] if self.fault == "loses" and run.name != "peaceful" else []

    def close(self):
        self.closed = True


@pytest.mark.parametrize(
    ("fault", "bad"),
    [("", set()), ("forgets", {"different"}), ("fails", {"failed", "different"}), ("loses", {"lost"})],
)
def test_what_does_not_endure_is_found(tmp_path, fault, bad):
    kind = Counting(fault)
    found = endure(kind, tmp_path, 3, random.Random(0), lambda line: None)
    assert set(found.bad) == bad and found.killed.total() == 3 and kind.closed


def test_what_fails_in_peace_is_told(tmp_path):
    class Broken(Counting):
        def count(self, run):
            raise OSError("no disk")

    with pytest.raises(SystemExit, match=r"counting itself ends with 1; see .*output\.txt"):
        endure(Broken(), tmp_path, 3, random.Random(0), lambda line: None)
    assert "no disk" in (tmp_path / "counting" / "peaceful" / "output.txt").read_text()


def database(run):
    (run / "project").mkdir(parents=True)
    return sqlite3.connect(run / "project" / "project.sqlite")


def test_what_is_paid_or_asked_twice_and_what_is_lost_is_told(tmp_path):
    kind = GenerationKind("openai", tmp_path, 1)
    with database(tmp_path / "run") as project:
        project.execute("CREATE TABLE calls (key TEXT, outcome TEXT)")
        project.executemany("INSERT INTO calls VALUES (?, 'answered')", [("a",), ("b",)])
    (tmp_path / "run" / "ledger.txt").write_text("asked a\ncharged a\nasked b\ncharged b\n")
    assert kind.lost(tmp_path / "run") == []
    with project:
        project.execute("DELETE FROM calls WHERE key = 'b'")
    (tmp_path / "run" / "ledger.txt").write_text("asked a\ncharged a\nasked a\ncharged a\nasked b\ncharged b\n")
    told = ["the answer to b is gone", "charged a 2 times", "a was answered, and was asked again"]
    assert kind.lost(tmp_path / "run") == told


def test_an_acknowledged_verdict_that_is_not_there_is_told(tmp_path):
    kind = ReviewKind(tmp_path, 1)
    with database(tmp_path / "run") as project:
        project.execute("CREATE TABLE annotators (id INTEGER, name TEXT)")
        project.execute("CREATE TABLE verdicts (annotator INTEGER, pair INTEGER, decision TEXT, replaced INTEGER)")
        project.executemany("INSERT INTO annotators VALUES (?, ?)", list(enumerate(NAMES)))
        project.execute("INSERT INTO verdicts VALUES (0, 7, 'accept', 0)")
    (tmp_path / "run" / "acknowledged.txt").write_text("Ada 7 accept\nGrace 7 reject\n")
    (tmp_path / "run" / "missed.txt").write_text("the draft of Ada about pair 8\n")
    assert kind.lost(tmp_path / "run") == ["the verdict Grace 7 reject", "the draft of Ada about pair 8"]


def test_people_who_finish_while_the_server_is_killed_are_done(tmp_path):
    people = Command([lambda: 0], tmp_path / "people.txt")
    for _ in range(2):
        server = _Server(lambda: time.sleep(60) or 0, tmp_path / "server.txt", people)
        while people.over() is None:
            time.sleep(0.01)
        assert server.kill("the server", random.Random(0))
        assert server.over() == 0


def test_a_key_is_charged_once_and_so_is_a_batch(tmp_path):
    books = _Books(tmp_path / "ledger.txt")
    text = "Write 1 pair\n7 | cup | 0.2"
    request = {"messages": [{}, {"content": [{"text": text}]}]}
    assert books.chat(request, "k") == books.chat(request, "k")
    line = b'{"custom_id": "c", "body": {"messages": [{}, {"content": [{"text": "Write 1 pair\\n7 | cup | 0"}]}]}}'
    batch = {"input_file_id": books.upload(line)["id"], "endpoint": "e", "metadata": {"part": "t"}}
    assert books.submit(batch, "t")["id"] == books.submit(batch, "t")["id"]
    assert (tmp_path / "ledger.txt").read_text().split("\n")[:-1] == [
        *("asked k", "charged k", "asked k", "asked c", "charged c"),
    ]


def test_a_form_is_read_as_a_browser_does():
    page = (
        '<form action="/a"></form><form action="/b"><input type="hidden" name="version" value="3">'
        '<textarea id="q" name="question" rows="2">What &amp; why?</textarea>'
        '<select name="objects"><option value="">none</option><option value="7" selected>cup</option></select></form>'
    )
    assert fields_of(page) == {"version": "3", "question": "What & why?", "objects": ["7"]}
