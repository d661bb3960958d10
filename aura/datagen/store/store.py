"""The project's store: every image job, every call to a generator, every pair with its history, in one SQLite file.

A job goes ``pending`` -> ``generated`` or ``failed``. A pair goes ``generated`` (its image is not finished) or
``failed`` (it goes back to the generator once) -> ``in_review`` -> ``accepted``, ``changed`` or ``rejected``.

:class:`Store` is the door to all of it: :mod:`~aura.datagen.store.images`, :mod:`~aura.datagen.store.jobs`,
:mod:`~aura.datagen.store.answers`, :mod:`~aura.datagen.store.pairs`, :mod:`~aura.datagen.store.reviews`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aura.datagen.store.answers import AnswerTable
from aura.datagen.store.database import Database
from aura.datagen.store.images import ImageEntry, Source, StoredImage
from aura.datagen.store.jobs import Job, Recipe
from aura.datagen.store.pairs import PAIR_STATES, Conflict, Pair, PairVersion
from aura.datagen.store.reviews import Reviews

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


class Store(AnswerTable):
    """A project. The threads of a process may share one; every process opens its own.

    ``reviews`` holds annotators, queues and verdicts.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(database, clock=clock)
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
