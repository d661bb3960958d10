"""Jobs: who works on which image, what was asked, what came back and what it cost.

A process claims a job for a limited time (a lease) and writes down the call before it makes it. The answer's text, what
it cost and the pairs are stored in one transaction, so a process may be killed at any moment: what was stored stays,
what was under way is taken again by whoever asks next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from sqlite3 import Cursor, Row
from typing import Any

from aura.data.sources import AnnotatedImage
from aura.datagen.database import Database
from aura.datagen.images import ImageTable, digest_of, read_image
from aura.datagen.leases import is_dead, own_name
from aura.datagen.pairs import GENERATOR_AUTHOR, text_of
from aura.datagen.records import (
    GenerationFailure,
    GenerationResult,
    PairDraft,
    PairProblem,
    RejectedPair,
)


@dataclass(frozen=True)
class Recipe:
    """What makes a piece of work what it is, besides the image: who is asked, with which prompt, for how many pairs.

    ``details`` is whatever else changes the answer, such as the offline generator's seed.
    """

    generator: str
    model: str
    prompt_version: str
    pairs: int
    details: str = ""


@dataclass(frozen=True)
class Job:
    """A claimed image: ``pairs`` are to be written, new ones or, with ``rejected``, better ones.

    ``context`` is then all that the image has, by position, which ``follows`` counts. ``key`` names the work;
    ``answer`` is set where the same work was paid for already.
    """

    order: int
    call: int
    key: str
    round: int
    attempt: int
    image: AnnotatedImage
    picture: Path
    pairs: int
    rejected: tuple[RejectedPair, ...] = ()
    context: tuple[PairDraft, ...] = ()
    answer: GenerationResult | None = None


class JobTable(ImageTable):
    """Claiming jobs and ending them; ``owner`` is the name of this process."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(database, clock=clock)
        self.owner = own_name()

    def claim(self, recipe: Recipe, *, limit: int = 1, lease_seconds: float = 300.0) -> list[Job]:
        """Take up to ``limit`` jobs for this process; each is written down as a call that is about to be made.

        Leases that expired, and those of processes of this machine that have died, are taken again; the calls that were
        under way count as lost. Renew the lease of what takes longer (:meth:`renew`); end every job with
        :meth:`answer`, :meth:`fail` or :meth:`release`.
        """
        now = self.clock()
        with self.database.write() as cursor:
            self._take_back(cursor, now)
            rows = cursor.execute(
                "SELECT * FROM images WHERE state = 'pending' AND owner IS NULL AND not_before <= ? "
                "ORDER BY id LIMIT ?",
                [now, limit],
            ).fetchall()
            return [self._claim(cursor, row, recipe, now, now + lease_seconds) for row in rows]

    def _take_back(self, cursor: Cursor, now: float) -> None:
        dead = [
            row["owner"]
            for row in cursor.execute("SELECT DISTINCT owner FROM images WHERE owner IS NOT NULL").fetchall()
            if row["owner"] != self.owner and is_dead(row["owner"])
        ]
        marks = ", ".join("?" * len(dead))
        stale = f"owner IS NOT NULL AND (lease < ? OR owner IN ({marks}))"
        cursor.execute(
            f"UPDATE calls SET outcome = 'lost', finished = ? WHERE outcome = 'open' AND image IN "
            f"(SELECT id FROM images WHERE {stale})",
            [now, now, *dead],
        )
        # A process that was killed says nothing about the image, so the attempt does not count.
        cursor.execute(
            f"UPDATE images SET owner = NULL, lease = NULL, attempts = attempts - 1 WHERE {stale}", [now, *dead]
        )

    def _claim(self, cursor: Cursor, row: Row, recipe: Recipe, now: float, lease: float) -> Job:
        context, rejected = self._sent_back(row["image_id"]) if row["round"] else ((), ())
        key = digest_of(row["digest"], asdict(recipe), row["round"], [_rejected_record(r) for r in rejected])
        paid = cursor.execute("SELECT * FROM calls WHERE key = ? AND outcome = 'answered'", [key]).fetchone()
        cursor.execute(
            "INSERT INTO calls (image, round, key, owner, started, generator, model, prompt_version) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [row["id"], row["round"], key, self.owner, now, recipe.generator, recipe.model, recipe.prompt_version],
        )
        call = int(cursor.lastrowid or 0)
        cursor.execute(
            "UPDATE images SET owner = ?, lease = ?, attempts = attempts + 1, key = ? WHERE id = ?",
            [self.owner, lease, key, row["id"]],
        )
        return Job(
            order=row["id"],
            call=call,
            key=key,
            round=row["round"],
            attempt=row["attempts"] + 1,
            image=read_image(row["record"]),
            picture=self._picture(row),
            pairs=len(rejected) or recipe.pairs,
            rejected=rejected,
            context=context,
            answer=None if paid is None else _read_result(paid, row["image_id"]),
        )

    def _sent_back(self, image_id: int) -> tuple[tuple[PairDraft, ...], tuple[RejectedPair, ...]]:
        """All pairs of an image, and those that failed with what is wrong, by position."""
        pairs = self.pairs(image_id)
        index = {pair.id: number for number, pair in enumerate(pairs)}
        drafts = tuple(
            PairDraft(p.text.question, p.text.answer, p.text.objects, None if p.follows is None else index[p.follows])
            for p in pairs
        )
        failed = [(d, p.current.problems) for d, p in zip(drafts, pairs, strict=True) if p.state == "failed"]
        return drafts, tuple(failed)

    def renew(self, jobs: Iterable[Job], lease_seconds: float = 300.0) -> None:
        """Hold jobs of this process for longer; those that others have taken meanwhile stay theirs."""
        lease = self.clock() + lease_seconds
        with self.database.write() as cursor:
            cursor.executemany(
                "UPDATE images SET lease = ? WHERE id = ? AND owner = ?",
                [(lease, job.order, self.owner) for job in jobs],
            )

    def answer(
        self,
        job: Job,
        result: GenerationResult,
        problems: Sequence[Sequence[PairProblem]] = (),
        *,
        send_back: bool = True,
    ) -> bool:
        """Store what came back for a job: the text as received, its cost and its pairs, all or nothing.

        Pairs with ``problems`` (one sequence per pair; none at all if nothing was checked) become jobs once more, with
        the reasons, if ``send_back``; with them go the turns that follow them. What fails again goes into review, and
        the problems with it.

        Returns:
            Whether the pairs were taken. ``False``: somebody else was faster after this job's lease had expired; the
            text and the cost are kept.
        """
        found = list(problems) or [()] * len(result.pairs)
        assert len(found) == len(result.pairs), "one sequence of problems per pair"
        with self.database.write() as cursor:
            row = self._job_row(cursor, job)
            wanted = row["state"] == "pending" and row["round"] == job.round
            reused = job.answer is not None
            self._end_call(cursor, job, ("reused" if reused else "answered") if wanted else "duplicate")
            self._charge(cursor, job, result, free=reused)
            cursor.execute(
                "UPDATE calls SET generator = ?, model = ?, prompt_version = ?, finish_reason = ?, pairs = ? "
                "WHERE id = ?",
                [
                    result.generator,
                    result.model,
                    result.prompt_version,
                    result.finish_reason,
                    json.dumps([[d.question, d.answer, list(d.objects), d.follows] for d in result.pairs]),
                    job.call,
                ],
            )
            if not wanted:
                return False
            # Another process may have taken the job after its lease ended; its answer will be a duplicate.
            cursor.execute(
                "UPDATE calls SET outcome = 'lost', finished = ? WHERE image = ? AND outcome = 'open'",
                [self.clock(), job.order],
            )
            if job.round == 0:
                again = self._insert_pairs(cursor, job, result, found, send_back)
            else:
                again = False
                self._replace_pairs(cursor, job, result, found)
            if again:
                cursor.execute(
                    "UPDATE images SET round = 1, attempts = 0, owner = NULL, lease = NULL WHERE id = ?", [job.order]
                )
            else:
                self._finish(cursor, job.order)
        return True

    def _insert_pairs(
        self,
        cursor: Cursor,
        job: Job,
        result: GenerationResult,
        problems: Sequence[Sequence[PairProblem]],
        send_back: bool,
    ) -> bool:
        """Write the pairs of a first answer; returns whether some must go back."""
        ids: list[int] = []
        failed: list[bool] = []
        for position, (draft, found) in enumerate(zip(result.pairs, problems, strict=True)):
            # A turn can only follow one that was written before it; the checks report what this mends.
            follows = draft.follows if draft.follows is not None and 0 <= draft.follows < position else None
            if send_back and not found and follows is not None and failed[follows]:
                found = [
                    PairProblem(
                        "follows",
                        "the turn before it is written anew",
                        "Write a question that fits the new turn before it.",
                    )
                ]
            failed.append(bool(found) and send_back)
            cursor.execute(
                "INSERT INTO pairs (image, position, follows, state, version) VALUES (?, ?, ?, ?, 1)",
                [
                    job.order,
                    position,
                    None if follows is None else ids[follows],
                    "failed" if failed[-1] else "generated",
                ],
            )
            ids.append(int(cursor.lastrowid or 0))
            self.add_version(
                ids[-1], text_of(draft), author=GENERATOR_AUTHOR, reason="generated", problems=found, call=job.call
            )
        return any(failed)

    def _replace_pairs(
        self, cursor: Cursor, job: Job, result: GenerationResult, problems: Sequence[Sequence[PairProblem]]
    ) -> None:
        """Put the pairs of a second answer in the place of those that went back, in order; what is missing stays."""
        old = [pair for pair in self.pairs(job.image.image_id) if pair.state == "failed"]
        for pair, draft, found in zip(old, result.pairs, problems, strict=False):
            version = self.add_version(
                pair.id,
                text_of(draft),
                author=GENERATOR_AUTHOR,
                reason="written anew after the checks",
                problems=found,
                call=job.call,
            )
            cursor.execute("UPDATE pairs SET version = ? WHERE id = ?", [version, pair.id])

    def _finish(self, cursor: Cursor, order: int) -> None:
        cursor.execute(
            "UPDATE pairs SET state = 'in_review' WHERE image = ? AND state IN ('generated', 'failed')", [order]
        )
        cursor.execute(
            "UPDATE images SET state = 'generated', owner = NULL, lease = NULL, reason = NULL, detail = NULL "
            "WHERE id = ?",
            [order],
        )

    def fail(self, job: Job, failure: GenerationFailure, *, max_attempts: int = 3, delay: float = 30.0) -> bool:
        """Record that a job failed; returns whether it will be tried again, not before ``delay`` seconds from now.

        A job that cannot be retried, or was tried ``max_attempts`` times, is ``failed``. If it was about pairs that
        went back, those go into review as they were.
        """
        with self.database.write() as cursor:
            row = self._job_row(cursor, job)
            self._end_call(cursor, job, "failed")
            self._charge(cursor, job, failure)
            cursor.execute(
                "UPDATE calls SET reason = ?, detail = ? WHERE id = ?", [failure.reason, failure.detail, job.call]
            )
            if row["owner"] != self.owner or row["state"] != "pending" or row["round"] != job.round:
                return False
            if failure.retryable and row["attempts"] < max_attempts:
                cursor.execute(
                    "UPDATE images SET owner = NULL, lease = NULL, not_before = ? WHERE id = ?",
                    [self.clock() + delay, job.order],
                )
                return True
            if job.round:
                self._finish(cursor, job.order)
            else:
                cursor.execute(
                    "UPDATE images SET state = 'failed', owner = NULL, lease = NULL, reason = ?, detail = ? "
                    "WHERE id = ?",
                    [failure.reason, failure.detail, job.order],
                )
            return False

    def release(self, job: Job) -> None:
        """Give back a job that nothing was sent for."""
        with self.database.write() as cursor:
            self._end_call(cursor, job, "not_sent")
            cursor.execute(
                "UPDATE images SET owner = NULL, lease = NULL, attempts = attempts - 1 WHERE id = ? AND owner = ?",
                [job.order, self.owner],
            )

    def retry_failed(self) -> int:
        """Make all failed jobs pending again; returns how many."""
        with self.database.write() as cursor:
            cursor.execute(
                "UPDATE images SET state = 'pending', attempts = 0, not_before = 0, reason = NULL, detail = NULL "
                "WHERE state = 'failed'"
            )
            return cursor.rowcount

    def seconds_to_next(self) -> float | None:
        """How long until :meth:`claim` may find another job; ``None`` if none is left, 0 if there is one now."""
        now = self.clock()
        due = self.database.value(
            "SELECT min(CASE WHEN owner IS NULL THEN not_before ELSE lease END) FROM images "
            "WHERE state = 'pending' AND (owner IS NULL OR owner <> ?)",
            [self.owner],
        )
        return None if due is None else max(0.0, float(due) - now)

    def _job_row(self, cursor: Cursor, job: Job) -> Row:
        row: Row = cursor.execute("SELECT * FROM images WHERE id = ?", [job.order]).fetchone()
        return row

    def _end_call(self, cursor: Cursor, job: Job, outcome: str) -> None:
        cursor.execute("UPDATE calls SET outcome = ?, finished = ? WHERE id = ?", [outcome, self.clock(), job.call])

    def _charge(
        self, cursor: Cursor, job: Job, what: GenerationResult | GenerationFailure, *, free: bool = False
    ) -> None:
        paid = (0, 0, 0.0) if free else (what.input_tokens, what.output_tokens, what.cost)
        cursor.execute(
            "UPDATE calls SET input_tokens = ?, output_tokens = ?, cost = ?, raw = ? WHERE id = ?",
            [*paid, None if free else what.raw, job.call],
        )


def _read_result(call: Row, image_id: int) -> GenerationResult:
    drafts = [PairDraft(q, a, tuple(objects), follows) for q, a, objects, follows in json.loads(call["pairs"])]
    return GenerationResult(
        image_id=image_id,
        pairs=tuple(drafts),
        generator=call["generator"],
        model=call["model"],
        prompt_version=call["prompt_version"],
        input_tokens=call["input_tokens"],
        output_tokens=call["output_tokens"],
        cost=call["cost"],
        raw=call["raw"] or "",
        finish_reason=call["finish_reason"],
    )


def _rejected_record(rejected: RejectedPair) -> list[Any]:
    draft, problems = rejected
    return [draft.question, draft.answer, list(draft.objects), draft.follows, [p.code for p in problems]]
