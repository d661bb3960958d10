"""The script that makes data sets, and what people do between its commands."""

from __future__ import annotations

from pathlib import Path

from aura.datagen.store.store import Store

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_dataset.py"


def store_of(tmp_path) -> Store:
    return Store.open(tmp_path / "project" / "project.sqlite")


def accept_all(tmp_path) -> None:
    with store_of(tmp_path) as store:
        for name in ("Ann", "Bo"):
            store.annotators.add(name)
        for annotator in store.annotators.all():
            while queue := store.queues.of(annotator, 1):
                [item] = queue
                store.reviews.submit(annotator, item.pair_id, "accept", version=store.pairs.get(item.pair_id).version)
