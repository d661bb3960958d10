"""A chat completion's body, from a live request or a batch line, as pairs or as the reason why there are none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from aura.datagen.records import FailureReason, PairDraft
from aura.datagen.service.costs import Usage
from aura.datagen.service.prompt import AnswerPairs

_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Completion:
    """What a completion holds: pairs, or ``reason`` and ``detail`` of the failure; ``usage`` where it is stated."""

    pairs: tuple[PairDraft, ...] = ()
    reason: FailureReason | None = None
    detail: str = ""
    retryable: bool = False
    raw: str = ""
    finish_reason: str = ""
    model: str = ""
    usage: Usage | None = None


def read_completion(body: Any, *, exactly: int | None = None) -> Completion:
    """Read the body of a chat completion.

    Args:
        body: Parsed JSON; anything at all may come from a server.
        exactly: So many pairs are wanted: surplus ones are dropped, fewer are a failure.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("choices"), list) or not body["choices"]:
        return _failed("malformed", "the response is no chat completion: it has no choices", raw=str(body)[:2000])
    choice = body["choices"][0]
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        return _failed("malformed", "the response's choice has no message", raw=str(body)[:2000])
    content = message.get("content")
    common: dict[str, Any] = {
        "raw": content if isinstance(content, str) else "",
        "finish_reason": str(choice.get("finish_reason") or ""),
        "model": str(body.get("model") or ""),
        "usage": _usage(body.get("usage")),
    }
    if message.get("refusal"):
        return _failed("refusal", f"the model refused: {message['refusal']}", retryable=False, **common)
    if common["finish_reason"] == "content_filter":
        return _failed("refusal", "the service's content filter stopped the answer", retryable=False, **common)
    if common["finish_reason"] == "length":
        detail = "the answer was cut off at the token limit; raise max_output_tokens or ask for fewer pairs"
        return _failed("truncated", detail, retryable=False, **common)
    if not isinstance(content, str) or not content.strip():
        return _failed("empty", "the answer has no text", **common)
    return _pairs(content, exactly, common)


def _pairs(content: str, exactly: int | None, common: Mapping[str, Any]) -> Completion:
    fenced = _FENCE.match(content)
    try:
        pairs = AnswerPairs.model_validate_json(fenced.group(1) if fenced else content).drafts()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            return _failed("malformed", f"the answer is no JSON: {first['msg']}", **common)
        where = ".".join(map(str, first["loc"])) or "the answer"
        return _failed("schema", f"{where}: {first['msg']} ({error.error_count()} in all)", **common)
    if not pairs:
        return _failed("empty", "the answer holds no pairs", **common)
    if exactly is not None and len(pairs) < exactly:
        return _failed(
            "schema", f"{exactly} pairs were asked for in place of rejected ones, {len(pairs)} came", **common
        )
    return Completion(pairs if exactly is None else pairs[:exactly], **common)


def _failed(reason: FailureReason, detail: str, *, retryable: bool = True, **common: Any) -> Completion:
    return Completion((), reason, detail, retryable, **common)


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, Mapping):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), cached or 0)
    known = [c for c in counts if isinstance(c, int) and c >= 0]
    return Usage(*known) if len(known) == len(counts) else None
