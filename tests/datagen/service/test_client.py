"""The API generators against a real server on loopback that misbehaves in every way an API does."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import json
import random
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.datagen.generators import OfflineGenerator, make_generator
from aura.datagen.records import (
    BudgetReached,
    GenerationError,
    GenerationFailure,
    GenerationRequest,
    GenerationResult,
    GenerationStopped,
    PairDraft,
    PairProblem,
)
from aura.datagen.service.api import retry_after
from aura.datagen.service.batch import BatchGenerator
from aura.datagen.service.client import OpenAIGenerator
from aura.datagen.service.costs import Ledger, ModelPrice, Usage, image_tokens
from aura.datagen.service.estimates import dry_run
from aura.datagen.service.jsonl import export_jsonl, import_jsonl
from aura.datagen.service.settings import ApiSettings
from aura.formats.sources import AnnotatedImage
from aura.mini.scenes import Scene, SceneObject
from tests.datagen.api_server import ApiServer, Reply, completion, error, pairs_for
from tests.scenes import annotated_image_from_scene

PRICES = {"m": ModelPrice(input=2.0, output=10.0, batch_factor=0.5)}
ONE = 1000 * 2.0 / 1e6 + 200 * 10.0 / 1e6
"""What one answer of the server costs: it claims 1000 input and 200 output tokens."""


def image(number: int, objects: int = 2) -> AnnotatedImage:
    masks = [np.zeros((32, 48), bool) for _ in range(objects)]
    for n, mask in enumerate(masks):
        mask[4:20, 4 + 12 * n : 14 + 12 * n] = True
    things = tuple(SceneObject(c, m, m) for c, m in zip(("cup", "dog", "cat"), masks, strict=False))
    return annotated_image_from_scene(Scene(np.zeros((32, 48, 3), np.uint8), things, "none"), number)


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


# --- one chat completion per image ------------------------------------------------------------------------------------


def test_a_good_answer_becomes_pairs_with_their_cost(server, picture):
    result, generator = ask(server, picture)
    assert isinstance(result, GenerationResult)
    assert [p.objects for p in result.pairs] == [(1,), (2,)]
    assert (result.input_tokens, result.output_tokens, result.finish_reason) == (1000, 200, "stop")
    assert result.cost == pytest.approx(ONE) == generator.api.ledger.spent
    assert (result.generator, result.model, result.image_id) == ("openai", "served-model", 1)
    assert json.loads(result.raw)["pairs"][0]["answer"] == result.pairs[0].answer


def test_the_request_is_what_the_api_takes(server, picture):
    request = GenerationRequest(image(7), picture, 3, key="job-7-1")
    ask(server, picture, request=request, temperature=0.5, seed=4, detail="low", max_output_tokens=77)
    (body,), (headers,) = server.chats, server.headers
    assert headers["authorization"] == "Bearer sk-secret-123"
    assert headers["idempotency-key"] == "job-7-1"
    assert (body["model"], body["temperature"], body["seed"], body["max_completion_tokens"]) == ("m", 0.5, 4, 77)
    assert "n" not in body and "max_tokens" not in body
    text, sent = body["messages"][1]["content"]
    assert "Write 3 pairs" in text["text"]
    assert sent["image_url"]["detail"] == "low"
    kind, data = sent["image_url"]["url"].split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (48, 32)
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True and len(schema["name"]) <= 64
    assert schema["schema"]["required"] == ["pairs"] and schema["schema"]["additionalProperties"] is False


def test_older_servers_get_older_fields(server, picture):
    ask(server, picture, output_limit_field="max_tokens", structured="json_object")
    assert server.chats[0]["max_tokens"] == 4096
    assert server.chats[0]["response_format"] == {"type": "json_object"}
    ask(server, picture, structured="none")
    assert "response_format" not in server.chats[1]


GOOD = json.dumps({"pairs": [{"question": "What is here?", "answer": "A cup [SEG].", "objects": [1], "follows": None}]})


@pytest.mark.parametrize(
    ("reply", "reason", "retryable", "detail"),
    [
        (completion("Sorry, here are your pairs: {"), "malformed", False, "no JSON"),
        (completion(GOOD[:-20]), "malformed", False, "no JSON"),
        (completion(GOOD[:-20], finish="length"), "truncated", False, "raise max_output_tokens"),
        (completion(None, refusal="I cannot help with that"), "refusal", False, "I cannot help"),
        (completion("", finish="content_filter"), "refusal", False, "content filter"),
        (completion(GOOD.replace("[1]", '["cup"]')), "schema", False, "pairs.0.objects"),
        (completion(GOOD.replace('"answer"', '"reply"')), "schema", False, "pairs.0.answer"),
        (completion('[{"question": "Q"}]'), "schema", False, "pairs.0.answer"),
        (completion('{"pairs": []}'), "empty", False, "no pairs"),
        (completion(""), "empty", False, "no text"),
        (completion(None), "empty", False, "no text"),
        (Reply({"object": "chat.completion", "choices": []}), "malformed", True, "no choices"),
        (Reply({"choices": [{"index": 0}]}), "malformed", True, "no message"),
        (Reply(b"<html>gateway</html>"), "malformed", True, "no chat completion"),
        (Reply(b'{"choices": [{"mess'), "malformed", True, "no chat completion"),
        (error(400, "image too large"), "http", False, "HTTP 400: image too large"),
        (error(400, "flagged", "content_policy_violation"), "refusal", False, "flagged"),
    ],
)
def test_an_answer_that_is_none_is_a_failure_with_its_reason_and_cost(
    server, picture, reply, reason, retryable, detail
):
    result, generator = ask(server, picture, reply)
    assert isinstance(result, GenerationFailure)
    assert (result.reason, result.retryable) == (reason, retryable)
    assert detail in result.detail
    assert len(server.chats) == 1, "a paid answer is not asked for again on the quiet"
    paid = reply.status == 200 and isinstance(reply.body, dict) and "usage" in reply.body
    if paid:
        assert result.cost == pytest.approx(ONE) and result.output_tokens == 200
        assert result.raw == (reply.body["choices"][0]["message"]["content"] or "")
    assert generator.api.ledger.spent == pytest.approx(result.cost)
    assert reply.status == 200 or result.cost == 0


def test_text_around_the_json_is_no_part_of_it_and_the_raw_text_is_kept(server, picture):
    text = f"<think>{{a}}</think>Here:\n```json\n{GOOD}\n```"
    result, _ = ask(server, picture, completion([{"type": "text", "text": text}]))
    assert result.pairs == (PairDraft("What is here?", "A cup [SEG].", (1,)),) and result.raw == text


def test_one_bad_pair_leaves_the_others(server, picture):
    pairs = [*json.loads(GOOD)["pairs"], {"question": "What else?"}]
    result, _ = ask(server, picture, completion(json.dumps({"pairs": pairs})))
    assert [p.question for p in result.pairs] == ["What is here?", "What else?"]
    assert [[p.message for p in found] for found in result.problems] == [
        [],
        ["pairs.1.answer: is missing", "pairs.1.objects: is missing"],
    ]


def test_an_answer_without_usage_is_booked_by_estimate(server, picture):
    result, generator = ask(server, picture, completion(GOOD, usage=False))
    assert result.input_tokens > 500 and result.output_tokens == -(-len(GOOD) // 4)
    assert generator.api.ledger.spent == pytest.approx(result.cost) and result.cost > 0


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


def test_no_more_than_concurrency_requests_at_once(server, picture):
    server.delay = 0.03
    generator = OpenAIGenerator(settings(server, concurrency=3))
    results = run_all(generator, [GenerationRequest(image(n), picture, 1) for n in range(12)])
    assert [r.image_id for r in results] == list(range(12))
    assert server.most_busy == 3


def test_a_bad_picture_or_no_objects_cost_nothing(server, picture, tmp_path):
    small = tmp_path / "small.png"
    Image.new("RGB", (10, 10)).save(small)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no picture")
    requests = [GenerationRequest(image(1), p) for p in (tmp_path / "absent.jpg", small, broken)]
    requests.append(GenerationRequest(image(1, 0), picture))
    results = run_all(OpenAIGenerator(settings(server)), requests)
    assert [r.reason for r in results] == ["image", "image", "image", "empty"]
    assert not any(r.retryable or r.cost for r in results) and not server.chats
    for result, said in zip(
        results, ("does not exist", "10 x 10 pixels", "cannot be decoded", "no objects"), strict=True
    ):
        assert said in result.detail


def test_rejected_pairs_go_back_with_their_reasons(server, picture):
    first = PairDraft("Where is the cup?", "The cup [SEG].", (1,))
    then = PairDraft("And what can bark?", "The cat [SEG].", (2,), 0)
    problem = PairProblem("names_target", "for a person", 'The question must not say "cup".')
    request = GenerationRequest(image(1), picture, 1, rejected=((then, (problem,)),), context=(first, then))
    result, _ = ask(server, picture, request=request)
    text = server.chats[0]["messages"][1]["content"][0]["text"]
    assert 'Refused: The question must not say "cup".' in text
    assert "It continues: Q: Where is the cup?" in text and "do not repeat" in text
    assert len(result.pairs) == 1
    too_few, _ = ask(
        server, picture, completion(GOOD),
        request=dataclasses.replace(request, pairs=2, rejected=((first, (problem,)), (then, (problem,)))),
    )  # fmt: skip
    assert too_few.reason == "schema" and "2 pairs were asked for" in too_few.detail
    with pytest.raises(ValueError, match="ask for as many"):
        dataclasses.replace(request, pairs=2)


# --- costs ------------------------------------------------------------------------------------------------------------


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


def test_max_cost_needs_a_price():
    with pytest.raises(ValueError, match="max_cost needs the price of x"):
        ApiSettings(model="x", max_cost=1.0)


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


@pytest.mark.parametrize("key", ["concurrency", "timeout", "max_output_tokens", "poll_every"])
def test_settings_name_what_is_wrong(key):
    with pytest.raises(ValueError, match=key):
        ApiSettings(**{key: 0})


# --- batches ----------------------------------------------------------------------------------------------------------


def batches(server: ApiServer, folder: Path, **changes) -> BatchGenerator:
    own = {k: changes.pop(k) for k in ("max_lines", "max_bytes", "spent") if k in changes}
    return BatchGenerator(settings(server, linger=0.05, poll_every=0.02, **changes), folder, **own)


def test_batches_are_split_polled_and_joined_whatever_their_order(server, picture, tmp_path):
    server.statuses.extend(["validating", "in_progress", "finalizing"])

    def shape(lines: list[bytes]) -> list[bytes]:
        mixed = [*lines, *lines[:2], b'{"custom_id": "stranger"}', b"{broken", b""]
        random.Random(0).shuffle(mixed)
        return mixed

    server.shape_output = shape
    generator = batches(server, tmp_path, max_lines=4)
    results = run_all(generator, [GenerationRequest(image(n), picture, 1 + n % 3) for n in range(10)])
    assert [r.image_id for r in results] == list(range(10))
    assert [len(r.pairs) for r in results] == [1 + n % 3 for n in range(10)]
    assert len(server.batches) == 3
    assert generator.api.ledger.spent == pytest.approx(10 * ONE / 2), "the batch price"
    for name, data in server.files.items():
        if name.startswith("file-"):
            lines = [json.loads(line) for line in data.splitlines()]
            assert 1 <= len(lines) <= 4
            assert all(set(line) == {"custom_id", "method", "url", "body"} for line in lines)


def test_batches_hold_the_byte_limit(server, picture, tmp_path):
    requests = [GenerationRequest(image(n), picture, 1) for n in range(4)]
    files, _ = export_jsonl(requests[:1], tmp_path / "one", settings(server))
    size = files[0].stat().st_size
    run_all(batches(server, tmp_path / "b", max_bytes=int(2.5 * size)), requests)
    assert [len(server.files[f"file-{n}"]) <= 2.5 * size for n in range(len(server.batches))] == [True, True]


def test_an_expired_batch_gives_what_it_has(server, picture, tmp_path):
    server.end = "expired"
    server.shape_output = lambda lines: lines[:2]
    server.script.append(error(500, "worker died"))
    results = run_all(batches(server, tmp_path), [GenerationRequest(image(n), picture, 1) for n in range(4)])
    failed = sorted((r for r in results if isinstance(r, GenerationFailure)), key=lambda r: r.detail)
    assert len(failed) == 2 and all(r.reason == "http" and r.retryable for r in failed)
    assert failed[0].detail == "HTTP 500: worker died" and "without an answer" in failed[1].detail


def test_answers_of_a_batch_fail_for_the_same_reasons(server, picture, tmp_path):
    server.script.extend(
        [completion(GOOD[:-9]), completion(GOOD[:-9], finish="length"), completion(None, refusal="no")]
    )
    generator = batches(server, tmp_path)
    results = run_all(generator, [GenerationRequest(image(n), picture, 1) for n in range(3)])
    assert sorted(r.reason for r in results) == ["malformed", "refusal", "truncated"]
    assert generator.api.ledger.spent == pytest.approx(3 * ONE / 2)


def test_a_refused_batch_stops_the_run_and_is_submitted_anew(server, picture, tmp_path):
    server.end = "failed"
    request = GenerationRequest(image(1), picture, 1)
    (result,) = run_all(batches(server, tmp_path), [request])
    assert isinstance(result, GenerationStopped) and "Enqueued token limit reached" in str(result)
    server.end = "completed"
    (result,) = run_all(batches(server, tmp_path), [request])
    assert isinstance(result, GenerationResult) and len(server.batches) == 2


def run_and_die(generator: BatchGenerator, requests, until) -> None:
    """Start the requests and leave everything as a killed process would, once ``until()`` holds."""

    async def main() -> None:
        tasks = [asyncio.create_task(generator.generate(r)) for r in requests]
        deadline = time.monotonic() + 10
        while not until() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert until()
        for task in (*tasks, *generator._tasks):
            task.cancel()
        await asyncio.gather(*tasks, *generator._tasks, return_exceptions=True)
        generator._lock.close()

    asyncio.run(main())


def submitted(folder: Path) -> bool:
    states = [json.loads(p.read_text()) for p in folder.glob("part-*.json")]
    return any(s["status"] == "submitted" for s in states)


def test_a_killed_run_takes_up_its_batch_and_pays_once(server, picture, tmp_path):
    server.statuses.extend(["in_progress"] * 1000)
    requests = [GenerationRequest(image(n), picture, 1) for n in range(3)]
    run_and_die(batches(server, tmp_path), requests, lambda: submitted(tmp_path))
    server.statuses.clear()
    generator = batches(server, tmp_path)
    results = run_all(generator, requests)
    assert all(isinstance(r, GenerationResult) for r in results)
    assert len(server.batches) == 1 and generator.api.ledger.spent == pytest.approx(3 * ONE / 2)
    # Killed again before the answers were stored: they lie in the folder.
    again = run_all(batches(server, tmp_path), requests)
    assert [r.pairs for r in again] == [r.pairs for r in results] and len(server.batches) == 1


def test_a_run_killed_between_creating_a_batch_and_noting_it_finds_it_again(server, picture, tmp_path):
    requests = [GenerationRequest(image(n), picture, 1) for n in range(2)]
    server.statuses.extend(["in_progress"] * 1000)
    run_and_die(batches(server, tmp_path), requests, lambda: submitted(tmp_path))
    server.statuses.clear()
    (state,) = tmp_path.glob("part-*.json")
    noted = json.loads(state.read_text())
    state.write_text(json.dumps({**noted, "status": "submitting", "batch_id": ""}))
    results = run_all(batches(server, tmp_path), requests)
    assert all(isinstance(r, GenerationResult) for r in results) and len(server.batches) == 1


def test_a_busy_batch_endpoint_is_asked_again(server, picture, tmp_path):
    server.batch_script.extend([error(500), error(429, retry_after="0.1")])
    (result,) = run_all(batches(server, tmp_path), [GenerationRequest(image(1), picture, 1)])
    assert isinstance(result, GenerationResult)


def test_equal_keys_are_one_piece_of_work(server, picture, tmp_path):
    request = GenerationRequest(image(1), picture, 1, key="same")
    results = run_all(batches(server, tmp_path), [request, request])
    assert results[0] == results[1]
    assert len(server.files["file-0"].splitlines()) == 1


def test_batches_stop_before_max_cost(server, picture, tmp_path):
    generator = batches(server, tmp_path, max_cost=0.1)
    results = run_all(generator, [GenerationRequest(image(n), picture, 1) for n in range(12)])
    assert any(isinstance(r, BudgetReached) for r in results) or generator.api.ledger.spent <= 0.1
    assert generator.api.ledger.spent <= 0.1 and generator.api.ledger.reserved == 0


def test_a_folder_belongs_to_one_run(server, tmp_path):
    first = batches(server, tmp_path)
    with pytest.raises(ValueError, match="in use by another run"):
        batches(server, tmp_path)
    run_all(first, [])
    run_all(batches(server, tmp_path), [])


def test_files_for_a_runner_of_ones_own(server, picture, tmp_path, caplog):
    requests = [GenerationRequest(image(n), picture, 1) for n in range(5)]
    requests.append(GenerationRequest(image(5), tmp_path / "absent.png"))
    files, failures = export_jsonl(requests, tmp_path / "out", settings(server), max_lines=2)
    assert [f.name for f in files] == ["requests-000.jsonl", "requests-001.jsonl", "requests-002.jsonl"]
    assert [f.image_id for f in failures] == [5]
    answers = []
    for line in (json.loads(raw) for file in files for raw in file.read_bytes().splitlines()):
        body = completion(pairs_for(line["body"])).body
        answers.append({"id": "v", "custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}})
    answers[1] = {**answers[1], "response": {"status_code": 400, "body": {"error": {"message": "too long"}}}}
    answers = [*reversed(answers[:-1]), answers[0], {"custom_id": "stranger", "response": None, "error": None}]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, answers)) + "\n{torn")
    found = {request.image.image_id: came for request, came in import_jsonl(path, requests, settings(server))}
    assert [came.image_id for came in found.values()] == [0, 1, 2, 3] == list(found)
    assert "2 answers" not in caplog.text and "1 answers belong to no image that waits" in caplog.text
    failed = found[1]
    assert isinstance(failed, GenerationFailure) and failed.detail == "HTTP 400: too long" and not failed.retryable
    with pytest.raises(ValueError, match="already holds"):
        export_jsonl(requests, tmp_path / "out", settings(server))
    with pytest.raises(ValueError, match="have the key"):
        export_jsonl([requests[0], requests[0]], tmp_path / "twice", settings(server))


# --- the common interface ---------------------------------------------------------------------------------------------


def test_all_three_answer_to_one_interface(server, picture, tmp_path):
    request = GenerationRequest(image(3), picture, 2)
    for kind in ("openai", "openai-batch", "offline"):
        generator = make_generator(kind, settings(server, linger=0.02, poll_every=0.02), folder=tmp_path)
        assert generator.name == kind and generator.concurrency >= 1
        (result,) = run_all(generator, [request])
        assert isinstance(result, GenerationResult) and result.generator == kind and len(result.pairs) == 2


def test_the_offline_generator_is_deterministic_and_replaces_rejected_pairs(picture):
    request = GenerationRequest(image(3, 3), picture, 6)
    (first,), (again,) = (run_all(OfflineGenerator(5), [request]) for _ in range(2))
    assert first == again and first.cost == 0
    for number, pair in enumerate(first.pairs):
        assert pair.follows is None or pair.follows < number
    problem = PairProblem("x", "y")
    redo = GenerationRequest(image(3, 3), picture, 1, ((first.pairs[0], (problem,)),), first.pairs)
    (new,) = run_all(OfflineGenerator(5), [redo])
    assert len(new.pairs) == 1 and new.pairs[0].question not in {p.question for p in first.pairs}
    (nothing,) = run_all(OfflineGenerator(5), [GenerationRequest(image(3, 0), picture)])
    assert nothing.reason == "empty" and not nothing.retryable
