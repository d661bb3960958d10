"""Estimates of tokens and cost, made before any request is sent."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from aura.datagen.records import GenerationRequest
from aura.datagen.service.costs import Usage, image_tokens, text_tokens
from aura.datagen.service.prompt import Prompt, build_prompt, response_format, sent_size, system_text, user_text
from aura.datagen.service.settings import ApiSettings


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
            picture = {"image_side": settings.image_side, "jpeg_quality": settings.jpeg_quality}
            shown.append(build_prompt(request, **picture, intents=settings.intents))
    cost = Usage(input_tokens, output_tokens).cost(settings.price, batch=batch)
    known = settings.price is not None
    return Estimate(number, input_tokens, output_tokens, cost if known else None, most if known else None), tuple(shown)


def expected_usage(request: GenerationRequest, settings: ApiSettings, text: str | None = None) -> Usage:
    """Tokens that a request is expected to take, by the length of its text and the size of its picture.

    ``text`` is the user's text where it is known already; it is written anew without.
    """
    width, height = sent_size(request.image.width, request.image.height, settings.image_side)
    picture = image_tokens(width, height, settings.detail, settings.image_tokens_base, settings.image_tokens_tile)
    text = user_text(request, settings.image_side) if text is None else text
    tokens = text_tokens(system_text(settings.intents) + text + _schema(settings.intents))
    return Usage(tokens + picture, min(request.pairs * settings.tokens_per_pair, settings.max_output_tokens))


@cache
def _schema(intents: bool) -> str:
    return json.dumps(response_format(intents))


def upper_bound(expected: Usage, settings: ApiSettings) -> Usage:
    """The most that such a request may take: twice the input, and all the output it is allowed."""
    return Usage(2 * expected.input, settings.max_output_tokens)
