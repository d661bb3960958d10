"""The records that travel through the pipeline: request -> generator -> pairs -> checks -> store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from aura.formats.sources import AnnotatedImage
from aura.types import Masks

FailureReason = Literal["refusal", "truncated", "malformed", "schema", "timeout", "http", "empty", "image"]
"""``image``: the picture is missing, damaged or of another size than annotated; ``empty``: no pairs, or no objects."""


@dataclass(frozen=True)
class PairDraft:
    """One question-answer pair as a generator wrote it; nothing about it has been checked.

    ``objects`` are annotation ids in the order of the answer's ``[SEG]`` marks. ``follows`` is the index, within the
    same response, of the pair that this one continues as the next turn; ``None`` opens a conversation. ``asked`` is the
    mask of each object that the question means; empty where all mean both.
    """

    question: str
    answer: str
    objects: tuple[int, ...]
    follows: int | None = None
    asked: tuple[Masks, ...] = ()


@dataclass(frozen=True)
class PairProblem:
    """What is wrong with a pair: ``code`` for counting, ``message`` for a person, ``advice`` for the model."""

    code: str
    message: str
    advice: str = ""


RejectedPair = tuple[PairDraft, tuple[PairProblem, ...]]


@dataclass(frozen=True)
class GenerationRequest:
    """One image to write ``pairs`` question-answer pairs about.

    ``picture`` is the file of the image. ``key`` names this piece of work: equal keys mean equal work, across restarts
    too. It is the ``custom_id`` of a batch line and the idempotency key of a request. An empty key is made from the
    image id.

    ``rejected`` are pairs that failed their checks and go back with the reasons. As many new ones are asked for, in
    their order, so ``pairs`` must equal ``len(rejected)``. A new pair takes the place of the old one, and the old
    pair's ``follows`` holds. ``context`` is then the whole previous response: the new pairs must repeat none of it, and
    a follow-up is read after what it follows.
    """

    image: AnnotatedImage
    picture: Path
    pairs: int = 10
    rejected: tuple[RejectedPair, ...] = ()
    context: tuple[PairDraft, ...] = ()
    key: str = ""

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"image {self.image.image_id}: pairs must be positive, got {self.pairs}")
        if self.rejected and len(self.rejected) != self.pairs:
            raise ValueError(
                f"image {self.image.image_id}: {len(self.rejected)} rejected pairs go back but {self.pairs} are asked "
                "for; ask for as many as go back"
            )
        if not self.key:
            turn = "again" if self.rejected else "first"
            object.__setattr__(self, "key", f"image-{self.image.image_id}-{turn}")


@dataclass(frozen=True)
class GenerationResult:
    """What came back for one image, with what it cost. ``cost`` is in the currency of the configured prices.

    ``raw`` is the response's text as received; ``finish_reason`` as the service gave it. ``problems`` say what was
    wrong with the form of each pair, one sequence per pair; there are none at all where nothing was.
    """

    image_id: int
    pairs: tuple[PairDraft, ...]
    generator: str
    model: str
    prompt_version: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    raw: str = ""
    finish_reason: str = "stop"
    problems: tuple[tuple[PairProblem, ...], ...] = ()


@dataclass(frozen=True)
class GenerationFailure:
    """Why an image has no pairs. ``retryable``: asking again later, unchanged, may help.

    ``cost`` and the token counts are what the failed attempts were (or, after a timeout, may have been) charged.
    """

    image_id: int
    reason: FailureReason
    detail: str
    retryable: bool
    cost: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    raw: str = ""


class GenerationError(Exception):
    """One image failed; others may still succeed."""

    def __init__(self, failure: GenerationFailure) -> None:
        super().__init__(f"image {failure.image_id}: {failure.reason}: {failure.detail}")
        self.failure = failure


class GenerationStopped(Exception):
    """The run must stop: no further request can succeed (wrong key, refused setting, used-up quota).

    The image that met it was not worked on and stays pending.
    """


class BudgetReached(GenerationStopped):
    """The next request could exceed ``max_cost``, so it was not sent."""


class Generator(Protocol):
    """Writes pairs about one image at a time; up to ``concurrency`` calls of :meth:`generate` run side by side."""

    name: str
    model: str
    concurrency: int

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Pairs for one image.

        Raises:
            GenerationError: This image failed.
            GenerationStopped: No image can be done any more; what is in flight still returns.
        """
        ...

    async def close(self) -> None:
        """Release connections and files; the generator is not used afterwards."""
        ...
