"""Projects through the batch endpoint and through files of requests, by the commands that a user types."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aura.formats.amodal_reason_seg import AmodalReasonSeg
from tests.datagen.api_server import SEG, ApiServer, Reply, completion, error, pairs_for
from tests.datagen.commands import SCRIPT, accept_all, store_of
from tests.scripts.test_build_dataset import write_source


@pytest.fixture
def server(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with ApiServer() as running:
        yield running


@pytest.fixture
def batch_option(configure, server, tmp_path) -> str:
    """A project of 5 training and 3 test images, with a batch generator that asks the loopback server."""
    sources = [
        write_source(tmp_path, "first", 1, 6) | {"split": "train"},
        write_source(tmp_path, "second", 11, 4) | {"split": "test"},
    ]
    api = {"model": "m", "base_url": server.url, "linger": 0.1, "poll_every": 0.05, "retries": 1}
    api["prices"] = {"m": {"input": 2.0, "output": 10.0, "batch_factor": 0.5}}
    generator = {"kind": "openai-batch", "pairs_per_image": 4, "retry_delay": 0.05, "api": api}
    return configure(*sources, generator=generator)


def status(build, capsys, option) -> dict:
    capsys.readouterr()
    assert build(["status", option, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def bad_second_pair(request: dict):
    """Good pairs, but that the second question names what it asks for."""
    pairs = json.loads(pairs_for(request))
    pairs["pairs"][1]["question"] = "Where is the dining table in this picture?"
    return completion(json.dumps(pairs))


def test_a_batch_project_from_annotations_to_a_release(build, batch_option, server, tmp_path, capsys):
    assert build(["init", batch_option]) == 0
    server.script.append(bad_second_pair)
    dropped = []

    def shuffled_and_partial(lines: list[bytes]) -> list[bytes]:
        if not dropped:
            dropped.append(lines.pop())
        return [*reversed(lines), *lines[:1], b'{"custom_id": "stranger"}', b"{torn"]

    server.shape_output = shuffled_and_partial
    server.statuses.extend(["validating", "in_progress"])
    assert build(["generate", batch_option]) == 0
    assert "9 jobs answered, 32 pairs, 1 sent back once, 1 tries failed" in capsys.readouterr().out
    assert len(dropped) == 1 and len(server.batches) >= 2 and not server.chats
    figures = status(build, capsys, batch_option)
    assert figures["images"] == {"pending": 0, "generated": 8, "failed": 0}
    assert figures["problems"] == {"duplicate": 1}, "what the server wrote anew repeats the first pair: people will see"
    assert figures["calls"] == {"answered": 9, "failed": 1} and figures["pairs"]["in_review"] == 32
    assert figures["cost"] == pytest.approx(9 * (1000 * 2 + 200 * 10) / 1e6 / 2)
    assert build(["check", batch_option]) == 0 and "0 pairs have other problems" in capsys.readouterr().out
    with store_of(tmp_path) as store:
        rewritten = [p for i in store.images.all() for p in store.pairs.of(i.image.image_id) if p.version == 2]
        assert len(rewritten) == 1 and len(store.pairs.history(rewritten[0].id)) == 2
    accept_all(tmp_path)
    assert build(["export", batch_option]) == 0
    data = AmodalReasonSeg.load(tmp_path / "out" / "1" / "train.json")
    turn = data[0].conversations[0].provenance["turns"][0]
    assert len(data) == 5 and turn["generator"] == "openai-batch" and turn["model"] == "served-model"
    assert turn["state"] == "accepted" and len(turn["verdicts"]) == 2


def test_a_killed_batch_run_takes_up_what_it_had_submitted(build, batch_option, server, tmp_path, capsys):
    assert build(["init", batch_option]) == 0
    server.statuses.extend(["in_progress"] * 100_000)
    process = subprocess.Popen([sys.executable, str(SCRIPT), "generate", batch_option])
    deadline = time.monotonic() + 240
    while len(server.statuses) > 99_998 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(server.batches) == 1
    figures = status(build, capsys, batch_option)
    assert figures["images"]["pending"] == 8 and figures["in_progress"] == 8 and figures["cost"] == 0
    server.statuses.clear()
    assert build(["generate", batch_option]) == 0
    figures = status(build, capsys, batch_option)
    assert len(server.batches) == 1, "what was submitted is not submitted again"
    assert figures["images"]["generated"] == 8 and figures["calls"] == {"answered": 8, "lost": 8}
    assert figures["cost"] == pytest.approx(8 * (1000 * 2 + 200 * 10) / 1e6 / 2)


def test_requests_go_out_and_answers_come_back_as_files(build, batch_option, server, tmp_path, capsys):
    assert build(["init", batch_option]) == 0
    out = tmp_path / "requests"
    assert build(["generate", batch_option, f"--export-jsonl={out}", "--limit=2"]) == 0
    assert len((out / "requests-000.jsonl").read_bytes().splitlines()) == 2
    assert build(["generate", batch_option, f"--export-jsonl={out}"]) == 2
    assert "already holds requests" in capsys.readouterr().err
    (out / "requests-000.jsonl").unlink()
    assert build(["generate", batch_option, f"--export-jsonl={out}"]) == 0
    assert "requests-000.jsonl" in capsys.readouterr().out
    server.script.append(bad_second_pair)
    answers = tmp_path / "answers.jsonl"
    lines = answered(server, out / "requests-000.jsonl")
    answers.write_bytes(b"\n".join([*reversed(lines[:-1]), lines[0], b"{torn"]))
    capsys.readouterr()
    assert build(["generate", batch_option, "--import-jsonl", str(answers)]) == 1
    shown = capsys.readouterr().out
    assert "7 jobs answered, 28 pairs, 1 sent back once" in shown and "2 images wait for an answer" in shown
    assert build(["generate", batch_option, "--import-jsonl", str(answers)]) == 1
    assert "0 jobs answered" in capsys.readouterr().out
    assert build(["generate", batch_option, f"--export-jsonl={tmp_path / 'rest'}"]) == 0
    rest = answered(server, tmp_path / "rest" / "requests-000.jsonl")
    assert len(rest) == 2 and sum(b"Refused:" in line for line in read(tmp_path / "rest" / "requests-000.jsonl")) == 1
    (tmp_path / "rest.jsonl").write_bytes(b"\n".join(rest))
    arguments = ["generate", batch_option, "--import-jsonl", str(answers), str(tmp_path / "rest.jsonl")]
    assert build(arguments) == 0
    figures = status(build, capsys, batch_option)
    assert figures["images"]["generated"] == 8 and figures["calls"] == {"answered": 9} and not server.batches
    assert build(["generate", batch_option, f"--export-jsonl={tmp_path / 'none'}"]) == 0
    assert "there is nothing to ask" in capsys.readouterr().out


def read(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def answered(server: ApiServer, path: Path) -> list[bytes]:
    """What a batch runner writes about a file of requests."""
    found = []
    for line in map(json.loads, read(path)):
        reply = server.chat(line["body"])
        response = {"status_code": reply.status, "request_id": "q", "body": reply.body}
        found.append(json.dumps({"id": "v", "custom_id": line["custom_id"], "response": response}).encode())
    return found


def test_mistakes_with_files_are_one_line(build, batch_option, tmp_path, capsys):
    assert build(["init", batch_option]) == 0
    for arguments, words in (
        (["--export-jsonl=x", "--generator.kind=offline"], "the offline generator asks nobody"),
        (["--import-jsonl", "x", "--generator.kind=offline"], "the offline generator asks nobody"),
        (["--export-jsonl=x", "--max-cost=1"], "cannot hold back a runner of your own"),
        (["--export-jsonl=x", "--import-jsonl", "y"], "one of"),
        (["--import-jsonl", "none.jsonl"], "none.jsonl: cannot be read"),
    ):
        capsys.readouterr()
        assert build(["generate", batch_option, *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_answers_without_a_pair_are_recorded(build, batch_option, server, tmp_path, capsys):
    assert build(["init", batch_option]) == 0
    assert build(["generate", batch_option, f"--export-jsonl={tmp_path}", "--limit=3"]) == 0
    server.script.extend(
        [completion(None, refusal="I cannot"), completion(f"{{'no json {SEG}"), completion("", "length")]
    )
    (tmp_path / "answers.jsonl").write_bytes(b"\n".join(answered(server, tmp_path / "requests-000.jsonl")))
    assert build(["generate", batch_option, "--import-jsonl", str(tmp_path / "answers.jsonl")]) == 1
    figures = status(build, capsys, batch_option)
    assert figures["reasons"] == {"refusal": 1, "truncated": 1, "malformed": 1}
    assert figures["images"] == {"pending": 5, "generated": 0, "failed": 3} and figures["cost"] > 0


def test_a_refused_setting_leaves_images_pending_and_says_the_remedy(build, batch_option, server, tmp_path, capsys):
    """In a batch, in a runner's file and one by one; a later run with the setting mended does the rest."""
    assert build(["init", batch_option]) == 0
    refused = error(400, "'response_format' of type json_schema is not supported")
    server.script.extend([lambda request: completion(pairs_for(request)), *[refused] * 7])
    capsys.readouterr()
    assert build(["generate", batch_option]) == 1
    assert "stopped: HTTP 400" in (shown := capsys.readouterr().out) and "structured to json_object" in shown
    figures = status(build, capsys, batch_option)
    assert figures["images"] == {"pending": 7, "generated": 1, "failed": 0} and figures["reasons"] == {}
    assert build(["generate", batch_option, f"--export-jsonl={tmp_path}"]) == 0
    server.script.extend([lambda request: completion(pairs_for(request)), *[refused] * 6])
    (tmp_path / "answers.jsonl").write_bytes(b"\n".join(answered(server, tmp_path / "requests-000.jsonl")))
    assert build(["generate", batch_option, "--import-jsonl", str(tmp_path / "answers.jsonl")]) == 1
    assert "structured to json_object" in capsys.readouterr().out
    one_by_one = ["generate", batch_option, "--generator.kind=openai"]
    server.script.append(refused)
    assert build([*one_by_one, "--generator.api.concurrency=1"]) == 1
    assert len(server.chats) == 1 and "structured to json_object" in capsys.readouterr().out
    assert status(build, capsys, batch_option)["images"] == {"pending": 6, "generated": 2, "failed": 0}
    assert build(["generate", batch_option, "--generator.api.structured=json_object"]) == 0
    figures = status(build, capsys, batch_option)
    assert figures["images"]["generated"] == 8 and figures["calls"]["answered"] == 8


def test_what_was_answered_and_useless_is_asked_again_only_on_demand_and_then_anew(
    build, batch_option, server, tmp_path, capsys
):
    assert build(["init", batch_option]) == 0
    server.script.extend([completion("no json")] * 8)
    assert build(["generate", batch_option]) == 1
    figures = status(build, capsys, batch_option)
    assert figures["reasons"] == {"malformed": 8} and figures["calls"] == {"failed": 8} and len(server.batches) == 1
    assert build(["generate", batch_option, "--retry-failed"]) == 0
    figures = status(build, capsys, batch_option)
    assert figures["images"]["generated"] == 8 and len(server.batches) == 2
    assert figures["cost"] == pytest.approx(16 * (1000 * 2 + 200 * 10) / 1e6 / 2)


def test_a_bad_pair_goes_back_and_then_into_review_with_the_reason(build, batch_option, server, tmp_path, capsys):
    def cut(request: dict):
        good = [] if "Refused:" in str(request) else json.loads(pairs_for(request))["pairs"][:3]
        return completion(f"<think>hm</think>{json.dumps({'pairs': [*good, {'question': 'And the rest?'}]})}")

    assert build(["init", batch_option, "--split.take_train=1", "--split.take_test=1"]) == 0
    server.script.extend([cut, cut, cut, cut])
    capsys.readouterr()
    assert build(["generate", batch_option, "--generator.kind=openai"]) == 0
    assert "2 jobs answered, 8 pairs, 2 sent back once" in capsys.readouterr().out
    assert "Refused: Give every pair" in server.chats[-1]["messages"][1]["content"][0]["text"]
    with store_of(tmp_path) as store:
        for image in store.images.all():
            pairs = store.pairs.of(image.image.image_id)
            assert [p.state for p in pairs] == ["in_review"] * 4 and not any(p.current.problems for p in pairs[:3])
            codes = [problem.code for problem in pairs[3].current.problems]
            assert codes[:2] == ["form", "form"] and pairs[3].text.question == "And the rest?"
    assert build(["check", batch_option]) == 0
    assert build(["export", batch_option, "--export.include=all", "--split.take_train=1"]) == 0
    assert "left out: 2 pairs with a broken form" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["openai", "openai-batch"])
def test_no_secret_is_ever_shown_or_written(build, batch_option, server, tmp_path, capfd, monkeypatch, caplog, kind):
    caplog.set_level(0)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-no-real-secret\n")
    option = [batch_option, f"--generator.kind={kind}"]
    assert build(["init", *option, "--generator.api.api_key=sk-no-real-secret"]) == 2
    assert build(["init", *option, "--generator.api.api_key_env=sk-no-real-secret"]) == 2
    assert build(["init", *option, "--generator.api.base_url=http://me:sk-no-real-secret@h/v1"]) == 2
    assert not (tmp_path / "project").exists()
    assert build(["init", *option]) == 0
    words = "Bearer sk-no-real-secret is wrong"
    server.script.extend(
        [
            error(500, words),
            error(400, words),
            completion(words),
            completion(None, refusal=words),
            Reply(words),
            Reply({"error": {"message": words}}),
            error(401, words),
        ]
    )
    assert build(["generate", *option, "--generator.api.retries=0", "--generator.api.concurrency=1"]) == 1
    monkeypatch.setenv("OPENAI_API_KEY", "sk-no-real-secret or so")
    assert build(["generate", *option, "--retry-failed"]) == 2
    assert build(["status", *option]) == 0
    everything = "".join(capfd.readouterr()) + caplog.text
    assert "the environment variable OPENAI_API_KEY" in everything and "[key] is wrong" in everything
    assert "sk-no-real-secret" not in everything
    files = [path for path in (tmp_path / "project").rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"sk-no-real-secret" in path.read_bytes()]
