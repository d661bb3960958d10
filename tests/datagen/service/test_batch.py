"""Batches are split, polled and joined; a run that is killed pays once."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path

import pytest

from aura.datagen.records import (
    BudgetReached,
    GenerationFailure,
    GenerationRequest,
    GenerationResult,
    GenerationStopped,
)
from aura.datagen.service.batch import BatchGenerator
from aura.datagen.service.jsonl import export_jsonl
from tests.datagen.api_server import ApiServer, completion, error
from tests.datagen.service.asking import GOOD, ONE, image, run_all, settings


def batches(server: ApiServer, folder: Path, **changes) -> BatchGenerator:
    own = {k: changes.pop(k) for k in ("max_lines", "max_bytes", "spent") if k in changes}
    return BatchGenerator(settings(server, linger=0.05, poll_every=0.02, **changes), folder, **own)


def test_batches_are_split_polled_and_joined_whatever_their_order(server, picture, tmp_path):
    server.statuses.extend(["validating", "in_progress", "finalizing"])

    def shape(lines: list[bytes]) -> list[bytes]:
        mixed = [*lines, *lines[:2], b'{"custom_id": "stranger"}', b"{broken", b""]
        random.Random(0).shuffle(mixed)
        return mixed

    server.shape_output = shape
    generator = batches(server, tmp_path, max_lines=4)
    results = run_all(generator, [GenerationRequest(image(n), picture, 1 + n % 3) for n in range(10)])
    assert [r.image_id for r in results] == list(range(10))
    assert [len(r.pairs) for r in results] == [1 + n % 3 for n in range(10)]
    assert len(server.batches) == 3
    assert generator.api.ledger.spent == pytest.approx(10 * ONE / 2), "the batch price"
    for name, data in server.files.items():
        if name.startswith("file-"):
            lines = [json.loads(line) for line in data.splitlines()]
            assert 1 <= len(lines) <= 4
            assert all(set(line) == {"custom_id", "method", "url", "body"} for line in lines)


@pytest.mark.parametrize("change", [{"answers": ["../other.jsonl"]}, {"answers": ["/etc/hostname"]}, {"token": "../x"}])
def test_a_part_that_names_files_elsewhere_is_refused(server, picture, tmp_path, change):
    part = {"token": "t", "status": "done", "bounds": {}, "batch_id": "b", "ended": "completed", "answers": []}
    (tmp_path / "part-t.json").write_text(json.dumps(part | change))
    with pytest.raises(ValueError, match=r"part-t\.json: damaged \(it names files of other parts\)"):
        run_all(batches(server, tmp_path), [GenerationRequest(image(1), picture, 1)])


def test_batches_hold_the_byte_limit(server, picture, tmp_path):
    requests = [GenerationRequest(image(n), picture, 1) for n in range(4)]
    files, _ = export_jsonl(requests[:1], tmp_path / "one", settings(server))
    size = files[0].stat().st_size
    run_all(batches(server, tmp_path / "b", max_bytes=int(2.5 * size)), requests)
    assert [len(server.files[f"file-{n}"]) <= 2.5 * size for n in range(len(server.batches))] == [True, True]


def test_an_expired_batch_gives_what_it_has(server, picture, tmp_path):
    server.end = "expired"
    server.shape_output = lambda lines: lines[:2]
    server.script.append(error(500, "worker died"))
    results = run_all(batches(server, tmp_path), [GenerationRequest(image(n), picture, 1) for n in range(4)])
    failed = sorted((r for r in results if isinstance(r, GenerationFailure)), key=lambda r: r.detail)
    assert len(failed) == 2 and all(r.reason == "http" and r.retryable for r in failed)
    assert failed[0].detail == "HTTP 500: worker died" and "without an answer" in failed[1].detail


def test_answers_of_a_batch_fail_for_the_same_reasons(server, picture, tmp_path):
    server.script.extend(
        [completion(GOOD[:-9]), completion(GOOD[:-9], finish="length"), completion(None, refusal="no")]
    )
    generator = batches(server, tmp_path)
    results = run_all(generator, [GenerationRequest(image(n), picture, 1) for n in range(3)])
    assert sorted(r.reason for r in results) == ["malformed", "refusal", "truncated"]
    assert generator.api.ledger.spent == pytest.approx(3 * ONE / 2)


def test_a_refused_batch_stops_the_run_and_is_submitted_anew(server, picture, tmp_path):
    server.end = "failed"
    request = GenerationRequest(image(1), picture, 1)
    (result,) = run_all(batches(server, tmp_path), [request])
    assert isinstance(result, GenerationStopped) and "Enqueued token limit reached" in str(result)
    server.end = "completed"
    (result,) = run_all(batches(server, tmp_path), [request])
    assert isinstance(result, GenerationResult) and len(server.batches) == 2


def run_and_die(generator: BatchGenerator, requests, until) -> None:
    """Start the requests and leave everything as a killed process would, once ``until()`` holds."""

    async def main() -> None:
        tasks = [asyncio.create_task(generator.generate(r)) for r in requests]
        deadline = time.monotonic() + 10
        while not until() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert until()
        for task in (*tasks, *generator._tasks):
            task.cancel()
        await asyncio.gather(*tasks, *generator._tasks, return_exceptions=True)
        generator._lock.close()

    asyncio.run(main())


def submitted(folder: Path) -> bool:
    states = [json.loads(p.read_text()) for p in folder.glob("part-*.json")]
    return any(s["status"] == "submitted" for s in states)


def test_a_killed_run_takes_up_its_batch_and_pays_once(server, picture, tmp_path):
    server.statuses.extend(["in_progress"] * 1000)
    requests = [GenerationRequest(image(n), picture, 1) for n in range(3)]
    run_and_die(batches(server, tmp_path), requests, lambda: submitted(tmp_path))
    server.statuses.clear()
    generator = batches(server, tmp_path)
    results = run_all(generator, requests)
    assert all(isinstance(r, GenerationResult) for r in results)
    assert len(server.batches) == 1 and generator.api.ledger.spent == pytest.approx(3 * ONE / 2)
    # Killed again before the answers were stored: they lie in the folder.
    again = run_all(batches(server, tmp_path), requests)
    assert [r.pairs for r in again] == [r.pairs for r in results] and len(server.batches) == 1


def test_a_run_killed_between_creating_a_batch_and_noting_it_finds_it_again(server, picture, tmp_path):
    requests = [GenerationRequest(image(n), picture, 1) for n in range(2)]
    server.statuses.extend(["in_progress"] * 1000)
    run_and_die(batches(server, tmp_path), requests, lambda: submitted(tmp_path))
    server.statuses.clear()
    (state,) = tmp_path.glob("part-*.json")
    noted = json.loads(state.read_text())
    state.write_text(json.dumps({**noted, "status": "submitting", "batch_id": ""}))
    results = run_all(batches(server, tmp_path), requests)
    assert all(isinstance(r, GenerationResult) for r in results) and len(server.batches) == 1


def test_a_busy_batch_endpoint_is_asked_again(server, picture, tmp_path):
    server.batch_script.extend([error(500), error(429, retry_after="0.1")])
    (result,) = run_all(batches(server, tmp_path), [GenerationRequest(image(1), picture, 1)])
    assert isinstance(result, GenerationResult)


def test_equal_keys_are_one_piece_of_work(server, picture, tmp_path):
    request = GenerationRequest(image(1), picture, 1, key="same")
    results = run_all(batches(server, tmp_path), [request, request])
    assert results[0] == results[1]
    assert len(server.files["file-0"].splitlines()) == 1


def test_batches_stop_before_max_cost(server, picture, tmp_path):
    generator = batches(server, tmp_path, max_cost=0.1)
    results = run_all(generator, [GenerationRequest(image(n), picture, 1) for n in range(12)])
    assert any(isinstance(r, BudgetReached) for r in results) or generator.api.ledger.spent <= 0.1
    assert generator.api.ledger.spent <= 0.1 and generator.api.ledger.reserved == 0


def test_a_folder_belongs_to_one_run(server, tmp_path):
    first = batches(server, tmp_path)
    with pytest.raises(ValueError, match="in use by another run"):
        batches(server, tmp_path)
    run_all(first, [])
    run_all(batches(server, tmp_path), [])
