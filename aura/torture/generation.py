"""Data generation by two processes: what was answered stays, nothing is paid twice, and the pairs are the same."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from PIL import Image

from aura.datagen.generators import GeneratorKind
from aura.files import write_text
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.sources import AnnotatedImage, with_occluders
from aura.masks import encode_rle
from aura.torture import service
from aura.torture.processes import Command, fork, program, send
from aura.types import AmodalObject

SCRIPT = "scripts/build_dataset.py"
SIZE = (48, 64)
PRICE = {"input": 1.0, "output": 10.0}
"""Per million tokens."""


def make_source(folder: Path, num_images: int) -> None:
    """``annotations.json`` and ``pictures``: cups in front of books, each image another place."""
    (folder / "pictures").mkdir(parents=True)
    images = []
    for number in range(1, num_images + 1):
        cup, book = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
        x, y = number % 11, number // 11 % 7
        cup[6 + y : 34 + y, 4 + x : 24 + x], book[16 + y : 40 + y, 14 + x : 50 + x] = True, True
        visible = book & ~cup
        shapes = (("cup", cup, cup), ("book", visible, book))
        objects = [
            AmodalObject(10 * number + n, name, encode_rle(seen), encode_rle(whole), 1 - seen.sum() / whole.sum())
            for n, (name, seen, whole) in enumerate(shapes)
        ]
        Image.new("RGB", SIZE[::-1], (90, 120, number % 256)).save(folder / "pictures" / f"{number}.png")
        images.append(AnnotatedImage(number, f"{number}.png", *SIZE, with_occluders(tuple(objects))))
    AmodalReasonSeg.build(images, {}, source=folder / "annotations.json").save()


def settings_of(source: Path, generator: dict[str, Any]) -> dict[str, Any]:
    """A project over :func:`make_source`'s folder."""
    files = {"annotations": str(source / "annotations.json"), "images": str(source / "pictures"), "split": "train"}
    return {"project": "none", "sources": [files], "generator": generator}


def commands(config: Path, project: Path, *names: str) -> None:
    """Run commands of the script to their end, in processes of their own.

    Raises:
        SystemExit: One fails.
    """
    for name in names:
        output = project.with_suffix(".txt")
        act = program(SCRIPT, [name, "--config", str(config), "--project", str(project)])
        _, status = os.waitpid(fork(act, output), 0)
        if status:
            raise SystemExit(f"torture.py: {SCRIPT} {name} fails; see {output}")


class GenerationKind:
    """``kind`` is the generator's; ``openai-batch`` works alone, since its folder belongs to one process."""

    victims = Command.VICTIMS

    def __init__(self, kind: GeneratorKind, out: Path, num_images: int) -> None:
        self.kind, self.name = kind, f"generation_{kind.replace('-', '_')}"
        self.num_processes = 1 if kind == "openai-batch" else 2
        self._template = out / f"{self.name}_template"
        self._num_images = num_images
        self._service: int | None = None
        self._answered: dict[Path, dict[str, int]] = {}

    def new(self, run: Path) -> None:
        if not self._template.exists():
            make_source(self._template, self._num_images)
            self._configure(self._template, 9)
            commands(self._template / "config.yaml", self._template / "project", "init")
        shutil.copytree(self._template / "project", run / "project")
        self.close()
        listening = socket.create_server(("127.0.0.1", 0))
        if self.kind != "offline":
            self._service = fork(lambda: service.serve(listening, run / "ledger.txt"))
        self._configure(run, listening.getsockname()[1])
        listening.close()

    def _configure(self, folder: Path, port: int) -> None:
        api = {
            **{"model": "m", "base_url": f"http://127.0.0.1:{port}/v1", "concurrency": 3, "prices": {"m": PRICE}},
            **{"linger": 0.2, "poll_every": 0.05},
        }
        generator = {"kind": self.kind, "pairs_per_image": 3, **({} if self.kind == "offline" else {"api": api})}
        write_text(folder / "config.yaml", yaml.safe_dump(settings_of(self._template, generator)))

    def start(self, run: Path) -> Command:
        arguments = ["generate", "--config", str(run / "config.yaml"), "--project", str(run / "project")]
        return Command([program(SCRIPT, arguments)] * self.num_processes, run / "output.txt")

    def trace(self, run: Path) -> Path:
        return run / "project" / "project.sqlite-wal"

    def result(self, run: Path) -> Any:
        """Every pair, by image and place, and what all of them cost."""
        with _database(run) as database:
            pairs = database.execute(
                "SELECT i.image_id, p.position, p.state, f.position, v.version, v.question, v.answer, v.objects, "
                "v.reason, v.problems FROM pairs p JOIN images i ON i.id = p.image "
                "JOIN pair_versions v ON v.pair = p.id LEFT JOIN pairs f ON f.id = p.follows ORDER BY 1, 2, v.version"
            ).fetchall()
            images = database.execute("SELECT image_id, state FROM images ORDER BY 1").fetchall()
            cost = database.execute("SELECT round(sum(cost), 9) FROM calls").fetchone()
        return pairs, images, cost

    def lost(self, run: Path) -> list[str]:
        """Answers that were stored and are gone, keys that were charged twice or asked again though answered."""
        found = []
        before = self._answered.setdefault(run, {})
        with _database(run) as database:
            rows = database.execute("SELECT key FROM calls WHERE outcome = 'answered'").fetchall()
        answered = {key for (key,) in rows}
        found += [f"the answer to {key} is gone" for key in before.keys() - answered]
        ledger = run / "ledger.txt"
        entries = Counter(ledger.read_text().splitlines()) if ledger.is_file() else Counter()
        charged = {line: times for line, times in entries.items() if line.startswith("charged")}
        found += [f"{line} {times} times" for line, times in charged.items() if times > 1]
        for key in answered:
            asked = entries[f"asked {key}"]
            if asked > before.setdefault(key, asked):
                found.append(f"{key} was answered, and was asked again")
        if self.kind != "offline" and len(answered) != len(rows):
            found.append("an answer is stored twice")
        return found

    def close(self) -> None:
        if self._service is not None:
            send([psutil.Process(self._service)], signal.SIGKILL)
            os.waitpid(self._service, 0)
            self._service = None


@contextlib.contextmanager
def _database(run: Path) -> Any:
    connection = sqlite3.connect(run / "project" / "project.sqlite", timeout=60)
    try:
        yield connection
    finally:
        connection.close()
