"""The store: leases, calls and histories, in one process and in several, some of which are killed."""

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from aura.datagen.records import GenerationFailure, PairDraft
from aura.datagen.store.database import Database
from aura.datagen.store.images import ImageEntry, Source
from aura.datagen.store.leases import is_dead, own_name
from aura.datagen.store.store import Store

WORKER = Path(__file__).parent.parent / "worker.py"


def states(store: Store) -> list[str]:
    return [image.state for image in store.images.all()]


def outcomes(store: Store) -> list[str]:
    return [row["outcome"] for row in store.database.rows("SELECT outcome FROM calls ORDER BY id")]


# --- files and images -------------------------------------------------------------------------------------------------


def test_a_project_is_made_once_and_opened_by_those_who_know_its_version(tmp_path):
    path = tmp_path / "deep" / "project.sqlite"
    with pytest.raises(ValueError, match=r"no such project; make it with .* init"):
        Store.open(path)
    Store.create(path, sources=[Source("a.json", "pictures")], settings={"seed": 1}).close()
    with Store.open(path) as store:
        assert store.settings == {"seed": 1} and store.images.sources == (Source("a.json", "pictures"),)
    with pytest.raises(ValueError, match="exists already"):
        Store.create(path, sources=[])
    database = Database(path)
    database.set_meta("schema_version", 99)
    database.close()
    with pytest.raises(ValueError, match="schema version 99"):
        Store.open(path)
    (tmp_path / "text").write_text("this is no database, whatever it may look like" * 50)
    with pytest.raises(ValueError, match="is not a project file"):
        Store.open(tmp_path / "text")


def test_images_come_back_as_they_went_in_and_only_once(make_store, tmp_path):
    store = make_store(3)
    stored = list(store.images.all())
    assert [s.order for s in stored] == [1, 2, 3] and [s.split for s in stored] == ["train", "train", "test"]
    assert all(s.picture == tmp_path / "pictures" / f"{s.image.image_id}.png" for s in stored)
    entries = [ImageEntry(s.image, s.split, 0, s.picture_sha256) for s in stored]
    assert store.images.add(entries) == 0 and store.images.count() == 3
    assert stored[0].image.objects[1].occluded_by == (100,) and stored[0].image.image_info == {"license": 1}
    assert store.images.get(2) == stored[1]
    for change, words in (
        ({"split": "test"}, "in the split 'train'"),
        ({"picture_sha256": "other"}, "another picture or other annotations"),
        ({"source": 1}, "another annotation file"),
    ):
        with pytest.raises(ValueError, match=words):
            store.images.add([dataclasses.replace(entries[0], **change)])
    with pytest.raises(KeyError):
        store.images.get(9)


def test_what_is_written_in_a_failing_transaction_is_not_there(make_store):
    store = make_store(1)
    with pytest.raises(RuntimeError), store.database.write() as cursor:
        cursor.execute("UPDATE images SET state = 'failed'")
        with store.database.write() as inner:
            inner.execute("UPDATE images SET reason = 'x'")
        raise RuntimeError
    assert states(store) == ["pending"]


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_an_answer_is_stored_whole_and_the_job_is_over(make_store, recipe, result_of):
    store = make_store(2)
    first, second = store.jobs.claim(recipe, limit=5)
    assert store.jobs.claim(recipe, limit=5) == [] and store.status().in_progress == 2
    assert first.key != second.key and first.pairs == 3 and first.rejected == ()
    assert store.answers.take(first, result_of(first))
    pairs = store.pairs.of(1)
    assert [p.state for p in pairs] == ["in_review"] * 3
    assert [p.follows for p in pairs] == [None, pairs[0].id, None]
    assert pairs[2].text.objects == (100, 101)
    assert [(v.version, v.author) for v in store.pairs.history(pairs[0].id)] == [(1, "generator")]
    assert store.pairs.origin(pairs[0].current) == {"generator": "fake", "model": "model-1", "prompt_version": "1"}
    status = store.status()
    assert status.images == {"pending": 1, "generated": 1, "failed": 0}
    assert (status.cost, status.input_tokens, status.output_tokens) == (0.5, 100, 20)
    assert status.calls == {"answered": 1, "open": 1} and status.in_progress == 1
    row = store.database.row("SELECT raw, key FROM calls WHERE id = ?", [first.call])
    assert tuple(row) == ("raw ", first.key)


def test_the_key_names_the_work(make_store, recipe, result_of):
    def key(store, recipe):
        [job] = store.jobs.claim(recipe)
        store.jobs.release(job)
        return job.key

    store = make_store(1)
    own = key(store, recipe)
    assert key(store, recipe) == own
    changes = ({"model": "other"}, {"generator": "other"}, {"prompt_version": "2"}, {"pairs": 4}, {"details": "seed 1"})
    keys = {key(store, dataclasses.replace(recipe, **change)) for change in changes}
    assert len(keys) == 5 and own not in keys
    picture = "UPDATE images SET digest = 'another picture'"
    with store.database.write() as cursor:
        cursor.execute(picture)
    assert key(store, recipe) != own


def test_work_that_was_paid_is_found_by_its_key(make_store, recipe, result_of):
    store = make_store(1)
    [job] = store.jobs.claim(recipe)
    assert job.answer is None
    store.answers.take(job, result_of(job))
    # As if the image had been set back: the answer is there, so nobody is asked.
    with store.database.write() as cursor:
        cursor.execute("UPDATE images SET state = 'pending', round = 0, image_id = 7")
        cursor.execute("UPDATE pairs SET position = position + 10")
    [again] = store.jobs.claim(recipe)
    assert again.key == job.key and again.answer is not None
    assert again.answer.pairs == result_of(job).pairs and again.answer.raw == "raw "
    assert store.answers.take(again, again.answer)
    assert outcomes(store) == ["answered", "reused"] and store.cost() == 0.5


def test_a_job_costs_the_same_however_many_went_before(make_store, recipe, result_of):
    """Counted in steps of SQLite's virtual machine."""

    def steps(store: Store, jobs: int) -> float:
        counted = []
        store.database._connection.set_progress_handler(lambda: counted.append(1), 10)
        for _ in range(jobs):
            (job,) = store.jobs.claim(recipe)
            assert store.answers.take(job, result_of(job))
        store.database._connection.set_progress_handler(None, 10)
        return len(counted) / jobs

    store = make_store(420)
    first = steps(store, 20)
    steps(store, 380)
    assert steps(store, 20) < 1.5 * first


def test_a_lease_that_expired_is_taken_again_and_the_late_answer_counts_once(make_store, recipe, result_of, clock):
    store = make_store(1)
    with Store.open(store.path) as other:
        other.database.clock = clock
        other.jobs.owner = "another machine/1/1/1"
        [late] = store.jobs.claim(recipe, lease_seconds=60)
        assert other.jobs.claim(recipe) == [] and other.jobs.seconds_to_next() == 60
        clock.now += 30
        store.jobs.renew([late], 60)
        clock.now += 59
        assert other.jobs.claim(recipe) == []
        clock.now += 2
        [taken] = other.jobs.claim(recipe)
        assert taken.key == late.key and outcomes(store) == ["lost", "open"]
        store.jobs.renew([late], 600)
        assert store.answers.take(late, result_of(late, mark=" first"))
        assert not other.answers.take(taken, result_of(taken, mark=" second"))
        assert outcomes(store) == ["answered", "duplicate"]
        assert store.cost() == 1.0, "both were paid"
        assert "first" in store.pairs.of(1)[0].text.question and len(store.pairs.of(1)) == 3
        assert store.jobs.seconds_to_next() is None


def test_the_leases_of_a_dead_process_are_free_at_once(make_store, recipe, clock):
    child = subprocess.run(
        [sys.executable, "-c", "from aura.datagen.store.leases import own_name; print(own_name())"],
        capture_output=True,
        text=True,
        check=True,
    )
    dead = child.stdout.strip()
    assert is_dead(dead) and not is_dead(own_name())
    assert not is_dead("another-machine/" + dead.partition("/")[2]) and not is_dead("nonsense")
    host, space, pid, start = own_name().split("/")
    assert is_dead("/".join((host, space, pid, str(int(start) + 1)))), "the number was given out again"
    store = make_store(1)
    store.jobs.owner = dead
    store.jobs.claim(recipe, lease_seconds=1e6)
    store.jobs.owner = own_name()
    [job] = store.jobs.claim(recipe)
    assert outcomes(store) == ["lost", "open"] and job.attempt == 1, "who was killed says nothing about the image"
    assert store.status().in_doubt == 1


def test_failures_are_tried_again_later_and_not_for_ever(make_store, recipe, clock):
    store = make_store(1)
    busy = GenerationFailure(1, "http", "HTTP 500", retryable=True, cost=0.1)
    for attempt in (1, 2, 3):
        [job] = store.jobs.claim(recipe)
        assert job.attempt == attempt
        assert store.answers.fail(job, busy, max_attempts=3, delay=30) == (attempt < 3)
        assert store.jobs.claim(recipe) == []
        if attempt < 3:
            assert store.jobs.seconds_to_next() == 30
            clock.now += 30
    status = store.status()
    assert status.images["failed"] == 1 and status.reasons == {"http": 1} and status.retries == {"http": 3}
    assert status.cost == pytest.approx(0.3) and store.jobs.failures() == [(1, "http", "HTTP 500")]
    assert store.jobs.retry_failed() == 1 and store.jobs.claim(recipe)[0].attempt == 1


def test_what_cannot_be_retried_fails_at_once_and_what_was_not_sent_is_no_attempt(make_store, recipe):
    store = make_store(1)
    [job] = store.jobs.claim(recipe)
    store.jobs.release(job)
    [job] = store.jobs.claim(recipe)
    assert job.attempt == 1
    assert not store.answers.fail(job, GenerationFailure(1, "refusal", "no", retryable=False), max_attempts=3)
    assert outcomes(store) == ["not_sent", "failed"] and store.status().reasons == {"refusal": 1}


def test_failed_pairs_go_back_once_with_the_reasons_and_then_into_review(make_store, recipe, result_of, found_in):
    store = make_store(1)
    [job] = store.jobs.claim(recipe)
    assert store.answers.take(job, result_of(job), found_in([0]))
    pairs = store.pairs.of(1)
    assert [p.state for p in pairs] == ["failed", "failed", "generated"], "the turn after it goes back as well"
    assert store.status().images["pending"] == 1 and store.annotators.all() == []
    [again] = store.jobs.claim(recipe)
    assert again.round == 1 and again.pairs == 2 and again.key != job.key
    assert [draft.question for draft, _ in again.rejected] == [p.text.question for p in pairs[:2]]
    assert [[p.code for p in problems] for _, problems in again.rejected] == [["names_target"], ["follows"]]
    assert again.context == result_of(job).pairs and again.rejected[1][0].follows == 0
    still = found_in([1])[:2]
    assert store.answers.take(again, result_of(again, mark=" better"), still)
    after = store.pairs.of(1)
    assert [(p.state, p.version) for p in after] == [("in_review", 2), ("in_review", 2), ("in_review", 1)]
    assert [p.follows for p in after] == [p.follows for p in pairs]
    assert [bool(p.current.problems) for p in after] == [False, True, False]
    assert [v.reason for v in store.pairs.history(after[0].id)] == ["generated", "written anew after the checks"]
    assert store.jobs.claim(recipe) == [] and store.status().flagged == 1
    assert store.status().problems == {"names_target": 1}


def test_pairs_that_come_back_too_few_or_not_at_all_go_into_review_as_they_were(
    make_store, recipe, result_of, found_in
):
    store = make_store(2)
    for job in store.jobs.claim(recipe, limit=2):
        store.answers.take(job, result_of(job), found_in([0, 2]))
    one, two = store.jobs.claim(recipe, limit=2)
    store.answers.take(one, result_of(one, 1, mark=" better"))
    assert [p.version for p in store.pairs.of(1)] == [2, 1, 1]
    assert not store.answers.fail(two, GenerationFailure(2, "refusal", "no", retryable=False))
    assert states(store) == ["generated", "generated"]
    assert {p.state for i in (1, 2) for p in store.pairs.of(i)} == {"in_review"}
    assert store.status().flagged == 5


def test_without_sending_back_problems_are_only_noted(make_store, recipe, result_of, found_in):
    store = make_store(1)
    [job] = store.jobs.claim(recipe)
    store.answers.take(job, result_of(job), found_in([1]), send_back=False)
    assert [bool(p.current.problems) for p in store.pairs.of(1)] == [False, True, False]
    assert {p.state for p in store.pairs.of(1)} == {"in_review"}


def test_a_turn_cannot_follow_a_later_one(make_store, recipe, result_of):
    store = make_store(1)
    [job] = store.jobs.claim(recipe)
    result = result_of(job)
    pairs = tuple(dataclasses.replace(p, follows=f) for p, f in zip(result.pairs, (1, 1, 7), strict=True))
    store.answers.take(job, dataclasses.replace(result, pairs=pairs))
    assert [p.follows for p in store.pairs.of(1)] == [None, None, None]


def test_history_can_be_added_to_only(in_review):
    store = in_review()
    pair = store.pairs.of(1)[0]
    for sql in (
        "DELETE FROM pair_versions",
        "UPDATE pair_versions SET answer = 'other'",
        "UPDATE pair_versions SET author = 'other'",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="never"), store.database.write() as cursor:
            cursor.execute(sql)
    assert store.pairs.add_version(pair.id, pair.text, author="ann", reason="edit") == 2
    assert store.pairs.get(pair.id).version == 1 and len(store.pairs.history(pair.id)) == 2
    assert PairDraft(*dataclasses.astuple(pair.text)).question == pair.text.question


# --- several processes ------------------------------------------------------------------------------------------------


def work(store: Store, paid: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(store.path), str(paid), *more], stderr=subprocess.PIPE, text=True
    )


def payments(paid: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in paid.read_text().splitlines())


@pytest.mark.parametrize(("moment", "number"), [("before", 5), ("paid", 5), ("stored", 4)])
def test_kill_9_loses_no_stored_answer_and_pays_for_none_twice(make_store, tmp_path, moment, number):
    store, paid = make_store(12), tmp_path / "paid"
    killed = work(store, paid, moment, str(number))
    assert killed.wait(240) == -signal.SIGKILL
    done = {s.image.image_id: store.pairs.of(s.image.image_id) for s in store.images.all() if s.state == "generated"}
    keys = {row["key"] for row in store.database.rows("SELECT key FROM calls WHERE outcome = 'answered'")}
    assert len(done) == len(keys) < 12 and (done or moment != "stored")
    second = work(store, paid)
    assert second.wait(240) == 0, second.stderr.read()
    assert states(store) == ["generated"] * 12
    assert all(store.pairs.of(image_id) == pairs for image_id, pairs in done.items())
    assert all(payments(paid)[key] == 1 for key in keys)
    # What was under way when the process died may be asked again, under the same key, and the ledger says so.
    twice = {key for key, times in payments(paid).items() if times > 1}
    lost = {row["key"] for row in store.database.rows("SELECT key FROM calls WHERE outcome = 'lost'")}
    assert twice <= lost and len(lost) <= 3 and len(payments(paid)) == 12
    if moment == "paid":
        assert twice
    assert store.database.value("PRAGMA integrity_check") == "ok"


def test_two_processes_share_the_work(make_store, tmp_path):
    store, paid, hold = make_store(60), tmp_path / "paid", tmp_path / "paid.hold"
    hold.touch()
    both = [work(store, paid), work(store, paid)]
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("paid.ready.*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    hold.unlink()
    assert [process.wait(240) for process in both] == [0, 0]
    assert states(store) == ["generated"] * 60
    assert set(payments(paid).values()) == {1} and len(payments(paid)) == 60
    assert set(store.status().calls) == {"answered"} and store.cost() == 60 * 0.25
    workers = Counter(line.split()[1] for line in paid.read_text().splitlines())
    assert sum(workers.values()) == 60 and len(workers) == 2


def test_a_process_that_is_killed_at_any_time(make_store, tmp_path):
    store, paid = make_store(40), tmp_path / "paid"
    for wait in (0.0, 0.015, 0.04):
        process = work(store, paid)
        deadline, seen = time.monotonic() + 240, len(outcomes(store))
        while len(outcomes(store)) == seen and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(240)
        answered = Counter(
            row["key"] for row in store.database.rows("SELECT key FROM calls WHERE outcome = 'answered'")
        )
        assert all(payments(paid)[key] == 1 or key in lost_keys(store) for key in answered)
    assert work(store, paid).wait(240) == 0
    assert states(store) == ["generated"] * 40
    assert sum(payments(paid).values()) - 40 <= store.status().in_doubt
    assert all(len(store.pairs.of(i)) == 2 for i in range(1, 41))


def lost_keys(store: Store) -> set[str]:
    return {row["key"] for row in store.database.rows("SELECT key FROM calls WHERE outcome = 'lost'")}
