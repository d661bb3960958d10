"""The stored pairs and their versions.

A version is never rewritten or deleted. A pair points at the one that counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from sqlite3 import Row
from typing import Literal

from aura.datagen.records import PairDraft, PairProblem
from aura.datagen.store.agreement import PairText
from aura.datagen.store.database import Database

PairState = Literal["generated", "failed", "in_review", "changed", "accepted", "rejected"]
PAIR_STATES: tuple[PairState, ...] = ("generated", "failed", "in_review", "changed", "accepted", "rejected")
DECIDED_STATES: tuple[PairState, ...] = ("changed", "accepted", "rejected")
GENERATOR_AUTHOR = "generator"


class Conflict(Exception):
    """What the caller looked at has changed since; nothing was written. Read again and decide anew."""


@dataclass(frozen=True)
class PairVersion:
    """One wording of a pair; ``author`` is ``generator`` or an annotator's name, ``created`` seconds since 1970.

    ``problems`` are what the checks found; ``call`` is the row of the call that it came from.
    """

    version: int
    text: PairText
    author: str
    reason: str
    problems: tuple[PairProblem, ...]
    created: float
    call: int | None


@dataclass(frozen=True)
class Pair:
    """A pair at its current version. ``follows`` is the id of the pair that it continues as the next turn.

    ``disputed``: the annotators who judged it disagree, another one decides.
    """

    id: int
    image_id: int
    position: int
    follows: int | None
    state: PairState
    disputed: bool
    current: PairVersion

    @property
    def version(self) -> int:
        """Number of the current version."""
        return self.current.version

    @property
    def text(self) -> PairText:
        """The current version's text."""
        return self.current.text

    @property
    def decided(self) -> bool:
        """Whether review is over."""
        return self.state in DECIDED_STATES


def text_of(draft: PairDraft) -> PairText:
    """What a generator's draft says."""
    return PairText(draft.question, draft.answer, tuple(draft.objects), tuple(draft.asked))


def conversations_of(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs of one image as conversations: a pair that follows another belongs to its conversation.

    Conversations are ordered by their first pair's position, turns by theirs.
    """
    root: dict[int, int] = {}
    found: dict[int, list[Pair]] = {}
    for pair in sorted(pairs, key=lambda p: p.position):
        root[pair.id] = root.get(pair.follows, pair.id) if pair.follows is not None else pair.id
        found.setdefault(root[pair.id], []).append(pair)
    return list(found.values())


class Pairs:
    """The pairs of a project: reading them, and writing versions."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def of(self, image_id: int) -> list[Pair]:
        """The pairs of an image, by position; empty for an image without any (or an unknown one)."""
        rows = self.database.rows(f"{_PAIRS} WHERE i.image_id = ? ORDER BY p.position", [image_id])
        return [_pair(row) for row in rows]

    def get(self, pair_id: int) -> Pair:
        """One pair.

        Raises:
            KeyError: There is none.
        """
        row = self.database.row(f"{_PAIRS} WHERE p.id = ?", [pair_id])
        if row is None:
            raise KeyError(f"{self.database.path}: no pair {pair_id}")
        return _pair(row)

    def history(self, pair_id: int) -> list[PairVersion]:
        """Every version of a pair, oldest first, proposals of annotators among them."""
        rows = self.database.rows("SELECT * FROM pair_versions WHERE pair = ? ORDER BY version", [pair_id])
        return [_version(row) for row in rows]

    def origin(self, version: PairVersion) -> dict[str, str]:
        """Generator, model and prompt version that a version came from; empty for one that a person wrote."""
        row = self.database.row("SELECT generator, model, prompt_version FROM calls WHERE id = ?", [version.call])
        return {} if row is None else {key: row[key] for key in row.keys()}  # noqa: SIM118

    def add_version(
        self,
        pair_id: int,
        text: PairText,
        *,
        author: str,
        reason: str,
        problems: Sequence[PairProblem] = (),
        call: int | None = None,
    ) -> int:
        """Write a further version of a pair and return its number; the current one stays what it is."""
        with self.database.write() as cursor:
            number = self.database.value(
                "SELECT coalesce(max(version), 0) + 1 FROM pair_versions WHERE pair = ?", [pair_id]
            )
            cursor.execute(
                "INSERT INTO pair_versions (pair, version, question, answer, objects, asked, author, reason, problems, "
                "call, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    pair_id,
                    number,
                    text.question,
                    text.answer,
                    json.dumps(list(text.objects)),
                    json.dumps(list(text.asked)),
                    author,
                    reason,
                    _problems_json(problems),
                    call,
                    self.database.clock(),
                ],
            )
        return int(number)

    def set_problems(self, pair_id: int, version: int, problems: Sequence[PairProblem]) -> bool:
        """Replace what the checks found about a version; returns whether that is news."""
        text = _problems_json(problems)
        with self.database.write() as cursor:
            cursor.execute(
                "UPDATE pair_versions SET problems = ? WHERE pair = ? AND version = ? AND problems <> ?",
                [text, pair_id, version, text],
            )
            return cursor.rowcount == 1


_PAIRS = """
SELECT p.id, i.image_id, p.position, p.follows, p.state, p.disputed,
    v.version, v.question, v.answer, v.objects, v.asked, v.author, v.reason, v.problems, v.created, v.call
FROM pairs p JOIN images i ON i.id = p.image JOIN pair_versions v ON v.pair = p.id AND v.version = p.version
"""


def _pair(row: Row) -> Pair:
    return Pair(
        row["id"],
        row["image_id"],
        row["position"],
        row["follows"],
        row["state"],
        bool(row["disputed"]),
        _version(row),
    )


def _version(row: Row) -> PairVersion:
    return PairVersion(
        version=row["version"],
        text=read_text(row),
        author=row["author"],
        reason=row["reason"],
        problems=tuple(PairProblem(*problem) for problem in json.loads(row["problems"])),
        created=row["created"],
        call=row["call"],
    )


def read_text(row: Row) -> PairText:
    """The text of a row with a version's columns."""
    objects, asked = (tuple(json.loads(row[key])) for key in ("objects", "asked"))
    return PairText(row["question"], row["answer"], objects, asked)


def draft_of(text: PairText, follows: int | None) -> PairDraft:
    """A text as a draft that may be checked, or go back to its generator."""
    return PairDraft(text.question, text.answer, text.objects, follows, text.asked)


def _problems_json(problems: Sequence[PairProblem]) -> str:
    return json.dumps([[p.code, p.message, p.advice] for p in problems])
