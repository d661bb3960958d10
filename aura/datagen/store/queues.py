"""The queues: which pairs wait for which annotator, and how far each of them is.

Images are dealt to the active annotators in turn, all pairs of an image to the same ones, so that three annotators
judge two thirds of the images each and decide about the last third. Triggers of the database keep the queues
(:data:`aura.datagen.store.tables.QUEUES`), so that reading one costs the same however long it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aura.datagen.store.annotators import Annotator, Annotators
from aura.datagen.store.database import Database

DEFAULT_REVIEWERS = 2

Kind = Literal["judge", "decide"]
"""``judge`` a pair unseen by others' eyes; ``decide`` one that others disagree about."""
KINDS: tuple[Kind, Kind] = ("decide", "judge")
"""As the table ``queue`` numbers them."""


@dataclass(frozen=True)
class QueueItem:
    """A pair that waits for an annotator."""

    pair_id: int
    image_id: int
    position: int
    kind: Kind


@dataclass(frozen=True)
class AnnotatorProgress:
    """How far an annotator is: pairs judged, disputes decided, and what waits in the queue."""

    annotator: Annotator
    judged: int
    decided: int
    waiting: int


class Queues:
    """The queues of a project, one for each annotator."""

    def __init__(self, database: Database, annotators: Annotators) -> None:
        self.database, self.annotators = database, annotators

    @property
    def reviewers(self) -> int:
        """Annotators who judge each pair without seeing each other's verdict."""
        return int(self.database.meta("reviewers", DEFAULT_REVIEWERS))

    def of(self, annotator: Annotator, limit: int = 50) -> list[QueueItem]:
        """What waits for an annotator: disputes to decide first, then pairs to judge, image by image."""
        rows = self.database.rows(
            "SELECT q.pair, i.image_id, q.position, q.kind FROM queue q JOIN images i ON i.id = q.image "
            "WHERE q.annotator = ? ORDER BY q.kind, q.image, q.position LIMIT ?",
            [annotator.id, limit],
        )
        return [QueueItem(row["pair"], row["image_id"], row["position"], KINDS[row["kind"]]) for row in rows]

    def num_waiting(self, annotator: Annotator) -> int:
        """Length of the queue."""
        return int(self.database.value("SELECT waiting FROM tallies WHERE annotator = ?", [annotator.id]) or 0)

    def progress(self) -> list[AnnotatorProgress]:
        """How far each annotator is."""
        tallies = {row["annotator"]: row for row in self.database.rows("SELECT * FROM tallies")}
        return [
            AnnotatorProgress(a, *(tallies[a.id][key] for key in ("judged", "decided", "waiting")))
            for a in self.annotators.all()
        ]

    def num_disputed(self) -> int:
        """Pairs that wait for somebody to decide."""
        return int(self.database.value("SELECT count(*) FROM pairs WHERE state = 'in_review' AND disputed = 1"))

    def obstacles(self) -> list[str]:
        """Why the review cannot come to its end with the people who are active now, each with what to do."""
        active, reviewers = sum(a.active for a in self.annotators.all()), self.reviewers
        if not active:
            return []
        found = []
        if active < reviewers:
            found.append(
                f"each pair needs {reviewers} verdicts and {active} {_people(active)} active: no pair can be decided; "
                "add annotators"
            )
        elif active == reviewers == 2:
            found.append("two people judge every pair and nobody is left to decide where they disagree; add a third")
        stuck = int(
            self.database.value(
                "SELECT count(*) FROM pairs p WHERE p.state = 'in_review' AND p.disputed = 1 "
                "AND NOT EXISTS (SELECT 1 FROM queue q WHERE q.pair = p.id)"
            )
        )
        if stuck:
            found.append(
                f"{stuck} disputed {'pair waits' if stuck == 1 else 'pairs wait'} for somebody who has not judged "
                "yet, and all who are active have; add an annotator"
            )
        return found


def _people(number: int) -> str:
    return "annotator is" if number == 1 else "annotators are"
