"""Refusals as services word them: which concern every request, and what is to be done about them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from aura.datagen.service.refusals import Refusal
from aura.datagen.service.settings import ApiSettings

SETTINGS = ApiSettings(model="m", base_url="http://localhost:8000/v1", temperature=0.5, seed=1)


def said(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": None, "code": code}}


@pytest.mark.parametrize(
    ("status", "body", "remedy"),
    [
        (400, said("Unsupported parameter: 'max_completion_tokens'", "unsupported_parameter"), "_field to max_tokens"),
        (400, said("max_tokens is too large: 4096. This model takes at most 2048."), r"max_output_tokens \(4096\)"),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"]}]}, "limit_field"),
        (400, {"object": "error", "message": "`response_format` is not supported", "code": 400}, "structured"),
        (400, {"error": "This model does not support JSON mode"}, "structured to json_object or none"),
        (400, said("Invalid schema for response_format 'question_answer_pairs'"), "structured"),
        (400, said("'temperature' does not support 0.5 with this model", "unsupported_value"), "temperature"),
        (400, said("Unrecognized request argument supplied: seed"), "seed"),
        (400, said("model 'm' not found, try pulling it first"), r"model name \(m\)"),
        (400, said("m is not a valid model ID", "model_not_found"), "model name"),
        (404, {"error": "model not found"}, "base_url and the model name"),
        (405, "Method Not Allowed", "base_url"),
        (400, {"object": "error", "message": "m is not a multimodal model"}, "reads no pictures"),
        (500, said("image input is not supported - hint: provide the mmproj"), "reads no pictures"),
        (400, said("This model does not support image input."), "reads no pictures"),
        (401, said("Incorrect API key"), "check the key in OPENAI_API_KEY"),
        (402, said("Insufficient Balance"), "used up"),
        (429, said("no", "insufficient_quota"), "used up"),
        (400, {"error": {"message": "no", "code": "unknown_parameter", "param": "thing"}}, "setting"),
    ],
)
def test_what_concerns_every_request_has_a_remedy(status, body, remedy):
    found = Refusal.read(status, body).remedy(SETTINGS)
    assert found is not None
    assert re.search(remedy, found), found


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, said("image too large")),
        (400, said("Could not process image")),
        (400, said("Invalid image: not a valid JPEG")),
        (400, said("flagged", "content_policy_violation")),
        (403, said("the input was flagged by moderation")),
        (400, said("This model's maximum context length is 4096 tokens; reduce max_tokens")),
        (429, said("Rate limit reached, see your plan and billing details")),
        (500, said("the model is overloaded: response_format")),
        (503, "max_tokens"),
        (None, {"message": "batch expired", "code": "batch_expired"}),
    ],
)
def test_what_may_concern_one_request_does_not_stop_the_run(status, body):
    assert Refusal.read(status, body).remedy(SETTINGS) is None


def test_a_setting_that_was_not_sent_is_not_to_blame():
    refusal = Refusal.read(400, said("the temperature in this picture is no seed"))
    assert refusal.remedy(ApiSettings(model="m")) is None and refusal.remedy(SETTINGS) is not None


def test_a_refusal_of_one_image_says_what_it_is():
    assert Refusal.read(400, said("no", "content_filter")).described()[0] == "refusal"
    assert Refusal.read(503, said("busy")).described() == ("http", "HTTP 503: busy", True)
    assert Refusal.read(None, {"message": "expired"}).described() == ("http", "expired", True)
