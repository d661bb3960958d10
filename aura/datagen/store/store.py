"""The project's store: its images, jobs, answers, pairs, annotators, queues and reviews, in one SQLite file.

A job goes ``pending`` -> ``generated`` or ``failed``. A pair goes ``generated`` (its image is not finished) or
``failed`` (it goes back to the generator once) -> ``in_review`` -> ``accepted``, ``changed`` or ``rejected``.

:class:`Store` holds one object for each of them, all over one :class:`~aura.datagen.store.database.Database`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aura.datagen.store.annotators import Annotators
from aura.datagen.store.answers import Answers
from aura.datagen.store.database import Database
from aura.datagen.store.images import Images, Source
from aura.datagen.store.jobs import Jobs
from aura.datagen.store.pairs import PAIR_STATES, Pairs
from aura.datagen.store.queues import Queues
from aura.datagen.store.reviews import Reviews

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


class Store:
    """A project. The threads of a process may share one; every process opens its own.

    ``images`` holds what was annotated, ``jobs`` who works on what, ``answers`` what came back, ``pairs`` the texts
    with their history, ``annotators`` the people, ``queues`` what waits for each of them, ``reviews`` what they said.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.images = Images(database)
        self.pairs = Pairs(database)
        self.jobs = Jobs(database, self.images, self.pairs)
        self.answers = Answers(database, self.jobs, self.pairs)
        self.annotators = Annotators(database)
        self.queues = Queues(database, self.annotators)
        self.reviews = Reviews(database, self.images, self.pairs, self.annotators, self.queues)

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
    def path(self) -> Path:
        """The project's file."""
        return self.database.path

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the project was made with."""
        return dict(self.database.meta("settings", {}))

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
            disputed=self.queues.num_disputed(),
            problems=dict(problems.most_common()),
            calls=calls,
            in_doubt=calls.get("lost", 0),
            reasons=count("SELECT reason, count(*) FROM images WHERE state = 'failed' GROUP BY reason"),
            retries=count("SELECT reason, count(*) FROM calls WHERE outcome = 'failed' GROUP BY reason"),
            input_tokens=tokens[0][0],
            output_tokens=tokens[0][1],
            cost=self.cost(),
        )

    def _counts(self, sql: str, keys: Sequence[str] = ()) -> dict[str, int]:
        return {**dict.fromkeys(keys, 0), **{str(row[0]): int(row[1]) for row in self.database.rows(sql)}}
