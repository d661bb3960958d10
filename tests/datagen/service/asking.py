"""Questions to the loopback server: an image, settings, and everything that comes of some requests."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np

from aura.datagen.records import (
    GenerationError,
    GenerationRequest,
    GenerationStopped,
)
from aura.datagen.service.client import OpenAIGenerator
from aura.datagen.service.costs import ModelPrice
from aura.datagen.service.settings import ApiSettings
from aura.formats.sources import AnnotatedImage
from aura.mini.scenes import Scene, SceneObject
from tests.datagen.api_server import ApiServer, Reply
from tests.scenes import annotated_image_from_scene

PRICES = {"m": ModelPrice(input=2.0, output=10.0, batch_factor=0.5)}
ONE = 1000 * 2.0 / 1e6 + 200 * 10.0 / 1e6
"""What one answer of the server costs: it claims 1000 input and 200 output tokens."""
GOOD = json.dumps({"pairs": [{"question": "What is here?", "answer": "A cup [SEG].", "objects": [1], "follows": None}]})
"""An answer with one pair."""


def image(number: int, objects: int = 2) -> AnnotatedImage:
    masks = [np.zeros((32, 48), bool) for _ in range(objects)]
    for n, mask in enumerate(masks):
        mask[4:20, 4 + 12 * n : 14 + 12 * n] = True
    things = tuple(SceneObject(c, m, m) for c, m in zip(("cup", "dog", "cat"), masks, strict=False))
    return annotated_image_from_scene(Scene(np.zeros((32, 48, 3), np.uint8), things, "none"), number)


def settings(server: ApiServer, **changes) -> ApiSettings:
    base = {"model": "m", "base_url": server.url, "api_key_env": "TEST_KEY", "prices": PRICES, "retries": 2}
    return ApiSettings(**{**base, "timeout": 5.0, **changes})


def run_all(generator, requests):
    """Every request's result or failure, in order; the generator is closed."""

    async def one(request):
        try:
            return await generator.generate(request)
        except GenerationError as failed:
            return failed.failure
        except GenerationStopped as stopped:
            return stopped

    async def everything():
        try:
            return await asyncio.gather(*map(one, requests))
        finally:
            await generator.close()

    return asyncio.run(asyncio.wait_for(everything(), 30))


def ask(server: ApiServer, picture: Path, *script: Reply, request: GenerationRequest | None = None, **changes):
    """What one image gets when the server replies with ``script``."""
    server.script.extend(script)
    generator = OpenAIGenerator(settings(server, **changes))
    (result,) = run_all(generator, [request or GenerationRequest(image(1), picture, 2)])
    return result, generator
