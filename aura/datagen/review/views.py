"""What the pages show, ready for the templates: texts with coloured marks, objects, differences, figures."""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aura.datagen.facts.facts import Facts
from aura.datagen.records import PairProblem
from aura.datagen.review.desk import Desk, Typed, View
from aura.datagen.store.agreement import Agreement, PairText
from aura.datagen.store.annotators import Annotator
from aura.datagen.store.pairs import Pair, PairVersion
from aura.datagen.store.queues import AnnotatorProgress
from aura.datagen.store.reviews import Verdict
from aura.datagen.store.store import Status, Store
from aura.drawing.typesetting import PALETTE, colour_of
from aura.drawing.visualize import asked_text, hidden_text
from aura.types import SEG_TOKEN, Masks

SPARE_LINKS = 2
"""Empty object fields below those in use, for marks that are added without JavaScript."""


@dataclass(frozen=True)
class ShownObject:
    """An object of the picture; ``index`` (from 0) gives its number on the page and its colour."""

    id: int
    index: int
    name: str
    hidden: str
    linked: bool

    @property
    def number(self) -> int:
        """The number that people see."""
        return self.index + 1

    @property
    def colour_class(self) -> str:
        """The style sheet's class of its colour."""
        return f"c{self.index % len(PALETTE)}"

    @property
    def colour(self) -> str:
        """Its colour in plain English."""
        return colour_of(self.index).name


@dataclass(frozen=True)
class Part:
    """A piece of a text: words, or a ``[SEG]`` mark with its object (``None``: there is none).

    ``asked`` says of a mark which one kind of mask is asked for, in words; empty for both.
    """

    words: str = ""
    mark: bool = False
    object: ShownObject | None = None
    asked: str = ""


@dataclass(frozen=True)
class Change:
    """A piece of a comparison: ``same``, ``gone`` or ``new`` words."""

    kind: str
    words: str


@dataclass(frozen=True)
class ShownText:
    """A question and its answer."""

    question: str
    answer: tuple[Part, ...]


@dataclass(frozen=True)
class ShownProposal:
    """What one of those who disagree said, with the differences to the text as it stands."""

    version: int
    decision: str
    note: str
    text: ShownText
    question_changes: tuple[Change, ...]
    answer_changes: tuple[Change, ...]


def page_objects(facts: Facts, texts: Iterable[Sequence[int | None]]) -> tuple[ShownObject, ...]:
    """The objects of a picture, those that a text points at first: the first text's first mark has number 1.

    Numbers and colours are then those of :mod:`aura.drawing.visualize`.
    """
    linked = [number for text in texts for number in text]
    order = list(dict.fromkeys([number for number in linked if number in facts.ids] + list(facts.ids)))
    place = {number: i for i, number in enumerate(facts.ids)}
    return tuple(
        ShownObject(
            id=number,
            index=index,
            name=facts.names[place[number]],
            hidden=hidden_text(None if math.isnan(rate := facts.rates[place[number]]) else rate),
            linked=number in linked,
        )
        for index, number in enumerate(order)
        if number is not None
    )


def shown_text(
    question: str,
    answer: str,
    objects: Sequence[int | None],
    on_page: Sequence[ShownObject],
    asked: Sequence[Masks] = (),
) -> ShownText:
    """A text whose marks know their objects and, by ``asked``, the mask that is asked for."""
    known = {obj.id: obj for obj in on_page}
    parts: list[Part] = []
    for number, words in enumerate(answer.split(SEG_TOKEN)):
        if number:
            linked = objects[number - 1] if number <= len(objects) else None
            kind: Masks = asked[number - 1] if number <= len(asked) else "both"
            parts.append(Part("", True, None if linked is None else known.get(linked), asked_text(kind)))
        parts.append(Part(words))
    return ShownText(question, tuple(parts))


def changes(old: str, new: str) -> tuple[Change, ...]:
    """What became of a text, word by word."""
    one: list[str] = re.findall(r"\S+\s*", old)
    other: list[str] = re.findall(r"\S+\s*", new)
    matcher = difflib.SequenceMatcher(None, [w.strip() for w in one], [w.strip() for w in other], autojunk=False)
    found: list[Change] = []
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            found.append(Change("same", "".join(other[c:d])))
            continue
        if b > a:
            found.append(Change("gone", "".join(one[a:b])))
        if d > c:
            found.append(Change("new", "".join(other[c:d])))
    return tuple(found)


@dataclass(frozen=True)
class ReviewPage:
    """All that the review page shows of a pair."""

    pair: Pair
    kind: str
    file_name: str
    width: int
    height: int
    objects: tuple[ShownObject, ...]
    text: ShownText
    earlier: tuple[ShownText, ...]
    proposals: tuple[ShownProposal, ...]
    own: Verdict | None
    typed: Typed
    typed_text: ShownText
    edited: bool
    restored: str
    links: tuple[int | None, ...]
    problems: tuple[PairProblem, ...]


def review_page(desk: Desk, view: View, typed: Typed | None = None) -> ReviewPage:
    """The page of a pair; ``typed`` stands in the fields instead of what is stored."""
    task = view.task
    pair = task.pair
    fields = typed or view.typed
    checker = desk.checker(pair.image_id)
    texts = [pair.text.objects, *(p.version.text.objects for p in task.proposals), fields.objects]
    on_page = page_objects(checker.facts, texts)
    image = desk.image(pair.image_id).image
    marks = max(fields.answer.count(SEG_TOKEN), len(fields.objects)) + SPARE_LINKS
    return ReviewPage(
        pair=pair,
        kind=task.kind,
        file_name=image.file_name,
        width=image.width,
        height=image.height,
        objects=on_page,
        text=_shown(pair.text, on_page),
        earlier=tuple(_shown(turn.text, on_page) for turn in task.earlier),
        proposals=tuple(
            ShownProposal(
                version=p.version.version,
                decision=p.decision,
                note=p.note,
                text=_shown(p.version.text, on_page),
                question_changes=changes(pair.text.question, p.version.text.question),
                answer_changes=changes(pair.text.answer, p.version.text.answer),
            )
            for p in task.proposals
        ),
        own=task.own,
        typed=fields,
        typed_text=shown_text(fields.question, fields.answer, fields.objects, on_page),
        edited=not fields.same(pair.text),
        restored="" if view.restored is None or typed is not None else clock(view.restored),
        links=(*fields.objects, *[None] * (marks - len(fields.objects))),
        problems=desk.problems(pair, fields.text),
    )


def _shown(text: PairText, on_page: Sequence[ShownObject]) -> ShownText:
    return shown_text(text.question, text.answer, text.objects, on_page, text.asked)


@dataclass(frozen=True)
class Comparison:
    """Two texts side by side, and what changes from ``other`` to ``mine``."""

    mine: ShownText
    other: ShownText
    question_changes: tuple[Change, ...]
    answer_changes: tuple[Change, ...]


def comparison(desk: Desk, image_id: int, mine: Typed, other: PairText) -> Comparison:
    """What was typed beside what stands."""
    on_page = page_objects(desk.checker(image_id).facts, [other.objects, mine.objects])
    return Comparison(
        mine=shown_text(mine.question, mine.answer, mine.objects, on_page),
        other=_shown(other, on_page),
        question_changes=changes(other.question, mine.question),
        answer_changes=changes(other.answer, mine.answer),
    )


@dataclass(frozen=True)
class History:
    """A pair that is decided, with all that was said about it."""

    pair: Pair
    file_name: str
    width: int
    height: int
    objects: tuple[ShownObject, ...]
    versions: tuple[tuple[PairVersion, ShownText], ...]
    verdicts: tuple[tuple[Verdict, str], ...]


def history(desk: Desk, pair: Pair) -> History:
    """Every version and verdict of a pair; for the eyes of anybody once it is decided."""
    versions = desk.store.pairs.history(pair.id)
    texts = [pair.text.objects, *(v.text.objects for v in versions)]
    on_page = page_objects(desk.checker(pair.image_id).facts, texts)
    image = desk.image(pair.image_id).image
    return History(
        pair=pair,
        file_name=image.file_name,
        width=image.width,
        height=image.height,
        objects=on_page,
        versions=tuple((v, _shown(v.text, on_page)) for v in versions),
        verdicts=tuple((v, clock(v.created)) for v in desk.reviews.verdicts(pair.id)),
    )


@dataclass(frozen=True)
class Dashboard:
    """The project's review in figures."""

    status: Status
    progress: tuple[AnnotatorProgress, ...]
    agreement: Agreement
    reviewers: int
    obstacles: tuple[str, ...]

    @property
    def verdicts(self) -> int:
        """Verdicts of the first round so far."""
        return sum(row.judged for row in self.progress)

    @property
    def needed(self) -> int:
        """Verdicts that the first round takes in all."""
        return self.reviewers * sum(self.status.pairs[s] for s in ("in_review", "changed", "accepted", "rejected"))


def dashboard(store: Store) -> Dashboard:
    """Figures of the whole project; they tell nothing about a pair that is still open."""
    queues = store.queues
    return Dashboard(
        store.status(), tuple(queues.progress()), store.reviews.agreement(), queues.reviewers, tuple(queues.obstacles())
    )


@dataclass(frozen=True)
class Own:
    """A verdict in an annotator's list."""

    pair_id: int
    question: str
    decision: str
    open: bool


def own_verdicts(desk: Desk, annotator: Annotator, limit: int = 10) -> tuple[Own, ...]:
    """The annotator's latest verdicts; ``open``: the pair is not decided, so that the verdict can be changed."""
    found = []
    for verdict in desk.reviews.recent(annotator, limit):
        pair = desk.store.pairs.get(verdict.pair_id)
        changeable = not pair.decided and not pair.disputed
        found.append(Own(pair.id, pair.text.question, verdict.decision, changeable))
    return tuple(found)


def clock(seconds: float) -> str:
    """Seconds since 1970 as date and time of this machine."""
    return time.strftime("%d %B %Y, %H:%M:%S", time.localtime(seconds))
