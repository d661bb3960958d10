"""Nothing typed is lost: drafts, other windows, late edits and sessions that ran out."""

from __future__ import annotations

import re
from html import unescape

import pytest

from aura.datagen.store.agreement import PairText

from .conftest import EDITED, SHARED_CUP, Project, fields


def draft_body(page: str, **changes: object) -> dict[str, object]:
    """What the page's script sends while somebody types."""
    form = fields(page)
    return {
        "question": form["question"],
        "answer": form["answer"],
        "note": form["note"],
        "objects": [int(value) for value in form["objects"] if value],
        "order": [SHARED_CUP],
        "version": int(str(form["version"])),
        "draft": form["draft"],
        **changes,
    }


def test_drafts_save_themselves_and_come_back(project: Project):
    name = project.judges()[0]
    pair = project.pair()
    browser = project.browser(name)
    page = browser.open(f"/pairs/{pair}")
    token = {"x-form-token": str(fields(page)["form_token"])}
    body = draft_body(page, answer="You could drink from that [SEG].", note="unsure")
    reply = browser.client.post(f"/pairs/{pair}/draft", json=body, headers=token).json()
    assert "no such name stands before it" in reply["preview"] and "chip c0" in reply["preview"]
    again = browser.client.post(f"/pairs/{pair}/draft", json={**body, "draft": reply["draft"]}, headers=token).json()
    assert again["draft"] == reply["draft"], "saving the same once more changes nothing"
    back = browser.open(f"/pairs/{pair}")
    assert "You could drink from that [SEG]." in back and "unsure" in back and "Your draft of" in back
    assert "that [SEG]" not in project.browser(project.judges()[1]).open(f"/pairs/{pair}")
    browser.send(back, "discard")
    assert "Your draft of" not in browser.open(f"/pairs/{pair}")
    # Without JavaScript, with a button.
    browser.send(browser.open(f"/pairs/{pair}"), "save", answer=EDITED)
    assert EDITED in browser.open(f"/pairs/{pair}")
    assert browser.client.post("/pairs/999/draft", json=body, headers=token).status_code == 404
    assert (
        browser.client.post(f"/pairs/{pair}/draft", json={**body, "objects": ["x"]}, headers=token).status_code == 422
    )


def test_a_second_window_does_not_overwrite_the_draft_of_the_first(project: Project):
    browser = project.browser(project.judges()[0])
    pair = project.pair()
    left = right = browser.open(f"/pairs/{pair}")
    token = {"x-form-token": str(fields(left)["form_token"])}
    assert (
        browser.client.post(f"/pairs/{pair}/draft", json=draft_body(left, note="left"), headers=token).status_code
        == 200
    )
    reply = browser.client.post(f"/pairs/{pair}/draft", json=draft_body(right, note="right"), headers=token)
    assert reply.status_code == 409 and "another window" in reply.json()["error"]
    assert fields(browser.open(f"/pairs/{pair}"))["note"] == "left"
    both = browser.send(right, "edit", 409, answer=EDITED, note="right")
    assert EDITED in both and "In the other window" in both and "You could drink from the cup" in both
    assert not project.store.reviews.verdicts(pair)
    browser.send(both, "edit")
    assert project.store.reviews.verdicts(pair)[0].note == "right"


def test_a_verdict_from_another_window_is_not_replaced_unseen(project: Project):
    browser = project.browser(project.judges()[0])
    pair = project.pair()
    left = right = browser.open(f"/pairs/{pair}")
    browser.send(left, "edit", answer=EDITED)
    both = browser.send(right, "edit", 409, answer="You could drink from that cup [SEG].")
    assert "from another window" in both and EDITED in fields_text(both) and "that cup [SEG]" in fields_text(both)
    assert "that cup [SEG]" in browser.open(f"/pairs/{pair}"), "kept as a draft"
    further = browser.send(both, "check")
    assert "that cup [SEG]" in further
    browser.send(further, "edit")
    verdicts = project.store.reviews.verdicts(pair)
    assert [v.replaced for v in verdicts] == [True, False]
    assert project.store.pairs.history(pair)[-1].text.answer == "You could drink from that cup [SEG]."


def test_a_late_edit_meets_the_decision_and_stays_readable(project: Project):
    first, second, _ = project.judges()
    pair = project.pair()
    one, other = project.browser(first), project.browser(second)
    late = one.open(f"/pairs/{pair}")
    one.send(late, "accept")
    stale = one.open(f"/pairs/{pair}")
    other.send(other.open(f"/pairs/{pair}"), "accept")
    both = one.send(stale, "edit", 409, answer=EDITED)
    assert "decided meanwhile" in both and EDITED in fields_text(both) and "Send mine" not in both
    assert EDITED in one.open(f"/pairs/{pair}")
    assert project.store.pairs.get(pair).text.answer == "You could drink from the cup [SEG]."


def test_who_becomes_the_third_while_typing_sees_the_proposals_first(project: Project):
    first, second, third = project.judges()
    pair = project.pair()
    decider = project.browser(third)
    page = decider.open(f"/pairs/{pair}")
    for name, decision in ((first, "accept"), (second, "reject")):
        browser = project.browser(name)
        browser.send(browser.open(f"/pairs/{pair}"), decision)
    both = decider.send(page, "edit", 409, answer=EDITED)
    assert "look at what they propose" in both and project.store.pairs.get(pair).disputed
    shown = decider.open(f"/pairs/{pair}")
    assert EDITED in shown and "you decide" in shown
    decider.send(shown, "edit")
    assert project.store.pairs.get(pair).text.answer == EDITED


@pytest.mark.parametrize("decision", ["accept", "reject"])
def test_edits_are_not_dropped_unasked(project: Project, decision: str):
    browser = project.browser(project.judges()[0])
    pair = project.pair()
    page = browser.open(f"/pairs/{pair}")
    asked = browser.send(page, decision, answer=EDITED)
    assert "You changed the text" in asked and not project.store.reviews.verdicts(pair)
    browser.send(asked, decision)
    assert [v.decision for v in project.store.reviews.verdicts(pair)] == [decision]


def test_a_session_that_ran_out_gives_the_text_back_to_send_again(project: Project):
    name = project.judges()[0]
    pair = project.pair()
    browser = project.browser(name)
    page = browser.open(f"/pairs/{pair}")
    token = {"x-form-token": str(fields(page)["form_token"])}
    browser.client.cookies.clear()
    assert browser.client.post(f"/pairs/{pair}/draft", json=draft_body(page), headers=token).status_code == 401
    unsent = browser.send(page, "edit", 401, answer=EDITED, note="mine")
    assert EDITED in unsent and not project.store.reviews.verdicts(pair)
    browser.log_in(project.tokens[name])
    response = browser.client.post(f"/pairs/{pair}", data={**fields(unsent), "decision": "edit"})
    assert response.status_code == 200
    assert project.store.pairs.history(pair)[-1].text == PairText("What could I drink from?", EDITED, (SHARED_CUP,))


def fields_text(page: str) -> str:
    """A page without its markup, with single spaces; chips stand as [SEG]."""
    text = re.sub(r'<span class="chip[^>]*>.*?</span>\d*</span>', "[SEG]", page)
    return " ".join(unescape(re.sub(r"<[^>]*>", "", text)).split())
