"""The ends of jobs: what came back, what it cost, the pairs that it brought, or why there are none.

The answer's text, its cost and its pairs are stored in one transaction, so that a process may be killed at any moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Cursor, Row

from aura.datagen.records import GenerationFailure, GenerationResult, PairProblem
from aura.datagen.store.database import Database
from aura.datagen.store.jobs import Job, Jobs, pairs_json
from aura.datagen.store.pairs import GENERATOR_AUTHOR, Pairs, text_of


class Answers:
    """What generators answered: ending jobs with pairs, or with the reason why there are none."""

    def __init__(self, database: Database, jobs: Jobs, pairs: Pairs) -> None:
        self.database, self.jobs, self.pairs = database, jobs, pairs

    def take(
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
            self.jobs.end_call(cursor, job, ("reused" if reused else "answered") if wanted else "duplicate")
            self._charge(cursor, job, result, free=reused)
            cursor.execute(
                "UPDATE calls SET generator = ?, model = ?, prompt_version = ?, finish_reason = ?, pairs = ? "
                "WHERE id = ?",
                [
                    result.generator,
                    result.model,
                    result.prompt_version,
                    result.finish_reason,
                    pairs_json(result),
                    job.call,
                ],
            )
            if not wanted:
                return False
            # Another process may have taken the job after its lease ended; its answer will be a duplicate.
            cursor.execute(
                "UPDATE calls SET outcome = 'lost', finished = ? WHERE image = ? AND outcome = 'open'",
                [self.database.clock(), job.order],
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
            self.pairs.add_version(
                ids[-1], text_of(draft), author=GENERATOR_AUTHOR, reason="generated", problems=found, call=job.call
            )
        return any(failed)

    def _replace_pairs(
        self, cursor: Cursor, job: Job, result: GenerationResult, problems: Sequence[Sequence[PairProblem]]
    ) -> None:
        """Put the pairs of a second answer in the place of those that went back, in order.

        The old pair stays where a new one is missing or could not be read at all.
        """
        old = [pair for pair in self.pairs.of(job.image.image_id) if pair.state == "failed"]
        for pair, draft, found in zip(old, result.pairs, problems, strict=False):
            if not (draft.question or draft.answer):
                continue
            version = self.pairs.add_version(
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
            self.jobs.end_call(cursor, job, "failed")
            self._charge(cursor, job, failure)
            cursor.execute(
                "UPDATE calls SET reason = ?, detail = ? WHERE id = ?", [failure.reason, failure.detail, job.call]
            )
            if row["owner"] != self.jobs.owner or row["state"] != "pending" or row["round"] != job.round:
                return False
            if failure.retryable and row["attempts"] < max_attempts:
                cursor.execute(
                    "UPDATE images SET owner = NULL, lease = NULL, not_before = ? WHERE id = ?",
                    [self.database.clock() + delay, job.order],
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

    def _job_row(self, cursor: Cursor, job: Job) -> Row:
        row: Row = cursor.execute("SELECT * FROM images WHERE id = ?", [job.order]).fetchone()
        return row

    def _charge(
        self, cursor: Cursor, job: Job, what: GenerationResult | GenerationFailure, *, free: bool = False
    ) -> None:
        paid = (0, 0, 0.0) if free else (what.input_tokens, what.output_tokens, what.cost)
        cursor.execute(
            "UPDATE calls SET input_tokens = ?, output_tokens = ?, cost = ?, raw = ? WHERE id = ?",
            [*paid, None if free else what.raw, job.call],
        )
