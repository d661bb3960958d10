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
