"""The orchestrator with generators that behave and misbehave."""

import asyncio
import dataclasses
import random

import pytest

from aura.datagen.generate import Run, RunSettings
from aura.datagen.records import (
    GenerationError,
    GenerationFailure,
    GenerationRequest,
    GenerationResult,
    GenerationStopped,
    PairDraft,
    PairProblem,
)
from aura.datagen.store.store import Store


class Fake:
    """Answers after a moment; ``script[image id]`` holds errors to raise first. Remembers what it was asked."""

    name, model = "fake", "model-1"

    def __init__(self, script=None, concurrency=4, cost=0.5):
        self.script, self.concurrency, self.cost = script or {}, concurrency, cost
        self.asked: list[GenerationRequest] = []
        self.running = self.most = 0

    async def generate(self, request):
        self.asked.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(random.uniform(0, 0.003))
            errors = self.script.get(request.image.image_id)
            if errors:
                raise errors.pop(0)
        finally:
            self.running -= 1
        cup = request.image.objects[0].id
        mark = " anew" if request.rejected else ""
        pairs = tuple(PairDraft(f"What is useful{mark}, {n}?", "The cup [SEG].", (cup,)) for n in range(request.pairs))
        return GenerationResult(request.image.image_id, pairs, self.name, self.model, "1", 10, 5, self.cost, "text")

    async def close(self):
        pass


def failure(image_id, *, retryable=True, cost=0.0):
    return GenerationError(GenerationFailure(image_id, "http", "HTTP 500", retryable, cost))


def run(store: Store, generator, recipe, check=None, **settings):
    settings = RunSettings(**{"retry_delay": 0.0, **settings})
    made = Run(store, generator, recipe, check=check, settings=settings)
    return asyncio.run(made.run())


def test_every_image_is_asked_about_once_at_most_so_many_at_a_time(make_store, recipe):
    store, generator = make_store(12), Fake(concurrency=3)
    summary = run(store, generator, recipe)
    assert (summary.answered, summary.finished, summary.pairs, summary.cost) == (12, 12, 36, 6.0)
    assert summary.stopped is None and generator.most == 3
    assert sorted(r.image.image_id for r in generator.asked) == list(range(1, 13))
    assert all(
        r.pairs == 3 and r.picture.name == f"{r.image.image_id}.png" and len(r.key) == 64 for r in generator.asked
    )
    again = Fake()
    assert run(store, again, recipe).answered == 0 and again.asked == []


def test_failures_are_retried_and_the_others_go_on(make_store, recipe):
    script = {
        2: [failure(2, cost=0.1), failure(2)],
        3: [failure(3, retryable=False)],
        4: [failure(4) for _ in range(9)],
    }
    store, generator = make_store(5), Fake(script)
    summary = run(store, generator, recipe, max_attempts=3)
    assert (summary.answered, summary.failed, summary.retried) == (3, 2, 4)
    assert {s.image.image_id: s.state for s in store.images.all()} == {
        1: "generated", 2: "generated", 3: "failed", 4: "failed", 5: "generated"
    }  # fmt: skip
    assert store.cost() == pytest.approx(summary.cost) == pytest.approx(1.6)
    assert store.status().reasons == {"http": 2}


def test_waits_for_what_is_to_be_retried(make_store, recipe, clock):
    store, generator = make_store(1), Fake({1: [failure(1)]})

    async def both():
        task = asyncio.create_task(Run(store, generator, recipe, settings=RunSettings(retry_delay=0.2)).run())
        while not store.jobs.seconds_to_next():
            await asyncio.sleep(0.001)
        clock.now += 0.2
        return await task

    assert asyncio.run(both()).answered == 1


def test_a_service_that_refuses_everything_stops_the_run_and_loses_nothing(make_store, recipe):
    store, generator = make_store(6), Fake({2: [GenerationStopped("the key is wrong")]}, concurrency=2)
    summary = run(store, generator, recipe)
    assert summary.stopped == "the key is wrong" and summary.answered < 6
    status = store.status()
    assert status.images["pending"] == 6 - summary.answered and status.in_progress == 0
    assert status.calls["not_sent"] == 1
    assert run(store, Fake(), recipe).answered == 6 - summary.answered


def test_an_unexpected_error_ends_the_run_after_what_is_under_way(make_store, recipe):
    store, generator = make_store(8), Fake({1: [RuntimeError("a bug")]}, concurrency=2)
    with pytest.raises(RuntimeError, match="a bug"):
        run(store, generator, recipe)
    assert generator.running == 0
    asked = len(generator.asked)
    assert store.status().images["generated"] == asked - 1 < 8


def test_stop_finishes_what_is_under_way(make_store, recipe):
    store, generator = make_store(9), Fake(concurrency=3)
    made = Run(store, generator, recipe)
    made.progress = lambda summary: made.stop("enough")
    summary = asyncio.run(made.run())
    assert summary.stopped == "enough" and 1 <= summary.answered <= 4
    assert store.status().in_progress == 0 and len(generator.asked) == summary.answered


def test_the_budget_of_all_runs_and_the_number_of_jobs(make_store, recipe):
    store = make_store(6)
    assert run(store, Fake(), recipe, max_images=2).answered == 2
    summary = run(store, Fake(), recipe, max_cost=1.0)
    assert summary.answered == 0 and "1.0000 of max_cost 1 is spent" in summary.stopped
    assert run(store, Fake(), recipe, max_cost=100.0).answered == 4


def test_pairs_that_fail_their_checks_go_back_once(make_store, recipe):
    store, generator, seen = make_store(2), Fake(), []

    def check(image, pairs, kept):
        seen.append((image.image_id, [p.question for p in pairs], None if kept is None else [p.question for p in kept]))
        bad = "anew" not in pairs[0].question
        return [(PairProblem("length", "too short", "more"),) if bad and n == 1 else () for n in range(len(pairs))]

    summary = run(store, generator, recipe, check)
    assert (summary.answered, summary.finished, summary.pairs, summary.sent_back) == (4, 2, 6, 2)
    first, second = [s for s in seen if s[0] == 1]
    assert first[2] is None and len(first[1]) == 3
    assert second[1] == ["What is useful anew, 0?"] and second[2] == ["What is useful, 0?", "What is useful, 2?"]
    again = next(r for r in generator.asked if r.rejected)
    assert again.pairs == 1 and again.rejected[0][1][0].code == "length" and len(again.context) == 3
    assert [p.version for p in store.pairs.of(1)] == [1, 2, 1] and store.status().flagged == 0


def test_what_was_paid_for_is_not_asked_again(make_store, recipe):
    store = make_store(1)
    run(store, Fake(), recipe)
    with store.database.write() as cursor:
        cursor.execute("UPDATE images SET state = 'pending', round = 0")
        cursor.execute("UPDATE pairs SET position = position + 10")
    generator = Fake()
    summary = run(store, generator, recipe)
    assert generator.asked == [] and summary.answered == 1 and summary.cost == 0 and store.cost() == 0.5
    with store.database.write() as cursor:
        cursor.execute("UPDATE images SET state = 'pending', round = 0")
        cursor.execute("UPDATE pairs SET position = position + 20")
    run(store, generator, dataclasses.replace(recipe, model="model-2"))
    assert len(generator.asked) == 1


def test_settings_out_of_range():
    for change in ({"max_attempts": 0}, {"lease_seconds": 0}, {"retry_delay": -1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            RunSettings(**change)
