"""Which pairs wait for which annotator, and how far each of them is.

Images are dealt to the active annotators in turn, all pairs of an image to the same ones, so that three annotators
judge two thirds of the images each and decide about the last third.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from aura.datagen.store.annotators import Annotator, Annotators
from aura.datagen.store.database import Database

DEFAULT_REVIEWERS = 2

Kind = Literal["judge", "decide"]
"""``judge`` a pair unseen by others' eyes; ``decide`` one that others disagree about."""


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
        found: list[QueueItem] = []
        for kind, sql, values in self._waiting(annotator):
            sql = f"SELECT p.id, i.image_id, p.position {sql} ORDER BY p.image, p.position LIMIT ?"
            rows = self.database.rows(sql, [*values, limit - len(found)])
            found += [QueueItem(row["id"], row["image_id"], row["position"], kind) for row in rows]
        return found

    def num_waiting(self, annotator: Annotator) -> int:
        """Length of the queue."""
        waiting = self._waiting(annotator)
        return sum(int(self.database.value(f"SELECT count(*) {sql}", values)) for _, sql, values in waiting)

    def _waiting(self, annotator: Annotator) -> list[tuple[Kind, str, list[int]]]:
        """The queries of what waits for an annotator, each with its values; none for an inactive one."""
        active = [a.id for a in self.annotators.all() if a.active]
        if annotator.id not in active:
            return []
        turn = [active.index(annotator.id), len(active), self.reviewers, self.reviewers]
        return [("decide", _DISPUTES, [annotator.id]), ("judge", _UNJUDGED, [annotator.id, *turn])]

    def progress(self) -> list[AnnotatorProgress]:
        """How far each annotator is."""
        counts = Counter[tuple[int, int]]()
        for row in self.database.rows(
            "SELECT annotator, final, count(*) AS n FROM verdicts WHERE replaced = 0 GROUP BY annotator, final"
        ):
            counts[row["annotator"], row["final"]] = row["n"]
        people = self.annotators.all()
        return [AnnotatorProgress(a, counts[a.id, 0], counts[a.id, 1], self.num_waiting(a)) for a in people]

    def num_disputed(self) -> int:
        """Pairs that wait for somebody to decide."""
        return int(self.database.value("SELECT count(*) FROM pairs WHERE state = 'in_review' AND disputed = 1"))


_OPEN = """
FROM pairs p JOIN images i ON i.id = p.image WHERE p.state = 'in_review' AND p.disputed = {disputed}
AND NOT EXISTS (SELECT 1 FROM verdicts v WHERE v.pair = p.id AND v.annotator = ? AND v.replaced = 0)
"""
_DISPUTES = _OPEN.format(disputed=1)
_UNJUDGED = f"""{_OPEN.format(disputed=0)}
AND ((? + p.image) % ?) < ? AND (SELECT count(*) FROM verdicts v WHERE v.pair = p.id AND v.replaced = 0) < ?
"""
