"""The project's store: every image job, every call to a generator, every pair with its history, in one SQLite file.

A job goes ``pending`` -> ``generated`` or ``failed``. A pair goes ``generated`` (its image is not finished) or
``failed`` (it goes back to the generator once) -> ``in_review`` -> ``accepted``, ``changed`` or ``rejected``.

A process claims a job for a limited time (a lease) and writes down the call before it makes it. The answer's text, what
it cost and the pairs are stored in one transaction, so a process may be killed at any moment: what was stored stays,
what was under way is taken again by whoever asks next.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from sqlite3 import Cursor, Row
from typing import Any

from aura.data.sources import AnnotatedImage
from aura.datagen.database import Database
from aura.datagen.leases import is_dead, own_name
from aura.datagen.pairs import GENERATOR_AUTHOR, PAIR_STATES, Conflict, Pair, PairTable, PairVersion, text_of
from aura.datagen.records import (
    GenerationFailure,
    GenerationResult,
    PairDraft,
    PairProblem,
    RejectedPair,
)
from aura.datagen.reviews import Reviews
from aura.types import AmodalObject

__all__ = [
    "JOB_STATES",
    "Conflict",
    "ImageEntry",
    "Job",
    "Pair",
    "PairVersion",
    "Recipe",
    "Source",
    "Status",
    "Store",
    "StoredImage",
]

JOB_STATES = ("pending", "generated", "failed")
CHUNK = 200
"""Rows held at once where a whole table is walked through."""


@dataclass(frozen=True)
class Source:
    """An annotation file of the project with the folder of its pictures, as the settings give them."""

    annotations: str
    images: str


@dataclass(frozen=True)
class ImageEntry:
    """An image as it enters the store; ``source`` counts the annotation files from 0.

    ``picture_sha256`` is the digest of the picture file's bytes.
    """

    image: AnnotatedImage
    split: str
    source: int
    picture_sha256: str


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
class StoredImage:
    """An image of the project; ``order`` numbers the images from 1 as they were added."""

    order: int
    image: AnnotatedImage
    split: str
    picture: Path
    picture_sha256: str
    state: str


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


@dataclass(frozen=True)
class Status:
    """The project in numbers. Costs are in the currency of the configured prices.

    ``in_progress``: jobs that a process holds now. ``reasons``: why jobs failed for good; ``retries``: why calls
    failed. ``in_doubt``: calls whose process died before the answer came; what they cost is not known here.
    ``flagged``: pairs in review with problems; ``problems``: how often the checks found what in current versions.
    """

    images: dict[str, int]
    splits: dict[str, int]
    in_progress: int
    pairs: dict[str, int]
    flagged: int
    disputed: int
    problems: dict[str, int]
    calls: dict[str, int]
    in_doubt: int
    reasons: dict[str, int]
    retries: dict[str, int]
    input_tokens: int
    output_tokens: int
    cost: float

    @property
    def decided(self) -> int:
        """Pairs whose review is over."""
        return sum(self.pairs[state] for state in ("changed", "accepted", "rejected"))

    @property
    def num_pairs(self) -> int:
        """Pairs in all."""
        return sum(self.pairs.values())


class Store(PairTable):
    """A project. The threads of a process may share one; every process opens its own.

    ``reviews`` holds annotators, queues and verdicts; pairs are read with :class:`PairTable`'s methods.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(database, clock=clock)
        self.owner = own_name()
        self.reviews = Reviews(self)

    @classmethod
    def create(cls, path: str | Path, *, sources: Sequence[Source], settings: Mapping[str, Any] | None = None) -> Store:
        """Make the file of a new project. ``settings`` is kept for the record: anything that JSON can hold.

        Raises:
            ValueError: The file exists.
        """
        database = Database(path, create=True)
        with database.write():
            database.set_meta("sources", [asdict(source) for source in sources])
            database.set_meta("settings", dict(settings or {}))
        return cls(database)

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a project.

        Raises:
            ValueError: There is none, or it was made by another version of the program.
        """
        return cls(Database(path))

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the project was made with."""
        return dict(self.database.meta("settings", {}))

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The annotation files and picture folders."""
        return tuple(Source(**record) for record in self.database.meta("sources", []))

    def set_sources(self, sources: Sequence[Source]) -> None:
        """Say anew where the files lie, after they were moved; their number and order must stay.

        Raises:
            ValueError: Another number of sources.
        """
        if len(sources) != len(self.sources):
            raise ValueError(
                f"{self.path}: the project was made from {len(self.sources)} annotation files and {len(sources)} are "
                "given; start a new project for other data"
            )
        if tuple(sources) != self.sources:
            self.database.set_meta("sources", [asdict(source) for source in sources])
            del self.sources

    # --- images -------------------------------------------------------------------------------------------------------

    def add_images(self, entries: Iterable[ImageEntry]) -> int:
        """Add the images that are not there yet, and return how many those were.

        Raises:
            ValueError: An image id is there with another picture, other annotations or in another split. Most of what
                came before it in ``entries`` stays.
        """
        added = 0
        chunk: list[ImageEntry] = []
        for entry in entries:
            chunk.append(entry)
            if len(chunk) == CHUNK:
                added += self._add(chunk)
                chunk = []
        return added + self._add(chunk)

    def _add(self, entries: Sequence[ImageEntry]) -> int:
        added = 0
        with self.database.write() as cursor:
            for entry in entries:
                content = json.dumps(_image_record(entry.image), sort_keys=True)
                digest = _digest(content, entry.picture_sha256)
                cursor.execute(
                    "INSERT OR IGNORE INTO images (image_id, source, split, file_name, digest, picture_sha256, "
                    "object_ids, record) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        entry.image.image_id,
                        entry.source,
                        entry.split,
                        entry.image.file_name,
                        digest,
                        entry.picture_sha256,
                        json.dumps([o.id for o in entry.image.objects]),
                        zlib.compress(content.encode()),
                    ],
                )
                added += cursor.rowcount
                if not cursor.rowcount:
                    self._check_same(entry, digest)
        return added

    def _check_same(self, entry: ImageEntry, digest: str) -> None:
        row = self._image_row(entry.image.image_id)
        different = [
            what
            for what, old, new in (
                ("another picture or other annotations", row["digest"], digest),
                (f"in the split {row['split']!r}", row["split"], entry.split),
                ("from another annotation file", row["source"], entry.source),
            )
            if old != new
        ]
        if different:
            raise ValueError(
                f"{self.path}: image {entry.image.image_id} ({entry.image.file_name}) is there already, "
                f"{' and '.join(different)}; start a new project for changed data, and give every image its own id"
            )

    def num_images(self) -> int:
        """How many images the project holds."""
        return int(self.database.value("SELECT count(*) FROM images"))

    def image(self, image_id: int) -> StoredImage:
        """One image, by the annotation file's id.

        Raises:
            KeyError: There is none.
        """
        return self._stored(self._image_row(image_id))

    def images(self) -> Iterator[StoredImage]:
        """All images in their order, a few in memory at a time; others may write meanwhile."""
        last = 0
        while rows := self.database.rows("SELECT * FROM images WHERE id > ? ORDER BY id LIMIT ?", [last, CHUNK]):
            yield from map(self._stored, rows)
            last = rows[-1]["id"]

    def origin(self, version: PairVersion) -> dict[str, str]:
        """Generator, model and prompt version that a version came from; empty for one that a person wrote."""
        row = self.database.row("SELECT generator, model, prompt_version FROM calls WHERE id = ?", [version.call])
        return {} if row is None else {key: row[key] for key in row.keys()}  # noqa: SIM118

    def _image_row(self, image_id: int) -> Row:
        row = self.database.row("SELECT * FROM images WHERE image_id = ?", [image_id])
        if row is None:
            raise KeyError(f"{self.path}: no image {image_id}")
        return row

    def _stored(self, row: Row) -> StoredImage:
        return StoredImage(
            order=row["id"],
            image=_read_image(row["record"]),
            split=row["split"],
            picture=self._picture(row),
            picture_sha256=row["picture_sha256"],
            state=row["state"],
        )

    def _picture(self, row: Row) -> Path:
        return Path(self.sources[row["source"]].images) / row["file_name"]

    # --- jobs ---------------------------------------------------------------------------------------------------------

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
        key = _digest(row["digest"], asdict(recipe), row["round"], [_rejected_record(r) for r in rejected])
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
            image=_read_image(row["record"]),
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

    # --- figures ------------------------------------------------------------------------------------------------------

    def cost(self) -> float:
        """What all calls cost so far."""
        return float(self.database.value("SELECT coalesce(sum(cost), 0) FROM calls"))

    def status(self) -> Status:
        """The project in numbers."""
        count = self._counts
        problems = Counter[str]()
        for row in self.database.rows(
            "SELECT v.problems FROM pairs p JOIN pair_versions v ON v.pair = p.id AND v.version = p.version "
            "WHERE v.problems <> '[]'"
        ):
            problems.update({code for code, *_ in json.loads(row["problems"])})
        tokens = self.database.rows("SELECT coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0) FROM calls")
        calls = count("SELECT outcome, count(*) FROM calls GROUP BY outcome")
        return Status(
            images=count("SELECT state, count(*) FROM images GROUP BY state", JOB_STATES),
            splits=count("SELECT split, count(*) FROM images GROUP BY split"),
            in_progress=int(self.database.value("SELECT count(*) FROM images WHERE owner IS NOT NULL")),
            pairs=count("SELECT state, count(*) FROM pairs GROUP BY state", PAIR_STATES),
            flagged=int(
                self.database.value(
                    "SELECT count(*) FROM pairs p JOIN pair_versions v ON v.pair = p.id AND v.version = p.version "
                    "WHERE p.state = 'in_review' AND v.problems <> '[]'"
                )
            ),
            disputed=self.reviews.num_disputed(),
            problems=dict(problems.most_common()),
            calls=calls,
            in_doubt=calls.get("lost", 0),
            reasons=count("SELECT reason, count(*) FROM images WHERE state = 'failed' GROUP BY reason"),
            retries=count("SELECT reason, count(*) FROM calls WHERE outcome = 'failed' GROUP BY reason"),
            input_tokens=tokens[0][0],
            output_tokens=tokens[0][1],
            cost=self.cost(),
        )

    def failures(self, limit: int = 20) -> list[tuple[int, str, str]]:
        """(image id, reason, detail) of the first jobs that failed for good."""
        rows = self.database.rows(
            "SELECT image_id, reason, detail FROM images WHERE state = 'failed' ORDER BY id LIMIT ?", [limit]
        )
        return [(row["image_id"], row["reason"], row["detail"]) for row in rows]

    def _counts(self, sql: str, keys: Sequence[str] = ()) -> dict[str, int]:
        return {**dict.fromkeys(keys, 0), **{str(row[0]): int(row[1]) for row in self.database.rows(sql)}}


def _image_record(image: AnnotatedImage) -> dict[str, Any]:
    return {**asdict(image), "objects": [asdict(o) for o in image.objects]}


def _read_image(record: bytes) -> AnnotatedImage:
    content = json.loads(zlib.decompress(record))
    objects = tuple(AmodalObject(**{**o, "occluded_by": tuple(o["occluded_by"])}) for o in content["objects"])
    return AnnotatedImage(**{**content, "objects": objects})


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


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
