"""Sections that fail in every way, and what is kept of the others; the process is a stand-in."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import torch

from aura.gpucheck import runner, worker
from aura.gpucheck.findings import Findings, NotPossible
from aura.gpucheck.lab import Lab
from aura.gpucheck.report import Report, lines_of
from aura.gpucheck.sections import SECTIONS, Section

LAB = SimpleNamespace(device=torch.device("cpu"))


def section(function, deadline=5):
    made = Section(0, "stand-in", "nowhere:nothing", deadline, 1)
    return SimpleNamespace(**made._asdict(), function=function)


def broken(lab, found):
    found.fact(seen=1)
    raise RuntimeError("CUDA error: an illegal memory access")


def slow(lab, found):
    found.check("before the deadline", True, seen=1, wanted=1)
    time.sleep(5)


def impossible(lab, found):
    raise NotPossible("bitsandbytes is not installed")


def wrong(lab, found):
    found.at_most("the difference", 0.5, 0.1)
    found.at_most("the other", float("nan"), 0.1, gpu_only=True)


def right(lab, found):
    found.at_most("the difference", 0.05, 0.1)


@pytest.mark.parametrize(
    ("function", "verdict", "said"),
    [
        (broken, "error", "illegal memory access"),
        (slow, "late", "stopped after 0 s"),
        (impossible, "skipped", "bitsandbytes"),
        (wrong, "disproved", None),
        (right, "proved", None),
    ],
)
def test_a_section_s_verdict(function, verdict, said):
    result = worker.run_section(section(function, 5), LAB, 0.3)
    assert result["verdict"] == verdict
    assert said is None or said in result["rest"]["error"]
    json.dumps(result, allow_nan=False)
    if function is broken:
        assert result["rest"]["facts"] == {"seen": 1}


def test_what_needs_a_gpu_is_not_judged_without_one():
    for on_gpu, holds in ((True, False), (False, None)):
        found = Findings(on_gpu)
        found.check("memory", False, seen=2, wanted=1, gpu_only=True)
        assert found.checks[0]["holds"] is holds and bool(found.disproved) is on_gpu


def end(number, verdict="proved", **rest):
    return {"event": "end", "section": number, "verdict": verdict, "seconds": 1.0, "rest": {"facts": {}, **rest}}


def begin(number):
    return {"event": "begin", "section": number, "deadline": 10}


def fake_worker(stories):
    """Each process tells the next of ``stories``: events, then how it ends."""

    class Fake:
        limit = 0.0

        def __init__(self, numbers, scale, out, end):
            self.story, self.code = stories.pop(0)
            self.process = SimpleNamespace(kill=lambda: None)
            assert numbers == self.story.pop(0)

        def events(self):
            for event in self.story:
                if event == "hangs":
                    raise TimeoutError
                yield event

        def end(self):
            return self.code

    return Fake


def test_a_process_that_dies_or_hangs_costs_its_own_section_alone(monkeypatch, tmp_path):
    hello = {"event": "hello", "facts": {"device": "Tesla", "torch": "2.13.0"}}
    stories = [
        ([[0, 1, 2, 3, 4], hello, begin(0), end(0), begin(1)], -9),
        ([[2, 3, 4], hello, begin(2), "hangs"], -9),
        ([[3, 4], hello, begin(3), end(3, "skipped", error="no time")], 3),  # and leaves the rest to a new one
        ([[4]], 1),  # not even begun
    ]
    monkeypatch.setattr(runner, "Worker", fake_worker(stories))
    told = []
    report = runner.run([0, 1, 2, 3, 4], scale="full", out=tmp_path, seconds=60, on_record=told.append)
    verdicts = {record["section"]: record["verdict"] for record in report.records}
    assert verdicts == {0: "proved", 1: "error", 2: "late", 3: "skipped", 4: "error"}
    assert "SIGKILL" in report.records[1]["error"] and report.exit_code == 1
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert lines == report.records == told
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["device"] == "Tesla" and len(written["sections"]) == 5
    assert "# AURA on Tesla" in (tmp_path / "gpu.md").read_text()


def test_a_machine_without_the_libraries_is_asked_once(monkeypatch, tmp_path):
    (tmp_path / "gpu.log").touch()
    told = []

    class Fake(fake_worker([([[0, 1, 2]], 1)])):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            (tmp_path / "gpu.log").write_text("Traceback\nModuleNotFoundError: No module named 'peft'\n\n")

    monkeypatch.setattr(runner, "Worker", Fake)
    report = runner.run([0, 1, 2], scale="full", out=tmp_path, seconds=60, on_record=told.append)
    assert [record["verdict"] for record in report.records] == ["error"] * 3
    assert all("No module named 'peft'" in record["error"] for record in report.records)


def test_what_does_not_fit_by_the_plan_is_not_begun(monkeypatch):
    lab = Lab.__new__(Lab)
    lab.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=16 * 2**30))
    plan = SimpleNamespace(memory=lambda: SimpleNamespace(total=20 * 2**30))
    with pytest.raises(NotPossible, match=r"20\.0 GiB, and the GPU has 16\.0"):
        lab.require(plan)
    lab.device = torch.device("cpu")
    lab.require(plan)


def test_the_exit_code_is_that_of_what_was_disproved(tmp_path):
    for verdict, code in (("proved", 0), ("late", 0), ("skipped", 0), ("disproved", 1), ("error", 1)):
        assert Report(tmp_path, {"scale": "tiny"}, [{"verdict": verdict}]).exit_code == code


def test_a_failed_claim_stands_first():
    found = Findings(on_gpu=True)
    found.check("one", True, seen=1, wanted=1)
    found.check("two", False, seen=3.14159265, wanted=float("inf"))
    lines = lines_of({"checks": found.checks, "facts": {"sizes": {"a": 1}}, "error": "first line\nValueError: last"})
    assert lines == [
        "ValueError: last",
        "NO: two (seen 3.142, wanted inf)",
        "yes: one (seen 1, wanted 1)",
        "sizes: a 1",
    ]


def test_every_section_is_there():
    assert [each.number for each in SECTIONS] == list(range(13))
    for each in SECTIONS:
        assert callable(each.function) and 0 < each.least < each.deadline
