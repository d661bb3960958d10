"""Settings of an API: what is wrong is named, and what is secret is not repeated."""

from __future__ import annotations

import pytest

from aura.datagen.service.settings import ApiSettings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"api_key_env": "sk-secret-123"}, "name of an environment variable"),
        ({"api_key_env": "AIzaSySecret0123456789secret"}, "name of an environment variable"),
        ({"base_url": "https://me:secret@host/v1"}, "OPENAI_BASE_URL"),
        ({"base_url": "https://host/v1?key=secret"}, "OPENAI_BASE_URL"),
        ({"base_url": "me:secret@host/v1"}, "must be an address"),
        ({"base_url": "http://secret:port/v1"}, "must be an address"),
    ],
)
def test_a_secret_among_the_settings_is_refused_and_not_repeated(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        ApiSettings(**changes)
    assert "secret" not in str(caught.value).lower()


def test_max_cost_needs_a_price():
    with pytest.raises(ValueError, match="max_cost needs the price of x"):
        ApiSettings(model="x", max_cost=1.0)


@pytest.mark.parametrize("key", ["concurrency", "timeout", "max_output_tokens", "poll_every"])
def test_settings_name_what_is_wrong(key):
    with pytest.raises(ValueError, match=key):
        ApiSettings(**{key: 0})
