"""The addresses of the review app. Every page but the login asks who is there; every change carries a form token."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Path, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from pydantic import BaseModel, Field

from aura.datagen.pairs import Conflict
from aura.datagen.review.access import LOGIN_COOKIE, SESSION_COOKIE, SESSION_SECONDS, Access, own_page
from aura.datagen.review.desk import Base, Collision, Desk, Typed, objects_of
from aura.datagen.review.layers import mask_layer
from aura.datagen.review.views import (
    ReviewPage,
    clock,
    comparison,
    dashboard,
    history,
    own_verdicts,
    page_objects,
    review_page,
    shown_text,
)
from aura.datagen.reviews import Annotator

LARGEST_ID = 2**63 - 1
MAX_TEXT = 4000
MAX_OBJECTS = 200
PICTURE_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}

Id = Annotated[int, Path(ge=0, le=LARGEST_ID)]

router = APIRouter(default_response_class=HTMLResponse)

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


class PairForm(BaseModel):
    """The review page's form as it was sent; see :class:`Typed` and :class:`Base`."""

    decision: str = Field("", max_length=40)
    drop_text: str = Field("", max_length=1)
    kind: str = Field("judge", max_length=10)
    version: int = Field(0, ge=0, le=LARGEST_ID)
    replaces: str = Field("", max_length=19)
    draft: str = Field("", max_length=40)
    question: str = Field("", max_length=MAX_TEXT)
    answer: str = Field("", max_length=MAX_TEXT)
    note: str = Field("", max_length=MAX_TEXT)
    objects: list[Annotated[str, Field(max_length=19)]] = Field(default_factory=list, max_length=MAX_OBJECTS)

    def typed(self) -> Typed:
        """What stands in the fields. Browsers send line ends as CR LF."""
        question, answer, note = (text.replace("\r\n", "\n") for text in (self.question, self.answer, self.note))
        return Typed(question, answer, objects_of(self.objects), note)

    def base(self) -> Base:
        """What the page was made from."""
        return Base(self.kind, self.version, int(self.replaces) if self.replaces.isdigit() else None, self.draft)


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
            waiting=self.desk.reviews.num_waiting(self.annotator),
            **context,
        )


def render(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """A template as a response."""
    return HTMLResponse(_fragment(template, **{"annotator": None, **context}), status)


def _fragment(template: str, **context: Any) -> str:
    return _TEMPLATES.get_template(template).render(asset=_asset, **context)


@lru_cache
def _asset(name: str) -> str:
    """The address of a style sheet or script; it changes with the content, so that no browser keeps an old one."""
    source = (_package_folder() / "static" / name).read_bytes()
    return f"/static/{name}?{hashlib.sha256(source).hexdigest()[:12]}"


def _package_folder() -> Any:
    from importlib.resources import files

    return files("aura.datagen.review")


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


# --- logging in -------------------------------------------------------------------------------------------------------


@router.get("/login")
def login_page(request: Request, to: str = "/") -> Response:
    """The login form."""
    return _login_page(request, own_page(to))


def _login_page(request: Request, to: str, *, failed: bool = False) -> Response:
    access: Access = request.app.state.access
    cookie = access.login_cookie()
    response = render("login.html", 403 if failed else 200, token=access.login_token(cookie), to=to, failed=failed)
    response.set_cookie(LOGIN_COOKIE, cookie, path="/login", httponly=True, samesite="strict", secure=access.secure)
    return response


@router.post("/login")
def log_in(
    request: Request,
    token: Annotated[str, Form(max_length=200)] = "",
    form_token: Annotated[str, Form(max_length=100)] = "",
    to: Annotated[str, Form(max_length=100)] = "/",
) -> Response:
    """Start a session."""
    access: Access = request.app.state.access
    if not access.login_token_holds(request.cookies.get(LOGIN_COOKIE), form_token):
        return _login_page(request, own_page(to), failed=True)
    annotator = access.store.reviews.authenticate(token)
    if annotator is None:
        return _login_page(request, own_page(to), failed=True)
    response = go(own_page(to))
    response.delete_cookie(LOGIN_COOKIE, path="/login")
    response.set_cookie(
        SESSION_COOKIE,
        access.session(annotator),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=access.secure,
    )
    return response


@router.post("/logout")
def log_out(member: Changing) -> Response:
    """End all sessions of the annotator."""
    member.access.log_out(member.annotator)
    response = go("/login")
    response.delete_cookie(SESSION_COOKIE)
    return response


# --- queue and figures ------------------------------------------------------------------------------------------------


@router.get("/")
def queue_page(member: Reading) -> Response:
    """What waits for the annotator, and what they did last."""
    items = member.desk.reviews.queue(member.annotator, 20)
    questions = {item.pair_id: member.desk.store.pair(item.pair_id).text.question for item in items}
    own = next(row for row in member.desk.reviews.progress() if row.annotator.id == member.annotator.id)
    return member.page(
        "queue.html", items=items, questions=questions, own=own, latest=own_verdicts(member.desk, member.annotator)
    )


@router.get("/next")
def next_page(member: Reading, after: Annotated[int | None, Query(ge=0, le=LARGEST_ID)] = None) -> Response:
    """To the pair that comes after another in the queue, or to the queue when nothing is left."""
    item = member.desk.following(member.annotator, after)
    return go("/" if item is None else f"/pairs/{item.pair_id}")


@router.get("/dashboard")
def dashboard_page(member: Reading) -> Response:
    """Progress and agreement."""
    return member.page("dashboard.html", board=dashboard(member.desk.store))


# --- a pair -----------------------------------------------------------------------------------------------------------


@router.get("/pairs/{pair_id}")
def pair_page(
    member: Reading,
    pair_id: Id,
    judged: Annotated[int | None, Query(ge=0, le=LARGEST_ID)] = None,
    counted: Literal["accept", "edit", "reject"] | None = None,
    saved: bool = False,
) -> Response:
    """A pair to judge or to decide about, or what became of it; ``judged`` is the one before it."""
    try:
        view = member.desk.view(member.annotator, pair_id)
    except KeyError:
        return not_found(member, "There is no such pair in this project.")
    except Conflict as conflict:
        return _closed(member, pair_id, str(conflict))
    done = (judged, counted) if judged is not None and counted is not None else None
    return _review(member, review_page(member.desk, view), view.base, done=done, saved=saved)


def _review(
    member: Member,
    page: ReviewPage,
    base: Base,
    *,
    status: int = 200,
    error: str = "",
    done: tuple[int, str] | None = None,
    saved: bool = False,
) -> Response:
    return member.page("review.html", status, page=page, base=base, error=error, done=done, saved=saved)


def _closed(member: Member, pair_id: int, message: str) -> Response:
    """A pair that this annotator cannot judge: all about it once it is decided, nothing before."""
    pair = member.desk.store.pair(pair_id)
    draft = member.desk.reviews.draft(member.annotator, pair_id)
    lost = Typed.read(draft.content) if draft is not None and draft.content else None
    if not pair.decided:
        return member.page("message.html", 409, title="Not yours to judge now", message=message, typed=lost)
    return member.page("history.html", history=history(member.desk, pair), typed=lost)


@router.post("/pairs/{pair_id}")
def judge(member: Changing, pair_id: Id, form: Annotated[PairForm, Form()]) -> Response:
    """A verdict, or, for those without JavaScript, saving and checking what is typed."""
    desk, annotator = member.desk, member.annotator
    try:
        typed = form.typed()
        base = form.base()
        if form.decision == "discard":
            desk.discard(annotator, pair_id)
            return go(f"/pairs/{pair_id}")
        if form.decision == "save":
            desk.save(annotator, pair_id, typed, base.version, base.draft)
            return go(f"/pairs/{pair_id}?saved=1")
        if form.decision == "check":
            return _typed_page(member, pair_id, typed, base)
        following = desk.following(annotator, pair_id)
        decision, take = form.decision, None
        if decision.startswith("take:") and decision[5:].isdecimal():
            decision, take = "edit", int(decision[5:])
        try:
            counted, _ = desk.judge(
                annotator, pair_id, decision, typed, base, take=take, drop_text=bool(form.drop_text)
            )
        except ValueError as error:
            return _typed_page(member, pair_id, typed, base, error=str(error), status=422)
    except KeyError:
        return not_found(member, "There is no such pair in this project.")
    except Collision as collision:
        return _collided(member, pair_id, form, typed, collision)
    except Conflict as conflict:
        return _closed(member, pair_id, str(conflict))
    except ValueError as error:
        return member.page("message.html", 400, title="This cannot be read", message=str(error), typed=None)
    if following is None:
        return go("/")
    return go(f"/pairs/{following.pair_id}?judged={pair_id}&counted={counted}")


def _typed_page(
    member: Member, pair_id: int, typed: Typed, base: Base, *, error: str = "", status: int = 200
) -> Response:
    """The review page with what was typed, unchanged; it stays based on what it was based on."""
    view = member.desk.view(member.annotator, pair_id)
    return _review(member, review_page(member.desk, view, typed), base, error=error, status=status)


def _collided(member: Member, pair_id: int, form: PairForm, typed: Typed, collision: Collision) -> Response:
    """Both texts side by side; what was typed is kept as the annotator's draft, unless it met another draft."""
    desk = member.desk
    base = collision.base
    if collision.reason not in ("draft", "text"):
        version = desk.store.pair(pair_id).version
        desk.reviews.save_draft(member.annotator, pair_id, version, typed.content())
        if base is not None:
            base = desk.view(member.annotator, pair_id).base
    image_id = desk.store.pair(pair_id).image_id
    return member.page(
        "compare.html",
        200 if collision.reason == "text" else 409,
        pair_id=pair_id,
        reason=collision.reason,
        message=str(collision),
        label=collision.label,
        both=comparison(desk, image_id, typed, collision.other),
        typed=typed,
        base=base,
        decision=form.decision,
    )


class TypedNow(BaseModel):
    """What the page's script sends while somebody types."""

    question: str = Field(max_length=MAX_TEXT)
    answer: str = Field(max_length=MAX_TEXT)
    note: str = Field(max_length=MAX_TEXT)
    objects: list[Annotated[int, Field(ge=0, le=LARGEST_ID)] | None] = Field(max_length=MAX_OBJECTS)
    order: list[Annotated[int, Field(ge=0, le=LARGEST_ID)]] = Field(max_length=10 * MAX_OBJECTS)
    version: int = Field(ge=0, le=LARGEST_ID)
    draft: str = Field(max_length=40)


@router.post("/pairs/{pair_id}/draft")
def keep(member: Changing, pair_id: Id, sent: TypedNow) -> Response:
    """Save a draft; answers with its new state and what the checks say. ``order``: the objects as the page numbers
    them."""
    desk = member.desk
    typed = Typed(sent.question, sent.answer, tuple(sent.objects), sent.note)
    try:
        pair = desk.store.pair(pair_id)
    except KeyError:
        return JSONResponse({"error": "There is no such pair in this project."}, 404)
    on_page = page_objects(desk.checker(pair.image_id).facts, [sent.order])
    preview = _fragment(
        "preview.html",
        text=shown_text(typed.question, typed.answer, typed.objects, on_page),
        problems=desk.problems(pair, typed.text),
    )
    try:
        state = desk.save(member.annotator, pair_id, typed, sent.version, sent.draft)
    except Collision as collision:
        return JSONResponse({"error": str(collision), "preview": preview}, 409)
    draft = desk.reviews.draft(member.annotator, pair_id)
    saved = clock(draft.saved) if draft is not None else ""
    return JSONResponse({"draft": state, "saved": saved, "preview": preview})


# --- pictures ---------------------------------------------------------------------------------------------------------


@router.get("/images/{image_id}/picture")
def picture(member: Reading, image_id: Id) -> Response:
    """The picture of an image of the project; never another file, whatever the annotation file calls it."""
    try:
        stored = member.desk.image(image_id)
    except KeyError:
        return not_found(member, "There is no such picture in this project.")
    folders = [source.images for source in member.desk.store.sources]
    path = stored.picture.resolve()
    inside = any(path.is_relative_to(_resolved(folder)) for folder in folders)
    try:
        if not inside:
            raise OSError("outside of the picture folders")
        with Image.open(path) as opened:
            kind = PICTURE_TYPES[opened.format or ""]
        content = path.read_bytes()
    except (OSError, KeyError, SyntaxError, ValueError, Image.DecompressionBombError):
        return not_found(member, "The picture's file is missing or no picture.")
    return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})


@lru_cache
def _resolved(folder: str) -> Any:
    from pathlib import Path as FilePath

    return FilePath(folder).resolve()


@router.get("/images/{image_id}/objects/{object_id}/{kind}-{index}.png")
def layer(
    member: Reading,
    image_id: Id,
    object_id: Id,
    kind: Literal["visible", "amodal"],
    index: Annotated[int, Path(ge=0, lt=10 * MAX_OBJECTS)],
) -> Response:
    """A mask of an object as a transparent layer in the colour of ``index``."""
    try:
        objects = member.desk.image(image_id).image.objects
        found = next(obj for obj in objects if obj.id == object_id)
    except (KeyError, StopIteration):
        return not_found(member, "There is no such object in this project.")
    content = mask_layer(found, kind, index)
    return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def not_found(member: Member, message: str) -> Response:
    """A page that says so."""
    return member.page("message.html", 404, title="Not found", message=message, typed=None)
