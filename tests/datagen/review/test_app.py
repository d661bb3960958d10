"""The review app without a browser: what each request does to the store, and what it must not do."""

from __future__ import annotations

import io
import json
import re
import runpy
import socket
from html import unescape
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from aura.datagen.review.app import create_app, is_loopback, serve
from aura.datagen.review.layers import LONGEST, mask_layer
from aura.datagen.settings import ProjectSettings, ReviewSettings, SourceSettings
from aura.datagen.store.agreement import PairText, cohen_kappa
from aura.drawing.typesetting import PALETTE
from aura.masks import decode_rle, encode_rle
from aura.types import AmodalObject

from .conftest import BOOK, CUP, NAMES, Project, fields

SHARED_CUP = 10_000 + CUP
EDITED = "You could drink from this cup [SEG]."


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


# --- who may come in --------------------------------------------------------------------------------------------------


def test_a_token_opens_a_session_and_nothing_else_does(project: Project, tmp_path: Path):
    browser = project.browser()
    client = browser.client
    for address in ("/", "/dashboard", f"/pairs/{project.pair()}", "/images/1/picture"):
        response = client.get(address, follow_redirects=False)
        assert (response.status_code, response.headers["location"][:9]) == (303, "/login?to")
    token = project.tokens["Ada"]
    for wrong in ("", "1.", token + "x", token[:-1], token.replace("1.", "2.", 1), "1", "x" * 199):
        page = client.get("/login").text
        assert client.post("/login", data={**fields(page), "token": wrong}).status_code == 403
    assert client.post("/login", data={"token": token}).status_code == 403, "without the form's own token"

    page = client.get("/login", params={"to": "/dashboard"}).text
    response = client.post("/login", data={**fields(page), "token": token}, follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (303, "/dashboard")
    cookie = next(c for c in response.headers.get_list("set-cookie") if c.startswith("aura_review="))
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and token not in cookie
    assert "Ada" in browser.open("/")
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("project.sqlite*"))
    assert token.split(".")[1].encode() not in stored
    assert (tmp_path / "project.sqlite.review-key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("address", ["https://evil.example/", "//evil.example", "/\\evil.example", "/pairs/1/../../x"])
def test_a_login_leads_to_pages_of_the_app_only(project: Project, address: str):
    client = project.browser().client
    page = client.get("/login", params={"to": address}).text
    data = {**fields(page), "token": project.tokens["Ada"], "to": address}
    assert client.post("/login", data=data, follow_redirects=False).headers["location"] == "/"


def test_sessions_end_with_logging_out_a_new_token_or_leaving_the_project(project: Project):
    people = project.store.annotators
    for end in (
        lambda browser: browser.client.post("/logout", data=fields(browser.open("/dashboard"))),
        lambda browser: project.tokens.update(Ada=people.new_token("Ada")),
        lambda browser: people.set_active("Ada", False),
    ):
        browser = project.browser("Ada")
        cookie = browser.client.cookies["aura_review"]
        end(browser)
        thief = project.browser()
        for kept in (cookie, cookie[:-1], "", "x.y.z"):
            thief.client.cookies = {"aura_review": kept}
            assert thief.client.get("/", follow_redirects=False).status_code == 303


def test_two_processes_share_one_signing_key_and_a_damaged_one_is_refused(project: Project, tmp_path: Path):
    from aura.datagen.review.access import Access

    ada = project.people["Ada"]
    assert Access(project.store).who(Access(project.store).session(ada)) == ada
    (tmp_path / "project.sqlite.review-key").write_text("")
    with pytest.raises(ValueError, match="review-key: is no key"):
        Access(project.store)


# --- requests that others make in an annotator's name -----------------------------------------------------------------


def test_a_change_needs_the_form_token_of_its_annotator_and_gives_the_text_back(project: Project):
    ada, grace = project.browser("Ada"), project.browser("Grace")
    pair = project.store.queues.of(project.people["Ada"])[0].pair_id
    form = fields(ada.open(f"/pairs/{pair}"))
    foreign = fields(grace.open("/dashboard"))["form_token"]
    for token in ("", foreign, None):
        data = {**form, "decision": "edit", "answer": EDITED, "form_token": token}
        response = ada.client.post(f"/pairs/{pair}", data={k: v for k, v in data.items() if v is not None})
        assert response.status_code == 403 and EDITED in response.text and "Send again" not in response.text
        assert ada.client.post("/logout", data={"form_token": token or ""}).status_code == 403
        answer = ada.client.post(f"/pairs/{pair}/draft", json={}, headers={"x-form-token": token or ""})
        assert answer.status_code == 403
    assert not project.store.reviews.verdicts(pair)


def test_requests_of_other_sites_foreign_names_and_huge_bodies_are_refused(project: Project):
    client = project.browser("Ada").client
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"host": "localhost@evil.example"}).status_code == 400
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert client.post("/logout", headers=headers).status_code == 403
    assert client.post("/logout", content=b"x" * 300_000).status_code == 413
    assert client.post("/logout", content=iter([b"x"])).status_code == 411
    assert client.get("/").status_code == 200, "none of these logged Ada out"


def test_every_response_forbids_foreign_and_inline_content_and_no_page_has_any(project: Project):
    browser = project.browser("Ada")
    pair = project.store.queues.of(project.people["Ada"])[0].pair_id
    for address in (
        "/",
        "/dashboard",
        f"/pairs/{pair}",
        "/login",
        "/nowhere",
        "/static/review.css",
        "/images/1/picture",
    ):
        response = browser.client.get(address)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'self'" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        if response.headers["content-type"].startswith("text/html"):
            assert response.headers["cache-control"] == "no-store"
            assert not re.search(
                r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=|https?://|javascript:", response.text
            )


def test_texts_notes_and_names_are_never_markup(project: Project):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    first, second, third = project.judges()
    pair = project.pair()
    page = project.browser(first).open(f"/pairs/{pair}")
    answer = f"Drink from {evil} the cup [SEG]."
    project.browser(first).send(page, "edit", answer=answer, question=evil, note=evil)
    other = project.browser(second)
    other.send(other.open(f"/pairs/{pair}"), "accept")
    shown = project.browser(third).open(f"/pairs/{pair}")
    project.store.annotators.set_active(third, False)
    token = project.store.annotators.add(evil)
    stranger = project.browser()
    stranger.log_in(token)
    pages = [shown, stranger.open("/dashboard"), stranger.open("/"), stranger.open(f"/pairs/{pair}")]
    for text in pages:
        assert evil not in text and "<img src=x" not in text and "<script>" not in text
    assert sum(unescape(text).count("<script>alert(1)</script>") for text in pages) >= 6


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_come_from_their_folder_and_are_pictures(project: Project, tmp_path: Path):
    browser = project.browser("Ada")
    response = browser.client.get("/images/1/picture")
    assert response.headers["content-type"] == "image/png"
    assert response.content == (tmp_path / "pictures" / "1.png").read_bytes()

    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "pictures" / "2.png").write_text("<script>alert(1)</script>")
    (tmp_path / "pictures" / "3.png").unlink()
    (tmp_path / "pictures" / "3.png").symlink_to(tmp_path / "secret.png")
    for image_id in (2, 3, 4, 10**18):
        assert browser.client.get(f"/images/{image_id}/picture").status_code == 404
    project.store.database.rows("UPDATE images SET file_name = '../secret.png' WHERE image_id = 1")
    fresh = type(project)(project.store, project.tokens, project.people, project.browser).browser("Grace")
    fresh.client.app.state.desk.image.cache_clear()
    assert fresh.client.get("/images/1/picture").status_code == 404
    for address in ("/images/..%2Fsecret/picture", "/images/-1/picture", f"/images/{2**63}/picture"):
        assert browser.client.get(address).status_code in (404, 422)
    for address in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"):
        assert browser.client.get(address).status_code == 404


def test_layers_show_the_masks_in_the_colours_of_the_text():
    visible, amodal = np.zeros((60, 90), bool), np.zeros((60, 90), bool)
    visible[10:50, 10:40], amodal[10:50, 10:80] = True, True
    obj = AmodalObject(1, "book", encode_rle(visible), encode_rle(amodal), 4 / 7)
    for index in (0, 1, 8):
        colour = PALETTE[index % len(PALETTE)].rgb
        layers = {}
        for kind in ("visible", "amodal"):
            layer = Image.open(io.BytesIO(mask_layer(obj, kind, index)))
            assert layer.mode == "RGBA" and max(layer.size) == LONGEST
            layers[kind] = np.array(layer.resize((900, 600), Image.Resampling.NEAREST))
        seen, whole = layers["visible"], layers["amodal"]
        # Away from outlines and number: [rows, columns] in tenths of a pixel of the mask.
        inside, hidden, outside = (slice(450, 480), slice(150, 200)), (slice(150, 450), slice(450, 750)), np.s_[520:, :]
        assert (seen[inside][..., 3] > 100).all() and (seen[inside][..., :3] == colour).all()
        assert not seen[hidden][..., 3].any() and not whole[inside][..., 3].any()
        assert not seen[outside][..., 3].any() and not whole[outside][..., 3].any()
        lines = (np.abs(whole[hidden][..., :3].astype(int) - colour).sum(-1) < 60).mean()
        assert 0.1 < lines < 0.5, "the invisible part is hatched, not filled"


def test_the_style_sheet_has_the_palette_of_the_other_pictures():
    css = (files("aura.datagen.review") / "static" / "review.css").read_text()
    found = re.findall(r"\.c(\d) \{ background: rgb\((\d+), (\d+), (\d+)\)", css)
    assert [tuple(map(int, colour[1:])) for colour in found] == [colour.rgb for colour in PALETTE]


def test_empty_masks_have_empty_layers():
    none = encode_rle(np.zeros((5, 7), bool))
    for kind in ("visible", "amodal"):
        layer = Image.open(io.BytesIO(mask_layer(AmodalObject(1, "cup", none, none, 0.0), kind, 0)))
        assert not np.array(layer)[..., 3].any()


def test_a_page_numbers_the_objects_of_the_answer_first(project: Project):
    name = project.judges()[0]
    page = project.browser(name).open(f"/pairs/{project.pair(2)}")
    chips = re.findall(r'class="chip (c\d)" data-object="(\d+)"', page)
    assert chips[0] == ("c0", str(10_000 + BOOK)) and ("c1", str(SHARED_CUP)) in chips
    for kind in ("visible", "amodal"):
        assert project.browser(name).client.get(f"/images/1/objects/{SHARED_CUP}/{kind}-1.png").content == mask_layer(
            project.store.images.get(1).image.objects[0], kind, 1
        )
    for address in (f"/images/1/objects/9/{kind}-1.png", f"/images/1/objects/{SHARED_CUP}/{kind}-99999.png"):
        assert project.browser(name).client.get(address).status_code in (404, 422)
    decoded = decode_rle(project.store.images.get(1).image.objects[0].visible)
    assert f'width="{decoded.shape[1]}" height="{decoded.shape[0]}"' in page


# --- judging ----------------------------------------------------------------------------------------------------------


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


# --- nothing typed is lost --------------------------------------------------------------------------------------------


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


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_dashboard_counts_and_measures_agreement(project: Project):
    said: dict[str, dict[int, str]] = {name: {} for name in NAMES}
    plan = {name: iter(["accept", "accept", "reject", "accept", "accept", "reject"]) for name in NAMES}
    for name in NAMES:
        browser = project.browser(name)
        while (queue := project.store.queues.of(project.people[name], 1)) and queue[0].kind == "judge":
            item = queue[0]
            decision = said[name][item.pair_id] = next(plan[name])
            browser.send(browser.open(f"/pairs/{item.pair_id}"), decision)
    page = project.browser("Ada").open("/dashboard")
    rows = {row[0]: row[1:] for row in table_rows(page)}
    for name in NAMES:
        waiting = project.store.queues.num_waiting(project.people[name])
        assert rows[name][:3] == [str(len(said[name])), "0", str(waiting)]
    for one, other in (("Ada", "Grace"), ("Ada", "Edsger"), ("Grace", "Edsger")):
        both = sorted(said[one].keys() & said[other].keys())
        kappa = cohen_kappa([said[one][p] for p in both], [said[other][p] for p in both])
        assert rows[f"{one} and {other} (Cohen)"] == [str(len(both)), "–" if kappa is None else f"{kappa:.2f}"]
    fleiss = project.store.reviews.agreement().fleiss
    assert fleiss is not None and rows["all (Fleiss)"] == ["9", f"{fleiss:.2f}"]
    states = project.store.status().pairs
    assert sum(states.values()) == 9
    for state in ("accepted", "changed", "rejected"):
        assert f'swatch {state}"></span>{state} <strong>{states[state]}</strong>' in page


def table_rows(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [
        [
            " ".join(unescape(re.sub(r"<[^>]*>", "", cell)).split())
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]


# --- the server and the script ----------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch):
    """What would be served: the sockets that uvicorn is given."""
    import uvicorn

    given: list[tuple[uvicorn.Config, object]] = []

    def run(self, sockets):
        given.append((self.config, sockets[0].getsockname()))
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    return given


def settings_of(tmp_path: Path, **review: object) -> ProjectSettings:
    source = SourceSettings(str(tmp_path / "a.json"), str(tmp_path / "pictures"))
    return ProjectSettings(str(tmp_path), (source,), review=ReviewSettings(**review))  # type: ignore[arg-type]


def test_it_listens_on_loopback_and_warns_elsewhere(project: Project, tmp_path: Path, served, capsys):
    serve(project.store, settings_of(tmp_path, port=0))
    said = capsys.readouterr()
    assert served[0][1][0] == "127.0.0.1" and f":{served[0][1][1]}/" in said.out and "warning" not in said.err
    serve(project.store, settings_of(tmp_path, port=0, host="0.0.0.0"))
    assert "warning: 0.0.0.0 can be reached from other machines without encryption" in capsys.readouterr().err
    assert [is_loopback(h) for h in ("localhost", "::1", "127.9.9.9", "0.0.0.0", "::", "10.0.0.1", "example.org")] == [
        *[True] * 3,
        *[False] * 4,
    ]


def test_an_address_that_is_taken_is_one_clear_error(project: Project, tmp_path: Path, served):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1, port {port} .*--review.port"):
            serve(project.store, settings_of(tmp_path, port=port))


def test_https_cookies_travel_over_https_only(project: Project):
    client = TestClient(create_app(project.store, secure=True), base_url="https://localhost")
    page = client.get("/login").text
    response = client.post("/login", data={**fields(page), "token": project.tokens["Ada"]}, follow_redirects=False)
    assert all("secure" in c.lower() for c in response.headers.get_list("set-cookie") if "max-age=0" not in c.lower())


@pytest.fixture
def script(project: Project, tmp_path: Path, capsys):
    """``scripts/review.py`` on the project: exit code, output, errors."""
    project.store.database.set_meta("complete", True)
    config = tmp_path / "datagen.yaml"
    sources = [{"annotations": str(tmp_path / "a.json"), "images": str(tmp_path / "pictures")}]
    config.write_text(json.dumps({"project": str(tmp_path), "sources": sources}))
    main = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "review.py"))["main"]

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([arguments[0], *arguments[1:], "--config", str(config)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_script_manages_people_and_shows_each_token_once(project: Project, script):
    code, out, _ = script("add-annotator", "Barbara", "Ada Lovelace")
    assert code == 0
    tokens = dict(line.split(": ") for line in out.splitlines())
    assert list(tokens) == ["Barbara", "Ada Lovelace"]
    authenticate = project.store.annotators.authenticate
    assert all(authenticate(token).name == name for name, token in tokens.items())
    code, out, err = script("add-annotator", "--if-missing", "barbara")
    assert (code, out) == (0, "") and "barbara is there already; `review.py new-token 'barbara'`" in err
    assert "there is an annotator" in script("add-annotator", "Barbara")[2]
    code, out, _ = script("new-token", "Barbara")
    assert authenticate(tokens["Barbara"]) is None and authenticate(out.split(": ")[1]).name == "Barbara"
    assert script("deactivate", "Barbara")[0] == 0 and authenticate(out.split(": ")[1]) is None
    code, listed, _ = script("list")
    assert "inactive" in next(line for line in listed.splitlines() if "Barbara" in line)
    assert not any(token in listed for token in tokens.values())
    assert script("activate", "Barbara")[0] == 0 and authenticate(out.split(": ")[1]) is not None


def test_mistakes_in_calling_the_script_are_one_line(project: Project, script):
    for arguments, message in (
        (("new-token", "Nobody"), "no annotator 'Nobody'"),
        (("add-annotator", ""), "an annotator's name"),
        (("serve", "--certificate", "a.pem"), "needs both"),
        (("list", "--nonsense"), "nonsense"),
        (("nonsense",), "no such command"),
    ):
        code, _, err = script(*arguments)
        assert code == 2 and message in err and len(err.splitlines()) == 1


def test_the_dashboard_says_when_nobody_can_decide(project: Project, script):
    assert "add a third" not in project.browser("Ada").open("/dashboard")
    code, _, err = script("deactivate", "Edsger")
    assert code == 0 and "note: two people judge every pair" in err
    assert "Two people judge every pair and nobody is left to decide" in project.browser("Ada").open("/dashboard")
    assert "add a third" in script("list")[2]
