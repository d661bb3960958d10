"""The run of a generator over a store: it claims jobs, has several done at once, checks and stores the answers.

Only the jobs under way are in memory. Several processes may work on one store. A run that was stopped or killed is
continued by starting it again.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aura.datagen.records import (
    GenerationError,
    GenerationFailure,
    GenerationRequest,
    GenerationResult,
    GenerationStopped,
    Generator,
    PairDraft,
    PairProblem,
)
from aura.datagen.store.jobs import Job, Recipe
from aura.datagen.store.store import Store
from aura.formats.sources import AnnotatedImage

CHECK_EVERY = 2.0
"""Seconds between looks at what all processes together have spent, and at jobs that others may have left."""

Check = Callable[[AnnotatedImage, Sequence[PairDraft], Sequence[PairDraft] | None], Sequence[Sequence[PairProblem]]]
"""(image, new pairs, the image's pairs that stay; ``None`` if these are the first) -> the problems of each new pair."""


@dataclass(frozen=True)
class RunSettings:
    """How a run treats jobs.

    Args:
        max_attempts: Tries of a job.
        retry_delay: Seconds before the second try; it doubles with each further one.
        lease_seconds: A job whose process is silent for so long is taken by another.
        send_back: Pairs that fail their checks go back to the generator once.
        max_cost: No new job is taken once all runs of the project cost this much.
        max_images: No more jobs than this are taken.
    """

    max_attempts: int = 3
    retry_delay: float = 30.0
    lease_seconds: float = 300.0
    send_back: bool = True
    max_cost: float | None = None
    max_images: int | None = None

    def __post_init__(self) -> None:
        for key in ("max_attempts", "lease_seconds"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key} must be positive, got {getattr(self, key)}")
        if self.retry_delay < 0:
            raise ValueError(f"retry_delay must not be negative, got {self.retry_delay}")


@dataclass
class RunSummary:
    """What a run did: calls answered, images finished, pairs; ``stopped`` says why it ended before all was done."""

    answered: int = 0
    finished: int = 0
    pairs: int = 0
    sent_back: int = 0
    failed: int = 0
    retried: int = 0
    duplicates: int = 0
    cost: float = 0.0
    stopped: str | None = None


@dataclass
class Books:
    """Checks and stores what jobs end with. ``progress`` is told after every job."""

    store: Store
    check: Check | None = field(default=None, kw_only=True)
    settings: RunSettings = field(default_factory=RunSettings, kw_only=True)
    progress: Callable[[RunSummary], None] = field(default=lambda summary: None, kw_only=True)
    summary: RunSummary = field(default_factory=RunSummary, init=False)

    def settle(self, job: Job, came: GenerationResult | GenerationFailure) -> None:
        """Store what came back for a claimed job."""
        if isinstance(came, GenerationResult):
            self._answer(job, came)
        else:
            self._fail(job, came)
        self.progress(self.summary)

    def settle_waiting(
        self,
        request: GenerationRequest,
        came: GenerationResult | GenerationFailure | GenerationStopped,
        recipe: Recipe,
    ) -> None:
        """Store what came back for an image that nobody works on; passed over if somebody does, or asks otherwise.

        An image for which the settings were refused stays pending.
        """
        if isinstance(came, GenerationStopped):
            self.summary.stopped = self.summary.stopped or str(came)
            return
        job = self.store.jobs.claim_image(request.image.image_id, recipe)
        if job is not None and job.key == request.key:
            self.settle(job, came)
        elif job is not None:
            self.store.jobs.release(job)

    def _answer(self, job: Job, result: GenerationResult) -> None:
        problems: Sequence[Sequence[PairProblem]] = result.problems
        if self.check is not None:
            rejected = {draft for draft, _ in job.rejected}
            kept = [draft for draft in job.context if draft not in rejected] if job.round else None
            found = self.check(job.image, result.pairs, kept)
            form = result.problems or [()] * len(found)
            problems = [(*wrong, *more) for wrong, more in zip(form, found, strict=True)]
        if not self.store.answers.take(job, result, problems, send_back=self.settings.send_back):
            self.summary.duplicates += 1
            return
        self.summary.answered += 1
        self.summary.pairs += len(result.pairs) if job.round == 0 else 0
        sent_back = sum(map(bool, problems)) if job.round == 0 and self.settings.send_back else 0
        self.summary.sent_back += sent_back
        self.summary.finished += not sent_back
        if job.answer is None:
            self.summary.cost += result.cost

    def _fail(self, job: Job, failure: GenerationFailure) -> None:
        settings = self.settings
        delay = settings.retry_delay * 2 ** max(job.attempt - 1, 0)
        self.summary.cost += failure.cost
        if self.store.answers.fail(job, failure, max_attempts=settings.max_attempts, delay=delay):
            self.summary.retried += 1
        else:
            self.summary.failed += 1


@dataclass
class Run(Books):
    """One run of a generator over a store."""

    generator: Generator
    recipe: Recipe

    def stop(self, why: str) -> None:
        """Take no further jobs; what is under way is finished. May be called from a signal handler."""
        self.summary.stopped = self.summary.stopped or why

    async def until_interrupted(self) -> RunSummary:
        """As :meth:`run`; the first SIGINT or SIGTERM finishes what is under way, the second ends the run at once."""
        loop, current = asyncio.get_running_loop(), asyncio.current_task()

        def interrupted() -> None:
            if self.summary.stopped and current is not None:
                current.cancel()
            self.stop("interrupted; run generate again to go on")

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)
        try:
            return await self.run()
        except asyncio.CancelledError:
            return self.summary

    async def run(self) -> RunSummary:
        """Work until no job is left, or until stopped; waits for jobs that are to be retried or held by others.

        Raises:
            Exception: What a generator or a check raised that is none of the expected errors; the jobs under way are
                finished first.
        """
        running: dict[asyncio.Task[None], Job] = {}
        taken, renewed, looked = 0, time.monotonic(), 0.0
        error: BaseException | None = None
        try:
            while True:
                now = time.monotonic()
                if now - looked >= CHECK_EVERY:
                    looked = now
                    self._check_budget()
                free = self.generator.concurrency - len(running)
                if self.settings.max_images is not None:
                    free = min(free, self.settings.max_images - taken)
                claimed = self._claim(free)
                taken += len(claimed)
                running |= {asyncio.create_task(self._work(job)): job for job in claimed}
                if not running:
                    wait = None if self._ends(taken) else self.store.jobs.seconds_to_next()
                    if wait is None:
                        break
                    await asyncio.sleep(min(wait, CHECK_EVERY))
                    continue
                done, _ = await asyncio.wait(running, timeout=CHECK_EVERY, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                    if task.exception() is not None:
                        error = error or task.exception()
                        self.stop(f"an unexpected error: {task.exception()!r}")
                if time.monotonic() - renewed > self.settings.lease_seconds / 4:
                    renewed = time.monotonic()
                    self.store.jobs.renew(running.values(), self.settings.lease_seconds)
        finally:
            for task in running:
                task.cancel()
        if error is not None:
            raise error
        return self.summary

    def _ends(self, taken: int) -> bool:
        return self.summary.stopped is not None or taken == self.settings.max_images

    def _check_budget(self) -> None:
        limit = self.settings.max_cost
        if limit is not None and (spent := self.store.cost()) >= limit:
            self.stop(f"{spent:.4f} of max_cost {limit:g} is spent; raise it and run again, nothing is lost")

    def _claim(self, free: int) -> list[Job]:
        if free <= 0 or self.summary.stopped is not None:
            return []
        return self.store.jobs.claim(self.recipe, limit=free, lease_seconds=self.settings.lease_seconds)

    async def _work(self, job: Job) -> None:
        """One job from the call to the stored answer."""
        try:
            result = job.answer or await self.generator.generate(request_of(job))
        except GenerationError as error:
            self.settle(job, error.failure)
        except GenerationStopped as stopped:
            self.store.jobs.release(job)
            self.stop(str(stopped))
            self.progress(self.summary)
        else:
            self.settle(job, result)


def request_of(job: Job) -> GenerationRequest:
    """What a job asks of a generator."""
    return GenerationRequest(
        image=job.image,
        picture=job.picture,
        pairs=job.pairs,
        rejected=job.rejected,
        context=job.context,
        key=job.key,
    )
