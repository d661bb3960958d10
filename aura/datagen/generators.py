"""The generators behind one interface, :class:`aura.datagen.records.Generator`, and the offline one among them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aura.datagen.offline import generator as offline
from aura.datagen.records import (
    GenerationError,
    GenerationFailure,
    GenerationRequest,
    GenerationResult,
    Generator,
    PairDraft,
)
from aura.types import Conversation

if TYPE_CHECKING:
    from aura.datagen.service.settings import ApiSettings

GeneratorKind = Literal["openai", "openai-batch", "offline"]


@dataclass
class OfflineGenerator:
    """The deterministic generator of the mini benchmark: no service, no cost, the same pairs for the same seed."""

    seed: int = 0
    intents: bool = False
    name: str = field(default=offline.GENERATOR, init=False)
    model: str = field(default=f"{offline.GENERATOR}-{offline.VERSION}", init=False)
    concurrency: int = field(default=1, init=False)

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """As :meth:`aura.datagen.records.Generator.generate`; rejected pairs are replaced by ones of another seed."""
        pairs = self._again(request) if request.rejected else self._first(request)
        if len(pairs) < (request.pairs if request.rejected else 1):
            number = request.image.image_id
            detail = "the image leaves nothing more to ask" if request.image.objects else "the image has no objects"
            raise GenerationError(GenerationFailure(number, "empty", detail, retryable=False))
        return GenerationResult(request.image.image_id, pairs, self.name, self.model, f"offline-{offline.VERSION}")

    async def close(self) -> None:
        """Nothing is open."""

    def _first(self, request: GenerationRequest) -> tuple[PairDraft, ...]:
        pairs: list[PairDraft] = []
        for conversation in self._write(request, request.pairs, self.seed):
            for number, turn in enumerate(conversation.turns):
                follows = len(pairs) - 1 if number else None
                pairs.append(PairDraft(turn.question, turn.answer, turn.objects, follows, turn.asked))
        return tuple(pairs)

    def _again(self, request: GenerationRequest) -> tuple[PairDraft, ...]:
        asked = {pair.question for pair in request.context} | {pair.question for pair, _ in request.rejected}
        wanted = len(request.context) + 2 * request.pairs
        fresh = self._write(request, wanted, self.seed + 1)
        turns = [c.turns[0] for c in fresh if c.turns[0].question not in asked]
        return tuple(PairDraft(t.question, t.answer, t.objects, asked=t.asked) for t in turns[: request.pairs])

    def _write(self, request: GenerationRequest, pairs: int, seed: int) -> list[Conversation]:
        return offline.generate_conversations(request.image, pairs=pairs, seed=seed, intents=self.intents)


def make_generator(
    kind: GeneratorKind,
    api: ApiSettings | None = None,
    *,
    seed: int = 0,
    folder: str | Path = ".",
    spent: float = 0.0,
    intents: bool = False,
) -> Generator:
    """The generator called ``kind``.

    Args:
        kind: ``openai``, ``openai-batch`` or ``offline``.
        api: Settings of the first two.
        seed: Of the offline one.
        folder: Where ``openai-batch`` keeps its files, which let a later run take up what an earlier one submitted.
        spent: What earlier runs cost; it counts towards ``api.max_cost``.
        intents: Of the offline one, questions may mean one kind of mask; the others have ``api.intents``.
    """
    if kind == "offline":
        return OfflineGenerator(seed, intents)
    # The client's package takes a second to import, and the offline generator needs none of it.
    from aura.datagen.service.client import OpenAIGenerator
    from aura.datagen.service.settings import ApiSettings

    settings = api or ApiSettings()
    if kind == "openai":
        return OpenAIGenerator(settings, spent=spent)
    from aura.datagen.service.batch import BatchGenerator

    return BatchGenerator(settings, folder, spent=spent)
