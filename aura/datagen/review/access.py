"""Sessions in a signed cookie, and the tokens that forms carry against requests from other sites."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from pathlib import Path

from itsdangerous import BadData, URLSafeTimedSerializer

from aura.datagen.store.annotators import Annotator
from aura.datagen.store.store import Store

SESSION_COOKIE = "aura_review"
LOGIN_COOKIE = "aura_login"
SESSION_SECONDS = 14 * 3600
_PAGES = re.compile(r"/(?:pairs/\d{1,18}|dashboard|next)?")


class Access:
    """Sessions and form tokens of one project.

    A session names the annotator and a mark made of the token's hash and a counter, so that a new token, and logging
    out, end every session of that person. ``secure``: cookies travel over https only.
    """

    def __init__(self, store: Store, *, secure: bool = False) -> None:
        self.store = store
        self.secure = secure
        self._secret = _secret(store.path)
        self._sessions = URLSafeTimedSerializer(self._secret, salt="aura review session")

    def session(self, annotator: Annotator) -> str:
        """The cookie of somebody who has just shown their token."""
        return str(self._sessions.dumps([annotator.id, self._mark(annotator)]))

    def who(self, cookie: str | None) -> Annotator | None:
        """The active annotator whose session this is, if it is one that still holds."""
        try:
            number, mark = self._sessions.loads(cookie or "", max_age=SESSION_SECONDS)
            annotator = self.store.annotators.get(int(number))
        except (BadData, KeyError, TypeError, ValueError):
            return None
        return annotator if annotator.active and _same(str(mark), self._mark(annotator)) else None

    def log_out(self, annotator: Annotator) -> None:
        """End all sessions of an annotator."""
        with self.store.database.write():
            self.store.database.set_meta(_counter(annotator), self._count(annotator) + 1)

    def form_token(self, annotator: Annotator) -> str:
        """What every form and request that changes something must carry. It outlives a session that ran out."""
        return self._sign("form", self._mark(annotator))

    def form_token_holds(self, annotator: Annotator, token: str) -> bool:
        """Whether a form came from one of our pages for this annotator."""
        return _same(token, self.form_token(annotator))

    def login_cookie(self) -> str:
        """A random value that ties a login form to the browser that asked for it."""
        return secrets.token_urlsafe(18)

    def login_token(self, cookie: str) -> str:
        """The form token that goes with :meth:`login_cookie`."""
        return self._sign("login", cookie)

    def login_token_holds(self, cookie: str | None, token: str) -> bool:
        """Whether a login form was asked for by this browser."""
        return cookie is not None and _same(token, self.login_token(cookie))

    def _mark(self, annotator: Annotator) -> str:
        token_hash = self.store.database.value("SELECT token_hash FROM annotators WHERE id = ?", [annotator.id])
        return self._sign("mark", f"{annotator.id} {self._count(annotator)} {bytes(token_hash).hex()}")

    def _count(self, annotator: Annotator) -> int:
        return int(self.store.database.meta(_counter(annotator), 0))

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret.encode(), f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()


def own_page(address: str) -> str:
    """``address`` if it is a page of this app to return to after logging in, else the first page."""
    return address if _PAGES.fullmatch(address) else "/"


def _counter(annotator: Annotator) -> str:
    return f"review_logouts_{annotator.id}"


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _secret(database: Path) -> str:
    """The key that signs cookies, beside the project's file and readable by its owner only; made when it is missing.

    Raises:
        ValueError: The file is damaged.
    """
    path = database.with_name(database.name + ".review-key")
    if not path.exists():
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())
            # A link never replaces: of two processes that start at once, both use the key of the first.
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            Path(temporary).unlink()
    key = path.read_text(encoding="ascii", errors="replace").strip()
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise ValueError(f"{path}: is no key of 64 hexadecimal digits; delete it, and all must log in again")
    return key
