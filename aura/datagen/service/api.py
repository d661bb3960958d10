"""The connection to an OpenAI-style API: settings, key, retries, pauses and the ledger.

``docs/formats.md``, "Chat completions", says what the service takes and gives.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import openai

from aura.datagen.records import FailureReason, GenerationStopped
from aura.datagen.service.costs import Ledger, ModelPrice

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
    estimates; ``tokens_per_pair`` is the expected length of one pair. Of ``openai-batch`` only: ``linger`` seconds
    after its last request a batch is submitted, and every ``poll_every`` seconds it is looked at.
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
    linger: float = 5.0
    poll_every: float = 60.0

    def __post_init__(self) -> None:
        for key in ("image_side", "max_output_tokens", "concurrency", "timeout", "tokens_per_pair", "poll_every"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key} must be positive, got {getattr(self, key)}")
        for key in ("retries", "max_wait", "image_tokens_base", "image_tokens_tile", "linger"):
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
