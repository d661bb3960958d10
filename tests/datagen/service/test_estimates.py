"""The dry run: what a run would ask and cost."""

from __future__ import annotations

import pytest

from aura.datagen.records import (
    GenerationRequest,
)
from aura.datagen.service.costs import Usage
from aura.datagen.service.estimates import dry_run
from tests.datagen.service.asking import PRICES, image, settings


def test_the_dry_run_sends_nothing_and_shows_three_prompts(server, picture):
    requests = [GenerationRequest(image(n), picture, 10) for n in range(5)]
    requests.append(GenerationRequest(image(9, 0), picture))
    estimate, prompts = dry_run(requests, settings(server))
    assert not server.chats and len(prompts) == 3
    assert estimate.requests == 5 and estimate.output_tokens == 5 * 10 * 80
    price = PRICES["m"]
    assert estimate.cost == pytest.approx(Usage(estimate.input_tokens, estimate.output_tokens).cost(price))
    assert estimate.most is not None and estimate.most > estimate.cost
    half, _ = dry_run(requests, settings(server), batch=True)
    assert half.cost == pytest.approx(estimate.cost / 2)
    unknown, _ = dry_run(requests, settings(server, prices={}))
    assert unknown.cost is None and "cost is unknown" in str(unknown)
    assert "[system]" in prompts[0].shown() and "1 | cup" in prompts[0].shown()
    assert "base64,..." in prompts[0].shown() and len(prompts[0].shown()) < 8000
