"""The annotator behind a request, with what every page needs: form token, templates."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, Path, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from aura.datagen.review.access import SESSION_COOKIE, Access
from aura.datagen.review.desk import Desk
from aura.datagen.review.views import clock
from aura.datagen.store.annotators import Annotator

LARGEST_ID = 2**63 - 1
Id = Annotated[int, Path(ge=0, le=LARGEST_ID)]

_TEMPLATES = Environment(
    loader=PackageLoader("aura.datagen.review"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["clock"] = clock


class Unknown(Exception):
    """The caller has no session that holds."""


class Foreign(Exception):
    """A change without a valid form token."""


class Member:
    """The annotator who is asking, with what pages need about them."""

    def __init__(self, request: Request, annotator: Annotator) -> None:
        self.request = request
        self.annotator = annotator
        self.desk: Desk = request.app.state.desk
        self.access: Access = request.app.state.access

    def page(self, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """A page for this annotator."""
        return render(
            template,
            status,
            annotator=self.annotator,
            form_token=self.access.form_token(self.annotator),
            waiting=self.desk.store.queues.num_waiting(self.annotator),
            **context,
        )


def render(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """A template as a response."""
    return HTMLResponse(fragment(template, **{"annotator": None, **context}), status)


def fragment(template: str, **context: Any) -> str:
    """A template as text."""
    return _TEMPLATES.get_template(template).render(asset=_asset, **context)


@lru_cache
def _asset(name: str) -> str:
    """The address of a style sheet or script; it changes with the content, so that no browser keeps an old one."""
    source = (files("aura.datagen.review") / "static" / name).read_bytes()
    return f"/static/{name}?{hashlib.sha256(source).hexdigest()[:12]}"


def _member(request: Request) -> Member:
    access: Access = request.app.state.access
    annotator = access.who(request.cookies.get(SESSION_COOKIE))
    if annotator is None:
        raise Unknown
    return Member(request, annotator)


Reading = Annotated[Member, Depends(_member)]


async def _changing(request: Request, member: Reading) -> Member:
    """A member whose request carries the form token, as a field or, from the script, as a header."""
    token = request.headers.get("x-form-token")
    if token is None:
        field = (await request.form()).get("form_token")
        token = field if isinstance(field, str) else ""
    if not member.access.form_token_holds(member.annotator, token):
        raise Foreign
    return member


Changing = Annotated[Member, Depends(_changing)]


def go(address: str) -> RedirectResponse:
    """To another page, with GET whatever came before."""
    return RedirectResponse(address, 303)


def not_found(member: Member, message: str) -> Response:
    """A page that says so."""
    return member.page("message.html", 404, title="Not found", message=message, typed=None)
