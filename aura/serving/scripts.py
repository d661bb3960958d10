"""A page with inline scripts of its own: they are allowed by their hashes, and no others."""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_INLINE = re.compile(rb"<script(?![^>]*\ssrc\s*=)[^>]*>(.*?)</script", re.DOTALL | re.IGNORECASE)


class InlineScripts:
    """ASGI middleware around :class:`aura.serving.guard.Guard`: adds the hashes of a page's scripts to its policy.

    For pages that a library writes. What they hold of users' texts must be escaped in the scripts, as JSON is; what
    gets into the page later, such as an answer, never becomes a script.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "text/html" not in Headers(scope=scope).get("accept", ""):
            await self.app(scope, receive, send)
            return
        # Nothing compresses a page whose reader does not take it.
        scope = {**scope, "headers": [(n, v) for n, v in scope["headers"] if n.lower() != b"accept-encoding"]}
        start: Message = {}
        body = b""

        async def send_hashed(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                if not _is_page(start):
                    await send(start)
            elif message["type"] != "http.response.body" or not _is_page(start):
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    _allow(start, body)
                    await send(start)
                    await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, send_hashed)


def _is_page(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith("text/html")


def _allow(start: Message, body: bytes) -> None:
    """Write the hashes behind ``script-src 'self'``, in place."""
    headers = MutableHeaders(raw=start["headers"])
    digests = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _INLINE.findall(body))
    sources = " ".join(["script-src 'self'", *(f"'sha256-{digest}'" for digest in digests)])
    policy = headers.get("content-security-policy", "")
    headers["content-security-policy"] = policy.replace("script-src 'self'", sources, 1)
    start["headers"] = headers.raw
