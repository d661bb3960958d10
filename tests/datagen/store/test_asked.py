"""The store and questions that mean one kind of mask: every round keeps it, and projects of old get the column."""

import dataclasses
import json
import sqlite3

import pytest

from aura.datagen.store.store import Store


def test_the_masks_that_are_asked_for_go_through_every_round(make_store, recipe, result_of, found_in):
    store = make_store(1)
    (job,) = store.jobs.claim(recipe)
    result = result_of(job)
    asked = [("visible",), (), ("amodal", "visible")]
    pairs = tuple(dataclasses.replace(p, asked=a) for p, a in zip(result.pairs, asked, strict=True))
    assert store.answers.take(job, dataclasses.replace(result, pairs=pairs), found_in([2]))
    assert [p.text.asked for p in store.pairs.of(1)] == asked
    (again,) = store.jobs.claim(recipe)
    assert [p.asked for p in again.context] == asked and [p.asked for p, _ in again.rejected] == [asked[2]]
    better = dataclasses.replace(pairs[2], question="What is before what?", asked=("visible", "amodal"))
    assert store.answers.take(again, dataclasses.replace(result, pairs=(better,)))
    assert store.pairs.of(1)[2].text.asked == ("visible", "amodal")
    (row,) = store.database.rows("SELECT pairs FROM calls ORDER BY id LIMIT 1")
    assert json.loads(row["pairs"])[0] == [*json.loads(row["pairs"])[0][:4], [], ["visible"]]
    assert len(json.loads(row["pairs"])[1]) == 4


def test_an_answer_that_was_paid_for_is_read_back_with_its_masks(make_store, recipe, result_of):
    store = make_store(1)
    (job,) = store.jobs.claim(recipe)
    result = result_of(job)
    pairs = (dataclasses.replace(result.pairs[0], asked=("amodal",)), *result.pairs[1:])
    assert store.answers.take(job, dataclasses.replace(result, pairs=pairs))
    with store.database.write() as cursor:
        cursor.execute("UPDATE images SET state = 'pending'")
    (again,) = store.jobs.claim(recipe)
    assert again.answer is not None and again.answer.pairs == pairs and again.answer.problems == ()


def test_a_project_of_old_gets_the_column(in_review, tmp_path):
    store = in_review()
    before = store.pairs.of(1)
    with store.database.write() as cursor:
        cursor.execute("DROP TRIGGER versions_stand")
        cursor.execute("ALTER TABLE pair_versions DROP COLUMN asked")
        cursor.execute(
            "CREATE TRIGGER versions_stand BEFORE UPDATE OF pair, version, question, answer, objects, author "
            "ON pair_versions BEGIN SELECT RAISE(ABORT, 'a version is never rewritten; add another'); END"
        )
    store.close()
    with Store.open(tmp_path / "project.sqlite") as again:
        assert again.pairs.of(1) == before
        with pytest.raises(sqlite3.DatabaseError, match="never rewritten"), again.database.write() as cursor:
            cursor.execute("UPDATE pair_versions SET asked = '[1]'")
