"""A hub on this machine: the few answers of huggingface.co that its library asks for when it fetches a model."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from aura.weights import hub as names


class LoopbackHub:
    """Models by name and commit, and the requests that came.

    ``errors`` gives a model's requests, or those whose path ends so, a status and the hub's code for it.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.errors: dict[str, tuple[int, str]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = ""

    def add(self, model: str, folder: str | Path | None = None, *, branch: str = "main", **files: bytes) -> str:
        """Put the files of ``folder`` and ``files`` on a branch; returns the commit."""
        paths = [path for path in Path(folder).rglob("*") if path.is_file()] if folder else []
        found = {path.relative_to(folder or "").as_posix(): path.read_bytes() for path in paths} | files
        commit = hashlib.sha1(repr(sorted(found.items())).encode()).hexdigest()
        self.files.setdefault(model, {})[commit] = found
        self.branches.setdefault(model, {})[branch] = commit
        return commit

    def got(self, method: str = "GET") -> list[str]:
        """Names of the files that were fetched."""
        paths = [path for asked, path, _ in self.requests if asked == method and "/resolve/" in path]
        return sorted(path.rpartition("/")[2] for path in paths)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        for end, (status, code) in self.errors.items():
            if path.endswith(end) or f"/{end}/" in path or path.endswith(f"/{end}"):
                return status, {"X-Error-Code": code, "X-Error-Message": "refused"}, b"{}"
        model, kind, rest = self.parse(path)
        if model not in self.files:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        revision, _, file = rest.partition("/")
        commit = self.branches[model].get(unquote(revision), revision)
        files = self.files[model].get(commit)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if kind == "resolve":
            if file not in files:
                return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
            etag = hashlib.sha256(files[file]).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, files[file]
        if kind == "tree":
            told: object = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
        else:
            told = {"id": model, "modelId": model, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()

    @staticmethod
    def parse(path: str) -> tuple[str, str, str]:
        """Model, what is asked of it, and the rest: revision and file."""
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)(?:/(revision|tree|resolve)/(.+))?", path)
        return (found[1], found[2] or "revision", found[3] or "main") if found else ("", "", "")


def allow(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """The hub may be asked, its cache is this one, and nothing was looked up before."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(names, "_commits", {})


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``HF_ENDPOINT`` does when the library is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@contextmanager
def serving(hub: LoopbackHub) -> Iterator[None]:
    """Within ``with`` the hub answers at ``hub.url``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path, self.headers.get("Authorization")))
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
