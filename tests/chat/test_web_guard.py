"""What the page lets nobody do: name the machine's files, make it fetch, send from elsewhere, send too much."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="no Gradio: pip install .[web]")

from fastapi.testclient import TestClient

from aura.chat import web
from aura.serving.address import LOOPBACK_NAMES
from tests.chat.standin import EVIL, Assistant, demo

LIMIT = 100_000


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a stand-in, with a question that is markup as its example."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("web")
        Image.new("RGB", (60, 40), "red").save(folder / "example.png")
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "cache"))
        yield web.build(demo(), [web.Example(folder / "example.png", EVIL)])


@pytest.fixture(scope="module")
def client(page):
    with TestClient(web.app_of(page, LOOPBACK_NAMES, LIMIT), base_url="http://127.0.0.1") as client:
        yield client


def call(client: TestClient, page, name: str, *data, visitor: str = "visitor") -> dict:
    """An event of the page, as its script sends it; returns what the server says last."""
    number = next(number for number, fn in page.fns.items() if fn.name == name)
    body = {"data": list(data), "fn_index": number, "session_hash": visitor}
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": visitor}) as events:
        for event in events.iter_lines():
            if "process_completed" in event:
                return json.loads(event.removeprefix("data: "))
    raise AssertionError("the event never ended")


def picture(path: object, **more) -> dict:
    return {"path": str(path), "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}, **more}


def upload(client: TestClient, name: str, data: bytes):
    return client.post("/gradio_api/upload", files={"files": (name, data)})


def test_every_page_carries_the_headers_and_no_foreign_script_may_run(client):
    response = client.get("/", headers={"accept": "text/html"})
    policy = response.headers["content-security-policy"]
    scripts = re.search(r"script-src ([^;]*);", policy)
    assert response.status_code == 200 and scripts and "unsafe" not in scripts[1] and "'sha256-" in scripts[1]
    for part in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "form-action 'self'"):
        assert part in policy
    assert EVIL not in response.text and "fonts.googleapis" not in response.text
    for address in ("/", "/config", "/theme.css", "/nowhere", "/gradio_api/info"):
        headers = client.get(address).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin" and headers["cache-control"] == "no-store"
        assert "set-cookie" not in headers and "server" not in headers


def test_other_sites_and_foreign_names_are_refused(client):
    body = {"data": [], "fn_index": 0, "session_hash": "x"}
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert client.post("/gradio_api/queue/join", json=body, headers=headers).status_code == 403
        assert client.post("/gradio_api/upload", files={"files": b"x"}, headers=headers).status_code == 403
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    foreign = client.get("/config", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in foreign.headers


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd", __file__])
def test_no_file_of_the_machine_can_be_named(client, page, path):
    for address in (
        f"/gradio_api/file={path}",
        f"/gradio_api/file/{path}",
        f"/static/../{path}",
        f"/assets/..%2f{path}",
    ):
        assert client.get(address).status_code in (403, 404)
    answer = call(client, page, "look", picture(path))
    assert not answer["success"]
    assert not list(Path(page.GRADIO_CACHE).rglob(Path(path).name)), "it was copied to where pictures are served from"


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/", "https://192.0.2.1/a.png", "HTTP://localhost/"])
def test_the_server_fetches_nothing_that_a_visitor_names(client, page, address, monkeypatch):
    import httpx
    from gradio import processing_utils

    asked = []

    async def fetched(*what, **_):
        asked.append(what)
        raise OSError

    monkeypatch.setattr(httpx.AsyncClient, "send", fetched)
    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetched)
    for path in ("proxy=", "file=", "file/"):
        assert client.get(f"/gradio_api/{path}{address}").status_code == 404
    assert not call(client, page, "look", picture(address))["success"]
    assert not call(client, page, "look", picture("/nowhere.png", url=address))["success"]
    assert not asked


def test_uploads_have_a_bound_and_are_served_as_what_they_are(client, page):
    assert upload(client, "a.png", b"x" * (LIMIT + 200_000)).status_code == 413
    assert upload(client, "a.png", b"x" * (LIMIT + 1)).status_code == 413
    assert client.post("/gradio_api/queue/join", content=b"x" * 300_000).status_code == 413
    for name in ("a.html", "a.svg", "../../a.html", "a.html\\..\\b.html"):
        response = upload(client, name, b"<script>alert(1)</script>")
        (path,) = response.json()
        assert Path(path).resolve().is_relative_to(page.GRADIO_CACHE) and "/../" not in path
        served = client.get(f"/gradio_api/file={path}")
        assert served.headers["content-disposition"].startswith("attachment")
        assert served.headers["content-type"] == "application/octet-stream"
        assert served.headers["x-content-type-options"] == "nosniff"


def test_what_is_no_picture_is_told_and_the_page_goes_on(client, page, tmp_path):
    (path,) = upload(client, "a.png", b"<script>").json()
    assert call(client, page, "look", picture(path))["output"]["data"][0] is None
    answer = call(client, page, "ask", None, "What?")
    assert answer["success"] and answer["output"]["data"][2] == "What?", "the question is still there"
    Image.new("RGB", (60, 40)).save(tmp_path / "b.png")
    (path,) = upload(client, "b.png", (tmp_path / "b.png").read_bytes()).json()
    assert call(client, page, "look", picture(path))["success"]
    forged = [{"role": "assistant", "content": EVIL}]
    data = call(client, page, "ask", forged, f"What is {EVIL}?")["output"]["data"]
    said = json.dumps(data[3])
    assert "<" not in said and "&lt;img src=x" in said and len(data[3]) == 2, "two lines, both as text"


def test_a_visitor_has_a_conversation_of_their_own_and_only_so_many_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(web, "KEPT_TALKS", 2)
    page = web.build(demo())
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")

    def lines(visitor: str) -> int:
        return len(call(client, page, "ask", None, "What?", visitor=visitor)["output"]["data"][3])

    with TestClient(web.app_of(page, (), LIMIT), base_url="http://127.0.0.1") as client:
        (path,) = upload(client, "a.png", (tmp_path / "a.png").read_bytes()).json()
        for visitor in ("Ada", "Grace"):
            assert call(client, page, "look", picture(path), visitor=visitor)["success"]
            assert lines(visitor) == 2
        assert lines("Grace") == 4 and lines("Mallory") == 0
        assert lines("Ada") == 0, "forgotten for the third"


def test_an_answer_stands_though_its_masks_cannot_be_written(client, page, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(web, "write_masks", full)
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    (path,) = upload(client, "a.png", (tmp_path / "a.png").read_bytes()).json()
    assert call(client, page, "look", picture(path), visitor="full")["success"]
    answer = call(client, page, "ask", None, "What?", visitor="full")
    assert answer["success"] and len(answer["output"]["data"][3]) == 2


def test_the_page_may_begin_with_a_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "first.png")
    assistant = Assistant()
    page = web.build(web.Demo(assistant), image=tmp_path / "first.png")
    with TestClient(web.app_of(page, (), LIMIT), base_url="http://127.0.0.1") as client:
        config = client.get("/config").json()
        (shown,) = [c["props"]["value"] for c in config["components"] if c["props"].get("label") == "Image"]
        assert client.get(f"/gradio_api/file={shown['path']}").status_code == 200
        assert any([t[1] for t in d["targets"]] == ["load"] for d in config["dependencies"])
        assert call(client, page, "look", picture(shown["path"]))["success"]
    assert [image.getpixel((0, 0)) for image in assistant.seen] == [(0, 0, 255)]
