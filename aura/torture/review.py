"""The review server while three people work: what it acknowledged, verdict or draft, stays, and none is double.

The people are one more process, which is not killed: it asks for pages, saves drafts, sends verdicts, and writes down
what was acknowledged. What somebody says about a pair depends on their name and the pair alone.
"""

from __future__ import annotations

import hashlib
import html
import http.client
import json
import random
import re
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from aura.datagen.store.store import Store
from aura.files import write_text
from aura.torture.generation import commands, make_source, settings_of
from aura.torture.processes import PATIENCE, Act, Command, program, send

NAMES = ("Ada", "Grace", "Edsger")
Fields = dict[str, str | list[str]]


class ReviewKind:
    name = "review"
    victims = ("the server", "the server, by SIGTERM")

    def __init__(self, out: Path, num_images: int) -> None:
        self._template = out / "review_template"
        self._num_images = num_images
        self._tokens: dict[str, str] = {}
        self._people: Command | None = None
        self._port = 0

    def new(self, run: Path) -> None:
        if not self._template.exists():
            make_source(self._template, self._num_images)
            config = self._template / "config.yaml"
            settings = settings_of(self._template, {"kind": "offline", "pairs_per_image": 3})
            write_text(config, yaml.safe_dump(settings))
            commands(config, self._template / "project", "init", "generate")
            with Store.open(self._template / "project" / "project.sqlite") as store:
                self._tokens = {name: store.annotators.add(name) for name in NAMES}
        shutil.copytree(self._template / "project", run / "project")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self.close()
        people = _People(self._port, self._tokens, run)
        self._people = Command([people.work], run / "people.txt")

    def start(self, run: Path) -> Command:
        assert self._people is not None
        own = ["--config", str(self._template / "config.yaml"), "--project", str(run / "project")]
        serve = program("scripts/review.py", ["serve", *own, "--review.port", str(self._port)])
        return _Server(serve, run / "output.txt", self._people)

    def trace(self, run: Path) -> Path:
        return run / "acknowledged.txt"

    def result(self, run: Path) -> Any:
        """The end of every pair, and what everybody said, without the order in which it was said."""
        pair = "i.image_id, p.position"
        with sqlite3.connect(run / "project" / "project.sqlite") as database:
            ends = database.execute(
                f"SELECT {pair}, p.state, p.disputed, v.question, v.answer, v.objects FROM pairs p "
                "JOIN images i ON i.id = p.image JOIN pair_versions v ON v.pair = p.id AND v.version = p.version "
                "ORDER BY 1, 2"
            ).fetchall()
            said = database.execute(
                f"SELECT {pair}, a.name, d.decision, d.note, d.final, d.replaced, v.question FROM verdicts d "
                "JOIN annotators a ON a.id = d.annotator JOIN pairs p ON p.id = d.pair "
                "JOIN images i ON i.id = p.image "
                "JOIN pair_versions v ON v.pair = d.pair AND v.version = d.text_version ORDER BY 1, 2, 3"
            ).fetchall()
            drafts = database.execute("SELECT count(*) FROM drafts").fetchone()
        database.close()
        return ends, said, drafts

    def lost(self, run: Path) -> list[str]:
        """Acknowledged verdicts that are not there, and what the people have missed."""
        told = run / "acknowledged.txt"
        acknowledged = told.read_text().splitlines() if told.is_file() else []
        with sqlite3.connect(run / "project" / "project.sqlite", timeout=60) as database:
            rows = database.execute(
                "SELECT a.name, d.pair, d.decision FROM verdicts d JOIN annotators a ON a.id = d.annotator "
                "WHERE d.replaced = 0"
            ).fetchall()
        database.close()
        there = {f"{name} {pair} {decision}" for name, pair, decision in rows}
        found = [f"the verdict {line}" for line in acknowledged if line not in there]
        found += [f"twice acknowledged: {line}" for line in set(acknowledged) if acknowledged.count(line) > 1]
        missed = run / "missed.txt"
        return found + (missed.read_text().splitlines() if missed.is_file() else [])

    def close(self) -> None:
        if self._people is not None and self._people.over() is None:
            self._people.kill("all processes", random.Random())
        self._people = None


class _Server(Command):
    """The server; the command is over when the people have nothing left to do, or when it ends by itself."""

    def __init__(self, serve: Act, output: Path, people: Command) -> None:
        super().__init__([serve], output)
        self._people = people

    def over(self) -> int | None:
        code = self._people.over()
        if code is None:
            return super().over()
        if super().over() is None:  # the people have gone
            send(self.processes, signal.SIGTERM)
            deadline = time.monotonic() + PATIENCE
            while super().over() is None:
                if time.monotonic() > deadline:
                    send(self.processes, signal.SIGKILL)
                time.sleep(0.02)
        return code


class _People:
    """Three annotators in turn, patient with a server that is gone for a while."""

    def __init__(self, port: int, tokens: dict[str, str], run: Path) -> None:
        self.port, self.tokens, self.run = port, tokens, run
        self.cookies: dict[str, dict[str, str]] = {name: {} for name in tokens}
        self.drafts: set[tuple[str, str]] = set()

    def work(self) -> int:
        idle = 0
        while idle < len(self.tokens):
            for name in self.tokens:
                try:
                    idle = 0 if self._judge_one(name) else idle + 1
                except (OSError, http.client.HTTPException):  # it was killed
                    time.sleep(0.02)
                    idle = 0
        return 0

    def _judge_one(self, name: str) -> bool:
        """Returns whether there was anything to do."""
        status, where, _ = self._ask(name, "GET", "/next")
        if where.startswith("/login"):
            self._log_in(name)
            return True
        if where == "/":
            return False
        pair = where.removeprefix("/pairs/")
        status, _, page = self._ask(name, "GET", where)
        if status != 200:
            return True
        known = fields_of(page)
        decision, wanted = self._opinion(name, pair, known)
        if (name, pair) in self.drafts and not all(known[key] == wanted[key] for key in ("question", "note")):
            _append(self.run / "missed.txt", f"the draft of {name} about pair {pair}")
        if (name, pair) not in self.drafts and self._save(name, pair, known, wanted):
            self.drafts.add((name, pair))
            return True
        status, where, _ = self._ask(name, "POST", f"/pairs/{pair}", form={**known, **wanted, "decision": decision})
        if status == 303:
            _append(self.run / "acknowledged.txt", f"{name} {pair} {decision}")
        return True

    def _opinion(self, name: str, pair: str, known: Fields) -> tuple[str, Fields]:
        dice = hashlib.sha256(f"{name} {pair}".encode()).digest()[0]
        decision = ("accept", "accept", "edit", "reject")[dice % 4]
        question = str(known["question"])
        if decision == "edit" and not question.endswith(name):
            question += f" Asks {name}"
        return decision, {"question": question, "note": f"{name} on {pair}"}

    def _save(self, name: str, pair: str, known: Fields, wanted: Fields) -> bool:
        """Save a draft; returns whether that was acknowledged."""
        typed = {key: {**known, **wanted}[key] for key in ("question", "answer", "note", "draft")}
        objects = [int(number) if number else None for number in known["objects"]]
        sent = {**typed, "objects": objects, "order": [], "version": int(str(known["version"]))}
        status, _, _ = self._ask(name, "POST", f"/pairs/{pair}/draft", script=sent, token=str(known["form_token"]))
        return status == 200

    def _log_in(self, name: str) -> None:
        _, _, page = self._ask(name, "GET", "/login")
        self._ask(name, "POST", "/login", form={**fields_of(page), "token": self.tokens[name]})

    def _ask(
        self, name: str, method: str, path: str, form: Fields | None = None, script: Any = None, token: str = ""
    ) -> tuple[int, str, str]:
        """(status, where to, page)."""
        headers = {"Cookie": "; ".join(f"{key}={value}" for key, value in self.cookies[name].items())}
        headers |= {"Origin": f"http://127.0.0.1:{self.port}"} if method == "POST" else {}
        body = None
        if form is not None:
            headers["Content-Type"], body = "application/x-www-form-urlencoded", urlencode(form, doseq=True)
        if script is not None:
            headers |= {"Content-Type": "application/json", "X-Form-Token": token}
            body = json.dumps(script)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode()
            for cookie in response.headers.get_all("Set-Cookie") or ():
                key, _, value = cookie.partition(";")[0].partition("=")
                self.cookies[name][key] = value
            return response.status, response.headers.get("Location", ""), text
        finally:
            connection.close()


def fields_of(page: str) -> Fields:
    """The last form of a page as a browser would send it."""
    form = page[page.rindex("<form") :]
    hidden = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)
    found: Fields = {name: html.unescape(value) for name, value in hidden}
    for name, value in re.findall(r'<textarea[^>]* name="(\w+)"[^>]*>([^<]*)</textarea>', form):
        found[name] = html.unescape(value)
    selects: Sequence[str] = re.findall(r'<select name="objects">(.*?)</select>', form, re.DOTALL)
    chosen = [re.search(r'value="(\d+)" selected', options) for options in selects]
    found["objects"] = [match[1] if match else "" for match in chosen]
    return found


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
