"""Review: who sees what, when a pair is decided, and that nothing typed is lost without a word."""

import dataclasses
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from aura.datagen.records import PairProblem
from aura.datagen.store.agreement import PairText, cohen_kappa
from aura.datagen.store.pairs import Conflict
from aura.datagen.store.store import Store

EDIT = PairText("What could hold my tea, half hidden?", "The white cup [SEG] could.", (100,))


def people(store: Store, *names: str):
    tokens = [store.annotators.add(name) for name in names or ("Ann", "Bo", "Cy")]
    return [store.annotators.authenticate(token) for token in tokens]


def judges_and_third(store: Store, image_id: int = 1):
    """The annotators of three who judge an image, and the one who would decide."""
    everybody = [store.annotators.get(a.name) for a in store.annotators.all()]
    judges = [a for a in everybody if image_id in {i.image_id for i in store.queues.of(a)}]
    assert len(judges) == 2
    return *judges, next(a for a in everybody if a not in judges)


@pytest.fixture
def desk(in_review):
    """A project with one image of three pairs, and three annotators."""
    store = in_review()
    people(store)
    return store


# --- annotators -------------------------------------------------------------------------------------------------------


def test_tokens_open_the_door_and_are_not_kept(make_store):
    store = make_store(1)
    people = store.annotators
    token = people.add("  Ann   Lee ")
    ann = people.authenticate(f" {token}\n")
    assert ann.name == "Ann Lee" and ann.active
    secret = token.split(".")[1]
    assert len(secret) >= 32
    for wrong in ("", ".", secret, f"2.{secret}", f"{token}x", f"-1.{secret}", f"٣.{secret}", "1" * 50 + "." + secret):
        assert people.authenticate(wrong) is None
    assert all(
        secret.encode() not in bytes(str(tuple(row)), "utf-8")
        for row in store.database.rows("SELECT * FROM annotators")
    )
    with pytest.raises(ValueError, match="there is an annotator"):
        people.add("ann lee")
    for name in ("", " ", "generator", "x" * 61, "a\x00b"):
        with pytest.raises(ValueError, match="an annotator's name"):
            people.add(name)
    renewed = people.new_token("Ann Lee")
    assert people.authenticate(token) is None and people.authenticate(renewed) == ann
    people.set_active("Ann Lee", False)
    assert people.authenticate(renewed) is None and store.queues.of(ann) == []
    with pytest.raises(KeyError):
        people.get("nobody")


def test_images_are_dealt_in_turn_two_to_each_pair(in_review):
    store = in_review(6)
    queues = {a.name: store.queues.of(a) for a in people(store)}
    assert {len(queue) for queue in queues.values()} == {12}
    seen = Counter(item.pair_id for queue in queues.values() for item in queue)
    assert set(seen.values()) == {2} and len(seen) == 18
    for name, queue in queues.items():
        assert [i.pair_id for i in queue] == sorted(i.pair_id for i in queue)
        assert len({i.image_id for i in queue}) == 4 and {i.kind for i in queue} == {"judge"}
        annotator = store.annotators.get(name)
        assert store.queues.num_waiting(annotator) == 12
        assert store.queues.of(annotator, 5) == queue[:5]


def test_one_or_two_annotators_get_everything_and_one_cannot_decide(in_review):
    store = in_review(2)
    [ann] = people(store, "Ann")
    pair = store.pairs.of(1)[0]
    assert store.queues.num_waiting(ann) == 6
    assert store.reviews.submit(ann, pair.id, "accept", version=1).state == "in_review"
    assert store.queues.num_waiting(ann) == 5
    [bo] = people(store, "Bo")
    assert store.queues.num_waiting(bo) == 6
    assert store.reviews.submit(bo, pair.id, "accept", version=1).state == "accepted"


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decision", "state"), [("accept", "accepted"), ("reject", "rejected")])
def test_two_who_agree_decide(desk, decision, state):
    one, two, third = judges_and_third(desk)
    pair = desk.pairs.of(1)[0]
    assert desk.reviews.submit(one, pair.id, decision, version=1).state == "in_review"
    after = desk.reviews.submit(two, pair.id, decision, version=1)
    assert after.state == state and after.version == 1 and after.decided and not after.disputed
    assert all(pair.id not in {i.pair_id for i in desk.queues.of(a)} for a in (one, two, third))


def test_two_who_write_the_same_change_the_pair(desk):
    one, two, _ = judges_and_third(desk)
    pair = desk.pairs.of(1)[0]
    desk.reviews.submit(one, pair.id, "edit", version=1, text=EDIT)
    spaced = dataclasses.replace(EDIT, answer="The  white cup [SEG] could. ")
    after = desk.reviews.submit(two, pair.id, "edit", version=1, text=spaced)
    assert (after.state, after.text) == ("changed", EDIT)
    assert [v.author for v in desk.pairs.history(pair.id)] == ["generator", one.name, two.name]


def test_who_judges_sees_nothing_of_the_other(desk):
    one, two, _ = judges_and_third(desk)
    pair = desk.pairs.of(1)[1]
    before = desk.reviews.task(two, pair.id)
    desk.reviews.submit(one, pair.id, "edit", version=1, text=dataclasses.replace(EDIT, objects=(101,)), note="look")
    after = desk.reviews.task(two, pair.id)
    assert after == before and after.kind == "judge" and after.proposals == () and after.own is None
    assert [p.position for p in after.earlier] == [0]
    assert desk.queues.of(two)[1].pair_id == pair.id


def test_who_comes_when_enough_others_judge_gets_a_conflict(desk):
    one, two, third = judges_and_third(desk)
    pair = desk.pairs.of(1)[0]
    desk.reviews.submit(third, pair.id, "accept", version=1)
    assert pair.id in {i.pair_id for i in desk.queues.of(one)}
    desk.reviews.submit(one, pair.id, "accept", version=1)
    with pytest.raises(Conflict, match="has been decided: accepted"):
        desk.reviews.task(two, pair.id)


def test_a_third_sees_what_was_proposed_and_decides(desk):
    one, two, third = judges_and_third(desk)
    pair = desk.pairs.of(1)[0]
    desk.reviews.submit(one, pair.id, "edit", version=1, text=EDIT, note="clearer")
    assert desk.queues.of(third) == []
    assert desk.reviews.submit(two, pair.id, "reject", version=1).disputed
    assert [(i.pair_id, i.kind) for i in desk.queues.of(third)] == [(pair.id, "decide")]
    assert desk.queues.num_disputed() == 1 and desk.status().disputed == 1
    for judge in (one, two):
        assert pair.id not in {i.pair_id for i in desk.queues.of(judge)}
        with pytest.raises(Conflict, match="disputed"):
            desk.reviews.submit(judge, pair.id, "accept", version=1, replaces=desk.reviews.verdicts(pair.id)[0].id)
    task = desk.reviews.task(third, pair.id)
    assert task.kind == "decide"
    assert [(p.decision, p.version.version, p.note) for p in task.proposals] == [
        ("edit", 2, "clearer"),
        ("reject", 1, ""),
    ]
    after = desk.reviews.submit(third, pair.id, "edit", version=1, text=task.proposals[0].version.text)
    assert (after.state, after.version, after.disputed) == ("changed", 2, False)
    assert len(desk.pairs.history(pair.id)) == 2, "a proposal that is taken is not written again"
    assert [(v.annotator, v.final) for v in desk.reviews.verdicts(pair.id)] == [
        (one.name, False), (two.name, False), (third.name, True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("decision", "state", "version"), [("accept", "accepted", 1), ("reject", "rejected", 1), ("edit", "changed", 3)]
)
def test_the_third_may_decide_anything(desk, decision, state, version):
    one, two, third = judges_and_third(desk)
    pair = desk.pairs.of(1)[0]
    desk.reviews.submit(one, pair.id, "edit", version=1, text=EDIT)
    desk.reviews.submit(two, pair.id, "accept", version=1)
    text = dataclasses.replace(EDIT, question="Something else?")
    after = desk.reviews.submit(third, pair.id, decision, version=1, text=text)
    assert (after.state, after.version) == (state, version)


def test_different_edits_are_a_dispute(desk):
    one, two, _ = judges_and_third(desk)
    pair = desk.pairs.of(1)[0]
    desk.reviews.submit(one, pair.id, "edit", version=1, text=EDIT)
    moved = dataclasses.replace(EDIT, objects=(101,))
    assert desk.reviews.submit(two, pair.id, "edit", version=1, text=moved).disputed


def test_an_edit_that_changes_nothing_accepts(desk):
    one, two, _ = judges_and_third(desk)
    pair = desk.pairs.of(1)[0]
    same = dataclasses.replace(pair.text, answer=f" {pair.text.answer} ")
    desk.reviews.submit(one, pair.id, "edit", version=1, text=same)
    assert desk.reviews.submit(two, pair.id, "accept", version=1).state == "accepted"
    assert len(desk.pairs.history(pair.id)) == 1


def test_one_may_change_ones_mind_until_the_pair_is_decided(desk):
    one, two, _ = judges_and_third(desk)
    pair = desk.pairs.of(1)[0]
    desk.reviews.submit(one, pair.id, "reject", version=1)
    own = desk.reviews.task(one, pair.id).own
    assert own.decision == "reject"
    desk.reviews.submit(one, pair.id, "accept", version=1, replaces=own.id)
    assert desk.reviews.submit(two, pair.id, "accept", version=1).state == "accepted"
    assert [v.replaced for v in desk.reviews.verdicts(pair.id)] == [True, False, False]
    with pytest.raises(Conflict, match="has been decided"):
        desk.reviews.submit(one, pair.id, "reject", version=1, replaces=own.id + 1)


def test_a_stale_verdict_is_a_conflict_and_writes_nothing(desk):
    one, two, _ = judges_and_third(desk)
    pair = desk.pairs.of(1)[0]
    with pytest.raises(Conflict, match="has version 1 now, the verdict is about 2"):
        desk.reviews.submit(one, pair.id, "edit", version=2, text=EDIT)
    desk.reviews.submit(one, pair.id, "accept", version=1)
    with pytest.raises(Conflict, match="another window"):
        desk.reviews.submit(one, pair.id, "edit", version=1, text=EDIT)
    with pytest.raises(Conflict, match="another window"):
        desk.reviews.submit(two, pair.id, "accept", version=1, replaces=1)
    assert len(desk.pairs.history(pair.id)) == 1 and len(desk.reviews.verdicts(pair.id)) == 1
    with pytest.raises(KeyError):
        desk.reviews.submit(one, 999, "accept", version=1)


def test_a_pair_whose_image_is_not_finished_is_not_open(make_store, recipe, result_of, found_in):
    store = make_store(1)
    ann, _, _ = people(store)
    [job] = store.jobs.claim(recipe)
    store.answers.take(job, result_of(job), found_in([0]))
    assert store.queues.of(ann) == []
    with pytest.raises(Conflict, match="not open for review yet"):
        store.reviews.submit(ann, store.pairs.of(1)[2].id, "accept", version=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "needs the edited text"),
        (PairText("Q?", "No mark.", (100,)), r"has 0 \[SEG\] but 1"),
        (PairText(" ", "The cup [SEG].", (100,)), "the question is empty"),
        (PairText("Q?", "  ", ()), "the answer is empty"),
        (PairText("Q?", "The cup [SEG].", (200,)), r"\[200\] are not objects of image 1"),
    ],
)
def test_an_edit_that_could_not_stand_in_a_data_set_is_refused(desk, text, words):
    one, _, _ = judges_and_third(desk)
    pair = desk.pairs.of(1)[0]
    desk.reviews.save_draft(one, pair.id, 1, {"answer": "typed"})
    with pytest.raises(ValueError, match=words):
        desk.reviews.submit(one, pair.id, "edit", version=1, text=text)
    assert len(desk.pairs.history(pair.id)) == 1 and desk.reviews.draft(one, pair.id).content == {"answer": "typed"}


def test_problems_of_an_edit_are_kept_with_it(desk):
    one, _, _ = judges_and_third(desk)
    pair = desk.pairs.of(1)[0]
    found = (PairProblem("length", "short", "more"),)
    desk.reviews.submit(one, pair.id, "edit", version=1, text=EDIT, problems=found)
    assert desk.pairs.history(pair.id)[1].problems == found
    assert desk.pairs.set_problems(pair.id, 1, found) and not desk.pairs.set_problems(pair.id, 1, found)


def test_drafts_are_one_s_own_and_end_with_the_verdict(desk):
    one, two, _ = judges_and_third(desk)
    pair = desk.pairs.of(1)[0]
    desk.reviews.save_draft(one, pair.id, 1, {"answer": "a"})
    desk.reviews.save_draft(one, pair.id, 1, {"answer": "b"})
    with Store.open(desk.path) as again:
        assert again.reviews.task(one, pair.id).draft.content == {"answer": "b"}
        assert again.reviews.task(two, pair.id).draft is None
    desk.reviews.submit(one, pair.id, "accept", version=1)
    assert desk.reviews.draft(one, pair.id) is None
    with pytest.raises(KeyError):
        desk.reviews.save_draft(one, 999, 1, {})


def test_of_two_who_decide_at_once_one_gets_a_conflict(in_review):
    store = in_review()
    everybody = people(store, "Ann", "Bo", "Cy", "Di", "Ed")
    pair = store.pairs.of(1)[0]
    judges = [a for a in everybody if store.queues.of(a)]
    for judge, decision in zip(judges, ("accept", "reject"), strict=True):
        store.reviews.submit(judge, pair.id, decision, version=1)

    def decide(annotator):
        with Store.open(store.path) as own:
            try:
                return own.reviews.submit(annotator, pair.id, "accept", version=1).state
            except Conflict:
                return "conflict"

    others = [a for a in everybody if a not in judges]
    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(decide, others)) == ["accepted", "conflict", "conflict"]
    assert sum(v.final for v in store.reviews.verdicts(pair.id)) == 1


def test_threads_share_a_store(in_review):
    store = in_review(4)
    ann, bo = people(store, "Ann", "Bo")
    jobs = [(a, p) for image in range(1, 5) for p in store.pairs.of(image) for a in (ann, bo)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: store.reviews.submit(job[0], job[1].id, "accept", version=1), jobs))
    assert store.status().pairs["accepted"] == 12


def test_verdicts_are_never_deleted(desk):
    one, _, _ = judges_and_third(desk)
    desk.reviews.submit(one, desk.pairs.of(1)[0].id, "accept", version=1)
    with pytest.raises(sqlite3.IntegrityError, match="never deleted"), desk.database.write() as cursor:
        cursor.execute("DELETE FROM verdicts")


def test_agreement_counts_independent_verdicts_only(in_review):
    store = in_review(4)
    ann, bo, cy = people(store)
    said = {"Ann": [], "Bo": []}
    plan = ["accept", "accept", "reject", "edit"]
    number = 0
    for image in range(1, 5):
        for pair in store.pairs.of(image):
            judges = [a for a in (ann, bo, cy) if pair.id in {i.pair_id for i in store.queues.of(a)}]
            decisions = {}
            for judge in judges:
                decision = plan[(number + (judge.name != "Ann") * (number % 3 == 0)) % 4]
                text = dataclasses.replace(pair.text, question=pair.text.question + " Now?")
                store.reviews.submit(judge, pair.id, decision, version=1, text=text)
                decisions[judge.name] = decision
            if store.pairs.get(pair.id).disputed:
                [third] = [a for a in (ann, bo, cy) if a not in judges]
                store.reviews.submit(third, pair.id, "accept", version=1)
            if decisions.keys() == said.keys():
                for name, decision in decisions.items():
                    said[name].append(decision)
            number += 1
    agreement = store.reviews.agreement()
    assert agreement.pairs == 12
    disputed = store.database.value("SELECT count(*) FROM verdicts WHERE final = 1")
    assert agreement.unanimous == 12 - disputed and disputed > 0
    assert agreement.cohen["Ann", "Bo"] == (len(said["Ann"]), cohen_kappa(said["Ann"], said["Bo"]))
    assert sum(number for number, _ in agreement.cohen.values()) == 12
    assert -1 < agreement.fleiss < 1
    progress = {p.annotator.name: p for p in store.queues.progress()}
    assert sum(p.judged for p in progress.values()) == 24 and sum(p.decided for p in progress.values()) == disputed
    assert {p.waiting for p in progress.values()} == {0}
    assert store.status().decided == 12


def test_an_edit_keeps_the_masks_that_are_asked_for(make_store, recipe, result_of):
    store = make_store(1)
    people(store)
    (job,) = store.jobs.claim(recipe)
    result = result_of(job)
    both = dataclasses.replace(result.pairs[2], asked=("amodal", "visible"))
    assert store.answers.take(job, dataclasses.replace(result, pairs=(*result.pairs[:2], both)))
    pair = store.pairs.of(1)[2]
    ann, bo, _ = judges_and_third(store)
    edit = PairText("What hides what here?", "The table [SEG] is behind the cup [SEG].", pair.text.objects[::-1])
    for judge in (ann, bo):
        store.reviews.submit(judge, pair.id, "edit", version=1, text=edit)
    decided = store.pairs.get(pair.id)
    assert decided.state == "changed" and decided.text == dataclasses.replace(edit, asked=("visible", "amodal"))
    assert pair.text.asked_of((999, pair.text.objects[0])) == ("both", "amodal")
