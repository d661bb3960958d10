"""The settings of an OpenAI-style API. They are written into the project, so they hold no secret."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from aura.datagen.service.costs import ModelPrice

_VARIABLE = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
_LIKE_A_KEY = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*\d).{20,}")
"""Variables are seldom named so; keys mostly look so."""


@dataclass(frozen=True)
class ApiSettings:
    """How to reach the model, what to ask of it, and what it may cost.

    Args:
        model: Its name at the service.
        base_url: Address of the service; ``null`` is ``OPENAI_BASE_URL`` of the environment, or OpenAI itself.
        api_key_env: The environment variable that holds the key; it is read from nowhere else.
        structured: ``json_schema`` sends the answer's schema, ``json_object`` asks for JSON of any form, ``none`` for
            nothing; the answer is checked all the same.
        detail: Of the picture, as the service understands it.
        image_side: Longer side of the picture that is sent, in pixels.
        jpeg_quality: Of that picture.
        max_output_tokens: Limit of an answer.
        output_limit_field: Name of that limit; older servers only know ``max_tokens``.
        temperature: Not sent if ``null``.
        seed: Not sent if ``null``.
        intents: Pairs may ask for one kind of mask; ``generator.intents`` sets it.
        concurrency: Requests under way at once.
        timeout: Seconds for one attempt.
        retries: Attempts after the first, for connection errors, 408, 409, 429 and 5xx.
        max_wait: Longest pause in seconds that a service may ask for.
        max_cost: No request is sent that could exceed it, all runs of the project together.
        prices: By model name, per million tokens.
        image_tokens_base: Tokens of any picture, for estimates; the default is GPT-4o's.
        image_tokens_tile: Tokens of each square of 512 pixels, for estimates; the default is GPT-4o's.
        tokens_per_pair: Expected length of one pair, for estimates.
        linger: A batch is submitted so many seconds after its last request (``openai-batch``).
        poll_every: Seconds between two looks at a batch (``openai-batch``).
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
    intents: bool = False
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
        if not _VARIABLE.fullmatch(self.api_key_env) or _LIKE_A_KEY.fullmatch(self.api_key_env):
            # The value may be the key itself, so it is not repeated.
            raise ValueError(
                "api_key_env must be the name of an environment variable, such as OPENAI_API_KEY; what is given is no "
                "such name. If it is the key itself, take it out of the settings and export it under a name"
            )
        if self.base_url is not None:
            _check_address(self.base_url)
        if self.max_cost is not None and self.price is None:
            raise ValueError(
                f"max_cost needs the price of {self.model}; add it as prices: {{{self.model}: {{input: ..., "
                "output: ...}}, per million tokens, from your provider's price list"
            )

    @property
    def price(self) -> ModelPrice | None:
        return self.prices.get(self.model)


def _check_address(base_url: str) -> None:
    """Refuse what is no address of a service, and what holds a secret; neither is repeated."""
    if not is_address(base_url):
        raise ValueError("base_url must be an address such as http://localhost:8000/v1")
    parts = urlsplit(base_url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "base_url must not hold a user name, a password or anything after '?' or '#': settings are written into "
            "the project. An address with a password belongs into the environment variable OPENAI_BASE_URL"
        )


def is_address(text: str) -> bool:
    """Whether that may be the address of a service."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname and parts.port != 0) and text.split() == [text]
    except ValueError:
        return False
