"""Who may come in: tokens, sessions and the key that signs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Project, fields


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
