"""Judging without a browser: what each decision does to the store, and what it must not do."""

from __future__ import annotations

import re
from html import unescape

from .conftest import EDITED, SHARED_CUP, Project


def test_two_who_agree_decide_and_neither_sees_the_other(project: Project):
    first, second, third = project.judges()
    pair = project.pair()
    one, other = project.browser(first), project.browser(second)
    page = one.open(f"/pairs/{pair}")
    untouched = other.open(f"/pairs/{pair}")
    after = one.send(page, "edit", answer=EDITED, note="nicer")
    assert f"Pair {pair}:" in after and "edit" in after
    # Form tokens and the count of the queue are the person's own; nothing else may differ.
    assert other.open(f"/pairs/{pair}") == untouched
    assert EDITED not in project.browser(third).open(f"/pairs/{pair}")
    other.send(untouched, "edit", answer="You  could drink from this cup [SEG]. ")
    decided = project.store.pairs.get(pair)
    assert decided.state == "changed" and decided.text.answer == EDITED
    history = one.open(f"/pairs/{pair}")
    assert "nicer" in history and all(name in history for name in (first, second))
    assert "review is over" in project.browser(third).open(f"/pairs/{pair}")


def test_the_third_sees_both_and_decides(project: Project):
    first, second, third = project.judges()
    pair = project.pair()
    for name, decision, change in ((first, "edit", {"answer": EDITED, "note": "why not"}), (second, "reject", {})):
        browser = project.browser(name)
        browser.send(browser.open(f"/pairs/{pair}"), decision, **change)
    assert "judged this pair already" not in project.browser(first).open("/")
    assert "somebody who has not judged it decides" in project.browser(first).open(f"/pairs/{pair}", 409)
    decider = project.browser(third)
    assert "decide a dispute" in decider.open("/")
    page = decider.open(f"/pairs/{pair}")
    assert "why not" in page and "<ins>this " in page and "reject" in page
    assert first not in page and second not in page, "the two stay nameless"
    version = re.search(r'value="take:(\d+)"', page)
    assert version
    decider.send(page, "take:999", 422)
    # Text typed before a proposal is taken is not thrown away unasked.
    asked = decider.send(page, f"take:{version[1]}", answer="Take the cup [SEG].")
    assert "You changed the text" in asked and project.store.pairs.get(pair).disputed
    decider.send(asked, f"take:{version[1]}")
    assert project.store.pairs.get(pair).state == "changed" and project.store.pairs.get(pair).text.answer == EDITED


def test_buttons_keep_an_annotator_going_through_the_queue(project: Project):
    ada = project.people["Ada"]
    browser = project.browser("Ada")
    queue = [item.pair_id for item in project.store.queues.of(ada)]
    first = re.search(r'id="start"', browser.open("/"))
    assert first and f'href="/pairs/{queue[0]}"' in browser.open("/")
    assert f"Pair {queue[2]}" in browser.open(f"/next?after={queue[1]}"), "later: the one after, not the first"
    assert f"Pair {queue[0]}" in browser.open(f"/next?after={queue[-1]}")
    page = browser.open(f"/pairs/{queue[1]}")
    for number in queue[2:]:
        page = browser.send(page, "accept")
        assert f'id="heading">Pair {number}' in page
    page = browser.send(page, "accept")
    assert f'id="heading">Pair {queue[0]}' in page
    assert "Nothing waits for you" in browser.send(page, "reject")
    assert [v.decision for v in project.store.reviews.recent(ada)] == ["reject", *["accept"] * (len(queue) - 1)]
    # A verdict can be changed until the pair is decided.
    again = browser.open(f"/pairs/{queue[0]}")
    assert "you said reject" in again
    browser.send(again, "accept")
    assert [v.replaced for v in project.store.reviews.verdicts(queue[0])] == [True, False]


def test_a_text_that_no_data_set_can_hold_stays_in_the_fields(project: Project):
    browser = project.browser(project.judges()[0])
    page = browser.open(f"/pairs/{project.pair()}")
    for change, message in (
        ({"answer": "The cup."}, "the answer has 0 [SEG] but 1 objects"),
        ({"answer": " "}, "the answer is empty"),
        ({"question": " "}, "the question is empty"),
        ({"objects": ["", str(SHARED_CUP)], "answer": "The cup [SEG] [SEG]."}, "[SEG] number 1 has no object"),
        ({"objects": ["999"]}, "annotations [999] are not objects of image 1"),
    ):
        shown = unescape(browser.send(page, "edit", 422, **change))
        assert message in shown and str(change.get("answer", "")).strip() in shown
    assert "cannot be read" in browser.send(page, "edit", 400, objects=["1; DROP"])
    assert "cannot be read" in browser.send(page, "edit", 422, answer="x" * 5000)
    assert "x" * 5000 in browser.send(page, "edit", 422, answer="x" * 5000)
    browser.send(page, "banana", 422)
    assert not project.store.reviews.verdicts(project.pair())
    browser.open("/pairs/999", 404)


def test_accepting_what_no_data_set_can_hold_is_refused(project: Project):
    pair = project.pair(2)
    project.store.database.rows("DROP TRIGGER versions_stand")
    project.store.database.rows("UPDATE pair_versions SET objects = '[10070]' WHERE pair = ?", [pair])
    browser = project.browser(project.judges()[0])
    page = browser.open(f"/pairs/{pair}")
    assert "[SEG] but 1 objects" in unescape(browser.send(page, "accept", 422))
    browser.send(page, "reject")


def test_the_checks_speak_on_the_page_and_are_kept_with_an_edit(project: Project):
    browser = project.browser(project.judges()[0])
    pair = project.pair()
    page = browser.open(f"/pairs/{pair}")
    assert "The checks find nothing wrong" in page
    named = browser.send(page, "check", question="Where is the cup that I could drink from?")
    assert "the question names its target" in named and 'class="problems"' in named
    browser.send(named, "edit")
    assert [p.code for p in project.store.pairs.history(pair)[-1].problems] == ["names_target"]
