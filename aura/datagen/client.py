"""Generators that ask a vision-language model through an OpenAI-style API: GPT-4o, vLLM, Ollama (spec section 8)."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import openai

from aura.datagen.completions import Completion, read_completion
from aura.datagen.costs import Ledger, ModelPrice, Usage, image_tokens, text_tokens
from aura.datagen.prompt import PROMPT_VERSION, SYSTEM, Prompt, build_prompt, response_format, sent_size, user_text
from aura.datagen.records import (
    FailureReason,
    GenerationError,
    GenerationFailure,
    GenerationRequest,
    GenerationResult,
    GenerationStopped,
)

T = TypeVar("T")

NO_KEY = "none"
"""Servers on one's own machines take any key, but the client insists on one."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
"""Seconds before the second attempt, doubled each time up to the longest, where the service names no pause."""


@dataclass(frozen=True)
class ApiSettings:
    """How to reach the model, what to ask of it, and what it may cost.

    ``base_url``: ``None`` is ``OPENAI_BASE_URL`` of the environment, or OpenAI itself. The key is read from the
    environment variable ``api_key_env``, from nowhere else. ``output_limit_field``: older servers only know
    ``max_tokens``. ``structured`` sends the answer's JSON schema; ``json_object`` asks for JSON of any form, ``none``
    for nothing: the answer is checked all the same. ``timeout`` in seconds for one attempt; ``retries`` after the first
    attempt, for connection errors, 408, 409, 429 and 5xx; ``max_wait`` is the longest pause in seconds that a service
    may ask for. ``prices`` by model name. ``image_tokens_base`` and ``image_tokens_tile`` are GPT-4o's and only serve
    estimates; ``tokens_per_pair`` is the expected length of one pair.
    """

    model: str = "gpt-4o"
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    detail: Literal["auto", "low", "high"] = "auto"
    image_side: int = 1024
    jpeg_quality: int = 90
    max_output_tokens: int = 4096
    output_limit_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    temperature: float | None = None
    seed: int | None = None
    concurrency: int = 8
    timeout: float = 180.0
    retries: int = 6
    max_wait: float = 300.0
    max_cost: float | None = None
    prices: dict[str, ModelPrice] = field(default_factory=dict)
    image_tokens_base: int = 85
    image_tokens_tile: int = 170
    tokens_per_pair: int = 80

    def __post_init__(self) -> None:
        for key in ("image_side", "max_output_tokens", "concurrency", "timeout", "tokens_per_pair"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key} must be positive, got {getattr(self, key)}")
        for key in ("retries", "max_wait", "image_tokens_base", "image_tokens_tile"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")
        if not 1 <= self.jpeg_quality <= 95:
            raise ValueError(f"jpeg_quality must be 1 to 95, got {self.jpeg_quality}")
        if self.max_cost is not None and self.price is None:
            raise ValueError(
                f"max_cost needs the price of {self.model}; add it as prices: {{{self.model}: {{input: ..., "
                "output: ...}}, per million tokens, from your provider's price list"
            )

    @property
    def price(self) -> ModelPrice | None:
        return self.prices.get(self.model)


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take. ``cost`` is ``None`` without a price; ``most`` is the upper bound of it."""

    requests: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    most: float | None

    def __str__(self) -> str:
        tokens = f"{self.requests} requests, about {self.input_tokens} input and {self.output_tokens} output tokens"
        if self.cost is None:
            return f"{tokens}; no price is configured for this model, so the cost is unknown"
        return f"{tokens}, about {self.cost:.2f}, at most {self.most:.2f}"


def dry_run(
    requests: Iterable[GenerationRequest], settings: ApiSettings, *, batch: bool = False, prompts: int = 3
) -> tuple[Estimate, tuple[Prompt, ...]]:
    """What ``requests`` would take, and the first ``prompts`` full prompts. Sends nothing, opens no other picture.

    Token counts are estimates from text lengths and picture sizes. Images without objects ask for nothing.
    """
    number = input_tokens = output_tokens = 0
    most = 0.0
    shown: list[Prompt] = []
    for request in requests:
        if not request.image.objects:
            continue
        expected = expected_usage(request, settings)
        number += 1
        input_tokens += expected.input
        output_tokens += expected.output
        most += upper_bound(expected, settings).cost(settings.price, batch=batch)
        if len(shown) < prompts:
            shown.append(build_prompt(request, image_side=settings.image_side, jpeg_quality=settings.jpeg_quality))
    cost = Usage(input_tokens, output_tokens).cost(settings.price, batch=batch)
    known = settings.price is not None
    return Estimate(number, input_tokens, output_tokens, cost if known else None, most if known else None), tuple(shown)


def expected_usage(request: GenerationRequest, settings: ApiSettings) -> Usage:
    """Tokens that a request is expected to take, by the length of its text and the size of its picture."""
    width, height = sent_size(request.image.width, request.image.height, settings.image_side)
    picture = image_tokens(width, height, settings.detail, settings.image_tokens_base, settings.image_tokens_tile)
    text = SYSTEM + user_text(request, settings.image_side) + json.dumps(response_format())
    return Usage(text_tokens(text) + picture, min(request.pairs * settings.tokens_per_pair, settings.max_output_tokens))


def upper_bound(expected: Usage, settings: ApiSettings) -> Usage:
    """The most that such a request may take: twice the input, and all the output it is allowed."""
    return Usage(2 * expected.input, settings.max_output_tokens)


def request_body(prompt: Prompt, settings: ApiSettings) -> dict[str, Any]:
    """The body of a ``/v1/chat/completions`` request, for a live request and for a batch line alike."""
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": prompt.messages(settings.detail),
        settings.output_limit_field: settings.max_output_tokens,
    }
    if settings.structured == "json_schema":
        body["response_format"] = response_format()
    elif settings.structured == "json_object":
        body["response_format"] = {"type": "json_object"}
    for key in ("temperature", "seed"):
        if getattr(settings, key) is not None:
            body[key] = getattr(settings, key)
    return body


class Api:
    """The connection to the service: one client, one pause that all requests share, one ledger."""

    def __init__(self, settings: ApiSettings, *, spent: float = 0.0) -> None:
        """``spent`` is what earlier runs cost, for ``max_cost``.

        Raises:
            ValueError: OpenAI itself is asked without a key in the environment.
        """
        base_url = settings.base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._key = os.environ.get(settings.api_key_env, "")
        if not self._key and base_url is None:
            raise ValueError(
                f"the environment variable {settings.api_key_env} holds no key; export it, or set base_url to a "
                "server of your own"
            )
        self.settings = settings
        self.ledger = Ledger(settings.max_cost, spent)
        # Retries are ours: each attempt must be accounted for, and a pause holds for all requests at once.
        self.client = openai.AsyncOpenAI(
            api_key=self._key or NO_KEY, base_url=base_url, timeout=settings.timeout, max_retries=0
        )
        self._resume_at = 0.0

    async def close(self) -> None:
        await self.client.close()

    async def patiently(self, call: Callable[[], Awaitable[T]], on_lost: Callable[[], None] = lambda: None) -> T:
        """``call()``, again after pauses while the service is busy or out of reach.

        ``on_lost`` is told of each attempt whose request may have been worked on although no answer came.

        Raises:
            GenerationStopped: No request can succeed: wrong key, unknown model, used-up quota, an overlong pause.
            openai.APIError: The last attempt's error.
        """
        for attempt in range(self.settings.retries + 1):
            await self._pause()
            last: openai.APIError
            try:
                return await call()
            except openai.APIStatusError as error:
                self._stop_if_hopeless(error)
                if not (error.status_code in (408, 409, 429) or error.status_code >= 500):
                    raise
                wait, last = self._wait(error, attempt), error
            except openai.APIConnectionError as error:
                if _may_have_been_worked_on(error):
                    on_lost()
                wait, last = self._backoff(attempt), error
            if attempt == self.settings.retries:
                raise last
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def redact(self, text: str) -> str:
        """``text`` without the key, should a server repeat it."""
        return text.replace(self._key, "[key]") if self._key else text

    async def _pause(self) -> None:
        while (left := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def _backoff(self, attempt: int) -> float:
        return float(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * random.uniform(0.75, 1.0))

    def _wait(self, error: openai.APIStatusError, attempt: int) -> float:
        """Seconds to wait; where the service names them, every other request waits as well."""
        asked = retry_after(error.response.headers)
        if asked is None:
            return self._backoff(attempt)
        if asked > self.settings.max_wait:
            raise GenerationStopped(
                f"the service asks to wait {asked:.0f} s (HTTP {error.status_code}), longer than max_wait "
                f"{self.settings.max_wait:g}; run again later, nothing is lost"
            ) from error
        self._resume_at = max(self._resume_at, time.monotonic() + asked)
        return 0.0

    def _stop_if_hopeless(self, error: openai.APIStatusError) -> None:
        code = str(error.code or "")
        if error.status_code in (401, 403):
            remedy = f"check the key in {self.settings.api_key_env}"
        elif error.status_code == 404:
            remedy = f"check base_url ({self.client.base_url}) and the model name ({self.settings.model})"
        elif error.status_code == 429 and code == "insufficient_quota":
            remedy = "the account's quota is used up; add credit and run again, nothing is lost"
        else:
            return
        raise GenerationStopped(self.redact(f"HTTP {error.status_code}: {_message(error)}; {remedy}")) from error


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

    @property
    def spent(self) -> float:
        """What was charged so far, earlier runs included."""
        return self.api.ledger.spent

    async def close(self) -> None:
        await self.api.close()

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """As :meth:`aura.datagen.records.Generator.generate`."""
        async with self._slots:
            prompt = await asyncio.to_thread(prompt_of, request, self.settings)
            expected = expected_usage(request, self.settings)
            bound = upper_bound(Usage(int(expected.input * self._surprise), expected.output), self.settings)
            charges = _Charges(self.api.ledger, bound, bound.cost(self.settings.price))
            try:
                completion = await self._ask(request, prompt, charges)
            finally:
                charges.release()
            if completion.usage is not None:
                self._surprise = max(self._surprise, completion.usage.input / max(expected.input, 1))
        return outcome(request.image.image_id, completion, charges.usage, charges.cost, self.name, self.model)

    async def _ask(self, request: GenerationRequest, prompt: Prompt, charges: _Charges) -> Completion:
        body = request_body(prompt, self.settings)
        headers = {"Idempotency-Key": request.key}

        async def attempt() -> str:
            await charges.reserve()
            raw = await self.api.client.chat.completions.with_raw_response.create(**body, extra_headers=headers)
            return raw.text

        try:
            text = await self.api.patiently(attempt, lambda: charges.book(charges.bound, self.settings.price))
        except openai.APIError as error:
            raise GenerationError(self._failure(request.image.image_id, error, charges)) from error
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
        usage = completion.usage or Usage(expected_usage(request, self.settings).input, text_tokens(completion.raw))
        charges.book(usage, self.settings.price)
        return completion

    def _failure(self, image_id: int, error: openai.APIError, charges: _Charges) -> GenerationFailure:
        reason, detail, retryable = describe(error)
        usage = charges.usage
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
        return build_prompt(request, image_side=settings.image_side, jpeg_quality=settings.jpeg_quality)
    except ValueError as error:
        reason: FailureReason = "image" if request.image.objects else "empty"
        failure = GenerationFailure(request.image.image_id, reason, str(error), retryable=False)
        raise GenerationError(failure) from error


def outcome(
    image_id: int, completion: Completion, usage: Usage, cost: float, generator: str, model: str
) -> GenerationResult:
    """The completion as a result, or as the :class:`GenerationError` that it amounts to."""
    if completion.reason is not None:
        raise GenerationError(
            GenerationFailure(
                image_id, completion.reason, completion.detail, completion.retryable, cost, usage.input, usage.output,
                completion.raw,
            )
        )  # fmt: skip
    return GenerationResult(
        image_id=image_id,
        pairs=completion.pairs,
        generator=generator,
        model=completion.model or model,
        prompt_version=PROMPT_VERSION,
        input_tokens=usage.input,
        output_tokens=usage.output,
        cost=cost,
        raw=completion.raw,
        finish_reason=completion.finish_reason,
    )


def describe(error: openai.APIError) -> tuple[FailureReason, str, bool]:
    """(reason, detail, retryable) of a request's last error."""
    if isinstance(error, openai.APITimeoutError):
        return "timeout", "no answer within the timeout; raise timeout or lower concurrency", True
    if isinstance(error, openai.APIStatusError):
        if "content" in str(error.code or "") and error.status_code == 400:
            return "refusal", f"the service refused the request: {_message(error)}", False
        retryable = error.status_code in (408, 409, 429) or error.status_code >= 500
        return "http", f"HTTP {error.status_code}: {_message(error)}", retryable
    return "http", f"the service cannot be reached: {error.__cause__ or error}", True


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The pause in seconds that a response asks for, in ``retry-after-ms`` or ``retry-after`` (seconds or a date)."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        return max(0.0, seconds) if seconds == seconds else None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _may_have_been_worked_on(error: openai.APIConnectionError) -> bool:
    """A connection that was never made cost nothing; one that broke, or waited in vain, may have."""
    return type(error.__cause__).__name__ not in {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"}


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, Mapping) else None
    return " ".join(str(message or error.message).split())[:500]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
