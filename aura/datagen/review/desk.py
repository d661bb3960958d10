"""The work of an annotator with a pair: look, type, judge. Nothing that was typed is lost without a question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from aura.datagen.checks.rules import CheckSettings, PairChecker
from aura.datagen.records import PairDraft, PairProblem
from aura.datagen.store.agreement import DECISIONS, Decision, PairText, same_text
from aura.datagen.store.annotators import Annotator
from aura.datagen.store.images import StoredImage
from aura.datagen.store.pairs import Conflict, Pair, draft_of
from aura.datagen.store.queues import QueueItem
from aura.datagen.store.reviews import OUTCOMES, Draft, Task
from aura.datagen.store.store import Store
from aura.types import Turn

QUEUE = 500
"""How far the queue is looked through for what comes after a pair."""

Reason = Literal["decided", "taken", "disputed", "judged", "decide", "draft", "changed", "text"]


@dataclass(frozen=True)
class Typed:
    """What stands in the fields of the review page; ``objects`` has ``None`` for a mark without an object."""

    question: str
    answer: str
    objects: tuple[int | None, ...]
    note: str = ""

    @classmethod
    def of(cls, text: PairText, note: str = "") -> Typed:
        """The fields filled with a text."""
        return cls(text.question, text.answer, text.objects, note)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Typed:
        """From a stored draft; see :meth:`content`."""
        objects = tuple(None if number is None else int(number) for number in content["objects"])
        return cls(str(content["question"]), str(content["answer"]), objects, str(content["note"]))

    def content(self) -> dict[str, Any]:
        """As a draft is stored."""
        return {
            "question": self.question,
            "answer": self.answer,
            "objects": list(self.objects),
            "note": self.note,
        }

    @property
    def text(self) -> PairText:
        """The text alone, on one line each, without the marks that have no object yet."""
        question, answer = (" ".join(part.split()) for part in (self.question, self.answer))
        return PairText(question, answer, tuple(number for number in self.objects if number is not None))

    def same(self, text: PairText) -> bool:
        """Whether this is that text."""
        return None not in self.objects and same_text(self.text, text)


@dataclass(frozen=True)
class Base:
    """What a page was made from; it comes back with what was typed on it.

    ``draft`` is the state of the stored draft (:func:`draft_state`), ``replaces`` the id of the own verdict.
    """

    kind: str
    version: int
    replaces: int | None
    draft: str


class Collision(Exception):
    """What was typed does not meet what is stored; nothing was judged.

    ``other`` is the text that stands on the other side, described by ``label``. With ``base`` the typed text can be
    sent once more, knowing of the other; without, it cannot be sent any more.
    """

    def __init__(self, reason: Reason, message: str, other: PairText, label: str, base: Base | None) -> None:
        super().__init__(message)
        self.reason = reason
        self.other = other
        self.label = label
        self.base = base


@dataclass(frozen=True)
class View:
    """A pair as its annotator finds it: the task, the fields, where they come from, and what they are based on."""

    task: Task
    typed: Typed
    restored: float | None
    base: Base


class Desk:
    """The work with pairs, over the store; ``checks`` are the limits of the checks."""

    def __init__(self, store: Store, checks: CheckSettings | None = None) -> None:
        self.store = store
        self.reviews = store.reviews
        self.checks = checks
        self._checker = lru_cache(maxsize=32)(self._make_checker)
        self.image = lru_cache(maxsize=32)(self._read_image)

    def _read_image(self, image_id: int) -> StoredImage:
        return self.store.images.get(image_id)

    def _make_checker(self, image_id: int) -> PairChecker:
        return PairChecker(self.image(image_id).image, self.checks)

    def checker(self, image_id: int) -> PairChecker:
        """The checks of an image; the last few stay in memory."""
        return self._checker(image_id)

    def problems(self, pair: Pair, text: PairText) -> tuple[PairProblem, ...]:
        """What the checks say about a text in the place of a pair's."""
        earlier = [
            draft_of(other.text, other.follows)
            for other in self.store.pairs.of(pair.image_id)
            if other.position < pair.position and other.state != "rejected"
        ]
        draft = PairDraft(text.question, text.answer, text.objects, pair.follows, pair.text.asked_of(text.objects))
        return self.checker(pair.image_id).check(draft, earlier)

    # --- looking ------------------------------------------------------------------------------------------------------

    def view(self, annotator: Annotator, pair_id: int) -> View:
        """A pair as it is to be judged now.

        Raises:
            KeyError: No such pair.
            Conflict: It is not this annotator's to judge.
        """
        task = self.reviews.task(annotator, pair_id)
        typed = self._starting_point(task)
        restored = None
        if task.draft is not None and task.draft.content and task.draft.version == task.pair.version:
            typed, restored = Typed.read(task.draft.content), task.draft.saved
        return View(task, typed, restored, _base(task))

    def _starting_point(self, task: Task) -> Typed:
        if task.own is None:
            return Typed.of(task.pair.text)
        return Typed.of(self._text_of(task.pair, task.own.text_version), task.own.note)

    def _text_of(self, pair: Pair, version: int) -> PairText:
        return next(v.text for v in self.store.pairs.history(pair.id) if v.version == version)

    def following(self, annotator: Annotator, pair_id: int | None) -> QueueItem | None:
        """What comes after a pair in the annotator's queue, from the start again at its end."""
        queue = self.store.queues.of(annotator, QUEUE)
        place = next((i for i, item in enumerate(queue) if item.pair_id == pair_id), -1)
        turned = [*queue[place + 1 :], *queue[: max(place, 0)]]
        return turned[0] if turned else None

    # --- typing -------------------------------------------------------------------------------------------------------

    def save(self, annotator: Annotator, pair_id: int, typed: Typed, version: int, state: str) -> str:
        """Keep what is typed, if the stored draft is still the one in ``state``; returns the new state.

        Raises:
            KeyError: No such pair.
            Collision: Another window has saved meanwhile.
        """
        with self.store.database.write():
            draft = self.reviews.draft(annotator, pair_id)
            self._meet_draft(draft, typed, Base("", version, None, state))
            if draft is None or draft.content != typed.content():
                self.reviews.save_draft(annotator, pair_id, version, typed.content())
            return draft_state(self.reviews.draft(annotator, pair_id))

    def discard(self, annotator: Annotator, pair_id: int) -> None:
        """Forget the draft of a pair."""
        self.reviews.save_draft(annotator, pair_id, self.store.pairs.get(pair_id).version, {})

    def _meet_draft(self, draft: Draft | None, typed: Typed, base: Base) -> None:
        if draft_state(draft) == base.draft or draft is None or draft.content in ({}, typed.content()):
            return
        now = Base(base.kind, base.version, base.replaces, draft_state(draft))
        other = Typed.read(draft.content).text
        raise Collision("draft", "You typed something else in another window.", other, "In the other window", now)

    # --- judging ------------------------------------------------------------------------------------------------------

    def judge(
        self,
        annotator: Annotator,
        pair_id: int,
        decision: str,
        typed: Typed,
        base: Base,
        *,
        take: int | None = None,
        drop_text: bool = False,
    ) -> tuple[Decision, Pair]:
        """Record a verdict; returns what it counted as, and the pair after it.

        Args:
            annotator: Who judges.
            pair_id: What.
            decision: ``accept``, ``edit`` or ``reject``.
            typed: The fields of the page.
            base: What the page was made from.
            take: In a dispute, the version of a proposal to take instead of what is typed.
            drop_text: Unless ``decision`` is ``edit``, what was edited in the fields is meant to be dropped.

        Raises:
            KeyError: No such pair.
            Collision: Something has changed since the page was made, or edits would be lost.
            ValueError: The text cannot stand in a data set.
        """
        # One transaction from the look to the verdict: what the annotator is told is what holds.
        with self.store.database.write():
            task = self._task(annotator, pair_id)
            self._meet(task, typed, base)
            text = typed.text
            if take is not None:
                text = self._proposed(task, take)
                decision = "edit"
                if not (drop_text or typed.same(task.pair.text) or typed.same(text)):
                    raise Collision("text", "You changed the text.", text, "The proposal", base)
            elif decision == "edit" and None in typed.objects:
                raise ValueError(f"[SEG] number {typed.objects.index(None) + 1} has no object yet; choose one for it")
            elif decision != "edit" and not drop_text and not typed.same(task.pair.text):
                raise Collision("text", "You changed the text.", task.pair.text, "As it stands", base)
            elif decision == "accept":
                self._must_stand(task.pair)
            pair = self.reviews.submit(
                annotator,
                pair_id,
                _decision(decision),
                version=base.version,
                text=text if decision == "edit" else None,
                note=typed.note,
                replaces=base.replaces,
                problems=self.problems(task.pair, text) if decision == "edit" else (),
            )
            own = [v for v in self.reviews.verdicts(pair_id) if v.annotator == annotator.name and not v.replaced]
        return own[-1].decision, pair

    def _task(self, annotator: Annotator, pair_id: int) -> Task:
        try:
            return self.reviews.task(annotator, pair_id)
        except Conflict as conflict:
            raise self._too_late(annotator, self.store.pairs.get(pair_id)) from conflict

    def _too_late(self, annotator: Annotator, pair: Pair) -> Collision:
        if pair.decided:
            outcome = {state: decision for decision, state in OUTCOMES.items()}[pair.state]
            label = {"accept": "Accepted", "edit": "Changed to", "reject": "Rejected"}[outcome]
            return Collision("decided", "This pair has been decided meanwhile.", pair.text, label, None)
        own = [v for v in self.reviews.verdicts(pair.id) if v.annotator == annotator.name and not v.replaced]
        if own:
            text = self._text_of(pair, own[-1].text_version)
            message = "You judged this pair already, and the others disagreed; somebody else decides now."
            return Collision("disputed", message, text, f"Your verdict: {own[-1].decision}", None)
        return Collision("taken", "Enough others have judged this pair meanwhile.", pair.text, "As it stands", None)

    def _meet(self, task: Task, typed: Typed, base: Base) -> None:
        """Compare what a page was made from with what holds now."""
        now = _base(task)
        if now.version != base.version:
            raise Collision("changed", "The pair has another text now.", task.pair.text, "The text now", now)
        if now.replaces != base.replaces and task.own is not None:
            text = self._text_of(task.pair, task.own.text_version)
            message = "You sent another verdict on this pair meanwhile, from another window."
            raise Collision("judged", message, text, f"Your verdict there: {task.own.decision}", now)
        if now.kind != base.kind:
            message = "Others have judged this pair meanwhile and disagree: look at what they propose, and decide."
            raise Collision("decide", message, task.pair.text, "As it stands", now)
        self._meet_draft(task.draft, typed, base)

    def _must_stand(self, pair: Pair) -> None:
        """Refuse to accept what no data set can hold, such as an answer with a mark too many."""
        Turn(pair.text.question, pair.text.answer, pair.text.objects, pair.text.asked)
        missing = sorted(set(pair.text.objects) - set(self.checker(pair.image_id).facts.ids))
        if missing:
            raise ValueError(f"annotations {missing} are not objects of image {pair.image_id}; edit or reject the pair")

    @staticmethod
    def _proposed(task: Task, version: int) -> PairText:
        for proposal in task.proposals:
            if proposal.version.version == version:
                return proposal.version.text
        raise ValueError(f"nobody proposed version {version} of pair {task.pair.id}")


def draft_state(draft: Draft | None) -> str:
    """A name for what is stored as a draft now; empty for nothing."""
    if draft is None:
        return ""
    return hashlib.sha256(json.dumps([draft.version, draft.content, draft.saved]).encode()).hexdigest()[:20]


def objects_of(values: Sequence[str]) -> tuple[int | None, ...]:
    """Object links as a form sends them: a number, or nothing for a mark without an object.

    Trailing empty fields are spare ones, for marks that were never written.

    Raises:
        ValueError: Something else.
    """
    found: list[int | None] = []
    for value in values:
        if value and not (value.isascii() and value.isdigit() and len(value) < 19):
            raise ValueError(f"an object is named by its number, not {value!r:.40}")
        found.append(int(value) if value else None)
    while found and found[-1] is None:
        found.pop()
    return tuple(found)


def _base(task: Task) -> Base:
    return Base(task.kind, task.pair.version, task.own.id if task.own else None, draft_state(task.draft))


def _decision(word: str) -> Decision:
    for decision in DECISIONS:
        if word == decision:
            return decision
    raise ValueError(f"a decision is one of {', '.join(DECISIONS)}, got {word!r:.40}")
