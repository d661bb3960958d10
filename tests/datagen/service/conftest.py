"""A picture to ask about, and the server that is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.datagen.api_server import ApiServer


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "one.png"
    Image.new("RGB", (48, 32), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def server(monkeypatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("TEST_KEY", "sk-secret-123")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("aura.datagen.service.api.FIRST_PAUSE", 0.01)
    with ApiServer() as running:
        yield running
