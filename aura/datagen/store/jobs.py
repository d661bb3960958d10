"""The jobs: who works on which image, and what is asked.

A process claims a job for a limited time (a lease) and writes down the call before it makes it. It may be killed at any
moment: what was under way is taken again by whoever asks next.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from sqlite3 import Cursor, Row
from typing import Any

from aura.datagen.records import GenerationRequest, GenerationResult, PairDraft, PairProblem, RejectedPair
from aura.datagen.store.database import Database
from aura.datagen.store.images import CHUNK, Images, digest_of, read_image
from aura.datagen.store.leases import is_dead, own_name
from aura.datagen.store.pairs import Pairs, draft_of
from aura.formats.sources import AnnotatedImage


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


_ANSWERED = "'refusal', 'truncated', 'malformed', 'schema', 'empty'"
"""Why calls fail that were answered."""


@dataclass(frozen=True)
class _Work:
    """What is to be done about an image now, whoever does it; as in :class:`Job`."""

    key: str
    context: tuple[PairDraft, ...]
    rejected: tuple[RejectedPair, ...]


class Jobs:
    """The jobs of a project: claiming them, and giving them back. ``owner`` is the name of this process."""

    def __init__(self, database: Database, images: Images, pairs: Pairs) -> None:
        self.database, self.images, self.pairs = database, images, pairs
        self.owner = own_name()

    def claim(self, recipe: Recipe, *, limit: int = 1, lease_seconds: float = 300.0) -> list[Job]:
        """Take up to ``limit`` jobs for this process; each is written down as a call that is about to be made.

        Leases that expired, and those of processes of this machine that have died, are taken again; the calls that were
        under way count as lost. Renew the lease of what takes longer (:meth:`renew`); end every job with
        :meth:`release`, or with ``take`` or ``fail`` of :class:`~aura.datagen.store.answers.Answers`.
        """
        now = self.database.clock()
        with self.database.write() as cursor:
            self._take_back(cursor, now)
            rows = cursor.execute(
                "SELECT * FROM images WHERE state = 'pending' AND owner IS NULL AND not_before <= ? "
                "ORDER BY id LIMIT ?",
                [now, limit],
            ).fetchall()
            return [self._claim(cursor, row, recipe, now, now + lease_seconds) for row in rows]

    def claim_image(self, image_id: int, recipe: Recipe, *, lease_seconds: float = 300.0) -> Job | None:
        """Take one image that waits, as :meth:`claim` does; ``None`` if it does not wait, or somebody has it."""
        now = self.database.clock()
        with self.database.write() as cursor:
            sql = "SELECT * FROM images WHERE state = 'pending' AND owner IS NULL AND image_id = ?"
            row = cursor.execute(sql, [image_id]).fetchone()
            return None if row is None else self._claim(cursor, row, recipe, now, now + lease_seconds)

    def waiting(self, recipe: Recipe) -> Iterator[GenerationRequest]:
        """What is to be asked about the images that nobody works on, a few in memory at a time; takes none."""
        with self.database.write() as cursor:
            self._take_back(cursor, self.database.clock())
        last = 0
        sql = "SELECT * FROM images WHERE state = 'pending' AND owner IS NULL AND id > ? ORDER BY id LIMIT ?"
        while rows := self.database.rows(sql, [last, CHUNK]):
            last = rows[-1]["id"]
            for row in rows:
                work = self._work(row, recipe)
                yield GenerationRequest(
                    image=read_image(row["record"]),
                    picture=self.images.picture(row),
                    pairs=len(work.rejected) or recipe.pairs,
                    rejected=work.rejected,
                    context=work.context,
                    key=work.key,
                )

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
        work = self._work(row, recipe)
        # Left to itself SQLite takes the index of outcomes, and reads all that was ever answered for every job.
        sql = "SELECT * FROM calls INDEXED BY calls_by_key WHERE key = ? AND outcome = 'answered'"
        paid = cursor.execute(sql, [work.key]).fetchone()
        cursor.execute(
            "INSERT INTO calls (image, round, key, owner, started, generator, model, prompt_version) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [row["id"], row["round"], work.key, self.owner, now, recipe.generator, recipe.model, recipe.prompt_version],
        )
        call = int(cursor.lastrowid or 0)
        cursor.execute(
            "UPDATE images SET owner = ?, lease = ?, attempts = attempts + 1, key = ? WHERE id = ?",
            [self.owner, lease, work.key, row["id"]],
        )
        return Job(
            order=row["id"],
            call=call,
            key=work.key,
            round=row["round"],
            attempt=row["attempts"] + 1,
            image=read_image(row["record"]),
            picture=self.images.picture(row),
            pairs=len(work.rejected) or recipe.pairs,
            rejected=work.rejected,
            context=work.context,
            answer=None if paid is None else _read_result(paid, row["image_id"]),
        )

    def _work(self, row: Row, recipe: Recipe) -> _Work:
        context, rejected = self._sent_back(row["image_id"]) if row["round"] else ((), ())
        key = digest_of(row["digest"], asdict(recipe), row["round"], [_rejected_record(r) for r in rejected])
        # Asked again under the same key, a service or a batch's folder would give the same useless answer again.
        useless = self.database.value(
            "SELECT count(*) FROM calls WHERE image = ? AND round = ? AND outcome = 'failed' "
            f"AND reason IN ({_ANSWERED})",
            [row["id"], row["round"]],
        )
        return _Work(f"{key}-{useless}" if useless else key, context, rejected)

    def _sent_back(self, image_id: int) -> tuple[tuple[PairDraft, ...], tuple[RejectedPair, ...]]:
        """All pairs of an image, and those that failed with what is wrong, by position."""
        pairs = self.pairs.of(image_id)
        index = {pair.id: number for number, pair in enumerate(pairs)}
        drafts = tuple(draft_of(p.text, None if p.follows is None else index[p.follows]) for p in pairs)
        failed = [(d, p.current.problems) for d, p in zip(drafts, pairs, strict=True) if p.state == "failed"]
        return drafts, tuple(failed)

    def renew(self, jobs: Iterable[Job], lease_seconds: float = 300.0) -> None:
        """Hold jobs of this process for longer; those that others have taken meanwhile stay theirs."""
        lease = self.database.clock() + lease_seconds
        with self.database.write() as cursor:
            cursor.executemany(
                "UPDATE images SET lease = ? WHERE id = ? AND owner = ?",
                [(lease, job.order, self.owner) for job in jobs],
            )

    def release(self, job: Job) -> None:
        """Give back a job that nothing was sent for."""
        with self.database.write() as cursor:
            self.end_call(cursor, job, "not_sent")
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
        now = self.database.clock()
        due = self.database.value(
            "SELECT min(CASE WHEN owner IS NULL THEN not_before ELSE lease END) FROM images "
            "WHERE state = 'pending' AND (owner IS NULL OR owner <> ?)",
            [self.owner],
        )
        return None if due is None else max(0.0, float(due) - now)

    def failures(self, limit: int = 20) -> list[tuple[int, str, str]]:
        """(image id, reason, detail) of the first jobs that failed for good."""
        rows = self.database.rows(
            "SELECT image_id, reason, detail FROM images WHERE state = 'failed' ORDER BY id LIMIT ?", [limit]
        )
        return [(row["image_id"], row["reason"], row["detail"]) for row in rows]

    def end_call(self, cursor: Cursor, job: Job, outcome: str) -> None:
        """Write down how a job's call ended."""
        cursor.execute(
            "UPDATE calls SET outcome = ?, finished = ? WHERE id = ?", [outcome, self.database.clock(), job.call]
        )


def pairs_json(result: GenerationResult) -> str:
    """The pairs of an answer as a call keeps them: question, answer, objects, follows, problems of form, asked masks.

    The last two are left off where there are none.
    """
    records: list[list[Any]] = []
    for draft, problems in zip(result.pairs, result.problems or [()] * len(result.pairs), strict=True):
        more: list[Any] = [[[p.code, p.message, p.advice] for p in problems]] if problems or draft.asked else []
        more += [list(draft.asked)] if draft.asked else []
        records.append([draft.question, draft.answer, list(draft.objects), draft.follows, *more])
    return json.dumps(records)


def _read_result(call: Row, image_id: int) -> GenerationResult:
    records = json.loads(call["pairs"])
    drafts = [PairDraft(q, a, tuple(o), follows, *map(tuple, more[1:])) for q, a, o, follows, *more in records]
    problems = [tuple(PairProblem(*p) for found in more[:1] for p in found) for _, _, _, _, *more in records]
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
        problems=tuple(problems) if any(problems) else (),
    )


def _rejected_record(rejected: RejectedPair) -> list[Any]:
    draft, problems = rejected
    asked = [list(draft.asked)] if draft.asked else []
    return [draft.question, draft.answer, list(draft.objects), draft.follows, [p.code for p in problems], *asked]
