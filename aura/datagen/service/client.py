"""The generator that asks a vision-language model, one chat completion per image: GPT-4o, vLLM, Ollama."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import openai

from aura.datagen.records import (
    FailureReason,
    GenerationError,
    GenerationFailure,
    GenerationRequest,
    GenerationResult,
    GenerationStopped,
)
from aura.datagen.service.api import Api, describe
from aura.datagen.service.completions import Completion, read_completion
from aura.datagen.service.costs import Ledger, ModelPrice, Usage, text_tokens
from aura.datagen.service.estimates import expected_usage, upper_bound
from aura.datagen.service.prompt import Prompt, build_prompt, prompt_version, response_format
from aura.datagen.service.refusals import raise_if_hopeless
from aura.datagen.service.settings import ApiSettings


class OpenAIGenerator:
    """One chat completion per image."""

    name = "openai"

    def __init__(self, settings: ApiSettings, *, spent: float = 0.0) -> None:
        """Arguments and errors as :class:`Api`."""
        self.settings = settings
        self.model = settings.model
        self.concurrency = settings.concurrency
        self.api = Api(settings, spent=spent)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._surprise = 1.0

    async def close(self) -> None:
        await self.api.close()

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """As :meth:`aura.datagen.records.Generator.generate`."""
        async with self._slots:
            prompt = await asyncio.to_thread(prompt_of, request, self.settings)
            expected = expected_usage(request, self.settings, prompt.text)
            bound = upper_bound(Usage(int(expected.input * self._surprise), expected.output), self.settings)
            charges = _Charges(self.api.ledger, bound, bound.cost(self.settings.price))
            try:
                completion = await self._ask(request, prompt, charges)
            finally:
                charges.release()
            if completion.usage is not None:
                self._surprise = max(self._surprise, completion.usage.input / max(expected.input, 1))
        return outcome(request.image.image_id, completion, charges.usage, charges.cost, self.name, self.settings)

    async def _ask(self, request: GenerationRequest, prompt: Prompt, charges: _Charges) -> Completion:
        body = request_body(prompt, self.settings)
        headers = {"Idempotency-Key": request.key}

        async def attempt() -> str:
            await charges.reserve()
            # The whole body as extra_body: the client walks through every typed argument, which costs more than all
            # else about a request.
            raw = await self.api.client.chat.completions.with_raw_response.create(
                model=self.model, messages=[], extra_body=body, extra_headers=headers
            )
            return self.api.redact(raw.text)

        try:
            text = await self.api.patiently(attempt, lambda: charges.book(charges.bound, self.settings.price))
        except openai.APIError as error:
            raise GenerationError(self._failure(request.image.image_id, describe(error), charges)) from None
        except GenerationStopped as stopped:
            if not charges.cost:
                raise
            # What lost attempts may have cost must be recorded with the image; the next request meets the stop itself.
            usage = charges.usage
            failure = GenerationFailure(
                request.image.image_id, "timeout", str(stopped), True, charges.cost, usage.input, usage.output
            )
            raise GenerationError(failure) from stopped
        completion = read_completion(_json(text), exactly=len(request.rejected) or None)
        if completion.refusal is not None:
            raise_if_hopeless(completion.refusal, self.settings)
            raise GenerationError(self._failure(request.image.image_id, completion.refusal.described(), charges))
        usage = completion.usage or Usage(expected_usage(request, self.settings).input, text_tokens(completion.raw))
        charges.book(usage, self.settings.price)
        return completion

    def _failure(
        self, image_id: int, described: tuple[FailureReason, str, bool], charges: _Charges
    ) -> GenerationFailure:
        (reason, detail, retryable), usage = described, charges.usage
        return GenerationFailure(
            image_id, reason, self.api.redact(detail), retryable, charges.cost, usage.input, usage.output
        )


@dataclass
class _Charges:
    """What the attempts of one request were charged; each attempt is reserved at ``most`` before it is sent."""

    ledger: Ledger
    bound: Usage
    most: float
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    cost: float = 0.0
    held: float | None = None

    async def reserve(self) -> None:
        """Before an attempt; one that failed without a charge leaves its reservation to the next."""
        if self.held is None:
            await self.ledger.reserve(self.most)
            self.held = self.most

    def book(self, usage: Usage, price: ModelPrice | None) -> None:
        """The attempt under way was charged for ``usage``."""
        cost = usage.cost(price)
        self.usage = Usage(self.usage.input + usage.input, self.usage.output + usage.output)
        self.cost += cost
        self.ledger.settle(self.held or 0.0, cost)
        self.held = None

    def release(self) -> None:
        """The attempt under way, if any, was charged nothing."""
        self.ledger.settle(self.held or 0.0, 0.0)
        self.held = None


def prompt_of(request: GenerationRequest, settings: ApiSettings) -> Prompt:
    """The prompt, or a :class:`GenerationError` that says why there can be none."""
    try:
        shown = {"image_side": settings.image_side, "jpeg_quality": settings.jpeg_quality}
        return build_prompt(request, **shown, intents=settings.intents)
    except ValueError as error:
        reason: FailureReason = "image" if request.image.objects else "empty"
        failure = GenerationFailure(request.image.image_id, reason, str(error), retryable=False)
        raise GenerationError(failure) from error


def outcome(
    image_id: int, completion: Completion, usage: Usage, cost: float, generator: str, settings: ApiSettings
) -> GenerationResult:
    """The completion as a result, or as the :class:`GenerationError` that it amounts to."""
    if completion.reason is not None:
        failure = GenerationFailure(
            image_id=image_id,
            reason=completion.reason,
            detail=completion.detail,
            retryable=completion.retryable,
            cost=cost,
            input_tokens=usage.input,
            output_tokens=usage.output,
            raw=completion.raw,
        )
        raise GenerationError(failure)
    return GenerationResult(
        image_id=image_id,
        pairs=completion.pairs,
        generator=generator,
        model=completion.model or settings.model,
        prompt_version=prompt_version(settings.intents),
        input_tokens=usage.input,
        output_tokens=usage.output,
        cost=cost,
        raw=completion.raw,
        finish_reason=completion.finish_reason,
        problems=completion.problems,
    )


def request_body(prompt: Prompt, settings: ApiSettings) -> dict[str, Any]:
    """The body of a ``/v1/chat/completions`` request, for a live request and for a batch line alike."""
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": prompt.messages(settings.detail),
        settings.output_limit_field: settings.max_output_tokens,
    }
    if settings.structured == "json_schema":
        body["response_format"] = response_format(settings.intents)
    elif settings.structured == "json_object":
        body["response_format"] = {"type": "json_object"}
    for key in ("temperature", "seed"):
        if getattr(settings, key) is not None:
            body[key] = getattr(settings, key)
    return body


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
