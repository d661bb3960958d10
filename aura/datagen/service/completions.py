"""A chat completion's body, from a live request or a batch line, as pairs or as the reason why there are none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from aura.datagen.records import FailureReason, PairDraft, PairProblem
from aura.datagen.service.costs import Usage
from aura.datagen.service.reading import Unreadable, read_pairs, storable
from aura.datagen.service.refusals import Refusal


@dataclass(frozen=True)
class Completion:
    """What a completion holds: pairs, or ``reason`` and ``detail`` of the failure; ``usage`` where it is stated.

    ``problems`` are those of each pair's form. ``refusal`` is an error that came in the place of an answer.
    """

    pairs: tuple[PairDraft, ...] = ()
    problems: tuple[tuple[PairProblem, ...], ...] = ()
    reason: FailureReason | None = None
    detail: str = ""
    retryable: bool = False
    raw: str = ""
    finish_reason: str = ""
    model: str = ""
    usage: Usage | None = None
    refusal: Refusal | None = None


def read_completion(body: Any, *, exactly: int | None = None) -> Completion:
    """Read the body of a chat completion.

    A failure is retryable only where no answer came: what a model has answered is paid for.

    Args:
        body: Parsed JSON; anything at all may come from a server.
        exactly: So many pairs are wanted: surplus ones are dropped, fewer are a failure.
    """
    choices = body.get("choices") if isinstance(body, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    error = (choice.get("error") if isinstance(choice, Mapping) else None) or (
        body.get("error") if isinstance(body, Mapping) else None
    )
    if error:
        return _refused(error)
    if choice is None:
        return _no_completion("the response is no chat completion: it has no choices", body)
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        return _no_completion("the response's choice has no message", body)
    content, refusal = _content(message)
    common: dict[str, Any] = {
        "raw": content,
        "finish_reason": storable(str(choice.get("finish_reason") or "")),
        "model": storable(str(body.get("model") or "")),
        "usage": _usage(body.get("usage")),
    }
    if refusal:
        return _failed("refusal", f"the model refused: {refusal}", **common)
    if common["finish_reason"] == "content_filter":
        return _failed("refusal", "the service's content filter stopped the answer", **common)
    if common["finish_reason"] == "length":
        detail = "the answer was cut off at the token limit; raise max_output_tokens or ask for fewer pairs"
        return _failed("truncated", detail, **common)
    if not content.strip():
        return _failed("empty", "the answer has no text", **common)
    return _pairs(content, exactly, common)


def _content(message: Mapping[str, Any]) -> tuple[str, str]:
    """(text, refusal) of a message, whose content is a text or a list of parts."""
    content, refusal = message.get("content"), str(message.get("refusal") or "")
    texts = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, Mapping):
            refusal = refusal or str(part.get("refusal") or "")
            part = part.get("text")
        if isinstance(part, str):
            texts.append(part)
    return storable("".join(texts)), storable(refusal)


def _pairs(content: str, exactly: int | None, common: Mapping[str, Any]) -> Completion:
    try:
        read = read_pairs(content)
    except Unreadable as error:
        return _failed(cast(FailureReason, error.reason), str(error), **common)
    if exactly is not None and len(read) < exactly:
        detail = f"{exactly} pairs were asked for in place of rejected ones, {len(read)} came"
        return _failed("schema", detail, **common)
    read = read[:exactly]
    problems = tuple(pair.problems for pair in read) if any(pair.problems for pair in read) else ()
    return Completion(tuple(pair.draft for pair in read), problems, **common)


def _failed(reason: FailureReason, detail: str, *, retryable: bool = False, **common: Any) -> Completion:
    return Completion(reason=reason, detail=detail, retryable=retryable, **common)


def _no_completion(detail: str, body: Any) -> Completion:
    """A proxy's page, or a server that speaks otherwise: no model has answered, so it may be asked again."""
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    return _failed("malformed", detail, retryable=True, raw=storable(text[:2000]))


def _refused(error: Any) -> Completion:
    """An error that came as if it were an answer, with the status as its code or with none."""
    code = error.get("code") if isinstance(error, Mapping) else None
    status = code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600 else None
    refusal = Refusal.read(status, error)
    reason, detail, retryable = refusal.described()
    return Completion(reason=reason, detail=detail, retryable=retryable, refusal=refusal)


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, Mapping):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), cached or 0)
    known = [c for c in counts if isinstance(c, int) and c >= 0]
    return Usage(*known) if len(known) == len(counts) else None
