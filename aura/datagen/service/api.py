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
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import openai

from aura.datagen.records import FailureReason, GenerationStopped
from aura.datagen.service.costs import Ledger
from aura.datagen.service.refusals import Refusal, raise_if_hopeless
from aura.datagen.service.settings import ApiSettings, is_address

T = TypeVar("T")

NO_KEY = "none"
"""Servers on one's own machines take any key, but the client insists on one."""
SHORTEST_SECRET = 8
"""Shorter keys, such as ``EMPTY``, are placeholders; as words they may occur in any answer."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
"""Seconds before the second attempt, doubled each time up to the longest, where the service names no pause."""


class Api:
    """The connection to the service: one client, one pause that all requests share, one ledger."""

    def __init__(self, settings: ApiSettings, *, spent: float = 0.0) -> None:
        """``spent`` is what earlier runs cost, for ``max_cost``.

        Raises:
            ValueError: OpenAI itself is asked without a key in the environment, or what is there can be no key.
        """
        base_url = settings.base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or None
        key = read_key(settings.api_key_env)
        if not key and base_url is None:
            raise ValueError(
                f"the environment variable {settings.api_key_env} holds no key; export it, or set base_url to a "
                "server of your own"
            )
        self.settings = settings
        self.ledger = Ledger(settings.max_cost, spent)
        self._secrets = [secret for secret in (key, _password(base_url)) if len(secret) >= SHORTEST_SECRET]
        if base_url is not None and not is_address(base_url):
            where = "base_url" if settings.base_url else "the environment variable OPENAI_BASE_URL"
            raise ValueError(f"{where} must be an address such as http://localhost:8000/v1")
        # Retries are ours: each attempt must be accounted for, and a pause holds for all requests at once.
        self.client = openai.AsyncOpenAI(
            api_key=key or NO_KEY, base_url=base_url, timeout=settings.timeout, max_retries=0
        )
        self._resume_at = 0.0

    async def close(self) -> None:
        await self.client.close()

    async def patiently(self, call: Callable[[], Awaitable[T]], on_lost: Callable[[], None] = lambda: None) -> T:
        """``call()``, again after pauses while the service is busy or out of reach.

        ``on_lost`` is told of each attempt whose request may have been worked on although no answer came.

        Raises:
            GenerationStopped: No request can succeed: wrong key, refused setting, used-up quota, an overlong pause.
            openai.APIError: The last attempt's error.
        """
        for attempt in range(self.settings.retries + 1):
            await self._pause()
            last: openai.APIError
            try:
                return await call()
            except openai.APIStatusError as error:
                # The library's error holds the request, with the key in its headers: it does not come along.
                try:
                    raise_if_hopeless(refusal_of(error), self.settings)
                except GenerationStopped as stopped:
                    raise GenerationStopped(self.redact(str(stopped))) from None
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
        """``text`` without the key and the password, should a server or a library repeat them."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text

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
            ) from None
        self._resume_at = max(self._resume_at, time.monotonic() + asked)
        return 0.0


def read_key(variable: str) -> str:
    """The key in an environment variable, without white space around it; empty where there is none.

    Raises:
        ValueError: What is there can be no key. It is not repeated.
    """
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"the environment variable {variable} holds white space or other letters that no key has; export the key "
            "alone, on one line"
        )
    return key


def _password(base_url: str | None) -> str:
    try:
        return unquote(urlsplit(base_url or "").password or "")
    except ValueError:
        return ""


def refusal_of(error: openai.APIStatusError) -> Refusal:
    """An error status as the service states it."""
    return Refusal.read(error.status_code, error.body, error.message)


def describe(error: openai.APIError) -> tuple[FailureReason, str, bool]:
    """(reason, detail, retryable) of a request's last error."""
    if isinstance(error, openai.APITimeoutError):
        return "timeout", "no answer within the timeout; raise timeout or lower concurrency", True
    if isinstance(error, openai.APIStatusError):
        return refusal_of(error).described()
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
