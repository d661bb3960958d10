"""Requests that others make in an annotator's name, and texts that are markup."""

from __future__ import annotations

import re
from html import unescape

from .conftest import EDITED, Project, fields


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
