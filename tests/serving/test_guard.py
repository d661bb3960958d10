"""What the guard of any page refuses, and how a page's own scripts are told from others."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

pytest.importorskip("starlette", reason="no Starlette: pip install .[datagen] or .[web]")

from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from aura.serving.guard import Guard
from aura.serving.scripts import InlineScripts

PAGE = (
    "<!doctype html><script>first()</script><script src='a.js'></script><SCRIPT type=module>second()</SCRIPT>"
    + " " * 2000
)


async def page(request):
    return HTMLResponse(PAGE)


async def in_parts(request):
    return StreamingResponse((part for part in ("<script>", "third()", "</script>")), media_type="text/html")


async def plain(request):
    return PlainTextResponse("<script>first()</script>")


async def socket(websocket):
    await websocket.accept()


def client_of(**guard) -> TestClient:
    app = Starlette(
        routes=[
            Route("/", page, methods=["GET", "POST"]),
            Route("/parts", in_parts),
            Route("/file=/a", plain),
            Route("/upload", plain, methods=["POST"]),
            WebSocketRoute("/socket", socket),
        ]
    )
    app.add_middleware(GZipMiddleware)
    app.add_middleware(Guard, **guard)
    app.add_middleware(InlineScripts)
    return TestClient(app)


def test_bodies_have_a_bound_by_path_and_some_paths_are_shut():
    client = client_of(max_body={"/upload": 1_000_000}, shut="/file=(?!/)")
    assert client.post("/upload", content=b"x" * 900_000).status_code == 200
    assert client.post("/upload", content=b"x" * 1_000_001).status_code == 413
    assert client.post("/", content=b"x" * 300_000).status_code == 413
    for length in ("-1", "1e3", "²", ""):
        assert client.post("/", content=b"", headers={"content-length": length.encode()}).status_code == 411
    assert client.get("/file=/a").status_code == 200
    for address in ("/file=http://127.0.0.1/", "/file=HTTPS://a.b", "/file=%68ttp://a.b"):
        assert client.get(address).status_code == 404
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/socket"):
        pass


@pytest.mark.parametrize(("address", "scripts"), [("/", ["first()", "second()"]), ("/parts", ["third()"])])
def test_a_page_s_own_scripts_are_allowed_by_their_hashes(address: str, scripts: list[str]):
    response = client_of().get(address, headers={"accept": "text/html,*/*"})
    policy = response.headers["content-security-policy"]
    found = re.search(r"script-src ([^;]*);", policy)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert found and found[1].split() == ["'self'", *(f"'sha256-{digest}'" for digest in digests)]
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert response.text == (PAGE if address == "/" else "<script>third()</script>")
    assert response.headers["x-frame-options"] == "DENY" and response.headers["referrer-policy"] == "same-origin"


def test_what_is_no_page_allows_no_script():
    client = client_of()
    for address, accept in (("/file=/a", "text/html"), ("/", "*/*")):
        response = client.get(address, headers={"accept": accept})
        assert "script-src 'self';" in response.headers["content-security-policy"]
