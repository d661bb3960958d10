"""The reviews: what annotators said about a pair, and what follows from it.

Each pair is judged by ``reviewers`` annotators (two) who see nothing of each other's verdict. What more than half of
them say is the outcome: accepted, changed (they wrote the same text) or rejected. Without such a majority, as when two
disagree, an annotator who has not judged the pair sees what was proposed and decides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from sqlite3 import Row
from typing import Any

from aura.datagen.records import PairProblem
from aura.datagen.store.agreement import (
    DECISIONS,
    Agreement,
    Decision,
    Opinion,
    PairText,
    agree,
    majority,
    measure,
    same_text,
)
from aura.datagen.store.annotators import Annotator, Annotators
from aura.datagen.store.database import Database
from aura.datagen.store.images import Images
from aura.datagen.store.pairs import Conflict, Pair, Pairs, PairState, PairVersion, read_text
from aura.datagen.store.queues import Kind, Queues
from aura.types import Turn

OUTCOMES: dict[Decision, PairState] = {"accept": "accepted", "edit": "changed", "reject": "rejected"}


@dataclass(frozen=True)
class Verdict:
    """What an annotator said about ``version``; ``text_version`` is the text it stands for (the edit's, if edited).

    ``final``: it decided a dispute. ``replaced``: the annotator changed their mind before the pair was decided.
    """

    id: int
    pair_id: int
    version: int
    annotator: str
    decision: Decision
    text_version: int
    note: str
    final: bool
    replaced: bool
    created: float


@dataclass(frozen=True)
class Draft:
    """What an annotator has typed but not submitted: any JSON object, as the review pages keep it."""

    version: int
    content: dict[str, Any]
    saved: float


@dataclass(frozen=True)
class Proposal:
    """What one of the annotators in a dispute said; they stay nameless. ``version`` holds the text it stands for."""

    decision: Decision
    version: PairVersion
    note: str


@dataclass(frozen=True)
class Task:
    """All that an annotator may see of a pair.

    ``earlier`` are the turns before it in its conversation. ``proposals`` are empty unless ``kind`` is ``decide``.
    ``own`` is the annotator's standing verdict, where they return to a pair that is not decided yet. Give
    ``pair.version`` and ``own.id`` back to :meth:`Reviews.submit`.
    """

    pair: Pair
    kind: Kind
    earlier: tuple[Pair, ...]
    proposals: tuple[Proposal, ...]
    own: Verdict | None
    draft: Draft | None


class Reviews:
    """The review of a project: tasks, drafts and verdicts."""

    def __init__(
        self, database: Database, images: Images, pairs: Pairs, annotators: Annotators, queues: Queues
    ) -> None:
        self.database, self.images, self.pairs = database, images, pairs
        self.annotators, self.queues = annotators, queues

    def task(self, annotator: Annotator, pair_id: int) -> Task:
        """What the annotator may see of a pair, now.

        Raises:
            KeyError: No such pair.
            Conflict: It is not this annotator's to judge: decided, or enough others judge it.
        """
        pair = self.pairs.get(pair_id)
        standing = self._standing(pair_id)
        own = next((v for v in standing if v.annotator == annotator.name), None)
        kind = self._kind(pair, standing, own)
        versions = {v.version: v for v in self.pairs.history(pair_id)} if kind == "decide" else {}
        return Task(
            pair=pair,
            kind=kind,
            earlier=self._earlier(pair),
            proposals=tuple(Proposal(v.decision, versions[v.text_version], v.note) for v in standing)
            if kind == "decide"
            else (),
            own=own,
            draft=self.draft(annotator, pair_id),
        )

    def _kind(self, pair: Pair, standing: Sequence[Verdict], own: Verdict | None) -> Kind:
        if pair.decided:
            raise Conflict(f"pair {pair.id} has been decided: {pair.state}")
        if pair.state != "in_review":
            raise Conflict(f"pair {pair.id} is not open for review yet: its image is not finished")
        if pair.disputed:
            if own is not None:
                raise Conflict(f"pair {pair.id} is disputed; somebody who has not judged it decides")
            return "decide"
        if own is None and len(standing) >= self.queues.reviewers:
            raise Conflict(f"pair {pair.id} has been judged by {len(standing)} others")
        return "judge"

    def _earlier(self, pair: Pair) -> tuple[Pair, ...]:
        """The turns that a pair follows, first to last."""
        found: list[Pair] = []
        follows = pair.follows
        while follows is not None:
            found.append(self.pairs.get(follows))
            follows = found[-1].follows
        return tuple(reversed(found))

    # --- drafts -------------------------------------------------------------------------------------------------------

    def save_draft(self, annotator: Annotator, pair_id: int, version: int, content: dict[str, Any]) -> None:
        """Keep what is typed but not submitted; replaces the annotator's earlier draft of this pair.

        Raises:
            KeyError: No such pair.
        """
        self.pairs.get(pair_id)
        with self.database.write() as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO drafts VALUES (?, ?, ?, ?, ?)",
                [pair_id, annotator.id, version, json.dumps(content), self.database.clock()],
            )

    def draft(self, annotator: Annotator, pair_id: int) -> Draft | None:
        """The annotator's draft of a pair; :meth:`submit` removes it."""
        row = self.database.row("SELECT * FROM drafts WHERE pair = ? AND annotator = ?", [pair_id, annotator.id])
        return None if row is None else Draft(row["version"], json.loads(row["content"]), row["saved"])

    # --- verdicts -----------------------------------------------------------------------------------------------------

    def submit(
        self,
        annotator: Annotator,
        pair_id: int,
        decision: Decision,
        *,
        version: int,
        text: PairText | None = None,
        note: str = "",
        replaces: int | None = None,
        problems: Sequence[PairProblem] = (),
    ) -> Pair:
        """Record a verdict, and decide the pair if it completes the judgement; returns the pair as it is then.

        Args:
            annotator: Who says so.
            pair_id: About what.
            decision: ``edit`` needs ``text``; an edit that changes nothing counts as ``accept``.
            version: The version that the annotator saw.
            text: The edited text.
            note: For the others, after the decision.
            replaces: Id of the annotator's own standing verdict that this one replaces (``Task.own``).
            problems: What the checks say about ``text``.

        Raises:
            KeyError: No such pair.
            Conflict: The pair has another version, is decided, or is not this annotator's to judge any more, or a
                verdict of the same annotator arrived meanwhile. Nothing was written.
            ValueError: The decision is none, or ``text`` could not stand in a data set: an empty question or answer,
                ``[SEG]`` and objects that differ in number, an object that the image does not have.
        """
        if decision not in DECISIONS:
            raise ValueError(f"a decision is one of {', '.join(DECISIONS)}, got {decision!r}")
        if decision == "edit" and text is None:
            raise ValueError("an edit needs the edited text")
        with self.database.write() as cursor:
            pair = self.pairs.get(pair_id)
            standing = self._standing(pair_id)
            own = next((v for v in standing if v.annotator == annotator.name), None)
            kind = self._kind(pair, standing, own)
            if version != pair.version:
                raise Conflict(f"pair {pair_id} has version {pair.version} now, the verdict is about {version}")
            if (own.id if own else None) != replaces:
                raise Conflict(f"{annotator.name} has judged pair {pair_id} already, perhaps in another window")
            stands_for = pair.version
            if decision == "edit" and text is not None:
                decision, stands_for = self._edited(annotator, pair, text, problems, kind)
            cursor.execute("UPDATE verdicts SET replaced = 1 WHERE id = ?", [replaces])
            cursor.execute(
                "INSERT INTO verdicts (pair, version, annotator, decision, text_version, note, final, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    pair_id,
                    version,
                    annotator.id,
                    decision,
                    stands_for,
                    note.strip(),
                    kind == "decide",
                    self.database.clock(),
                ],
            )
            cursor.execute("DELETE FROM drafts WHERE pair = ? AND annotator = ?", [pair_id, annotator.id])
            self._settle(pair_id, decision, stands_for, kind)
        return self.pairs.get(pair_id)

    def _edited(
        self, annotator: Annotator, pair: Pair, text: PairText, problems: Sequence[PairProblem], kind: Kind
    ) -> tuple[Decision, int]:
        """Keep an edited text as a version of the pair; one that exists already is not written twice.

        Who judges alone must not learn from a shared number that somebody wrote the same, so only those who decide are
        led to others' versions.
        """
        asked = pair.text.asked_of(text.objects)
        text = PairText(text.question.strip(), text.answer.strip(), tuple(text.objects), asked)
        if not text.answer:
            raise ValueError("the answer is empty; reject the pair if it should not stay")
        Turn(text.question, text.answer, text.objects, text.asked)
        missing = sorted(set(text.objects) - self.images.object_ids(pair.image_id))
        if missing:
            raise ValueError(f"annotations {missing} are not objects of image {pair.image_id}")
        if same_text(text, pair.text):
            return "accept", pair.version
        for version in self.pairs.history(pair.id):
            if (version.author == annotator.name or kind == "decide") and same_text(version.text, text):
                return "edit", version.version
        reason = "decision" if kind == "decide" else "edit"
        return "edit", self.pairs.add_version(pair.id, text, author=annotator.name, reason=reason, problems=problems)

    def _settle(self, pair_id: int, decision: Decision, stands_for: int, kind: Kind) -> None:
        """Draw the consequence of the verdicts that stand now."""
        if kind == "decide":
            self._decide(pair_id, decision, stands_for)
            return
        standing = self._standing(pair_id)
        if len(standing) < self.queues.reviewers:
            return
        texts = {v.version: v.text for v in self.pairs.history(pair_id)}
        shared = majority([Opinion(v.decision, texts[v.text_version]) for v in standing])
        if shared is not None:
            self._decide(pair_id, standing[shared].decision, standing[shared].text_version)
        else:
            with self.database.write() as cursor:
                cursor.execute("UPDATE pairs SET disputed = 1 WHERE id = ?", [pair_id])

    def _decide(self, pair_id: int, decision: Decision, version: int) -> None:
        with self.database.write() as cursor:
            cursor.execute(
                "UPDATE pairs SET state = ?, version = ?, disputed = 0 WHERE id = ?",
                [OUTCOMES[decision], version, pair_id],
            )

    def verdicts(self, pair_id: int) -> list[Verdict]:
        """All verdicts on a pair, replaced ones too, oldest first. Not for the eyes of those who have yet to judge."""
        rows = self.database.rows(f"{_VERDICTS} WHERE v.pair = ? ORDER BY v.id", [pair_id])
        return [_verdict(row) for row in rows]

    def recent(self, annotator: Annotator, limit: int = 10) -> list[Verdict]:
        """An annotator's own standing verdicts, latest first."""
        sql = f"{_VERDICTS} WHERE v.annotator = ? AND v.replaced = 0 ORDER BY v.id DESC LIMIT ?"
        return [_verdict(row) for row in self.database.rows(sql, [annotator.id, limit])]

    def _standing(self, pair_id: int) -> list[Verdict]:
        return [v for v in self.verdicts(pair_id) if not v.replaced]

    def agreement(self) -> Agreement:
        """Agreement of the independent verdicts; those that decided a dispute do not count."""
        opinions: dict[int, dict[str, Opinion]] = {}
        for row in self.database.rows(
            "SELECT v.pair, a.name, v.decision, t.question, t.answer, t.objects, t.asked FROM verdicts v "
            "JOIN annotators a ON a.id = v.annotator "
            "JOIN pair_versions t ON t.pair = v.pair AND t.version = v.text_version "
            "WHERE v.replaced = 0 AND v.final = 0 ORDER BY v.pair, v.id"
        ):
            opinions.setdefault(row["pair"], {})[row["name"]] = Opinion(row["decision"], read_text(row))
        contested = {pair for pair, by_name in opinions.items() if not agree(list(by_name.values()))}
        decisions = {pair: {name: o.decision for name, o in by_name.items()} for pair, by_name in opinions.items()}
        names = [annotator.name for annotator in self.annotators.all()]
        return measure(decisions, contested, names, self.queues.reviewers)


_VERDICTS = """
SELECT v.id, v.pair, v.version, a.name, v.decision, v.text_version, v.note, v.final, v.replaced, v.created
FROM verdicts v JOIN annotators a ON a.id = v.annotator
"""


def _verdict(row: Row) -> Verdict:
    return Verdict(
        id=row["id"],
        pair_id=row["pair"],
        version=row["version"],
        annotator=row["name"],
        decision=row["decision"],
        text_version=row["text_version"],
        note=row["note"],
        final=bool(row["final"]),
        replaced=bool(row["replaced"]),
        created=row["created"],
    )
