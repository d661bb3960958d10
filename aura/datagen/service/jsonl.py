"""Files of JSON lines for the batch endpoint and for runners without one (``docs/formats.md``, "Batch files").

Answers are joined on ``custom_id``, the request's key: they come in any order, some twice, some never.
"""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from aura.datagen.records import (
    GenerationError,
    GenerationFailure,
    GenerationRequest,
    GenerationResult,
    GenerationStopped,
)
from aura.datagen.service.client import outcome, prompt_of, request_body
from aura.datagen.service.completions import read_completion
from aura.datagen.service.costs import Usage, text_tokens
from aura.datagen.service.estimates import expected_usage
from aura.datagen.service.refusals import Refusal, raise_if_hopeless
from aura.datagen.service.settings import ApiSettings

log = logging.getLogger(__name__)

NAME = "openai-batch"
ENDPOINT: Final = "/v1/chat/completions"
MAX_LINES = 50_000
MAX_BYTES = 190_000_000
"""The endpoint takes 200 MB; whether of 1000 or 1024 it does not say."""

Where = tuple[Path, int] | None
"""An answer's file and the offset of its line; ``None``: the batch ended without one."""


def batch_line(request: GenerationRequest, settings: ApiSettings) -> bytes:
    """One request as a line of a batch file. Raises GenerationError where the image allows no prompt."""
    body = request_body(prompt_of(request, settings), settings)
    line = {"custom_id": request.key, "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"


def export_jsonl(
    requests: Iterable[GenerationRequest],
    folder: str | Path,
    settings: ApiSettings,
    *,
    max_lines: int = MAX_LINES,
    max_bytes: int = MAX_BYTES,
) -> tuple[list[Path], list[GenerationFailure]]:
    """Write batch files for a runner of one's own (``vllm run-batch -i requests-000.jsonl -o answers.jsonl``).

    Returns:
        The files ``requests-000.jsonl`` and on, each within the limits and written atomically, and the failures of
        images that allow no prompt.

    Raises:
        ValueError: Two requests have one key, or the folder holds such files already.
    """
    folder = Path(folder)
    if next(folder.glob("requests-*.jsonl"), None) is not None:
        raise ValueError(f"{folder} already holds requests-*.jsonl; import or remove them, or give another folder")
    files: list[Path] = []
    failures: list[GenerationFailure] = []
    keys: set[str] = set()
    part: PartFile | None = None
    for request in requests:
        if request.key in keys:
            raise ValueError(f"two requests have the key {request.key!r}; keys join the answers, each must be its own")
        keys.add(request.key)
        try:
            line = batch_line(request, settings)
        except GenerationError as error:
            failures.append(error.failure)
            continue
        if part is not None and not part.takes(line, max_lines, max_bytes):
            files.append(part.finish())
            part = None
        if part is None:
            part = PartFile(folder / f"requests-{len(files):03d}.jsonl")
        part.add(line)
    if part is not None:
        files.append(part.finish())
    return files, failures


def import_jsonl(
    path: str | Path, requests: Iterable[GenerationRequest], settings: ApiSettings
) -> Iterator[tuple[GenerationRequest, GenerationResult | GenerationFailure | GenerationStopped]]:
    """Read an answer file of a batch runner: what came for each of ``requests`` that has a line.

    That is a result, a failure, or, where the settings were refused, what stops a run; the image is still to be done.

    Of several lines the first counts. Damaged and repeated lines, and those of none of ``requests``, are left out, with
    a warning in the log. Requests without a line do not come; they are still to be done. In memory are the keys of the
    file, and one answer.

    Raises:
        ValueError: The file cannot be read.
    """
    try:
        answers = index_answers([Path(path)])
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    for request in requests:
        where = answers.pop(request.key, None)
        if where is not None:
            try:
                yield request, read_answer(where, request, settings)
            except GenerationError as error:
                yield request, error.failure
            except GenerationStopped as stopped:
                yield request, stopped
    if answers:
        log.warning(
            "%s: %d answers belong to no image that waits for one, such as %r; they are left out",
            *(path, len(answers), next(iter(answers))),
        )


class PartFile:
    """A file of lines that appears when it is finished, not before."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.lines = self.bytes = 0
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._file: BinaryIO = self._temporary.open("wb")

    def takes(self, line: bytes, max_lines: int, max_bytes: int) -> bool:
        return self.lines < max_lines and self.bytes + len(line) <= max_bytes

    def add(self, line: bytes) -> None:
        self._file.write(line)
        self.lines += 1
        self.bytes += len(line)

    def finish(self) -> Path:
        self._file.close()
        return self._temporary.replace(self.path)

    def discard(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def index_answers(paths: Iterable[Path]) -> dict[str, tuple[Path, int]]:
    """Where the first line of each ``custom_id`` lies."""
    found: dict[str, tuple[Path, int]] = {}
    for path in paths:
        with path.open("rb") as file:
            offset = repeated = damaged = 0
            for line in file:
                if line.strip():
                    key = _key(line)
                    damaged += key is None
                    repeated += key in found
                    if key is not None:
                        found.setdefault(key, (path, offset))
                offset += len(line)
        if repeated or damaged:
            log.warning("%s: %d repeated and %d damaged lines were left out", path, repeated, damaged)
    return found


def _key(line: bytes) -> str | None:
    try:
        record = _parsed(line)
    except (ValueError, RecursionError):
        return None
    key = record.get("custom_id") if isinstance(record, dict) else None
    return key if isinstance(key, str) else None


def read_answer(where: Where, request: GenerationRequest, settings: ApiSettings) -> GenerationResult:
    """The answer that lies at ``where``.

    Raises:
        GenerationError: It is a failure of the image.
        GenerationStopped: The settings were refused.
    """
    number = request.image.image_id
    if where is None:
        detail = "the batch ended without an answer to this request"
        raise GenerationError(GenerationFailure(number, "http", detail, retryable=True))
    record = _record(where)
    response = record.get("response")
    status = response.get("status_code") if isinstance(response, Mapping) else None
    refusal = None if status == 200 else _refusal(record, status)
    if refusal is None:
        assert isinstance(response, Mapping)
        completion = read_completion(response.get("body"), exactly=len(request.rejected) or None)
        refusal = completion.refusal
    if refusal is not None:
        raise_if_hopeless(refusal, settings)
        reason, detail, retryable = refusal.described()
        raise GenerationError(GenerationFailure(number, reason, detail, retryable))
    usage = completion.usage or Usage(expected_usage(request, settings).input, text_tokens(completion.raw))
    return outcome(number, completion, usage, usage.cost(settings.price, batch=True), NAME, settings)


def succeeded(where: Where) -> bool:
    """Whether an answer lies there; an error, or nothing at all, costs nothing and is asked for again."""
    if where is None:
        return False
    response = _record(where).get("response")
    return isinstance(response, Mapping) and response.get("status_code") == 200


def _record(where: tuple[Path, int]) -> dict[str, Any]:
    path, offset = where
    with path.open("rb") as file:
        file.seek(offset)
        record: dict[str, Any] = _parsed(file.readline())
        return record


def _parsed(line: bytes) -> Any:
    """A line as JSON. Some editors put a byte order mark before the first."""
    return json.loads(line.removeprefix(codecs.BOM_UTF8))


def _refusal(record: Mapping[str, Any], status: Any) -> Refusal:
    response, error = record.get("response"), record.get("error")
    body = error or (response.get("body") if isinstance(response, Mapping) else None)
    known = status if isinstance(status, int) else None
    return Refusal.read(known, body, "" if body else "the line holds neither a response nor an error")
