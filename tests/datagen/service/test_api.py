"""A service that is busy, slow or away: what is asked again, what stops the run, and that no key is shown."""

from __future__ import annotations

import time
from email.utils import formatdate

import numpy as np
import pytest

from aura.datagen.records import (
    GenerationRequest,
    GenerationResult,
    GenerationStopped,
)
from aura.datagen.service.api import retry_after
from aura.datagen.service.client import OpenAIGenerator
from aura.datagen.service.settings import ApiSettings
from tests.datagen.api_server import Reply, completion, error
from tests.datagen.service.asking import GOOD, ONE, ask, image, run_all, settings


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_a_busy_service_is_asked_again(server, picture, status):
    result, generator = ask(server, picture, error(status), error(status))
    assert isinstance(result, GenerationResult)
    assert len(server.chats) == 3
    assert generator.api.ledger.spent == pytest.approx(ONE)


def test_a_service_that_stays_down_is_a_failure_that_may_be_retried(server, picture):
    result, generator = ask(server, picture, *[error(503, "overloaded")] * 3)
    assert (result.reason, result.retryable, result.cost) == ("http", True, 0)
    assert result.detail == "HTTP 503: overloaded"
    assert len(server.chats) == 3 and generator.api.ledger.reserved == 0


def test_retry_after_is_honoured_by_all_requests(server, picture):
    server.script.append(error(429, retry_after="0.4"))
    generator = OpenAIGenerator(settings(server, concurrency=1))
    results = run_all(generator, [GenerationRequest(image(n), picture, 1) for n in range(3)])
    assert all(isinstance(r, GenerationResult) for r in results)
    gaps = np.diff(server.times)
    assert gaps[0] >= 0.39 and max(gaps[1:]) < 0.39


def test_an_overlong_pause_stops_the_run(server, picture):
    result, _ = ask(server, picture, error(429, retry_after="3600"), max_wait=60.0)
    assert isinstance(result, GenerationStopped) and "3600 s" in str(result)


def test_retry_after_in_all_its_forms():
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    assert retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)}) == pytest.approx(30, abs=2)
    assert retry_after({"retry-after": formatdate(time.time() - 30, usegmt=True)}) == 0
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "nan"}):
        assert retry_after(nothing) is None


def test_a_timeout_is_booked_as_if_it_had_been_answered(server, picture):
    late = Reply(completion(GOOD).body, delay=0.6)
    result, generator = ask(server, picture, late, timeout=0.25)
    assert isinstance(result, GenerationResult) and len(server.chats) == 2
    assert result.cost > 4096 * 10 / 1e6 + ONE, "the lost attempt may have been charged in full"
    assert generator.api.ledger.spent == pytest.approx(result.cost)


def test_timeouts_without_end_are_a_failure(server, picture):
    late = Reply(completion(GOOD).body, delay=0.5)
    result, _ = ask(server, picture, late, late, timeout=0.2, retries=1)
    assert (result.reason, result.retryable) == ("timeout", True)
    assert result.cost > 0


def test_nobody_listens(monkeypatch, picture):
    monkeypatch.setenv("TEST_KEY", "k")
    nowhere = ApiSettings(model="m", base_url="http://127.0.0.1:9/v1", api_key_env="TEST_KEY", retries=0)
    (result,) = run_all(OpenAIGenerator(nowhere), [GenerationRequest(image(1), picture)])
    assert (result.reason, result.retryable, result.cost) == ("http", True, 0)
    assert "cannot be reached" in result.detail


@pytest.mark.parametrize(
    ("reply", "remedy"),
    [
        (error(401, "Incorrect API key provided: sk-secret-123"), "check the key in TEST_KEY"),
        (error(403, "no"), "check the key"),
        (error(404, "The model `m` does not exist"), "model name (m)"),
        (error(429, "You exceeded your current quota", "insufficient_quota"), "quota is used up"),
        (error(400, "Unsupported parameter: 'max_completion_tokens'", "unsupported_parameter"), "max_tokens"),
        (Reply({"error": {"message": "'response_format' is not supported", "code": 400}}), "structured to json_object"),
    ],
)
def test_what_no_request_survives_stops_the_run(server, picture, reply, remedy):
    result, _ = ask(server, picture, reply)
    assert isinstance(result, GenerationStopped) and remedy in str(result)
    assert "sk-secret-123" not in str(result)
    assert len(server.chats) == 1


def test_the_key_comes_from_the_environment_only(server, monkeypatch):
    with pytest.raises(ValueError, match="NO_SUCH_KEY holds no key"):
        OpenAIGenerator(ApiSettings(api_key_env="NO_SUCH_KEY"))
    OpenAIGenerator(settings(server, api_key_env="NO_SUCH_KEY"))  # one's own server needs none
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert str(OpenAIGenerator(ApiSettings(api_key_env="NO_SUCH_KEY")).api.client.base_url).startswith(server.url)
    assert "sk-secret" not in repr(settings(server))


@pytest.mark.parametrize("key", ["sk-secret-123\n", " sk-secret-123", "sk-secret-123\r\n\t"])
def test_white_space_around_a_key_is_no_part_of_it(server, picture, monkeypatch, key):
    monkeypatch.setenv("TEST_KEY", key)
    result, _ = ask(server, picture)
    assert isinstance(result, GenerationResult) and server.headers[0]["authorization"] == "Bearer sk-secret-123"


@pytest.mark.parametrize("key", ["sk-sec\nret-123", "sk-secret 123", "sk-secret-\u200b123", "„sk-secret-123“"])
def test_what_can_be_no_key_is_refused_by_the_name_of_its_variable(server, monkeypatch, key):
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(ValueError, match="the environment variable TEST_KEY holds") as caught:
        OpenAIGenerator(settings(server))
    assert "secret" not in str(caught.value)


def test_a_password_in_the_address_of_the_environment_is_never_shown(server, monkeypatch, picture):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("http://", "http://me:a%20secret@") + "\n")
    result, _ = ask(server, picture, error(404, "no model at me:a secret@host"), base_url=None)
    assert isinstance(result, GenerationStopped) and "secret" not in str(result)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:a secret@host:99999999/v1")
    with pytest.raises(ValueError, match="OPENAI_BASE_URL") as caught:
        OpenAIGenerator(settings(server, base_url=None))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-secret-123", "EMPTY"])
def test_a_key_that_the_service_repeats_is_taken_out_but_no_word_of_an_answer(server, picture, monkeypatch, key):
    monkeypatch.setenv("TEST_KEY", key)
    says = GOOD.replace("What is here?", f"What is here, {key}?")
    results = [ask(server, picture, reply)[0] for reply in (completion(says), error(422, f"bad {key}"))]
    shown = results[0].pairs[0].question + results[0].raw + results[1].detail
    assert (key in shown) == (key == "EMPTY")
