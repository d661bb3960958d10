"""The generator of the batch endpoint: requests go out as files of JSON lines, answers come back hours later.

``docs/formats.md``, "Batch files", says what the lines and the endpoint look like.

Every part of the work lies in a folder: ``part-*.jsonl`` the requests, ``part-*.json`` what became of them,
``part-*.output.jsonl`` and ``part-*.errors.jsonl`` the answers. A run that was killed takes up what it had submitted;
no request is submitted twice.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

import openai

from aura.datagen.records import GenerationError, GenerationRequest, GenerationResult, GenerationStopped
from aura.datagen.service.api import Api
from aura.datagen.service.estimates import expected_usage, upper_bound
from aura.datagen.service.jsonl import (
    ENDPOINT,
    MAX_BYTES,
    MAX_LINES,
    NAME,
    PartFile,
    Where,
    batch_line,
    index_answers,
    read_answer,
    succeeded,
)
from aura.datagen.service.settings import ApiSettings
from aura.files import is_neighbour, unfinished, write_json

log = logging.getLogger(__name__)

_TERMINAL = frozenset({"completed", "expired", "failed", "cancelled"})


@dataclass
class _Part:
    """One batch: ``status`` is written, submitting, submitted, done or failed; ``bounds`` the most each key may cost.

    ``token`` is put on the batch, so that one created just before a crash is found again.
    """

    token: str
    status: str
    bounds: dict[str, float]
    batch_id: str = ""
    ended: str = ""
    answers: list[str] = field(default_factory=list)


class BatchGenerator:
    """Requests are gathered into a batch until it is full or none has come for a while (``settings.linger``).

    ``concurrency`` requests wait side by side, so that is the size of a batch at most.
    """

    name = NAME

    def __init__(
        self,
        settings: ApiSettings,
        folder: str | Path,
        *,
        spent: float = 0.0,
        concurrency: int = 2000,
        max_lines: int = MAX_LINES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """As :class:`Api`; ``folder`` belongs to one process at a time.

        Raises:
            ValueError: No key, or another process uses the folder.
        """
        self.settings, self.model, self.concurrency = settings, settings.model, concurrency
        self.api = Api(settings, spent=spent)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ValueError(f"{self.folder} is in use by another run; give this one a folder of its own") from error
        self._max_lines, self._max_bytes = max_lines, max_bytes
        self._answers: dict[str, asyncio.Future[Where]] = {}
        self._bounds: dict[str, float] = {}
        self._open: tuple[PartFile, _Part] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._recovered = False

    async def close(self) -> None:
        """Stop watching. What was submitted goes on at the service and is taken up by the next run."""
        if self._timer is not None:
            self._timer.cancel()
        if self._open is not None:
            self._open[0].discard()
            self._open = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.api.close()
        self._lock.close()

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """As :meth:`aura.datagen.records.Generator.generate`; returns when the request's batch has ended."""
        self._recover()
        key = request.key
        if key not in self._answers:
            await self._submit(request)
        where = await asyncio.shield(self._answers[key])
        cost = 0.0
        try:
            result = await asyncio.to_thread(read_answer, where, request, self.settings)
            cost = result.cost
            return result
        except GenerationError as error:
            cost = error.failure.cost
            raise
        finally:
            if self._answers.pop(key, None) is not None:
                self.api.ledger.settle(self._bounds.pop(key, 0.0), cost)

    async def _submit(self, request: GenerationRequest) -> None:
        """Put the request into the open part."""
        key = request.key
        answer = self._expect(key)
        try:
            line = await asyncio.to_thread(batch_line, request, self.settings)
            if len(line) > self._max_bytes:
                raise ValueError(f"{key}: one request has {len(line)} bytes, more than a batch takes; lower image_side")
            bound = upper_bound(expected_usage(request, self.settings), self.settings)
            most = bound.cost(self.settings.price, batch=True)
            await self.api.ledger.reserve(most)
        except BaseException:
            del self._answers[key]
            answer.cancel()
            raise
        if self._open is not None and not self._open[0].takes(line, self._max_lines, self._max_bytes):
            self._flush()
        if self._open is None:
            token = uuid.uuid4().hex
            self._open = PartFile(self.folder / f"part-{token}.jsonl"), _Part(token, "written", {})
        self._bounds[key] = most
        self._open[0].add(line)
        self._open[1].bounds[key] = most
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self.settings.linger, self._flush)

    def _expect(self, key: str) -> asyncio.Future[Where]:
        answer: asyncio.Future[Where] = asyncio.get_running_loop().create_future()
        # Nobody may be waiting for the answer of an earlier run's request; then its error is nobody's.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._answers[key] = answer
        return answer

    def _flush(self) -> None:
        """Close the open part and send it on its way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._open is not None:
            file, part = self._open
            self._open = None
            file.finish()
            self._save(part)
            self._watch(part)

    def _watch(self, part: _Part) -> None:
        task = asyncio.get_running_loop().create_task(self._follow(part))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _save(self, part: _Part) -> None:
        write_json(self.folder / f"part-{part.token}.json", asdict(part))

    def _recover(self) -> None:
        """Take up the parts of earlier runs: answers that lie here, and batches that are still under way."""
        if self._recovered:
            return
        self._recovered = True
        for path in sorted(self.folder.glob("part-*.json")):
            try:
                part = _Part(**json.loads(path.read_text(encoding="utf-8")))
                if path.name != f"part-{part.token}.json" or not all(map(is_neighbour, part.answers)):
                    raise ValueError("it names files of other parts")
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: damaged ({error}); remove it to submit its requests again") from error
            if part.status == "done":
                # What it cost is booked by those who asked for it; only answers nobody has fetched yet matter here.
                # What was refused is submitted again: the settings may have changed since.
                for key, where in self._located(part).items():
                    if succeeded(where):
                        self._expect(key).set_result(where)
            elif part.status != "failed":
                for key, bound in part.bounds.items():
                    self._expect(key)
                    self._bounds[key] = bound
                    self.api.ledger.reserve_now(bound)
                self._watch(part)

    def _located(self, part: _Part) -> dict[str, Where]:
        found = index_answers(self.folder / name for name in part.answers)
        unknown = found.keys() - part.bounds.keys()
        if unknown:
            log.warning("batch %s: %d answers belong to no request of it", part.batch_id, len(unknown))
        return {key: found.get(key) for key in part.bounds}

    async def _follow(self, part: _Part) -> None:
        """Submit the part if need be, wait until it ends, fetch its answers and hand them out."""
        try:
            if part.status in ("written", "submitting"):
                await self._create(part)
            await self._wait(part)
        except (GenerationStopped, openai.APIError) as error:
            stopped = error if isinstance(error, GenerationStopped) else GenerationStopped(self._text(part, error))
            for key in part.bounds:
                self._give_up(key, stopped)
            return
        located = await asyncio.to_thread(self._located, part)
        for key, where in located.items():
            answer = self._answers.get(key)
            if answer is not None and not answer.done():
                answer.set_result(where)

    def _give_up(self, key: str, error: GenerationStopped) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None and not answer.done():
            self.api.ledger.settle(self._bounds.pop(key, 0.0), 0.0)
            answer.set_exception(error)

    def _text(self, part: _Part, error: openai.APIError) -> str:
        return self.api.redact(f"batch {part.batch_id or part.token}: {error}; run again to take it up")

    async def _create(self, part: _Part) -> None:
        client = self.api.client
        if part.status == "submitting":
            async for batch in client.batches.list(limit=100):
                if (batch.metadata or {}).get("part") == part.token:
                    part.batch_id, part.status = batch.id, "submitted"
                    self._save(part)
                    return
        part.status = "submitting"
        self._save(part)
        path = self.folder / f"part-{part.token}.jsonl"
        file = await self.api.patiently(lambda: client.files.create(file=path, purpose="batch"))
        batch = await self.api.patiently(
            lambda: client.batches.create(
                input_file_id=file.id,
                endpoint=ENDPOINT,
                completion_window="24h",
                metadata={"part": part.token},
                extra_headers={"Idempotency-Key": part.token},
            )
        )
        part.batch_id, part.status = batch.id, "submitted"
        self._save(part)

    async def _wait(self, part: _Part) -> None:
        client = self.api.client
        while True:
            batch = await self.api.patiently(lambda: client.batches.retrieve(part.batch_id))
            if batch.status in _TERMINAL:
                break
            await asyncio.sleep(self.settings.poll_every)
        part.ended = batch.status
        if batch.status == "failed":
            part.status = "failed"
            self._save(part)
            reasons = [e.message or e.code or "" for e in (batch.errors.data if batch.errors else None) or []]
            said = self.api.redact("; ".join(reasons))[:500]
            raise GenerationStopped(f"the service refused batch {part.batch_id}: {said or 'no reason given'}")
        for file_id, kind in ((batch.output_file_id, "output"), (batch.error_file_id, "errors")):
            if file_id:
                part.answers.append(await self._fetch(file_id, f"part-{part.token}.{kind}.jsonl"))
        part.status = "done"
        self._save(part)

    async def _fetch(self, file_id: str, name: str) -> str:
        """Download a file, in pieces and atomically, without the key, should it be repeated there; its name."""

        async def download() -> None:
            async with self.api.client.files.with_streaming_response.content(file_id) as response:
                await response.stream_to_file(partial)

        with unfinished(self.folder / name) as partial:
            await self.api.patiently(download)
            await asyncio.to_thread(self._redact, partial)
        return name

    def _redact(self, path: Path) -> None:
        """Take the key out of the lines of a file."""
        with unfinished(path) as clean, path.open("rb") as file, clean.open("wb") as out:
            for line in file:
                text = line.decode("utf-8", "surrogateescape")
                out.write(self.api.redact(text).encode("utf-8", "surrogateescape"))
