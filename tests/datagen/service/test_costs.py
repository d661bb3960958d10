"""Prices, image tokens, and a budget that is never exceeded."""

from __future__ import annotations

import asyncio

import pytest

from aura.datagen.records import (
    BudgetReached,
    GenerationFailure,
    GenerationRequest,
    GenerationResult,
)
from aura.datagen.service.client import OpenAIGenerator
from aura.datagen.service.costs import Ledger, ModelPrice, Usage, image_tokens
from tests.datagen.api_server import Reply, completion
from tests.datagen.service.asking import GOOD, ONE, ask, image, run_all, settings


def test_costs_follow_the_price_table():
    price = ModelPrice(input=2.0, output=8.0, cached_input=1.0, batch_factor=0.5)
    assert Usage(1_000_000, 500_000, 400_000).cost(price) == pytest.approx(0.6 * 2 + 0.4 * 1 + 0.5 * 8)
    assert Usage(1_000_000, 0).cost(price, batch=True) == pytest.approx(1.0)
    assert Usage(10, 10).cost(None) == 0
    with pytest.raises(ValueError, match="finite"):
        ModelPrice(input=-1, output=1)


@pytest.mark.parametrize(
    ("size", "detail", "tokens"),
    [((1024, 1024), "high", 765), ((2048, 4096), "high", 1105), ((4096, 8192), "low", 85), ((480, 320), "auto", 255)],
)
def test_image_tokens_by_the_published_examples(size, detail, tokens):
    assert image_tokens(*size, detail, 85, 170) == tokens


def test_max_cost_stops_before_it_is_exceeded(server, picture):
    generator = OpenAIGenerator(settings(server, concurrency=4, max_cost=0.1))
    results = run_all(generator, [GenerationRequest(image(n), picture, 1) for n in range(60)])
    done = [r for r in results if isinstance(r, GenerationResult)]
    stopped = [r for r in results if isinstance(r, BudgetReached)]
    assert len(done) + len(stopped) == 60 and done and stopped
    assert len(server.chats) == len(done)
    assert generator.api.ledger.spent == pytest.approx(len(done) * ONE) and generator.api.ledger.spent <= 0.1
    # The last request was held back only because it might have cost more than was left.
    assert generator.api.ledger.spent + ONE + 4096 * 10 / 1e6 > 0.1 - 0.01
    assert "raise max_cost" in str(stopped[0])


def test_what_earlier_runs_spent_counts(server, picture):
    generator = OpenAIGenerator(settings(server, max_cost=1.0), spent=0.99)
    (result,) = run_all(generator, [GenerationRequest(image(1), picture)])
    assert isinstance(result, BudgetReached) and not server.chats


def test_lost_attempts_count_before_the_next_is_sent(server, picture):
    late = Reply(completion(GOOD).body, delay=0.5)
    result, generator = ask(server, picture, late, late, late, timeout=0.2, max_cost=0.06)
    assert isinstance(result, GenerationFailure) and result.reason == "timeout" and result.retryable
    assert len(server.chats) == 1
    assert generator.api.ledger.spent == pytest.approx(result.cost) and 0 < generator.api.ledger.spent <= 0.06


def test_the_ledger_waits_for_requests_under_way():
    async def main() -> list[str]:
        ledger, said = Ledger(1.0), []
        await ledger.reserve(0.8)

        async def second() -> None:
            await ledger.reserve(0.5)
            said.append("second")

        task = asyncio.create_task(second())
        await asyncio.sleep(0)
        assert not said
        ledger.settle(0.8, 0.1)
        await task
        with pytest.raises(BudgetReached):
            await ledger.reserve(0.95)
        return said

    assert asyncio.run(main()) == ["second"]
