"""Requests and answers as files, for a runner of one's own."""

from __future__ import annotations

import json

import pytest

from aura.datagen.records import (
    GenerationFailure,
    GenerationRequest,
)
from aura.datagen.service.jsonl import export_jsonl, import_jsonl
from tests.datagen.api_server import completion, pairs_for
from tests.datagen.service.asking import image, settings


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
