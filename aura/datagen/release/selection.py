"""The images and pairs of a project that go into a release, with their provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aura.datagen.settings import ExportSettings
from aura.datagen.store.images import StoredImage
from aura.datagen.store.pairs import Pair, conversations_of
from aura.datagen.store.store import Store
from aura.types import SEG_TOKEN, Conversation, Turn, asked_flaw


@dataclass(frozen=True)
class ReleasedImage:
    """An image with the conversations that are released, at least one."""

    stored: StoredImage
    conversations: tuple[Conversation, ...]


class Selection:
    """Walks through the images that have something to release, in the same order each time."""

    def __init__(self, store: Store, settings: ExportSettings) -> None:
        self.store = store
        self.settings = settings
        self.names = {
            person.name: person.name if settings.annotator_names else f"annotator-{number}"
            for number, person in enumerate(store.annotators.all(), start=1)
        }

    def images(self, split: str, left_out: Counter[str] | None = None) -> Iterator[ReleasedImage]:
        """The images of a split; ``left_out`` counts what is passed over, by reason."""
        counter: Counter[str] = Counter() if left_out is None else left_out
        for stored in self.store.images.all():
            if stored.split != split:
                continue
            conversations = tuple(self._conversations(stored, counter))
            if conversations:
                yield ReleasedImage(stored, conversations)
            else:
                counter["images without a pair to release"] += 1

    def _conversations(self, stored: StoredImage, left_out: Counter[str]) -> Iterator[Conversation]:
        for pairs in conversations_of(self.store.pairs.of(stored.image.image_id)):
            kept = self._kept(pairs, left_out)
            if kept:
                turns = tuple(Turn(p.text.question, p.text.answer, p.text.objects, p.text.asked) for p in kept)
                yield Conversation(kept[0].id, turns, {"turns": [self._provenance(p) for p in kept]})

    def _kept(self, pairs: Sequence[Pair], left_out: Counter[str]) -> Sequence[Pair]:
        """A conversation up to its first turn that is not released: what follows would refer to nothing."""
        for number, pair in enumerate(pairs):
            reason = self._obstacle(pair)
            if reason is not None:
                left_out[reason] += 1
                if len(pairs) - number > 1:
                    left_out["pairs that follow a turn that is left out"] += len(pairs) - number - 1
                return pairs[:number]
        return pairs

    def _obstacle(self, pair: Pair) -> str | None:
        if pair.state == "rejected":
            return "pairs rejected by the annotators"
        if self.settings.include == "reviewed" and not pair.decided:
            return "pairs whose review is not over"
        # Annotators cannot let such a pair pass; a generator can.
        if pair.text.answer.count(SEG_TOKEN) != len(pair.text.objects):
            return "pairs with a broken form"
        if asked_flaw(pair.text.asked, len(pair.text.objects)):
            return "pairs with a broken form"
        if not (pair.text.question.strip() and pair.text.answer.strip()):
            return "pairs with a broken form"
        known = self.store.images.object_ids(pair.image_id)
        return None if known.issuperset(pair.text.objects) else "pairs with a broken form"

    def _provenance(self, pair: Pair) -> dict[str, Any]:
        """Where a pair comes from: who wrote it, who judged it and how, and every text that it had besides."""
        history = self.store.pairs.history(pair.id)
        verdicts = [v for v in self.store.reviews.verdicts(pair.id) if not v.replaced]
        return {
            "pair": pair.id,
            "state": pair.state,
            "version": pair.version,
            **self.store.pairs.origin(history[0]),
            "problems": [problem.code for problem in pair.current.problems],
            "verdicts": [
                {
                    "annotator": self.names[verdict.annotator],
                    "decision": verdict.decision,
                    "version": verdict.text_version,
                    "decides": verdict.final,
                    **({"note": verdict.note} if verdict.note else {}),
                }
                for verdict in verdicts
            ],
            "edits": [
                {
                    "version": version.version,
                    "author": self.names.get(version.author, version.author),
                    "reason": version.reason,
                    "question": version.text.question,
                    "answer": version.text.answer,
                    "objects": list(version.text.objects),
                    **({"asked": list(version.text.asked)} if version.text.asked else {}),
                }
                for version in history
            ]
            if len(history) > 1
            else [],
        }
