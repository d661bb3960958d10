"""The guard before every page: which requests are refused, and which headers every response carries."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 256 * 1024
"""Bytes of a request; the longest form has a few thousand."""

POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""The content security policy: nothing from elsewhere, nothing inline, in no frame."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """ASGI middleware: refuses foreign hosts, requests sent by other sites, and bodies of unknown or great length.

    Args:
        app: What is guarded.
        hosts: Names under which it may be reached, without port; empty for any. On a loopback address this keeps a
            foreign site from reaching the app under its own name.
        policy: The content security policy.
        max_body: Most bytes of a request, by the beginning of its path; the longest beginning that fits counts.
        shut: A pattern of paths that are refused.
        kept: Beginnings of paths that a browser may keep, if it asks whether they changed.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Sequence[str] = (),
        *,
        policy: str = POLICY,
        max_body: Mapping[str, int] | None = None,
        shut: str | None = None,
        kept: Sequence[str] = ("/static/",),
    ) -> None:
        self.app = app
        self.hosts = {host.lower().strip("[]") for host in hosts}
        self.headers = {"Content-Security-Policy": policy, **HEADERS}
        self.max_body = {"/": MAX_BODY, **(max_body or {})}
        self.shut = re.compile(shut) if shut else None
        self.kept = tuple(kept)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # no page of ours speaks so; the checks below know requests alone
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-cache" if scope["path"].startswith(self.kept) else "no-store")
            await send(message)

        refusal = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        await (refusal or self.app)(scope, receive, send_guarded)

    def _refusal(self, method: str, path: str, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if self.hosts and _name(host) not in self.hosts:
            return PlainTextResponse("This app is not reached under that name.\n", 400)
        if self.shut and self.shut.match(path):
            return PlainTextResponse("There is no such page.\n", 404)
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return PlainTextResponse("This request was sent by another site.\n", 403)
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return PlainTextResponse("This request was sent by another site.\n", 403)
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            return PlainTextResponse("Say how long the request is.\n", 411)
        if int(length) > self.max_body[max((p for p in self.max_body if path.startswith(p)), key=len, default="/")]:
            return PlainTextResponse("This is too much for one request.\n", 413)
        return None


def _name(host: str) -> str:
    """A ``Host`` header without its port, in lower case; an IPv6 address without its brackets."""
    return (urlsplit(f"//{host}").hostname or "").lower() if not set(host) & set("/@?#\\") else ""
