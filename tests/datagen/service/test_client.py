"""One chat completion per image, from a real server on loopback that misbehaves in every way an API does."""

from __future__ import annotations

import base64
import dataclasses
import io
import json

import pytest
from PIL import Image

from aura.datagen.records import (
    GenerationFailure,
    GenerationRequest,
    GenerationResult,
    PairDraft,
    PairProblem,
)
from aura.datagen.service.client import OpenAIGenerator
from tests.datagen.api_server import Reply, completion, error
from tests.datagen.service.asking import GOOD, ONE, ask, image, run_all, settings


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


def test_questions_that_mean_one_kind_of_mask_are_asked_for_and_read(server, picture):
    pairs = [{"question": "A?", "answer": "The cup [SEG].", "objects": [1], "follows": None, "asked": ["visible"]}]
    result, _ = ask(server, picture, completion(json.dumps({"pairs": pairs})), intents=True)
    assert [p.asked for p in result.pairs] == [("visible",)] and result.prompt_version == "1-intents"
    schema = server.chats[0]["response_format"]["json_schema"]["schema"]
    assert "AskedPair" in schema["$defs"] and "Mark" not in server.chats[0]["messages"][0]["content"]
    assert '"asked" says for each object' in server.chats[0]["messages"][0]["content"]
