"""The review app put together, and served."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from aura.datagen.checks.rules import CheckSettings
from aura.datagen.review import pictures, routes
from aura.datagen.review.access import Access, own_page
from aura.datagen.review.desk import Desk
from aura.datagen.review.member import Foreign, Unknown, go, render
from aura.datagen.settings import ProjectSettings
from aura.datagen.store.store import Store
from aura.serving.address import LOOPBACK_NAMES, listen, names_of, url_of, warn_of_others
from aura.serving.guard import Guard

TEXT_FIELDS = ("question", "answer", "note")


def create_app(
    store: Store, checks: CheckSettings | None = None, *, hosts: Sequence[str] = LOOPBACK_NAMES, secure: bool = False
) -> FastAPI:
    """The app of one project.

    Args:
        store: Stays open as long as the app runs.
        checks: Limits of the checks.
        hosts: Names under which it may be reached; empty for any.
        secure: It is reached over https only.
    """
    app = FastAPI(title="AURA review", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = Desk(store, checks)
    app.state.access = Access(store, secure=secure)
    app.include_router(routes.router)
    app.include_router(pictures.router)
    app.mount("/static", StaticFiles(packages=[("aura.datagen.review", "static")]), name="static")
    app.add_middleware(Guard, hosts=hosts)
    app.add_exception_handler(Unknown, _unknown)
    app.add_exception_handler(Foreign, _foreign)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(Exception, _broken)
    return app


def serve(
    store: Store,
    settings: ProjectSettings,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    names: Sequence[str] = (),
) -> None:
    """Serve a project's review until it is stopped.

    Args:
        store: The project.
        settings: ``review.host``, ``review.port`` (0: any free one) and ``checks`` are read.
        certificate: For https, with its ``key``.
        key: The certificate's private key.
        names: Further names under which the app is reached, such as a proxy's; only used on a loopback address.

    Raises:
        ValueError: The address cannot be used.
    """
    host = settings.review.host
    listening = listen(host, settings.review.port, "choose others with --review.host and --review.port")
    https = certificate is not None
    app = create_app(store, settings.checks, hosts=names_of(host, *names), secure=https)
    print(f"{store.path}: review at {url_of(host, listening, https=https)} (Ctrl-C stops it)", flush=True)
    warn_of_others(
        host,
        "" if https else " without encryption: tokens and texts can be read on the way",
        "stay on 127.0.0.1 and let reviewers come through ssh or an https proxy, see docs/review.md",
    )
    if not store.annotators.all():
        print("nobody can log in yet: add people with scripts/review.py add-annotator NAME", file=sys.stderr)
    for obstacle in store.queues.obstacles():
        print(f"note: {obstacle}", file=sys.stderr)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    uvicorn.Server(config).run(sockets=[listening])


# --- what went wrong --------------------------------------------------------------------------------------------------


async def _unknown(request: Request, error: Exception) -> Response:
    """Nobody is logged in: to the login, or, if something was sent, a page that gives it back."""
    if request.method == "GET":
        return go(f"/login?to={own_page(request.url.path)}")
    if _is_script(request):
        return JSONResponse({"error": "You are logged out. Log in in another window; your text stays here."}, 401)
    return await _unsent(request, 401, "You are logged out", "Log in in another window, then send it again.", True)


async def _foreign(request: Request, error: Exception) -> Response:
    """The form token is wrong: nothing was done, and what was sent comes back."""
    message = "The page is older than your present login. Copy your text, open the page again, and paste it."
    if _is_script(request):
        return JSONResponse({"error": message}, 403)
    return await _unsent(request, 403, "Not sent", message, False)


async def _unsent(request: Request, status: int, title: str, message: str, again: bool) -> Response:
    form = await request.form()
    fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    texts = [(name, value) for name, value in fields if name in TEXT_FIELDS and value]
    address = own_page(request.url.path)
    return render(
        "unsent.html", status, title=title, message=message, fields=fields, texts=texts, again=again, address=address
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "There is no such page.", 405: "This page is not asked in that way."}
    message = words.get(error.status_code, str(error.detail))
    return render("message.html", error.status_code, title="Not found", message=message, typed=None)


async def _unreadable(request: Request, error: Exception) -> Response:
    """A request that no page of ours makes, or a text beyond all bounds; the text comes back."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    message = f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"
    if _is_script(request):
        return JSONResponse({"error": message}, 422)
    if request.method == "POST":
        return await _unsent(request, 422, "This cannot be read", message, False)
    return render("message.html", 422, title="This cannot be read", message=message, typed=None)


async def _broken(request: Request, error: Exception) -> Response:
    """A bug, or a disk that failed; uvicorn writes the details to the terminal."""
    return HTMLResponse("<!doctype html><title>Error</title><p>Something failed; nothing was stored. Go back.", 500)


def _is_script(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("application/json")
