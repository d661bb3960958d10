"""The addresses of the pages. Every page but the login asks who is there; every change carries a form token."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, Field

from aura.datagen.review.access import LOGIN_COOKIE, SESSION_COOKIE, SESSION_SECONDS, Access, own_page
from aura.datagen.review.desk import Base, Collision, Typed, objects_of
from aura.datagen.review.member import LARGEST_ID, Changing, Id, Member, Reading, fragment, go, not_found, render
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
from aura.datagen.store.pairs import Conflict

MAX_TEXT = 4000
MAX_OBJECTS = 200

router = APIRouter(default_response_class=HTMLResponse)


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
    annotator = access.store.annotators.authenticate(token)
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
    items = member.desk.store.queues.of(member.annotator, 20)
    questions = {item.pair_id: member.desk.store.pairs.get(item.pair_id).text.question for item in items}
    own = next(row for row in member.desk.store.queues.progress() if row.annotator.id == member.annotator.id)
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
    pair = member.desk.store.pairs.get(pair_id)
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
        version = desk.store.pairs.get(pair_id).version
        desk.reviews.save_draft(member.annotator, pair_id, version, typed.content())
        if base is not None:
            base = desk.view(member.annotator, pair_id).base
    image_id = desk.store.pairs.get(pair_id).image_id
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
    """Save a draft; the answer holds its new state and what the checks say.

    ``order`` of what was sent are the objects as the page numbers them.
    """
    desk = member.desk
    typed = Typed(sent.question, sent.answer, tuple(sent.objects), sent.note)
    try:
        pair = desk.store.pairs.get(pair_id)
    except KeyError:
        return JSONResponse({"error": "There is no such pair in this project."}, 404)
    on_page = page_objects(desk.checker(pair.image_id).facts, [sent.order])
    preview = fragment(
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
