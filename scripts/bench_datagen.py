#!/usr/bin/env python
"""Pairs per second and peak memory of a data generation run, against a server on this machine.

    python scripts/bench_datagen.py --images 1000 10000 100000 --out docs/results/datagen_scale

Everything is real but the model: prompts with pictures, HTTP, the checks, the store with its flushes to disk. The
server waits --latency seconds and answers with ten pairs. One picture and its annotations stand for all images, with
numbers of their own. "Ideal" is what --concurrency requests at a time with that latency can give at most. Each size
runs in a process of its own, so that its peak memory is its own. --out NAME writes NAME.json and NAME.md after each
size; sizes that an earlier run measured stay in them.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import asyncio
import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Column, Table

from aura.datagen.checks.rules import PairChecker
from aura.datagen.generate import Run
from aura.datagen.settings import api_settings
from aura.datagen.store.images import ImageEntry, Source
from aura.datagen.store.jobs import Recipe
from aura.datagen.store.store import Store
from aura.files import write_text
from aura.formats.sources import AnnotatedImage, with_occluders
from aura.masks import encode_rle
from aura.targets import occlusion_rate
from aura.types import AmodalObject

MODEL = "bench"
SIZE = (480, 640)
CATEGORIES = ("cup", "dining table", "banana", "chair", "book", "cat", "vase", "clock", "knife", "bowl")
QUESTIONS = (
    "What could keep my tea warm for a while?",
    "Where would the family gather this evening?",
    "Which of these might a hungry child peel?",
    "What would a tired guest look for first?",
    "What might help me fall asleep in bed?",
    "Who would leap at a ball of yarn?",
    "What deserves fresh water and some tulips?",
    "How would I notice that I am late?",
    "What must stay out of reach of toddlers?",
    "What would soup need before it is served?",
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000], metavar="N", help="sizes (default 1000)")
    parser.add_argument("--concurrency", type=int, default=64, help="requests at a time (default 64)")
    parser.add_argument("--latency", type=float, default=0.5, help="seconds that the server takes (default 0.5)")
    parser.add_argument("--folder", type=Path, help="where projects are made (default: a temporary folder)")
    parser.add_argument("--out", type=Path, metavar="NAME", help="write the figures to NAME.json and NAME.md")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        asyncio.run(serve(options.latency))
        return 0
    if min(*options.images, options.concurrency) < 1 or options.latency < 0:
        parser.error("--images and --concurrency must be positive, --latency must not be negative")
    if options.one:
        print(json.dumps(bench(options.one, options.url, options.concurrency, options.folder)))
        return 0
    measured = read_figures(options.out) if options.out else {}
    with tempfile.TemporaryDirectory() as temporary:
        for number in options.images:
            measured[number] = measure(number, options, options.folder or Path(temporary))
            if options.out:
                write_figures(options.out, measured)
    show([measured[number] for number in options.images])
    return 0


def measure(number: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One size, with a server and a process of its own."""
    command = [sys.executable, __file__, f"--latency={options.latency}"]
    with subprocess.Popen([*command, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            more = [f"--one={number}", f"--url={url}", f"--concurrency={options.concurrency}", f"--folder={folder}"]
            done = subprocess.run([*command, *more], stdout=subprocess.PIPE, text=True, check=True)
            return {**json.loads(done.stdout), "latency": options.latency, "cpus": os.cpu_count()}
        finally:
            server.terminate()


def bench(number: int, url: str, concurrency: int, folder: Path) -> dict[str, Any]:
    """Make a project of ``number`` images, run it, and say what that took; memory in MiB, of this process."""
    # Here, so that what it takes to load is not in the peak before the run.
    from aura.datagen.generators import make_generator

    project = folder / f"bench-{number}"
    project.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (*(side // 8 for side in SIZE), 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(SIZE[::-1]).save(project / "picture.jpg")
    for file in project.glob("project.sqlite*"):
        file.unlink()
    with Store.create(project / "project.sqlite", sources=[Source("none", str(project))]) as store:
        began = time.perf_counter()
        store.images.add(entries(number))
        init_seconds, before = time.perf_counter() - began, peak()
        api = {"model": MODEL, "base_url": url, "concurrency": concurrency}
        generator = make_generator("openai", api_settings(api))
        recipe = Recipe("openai", MODEL, "bench", len(QUESTIONS))

        def check(image: AnnotatedImage, pairs: Any, kept: Any) -> Any:
            return PairChecker(image).check_all(pairs)

        async def run() -> int:
            try:
                return (await Run(store, generator, recipe, check=check).run()).pairs
            finally:
                await generator.close()

        began, cpu = time.perf_counter(), time.process_time()
        pairs = asyncio.run(run())
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        status = store.status()
    assert status.images["generated"] == number, status
    return {
        "images": number,
        "concurrency": concurrency,
        "pairs": pairs,
        "calls": sum(status.calls.values()),
        "init_seconds": round(init_seconds, 2),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "pairs_per_second": round(pairs / seconds, 1),
        "peak_mib_before": round(before, 1),
        "peak_mib": round(peak(), 1),
        "project_mib": round((project / "project.sqlite").stat().st_size / 2**20, 1),
    }


def peak() -> float:
    """The most memory that this process ever held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would count what the parent held when it made this process.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found.group(1)) / 2**10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def entries(number: int) -> Iterator[ImageEntry]:
    """The same image under ``number`` numbers."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    objects, taken = [], np.zeros(SIZE, bool)
    for n, category in enumerate(CATEGORIES):
        amodal = (rows - 60 - 40 * n) ** 2 + (columns - 60 - 55 * n) ** 2 < 50**2
        visible = amodal & ~taken
        taken |= amodal
        rate = float(occlusion_rate(visible, amodal))
        objects.append(AmodalObject(n, category, encode_rle(visible), encode_rle(amodal), rate))
    found = with_occluders(objects)
    for image_id in range(1, number + 1):
        first = image_id * len(objects)
        own = tuple(
            dataclasses.replace(o, id=first + o.id, occluded_by=tuple(first + i for i in o.occluded_by)) for o in found
        )
        yield ImageEntry(AnnotatedImage(image_id, "picture.jpg", *SIZE, own), "train", 0, "")


COLUMNS = {
    "images": "{images:,}",
    "pairs": "{pairs:,}",
    "at a time": "{concurrency}",
    "server's seconds": "{latency:g}",
    "pairs/s": "{pairs_per_second:,}",
    "ideal": "{ideal}",
    "CPU ms/image": "{cpu_ms:.1f}",
    "peak MiB": "{peak_mib}",
    "... before the run": "{peak_mib_before}",
    "project MiB": "{project_mib}",
    "minutes": "{minutes:.1f}",
}


def row_of(figures: dict[str, Any]) -> list[str]:
    """The cells of a size."""
    ideal = figures["concurrency"] / figures["latency"] * len(QUESTIONS) if figures["latency"] else None
    more = {
        "ideal": "" if ideal is None else f"{ideal:,.0f}",
        "cpu_ms": 1000 * figures["cpu_seconds"] / figures["images"],
        "minutes": figures["seconds"] / 60,
    }
    return [cell.format(**figures, **more) for cell in COLUMNS.values()]


def show(figures: list[dict[str, Any]]) -> None:
    table = Table("", *(Column(justify="right") for _ in figures), show_header=False)
    for name, *cells in zip(COLUMNS, *map(row_of, figures), strict=True):
        table.add_row(name, *cells)
    Console(highlight=False).print(table)


def read_figures(out: Path) -> dict[int, dict[str, Any]]:
    """What earlier runs wrote, by size."""
    path = out.with_suffix(".json")
    return {size["images"]: size for size in json.loads(path.read_text())["sizes"]} if path.exists() else {}


def write_figures(out: Path, measured: dict[int, dict[str, Any]]) -> None:
    sizes = [measured[number] for number in sorted(measured)]
    write_text(out.with_suffix(".json"), json.dumps({"sizes": sizes}, indent=1) + "\n")
    lines = [list(COLUMNS), ["---:"] * len(COLUMNS), *map(row_of, sizes)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    write_text(out.with_suffix(".md"), EXPLAINED.format(table=table))


EXPLAINED = """\
# A data generation run, measured

`scripts/bench_datagen.py`: prompts with pictures, HTTP, checks and store are real; a server on the same machine takes
the model's place. "Ideal" is what that many requests at a time can give at that server's pace; "peak" is the most
memory that the process of the run ever held, "before the run" the most until its images were in the project.

{table}
"""


# --- the server -------------------------------------------------------------------------------------------------------


async def serve(latency: float) -> None:
    """Speak as much of the API as a run needs; prints its base URL first, then serves until it is stopped."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
                request = await reader.readexactly(int(length.group(1)) if length else 0)
                await asyncio.sleep(latency)
                body = answer(request)
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                    + body
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=1 << 20)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def answer(request: bytes) -> bytes:
    """A completion with one pair for each object of the prompt's table."""
    text = json.loads(request)["messages"][1]["content"][0]["text"]
    objects = re.findall(r"^(\d+) \| ([^|]+) \|", text, re.MULTILINE)
    pairs = [
        {"question": question, "answer": f"That would be the {category} [SEG].", "objects": [int(i)], "follows": None}
        for question, (i, category) in zip(QUESTIONS, objects, strict=False)
    ]
    message = {"role": "assistant", "content": json.dumps({"pairs": pairs}), "refusal": None}
    completion = {
        "id": "bench",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1500, "completion_tokens": 400, "total_tokens": 1900},
    }
    return json.dumps(completion).encode()


if __name__ == "__main__":
    raise SystemExit(main())
