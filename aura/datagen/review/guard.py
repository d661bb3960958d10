"""The guard before every page: which requests are refused, and which headers every response carries."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 256 * 1024
"""Bytes of a request; the longest form has a few thousand."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """ASGI middleware: refuses foreign hosts, requests sent by other sites, and bodies of unknown or great length.

    ``hosts``: names under which the app may be reached, without port; empty for any. On a loopback address this keeps
    a foreign site from reaching the app under its own name.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = ()) -> None:
        self.app = app
        self.hosts = {host.lower().strip("[]") for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                fresh = "no-cache" if scope["path"].startswith("/static/") else "no-store"
                headers.setdefault("Cache-Control", fresh)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (refusal or self.app)(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if self.hosts and _name(host) not in self.hosts:
            return PlainTextResponse("This app is not reached under that name.\n", 400)
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return PlainTextResponse("This request was sent by another site.\n", 403)
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return PlainTextResponse("This request was sent by another site.\n", 403)
        length = headers.get("content-length", "")
        if not length.isdigit():
            return PlainTextResponse("Say how long the request is.\n", 411)
        if int(length) > MAX_BODY:
            return PlainTextResponse("This is too much for one request.\n", 413)
        return None


def _name(host: str) -> str:
    """A ``Host`` header without its port, in lower case; an IPv6 address without its brackets."""
    return (urlsplit(f"//{host}").hostname or "").lower() if not set(host) & set("/@?#\\") else ""
