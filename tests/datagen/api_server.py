"""A real HTTP server on loopback that speaks the OpenAI-style API, and misbehaves on demand.

``ApiServer.script`` holds what the next chat completions get, in order of arrival; after that all are answered well.
Batches run at once: each line is answered by the same script, and ``shape_output`` may shuffle, repeat or drop lines.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

SEG = "[SEG]"
QUESTIONS = (
    "What would help me now?",
    "Is there something my aunt could use?",
    "Which of these would you take along on a trip?",
    "I have an hour to spend; what looks useful?",
    "What might surprise a visitor the most?",
    "Please show me a thing worth a closer look.",
    "What would a painter draw first?",
    "Could anything be of interest to a child?",
    "What should be cleaned today?",
    "If I may keep only one item, which would be wise?",
)


class Reply:
    """What one chat completion gets: a status with headers and body, after ``delay`` seconds."""

    def __init__(
        self, body: Any = None, status: int = 200, headers: dict[str, str] | None = None, delay: float = 0.0
    ) -> None:
        self.body, self.status, self.headers, self.delay = body, status, headers or {}, delay


def completion(content: str | None, finish: str = "stop", refusal: str | None = None, usage: Any = True) -> Reply:
    """A well-formed completion with any content."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    body: dict[str, Any] = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "served-model",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    if usage:
        body["usage"] = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
    return Reply(body)


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """An error as the API writes it; header names with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply({"error": {"message": message, "type": "x", "param": None, "code": code}}, status, named)


def pairs_for(request: dict[str, Any]) -> str:
    """Pairs that point at the objects of the request's table, one after the other."""
    text = request["messages"][1]["content"][0]["text"]
    objects = re.findall(r"^(\d+) \| ([^|]+) \|", text, re.MULTILINE)
    asked = re.search(r"Write (\d+) pair", text)
    number = int(asked.group(1)) if asked else text.count("\n   Refused:")
    pairs = []
    for n in range(number):
        object_id, category = objects[n % len(objects)]
        question, answer = QUESTIONS[n % len(QUESTIONS)], f"You could use the {category} {SEG}."
        pairs.append({"question": question, "answer": answer, "objects": [int(object_id)], "follows": None})
    return json.dumps({"pairs": pairs})


class ApiServer:
    """``with ApiServer() as server: server.url``; what it received is in ``chats``, ``headers`` and ``files``."""

    def __init__(self) -> None:
        self.script: deque[Reply | Callable[[dict[str, Any]], Reply]] = deque()
        self.delay = 0.0
        self.chats: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.statuses: deque[str] = deque()
        self.end = "completed"
        self.shape_output: Callable[[list[bytes]], list[bytes]] = lambda lines: lines
        self.batch_script: deque[Reply] = deque()
        self.keep = True
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def chat(self, request: dict[str, Any]) -> Reply:
        """The next reply of the script, or a good one."""
        with self.lock:
            following = self.script.popleft() if self.script else None
        if following is None:
            return completion(pairs_for(request))
        return following if isinstance(following, Reply) else following(request)

    def create_batch(self, request: dict[str, Any]) -> dict[str, Any]:
        number = len(self.batches)
        lines: list[bytes] = []
        errors: list[bytes] = []
        for raw in self.files[request["input_file_id"]].splitlines():
            line = json.loads(raw)
            reply = self.chat(line["body"])
            answer = {
                "id": "r",
                "custom_id": line["custom_id"],
                "response": {"status_code": reply.status, "request_id": "q", "body": reply.body},
                "error": None,
            }
            (lines if reply.status == 200 else errors).append(json.dumps(answer).encode())
        batch = {
            "id": f"batch_{number}",
            "object": "batch",
            "completion_window": "24h",
            "created_at": 1,
            "endpoint": request["endpoint"],
            "input_file_id": request["input_file_id"],
            "metadata": request.get("metadata"),
            "status": "validating",
        }
        if self.end == "failed":
            data = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}]
            batch["errors"] = {"object": "list", "data": data}
        else:
            for field, made in (("output_file_id", self.shape_output(lines)), ("error_file_id", errors)):
                if made:
                    self.files[f"{batch['id']}-{field}"] = b"\n".join(made) + b"\n"
                    batch[field] = f"{batch['id']}-{field}"
        self.batches[batch["id"]] = batch
        return {**batch, "status": "validating", "output_file_id": None, "error_file_id": None}

    def batch(self, number: str) -> dict[str, Any]:
        with self.lock:
            status = self.statuses.popleft() if self.statuses else self.end
        return {**self.batches[number], "status": status}


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # headers and body in one packet: Nagle's algorithm would hold the second back
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length", 0)))
        api = self.api
        if self.path == "/v1/chat/completions":
            request = json.loads(data)
            with api.lock:
                api.times.append(time.monotonic())
                api.headers.append({k.lower(): v for k, v in self.headers.items()})
                if api.keep:
                    api.chats.append(request)
                api.busy += 1
                api.most_busy = max(api.most_busy, api.busy)
            reply = api.chat(request)
            time.sleep(reply.delay or api.delay)
            with api.lock:
                api.busy -= 1
            self._send(reply)
        elif self.path == "/v1/files":
            boundary = self.headers["content-type"].split("boundary=")[1].encode()
            part = next(p for p in data.split(b"--" + boundary) if b'name="file"' in p)
            with api.lock:
                name = f"file-{sum(known.startswith('file-') for known in api.files)}"
                api.files[name] = b""
            api.files[name] = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
            fields = {"object": "file", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "batch"}
            self._send(Reply({"id": name, "status": "processed", **fields}))
        elif self.path == "/v1/batches":
            if api.batch_script:
                self._send(api.batch_script.popleft())
            else:
                self._send(Reply(api.create_batch(json.loads(data))))
        else:
            self._send(error(404, "no such path"))

    def do_GET(self) -> None:
        path = self.path.split("?")[0].removeprefix("/v1/")
        if path.startswith("files/"):
            self._send(Reply(self.api.files[path.split("/")[1]]))
        elif path == "batches":
            found = [self.api.batch(number) for number in self.api.batches]
            self._send(Reply({"object": "list", "data": found, "has_more": False}))
        elif path.startswith("batches/"):
            self._send(Reply(self.api.batch(path.split("/")[1])))
        else:
            self._send(error(404, "no such path"))

    def _send(self, reply: Reply) -> None:
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        try:
            self.send_response(reply.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:
            self.close_connection = True  # the client gave up
