"""The status of a project as plain records: its figures, the annotators' progress, their agreement."""

from __future__ import annotations

import dataclasses
from typing import Any

from aura.datagen.store.store import Store


def status_report(store: Store) -> dict[str, Any]:
    """What ``status --json`` prints: the fields of :class:`Status`, ``annotators``, ``obstacles`` and ``agreement``."""
    agreement = store.reviews.agreement()
    return {
        **dataclasses.asdict(store.status()),
        "annotators": [
            {
                "name": p.annotator.name,
                "active": p.annotator.active,
                "judged": p.judged,
                "decided": p.decided,
                "waiting": p.waiting,
            }
            for p in store.queues.progress()
        ],
        "obstacles": store.queues.obstacles(),
        "agreement": {
            "pairs": agreement.pairs,
            "unanimous": agreement.unanimous,
            "fleiss_kappa": agreement.fleiss,
            "cohen_kappa": [
                {"annotators": list(names), "pairs": number, "kappa": kappa}
                for names, (number, kappa) in agreement.cohen.items()
            ],
        },
    }
