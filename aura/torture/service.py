"""A stand-in for an OpenAI-style service on this machine, in a process of its own, that keeps an account.

As the real ones it charges an idempotency key once, however often it is sent, and a batch once. ``ledger.txt`` of a run
tells what was asked (``asked KEY``) and what was charged (``charged KEY``).
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DELAY = 0.03
"""Seconds until an answer comes."""
BATCH_SECONDS = 0.6
QUESTIONS = (
    "What could I drink from?",
    "Which of these would you take along on a trip?",
    "What should be cleaned today?",
    "What would a painter draw first?",
)
USAGE = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}


def serve(listening: socket.socket, ledger: Path) -> int:
    """Answer until killed."""
    handler = type("Handler", (_Handler,), {"books": _Books(ledger)})
    server = _Server(listening.getsockname(), handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    server.serve_forever()
    return 0


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    """A completion with pairs about the objects of the prompt's table, the same for the same request."""
    text = request["messages"][1]["content"][0]["text"]
    objects = re.findall(r"^(\d+) \| ([^|]+) \|", text, re.MULTILINE)
    asked = re.search(r"Write (\d+) pair", text)
    pairs = []
    for number in range(int(asked[1]) if asked else text.count("\n   Refused:")):
        object_id, category = objects[number % len(objects)]
        # At the first try one in a few pairs does not say where its object is, and is sent back.
        vague = asked and not number and int(object_id) % 3 == 0
        said = f"You could use {'something' if vague else f'the {category} [SEG]'}."
        question = QUESTIONS[number % len(QUESTIONS)]
        pairs.append({"question": question, "answer": said, "objects": [int(object_id)], "follows": None})
    message = {"role": "assistant", "content": json.dumps({"pairs": pairs}), "refusal": None}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    kind = {"id": "c", "object": "chat.completion", "created": 1, "model": "served"}
    return {**kind, "choices": choices, "usage": USAGE}


class _Books:
    """What was asked, charged, uploaded and submitted."""

    def __init__(self, ledger: Path) -> None:
        self.ledger, self.lock = ledger, threading.Lock()
        self.charged: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.by_token: dict[str, str] = {}

    def write(self, what: str, key: str) -> None:
        handle = os.open(self.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{what} {key}\n".encode())
        os.close(handle)

    def chat(self, request: dict[str, Any], key: str) -> dict[str, Any]:
        with self.lock:
            self.write("asked", key)
            if key not in self.charged:
                self.charged.add(key)
                self.write("charged", key)
        time.sleep(DELAY)
        return answer_to(request)

    def upload(self, data: bytes) -> dict[str, Any]:
        with self.lock:
            name = f"file-{len(self.files)}"
            self.files[name] = data
        fields = {"object": "file", "bytes": len(data), "created_at": 1, "filename": "x", "purpose": "batch"}
        return {"id": name, "status": "processed", **fields}

    def submit(self, request: dict[str, Any], token: str) -> dict[str, Any]:
        """A batch; every line of every batch is charged, but one that is submitted again is the same."""
        with self.lock:
            if token not in self.by_token:
                number = f"batch_{len(self.batches)}"
                self.by_token[token] = number
                lines = [json.loads(line) for line in self.files[request["input_file_id"]].splitlines()]
                output = []
                for line in lines:
                    self.write("asked", line["custom_id"])
                    self.write("charged", line["custom_id"])
                    response = {"status_code": 200, "request_id": "q", "body": answer_to(line["body"])}
                    output.append({"id": "r", "custom_id": line["custom_id"], "response": response, "error": None})
                self.files[f"{number}-output"] = b"".join(json.dumps(one).encode() + b"\n" for one in output)
                self.batches[number] = {
                    "id": number,
                    **{"object": "batch", "completion_window": "24h", "created_at": time.time()},
                    **{"endpoint": request["endpoint"], "input_file_id": request["input_file_id"]},
                    "metadata": request.get("metadata"),
                }
            return self.batch(self.by_token[token])

    def batch(self, number: str) -> dict[str, Any]:
        batch = self.batches[number]
        done = time.time() - batch["created_at"] > BATCH_SECONDS
        state = {"status": "completed", "output_file_id": f"{number}-output"} if done else {"status": "in_progress"}
        return {**batch, "created_at": 1, **state}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client was killed; that is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    books: _Books
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # headers and body in one packet
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length", 0)))
        key = self.headers.get("idempotency-key", "")
        if self.path.endswith("/chat/completions"):
            self._send(self.books.chat(json.loads(data), key))
        elif self.path.endswith("/batches"):
            self._send(self.books.submit(json.loads(data), key))
        else:
            boundary = self.headers["content-type"].split("boundary=")[1].encode()
            part = next(part for part in data.split(b"--" + boundary) if b'name="file"' in part)
            self._send(self.books.upload(part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/v1/")
        if path.startswith("files/"):
            self._send(self.books.files[path.split("/")[1]])
        elif path == "batches":
            found = [self.books.batch(number) for number in self.books.batches]
            self._send({"object": "list", "data": found, "has_more": False})
        else:
            self._send(self.books.batch(path.split("/")[1]))

    def _send(self, body: dict[str, Any] | bytes) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            self.close_connection = True  # the client was killed
