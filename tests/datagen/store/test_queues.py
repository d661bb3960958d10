"""Queues: what the database keeps against what they are by definition, and what reading them costs."""

from __future__ import annotations

import dataclasses
import random

import pytest

from aura.datagen.store.annotators import Annotator
from aura.datagen.store.database import Database
from aura.datagen.store.store import Store


def people(store: Store, *names: str) -> list[Annotator]:
    for name in names:
        store.annotators.add(name)
    return store.annotators.all()


def due(store: Store, annotator: Annotator) -> list[tuple[int, str]]:
    """The queue by its definition, pair by pair."""
    active = [a.id for a in store.annotators.all() if a.active]
    found = []
    for stored in store.images.all() if annotator.id in active else ():
        mine = (active.index(annotator.id) + stored.order) % len(active) < store.queues.reviewers
        for pair in store.pairs.of(stored.image.image_id):
            standing = [v.annotator for v in store.reviews.verdicts(pair.id) if not v.replaced]
            if pair.state != "in_review" or annotator.name in standing:
                continue
            if pair.disputed:
                found.append((0, stored.order, pair.position, pair.id, "decide"))
            elif mine and len(standing) < store.queues.reviewers:
                found.append((1, stored.order, pair.position, pair.id, "judge"))
    return [(pair, kind) for *_, pair, kind in sorted(found)]


def check(store: Store) -> None:
    for row in store.queues.progress():
        queue = [(item.pair_id, item.kind) for item in store.queues.of(row.annotator, 1000)]
        assert queue == due(store, row.annotator)
        assert row.waiting == store.queues.num_waiting(row.annotator) == len(queue)
        said = [v for p in range(1, 100) for v in store.reviews.verdicts(p) if v.annotator == row.annotator.name]
        assert row.judged == sum(not v.replaced and not v.final for v in said)
        assert row.decided == sum(not v.replaced and v.final for v in said)


@pytest.mark.parametrize(("reviewers", "seed"), [(1, 0), (2, 1), (3, 2)])
def test_queues_are_what_they_are_by_definition_whatever_happens(make_store, recipe, result_of, reviewers, seed):
    store, lot = make_store(6), random.Random(seed)
    store.database.set_meta("reviewers", reviewers)
    names = iter("ABCDEFGH")
    for step in range(70):
        chance = lot.random()
        active = [a for a in store.annotators.all() if a.active]
        if step < 2 or chance < 0.05:
            people(store, next(names, "Z" * step))
        elif chance < 0.12:
            somebody = lot.choice(store.annotators.all())
            store.annotators.set_active(somebody.name, not somebody.active)
        elif chance < 0.25:
            for job in store.jobs.claim(recipe):
                store.answers.take(job, result_of(job))
        elif chance < 0.3:
            store.database.set_meta("reviewers", lot.choice([reviewers, 2, 3]))
        elif active:
            annotator = lot.choice(active)
            queue = store.queues.of(annotator)
            own = [v for v in store.reviews.recent(annotator, 50) if not store.pairs.get(v.pair_id).decided]
            if queue and (chance < 0.9 or not own):
                pair = store.pairs.get(lot.choice(queue).pair_id)
                text = dataclasses.replace(pair.text, question=f"{pair.text.question} {lot.choice(['Now?', 'Then?'])}")
                decision = lot.choice(["accept", "accept", "edit", "reject"])
                store.reviews.submit(annotator, pair.id, decision, version=pair.version, text=text)
            elif own and not store.pairs.get(own[0].pair_id).disputed:
                version = store.pairs.get(own[0].pair_id).version
                store.reviews.submit(annotator, own[0].pair_id, "reject", version=version, replaces=own[0].id)
        if step % 5 == 0:
            check(store)
    check(store)
    assert store.status().decided > 1


def test_a_project_without_the_tables_gets_them_when_it_is_opened(in_review):
    store = in_review(4)
    ann, bo, _ = people(store, "Ann", "Bo", "Cy")
    for annotator, decision in ((ann, "accept"), (bo, "reject")):
        for item in store.queues.of(annotator)[:4]:
            store.reviews.submit(annotator, item.pair_id, decision, version=1)
    before = [(row, store.queues.of(row.annotator)) for row in store.queues.progress()]
    with store.database.write() as cursor:
        made = "SELECT type, name FROM sqlite_master WHERE name GLOB 'queue_*' AND type <> 'index'"
        for row in store.database.rows(made):
            cursor.execute(f"DROP {row['type']} {row['name']}")
        for statement in ("DROP VIEW turns", "DROP TABLE queue", "DROP TABLE tallies"):
            cursor.execute(statement)
    store.close()
    Database(store.path).close()
    with Store.open(store.path) as again:
        assert [(row, again.queues.of(row.annotator)) for row in again.queues.progress()] == before
        check(again)
        again.reviews.submit(ann, again.queues.of(ann)[0].pair_id, "accept", version=1)
        check(again)


def test_reading_a_queue_costs_the_same_however_long_it_is(in_review):
    """Counted in steps of SQLite's virtual machine."""

    def steps(number: int) -> int:
        counted: list[int] = []
        store = in_review(number, f"{number}.sqlite")
        ann, bo = people(store, "Ann", "Bo")
        for item in store.queues.of(ann, number):
            store.reviews.submit(ann, item.pair_id, "accept", version=1)
        store.database._connection.set_progress_handler(lambda: counted.append(1), 1)
        for annotator in (ann, bo):
            store.queues.num_waiting(annotator)
            assert len(store.queues.of(annotator, 5)) == 5
        store.queues.progress()
        store.database._connection.set_progress_handler(None, 1)
        return len(counted)

    few, many = steps(10), steps(150)
    assert many < 1.2 * few


# --- reviews that cannot end ------------------------------------------------------------------------------------------


def test_three_who_disagree_decide_by_majority(in_review):
    store = in_review(2)
    store.database.set_meta("reviewers", 3)
    ann, bo, cy = people(store, "Ann", "Bo", "Cy")
    first, second, third = store.pairs.of(1)
    for annotator, decision in ((ann, "accept"), (bo, "reject"), (cy, "accept")):
        after = store.reviews.submit(annotator, first.id, decision, version=1)
        assert after.decided == (annotator == cy)
    assert after.state == "accepted" and after.version == 1
    edit = dataclasses.replace(second.text, question="What could hold my tea, if anything?")
    store.reviews.submit(ann, second.id, "reject", version=1)
    store.reviews.submit(bo, second.id, "edit", version=1, text=edit)
    same = dataclasses.replace(edit, question=f"  {edit.question}")
    after = store.reviews.submit(cy, second.id, "edit", version=1, text=same)
    assert after.state == "changed" and after.text == edit
    assert store.queues.obstacles() == []
    for annotator, decision in ((ann, "accept"), (bo, "reject"), (cy, "edit")):
        after = store.reviews.submit(annotator, third.id, decision, version=1, text=edit)
    assert after.disputed and not any(store.queues.of(a)[0].kind == "decide" for a in (ann, bo, cy))
    assert store.queues.obstacles() == [
        "1 disputed pair waits for somebody who has not judged yet, and all who are active have; add an annotator"
    ]
    agreement = store.reviews.agreement()
    assert (agreement.pairs, agreement.unanimous) == (3, 0), "a majority is no unanimity"
    (*_, di) = people(store, "Di")
    assert store.queues.obstacles() == []
    assert store.reviews.submit(di, third.id, "accept", version=1).state == "accepted"


@pytest.mark.parametrize(
    ("reviewers", "names", "words"),
    [
        (2, "AB", "nobody is left to decide where they disagree; add a third"),
        (2, "A", "each pair needs 2 verdicts and 1 annotator is active"),
        (3, "AB", "each pair needs 3 verdicts and 2 annotators are active"),
        (2, "ABC", ""),
        (3, "ABC", ""),
        (1, "A", ""),
        (2, "", ""),
    ],
)
def test_a_review_that_cannot_end_is_told(in_review, reviewers, names, words):
    store = in_review()
    store.database.set_meta("reviewers", reviewers)
    people(store, *names)
    assert len(store.queues.obstacles()) == bool(words)
    assert words in "".join(store.queues.obstacles())


def test_a_third_who_leaves_leaves_disputes_that_nobody_decides(in_review):
    store = in_review()
    people(store, "Ann", "Bo", "Cy")
    judges = [a for a in store.annotators.all() if store.queues.of(a)]
    for annotator, decision in zip(judges, ("accept", "reject"), strict=True):
        store.reviews.submit(annotator, store.pairs.of(1)[0].id, decision, version=1)
    assert store.queues.obstacles() == []
    [third] = [a for a in store.annotators.all() if a not in judges]
    store.annotators.set_active(third.name, False)
    assert len(store.queues.obstacles()) == 2 and "1 disputed pair waits" in store.queues.obstacles()[1]
