#!/usr/bin/env python
"""Measure how a training's records open: a generated file, opened twice, read at random, and counted in memory.

    python scripts/bench_dataset.py --images 200000 --pairs 10 --folder /scratch/bench --out docs/results/dataset_scale

Every figure comes from a process of its own: the first opening, which makes the rows, the second, a loader process
beside it, and (with --parsed) the whole file as Python objects, which is what each process would hold without rows.
The file stays in --folder; pictures are not made, so the checks of pictures are not part of it.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aura.data.selection import conversation_counts, pictures, records_digest
from aura.files import write_json, write_text
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.masks import encode_rle

SIZE = (480, 640)
OBJECTS = 5
READ = 2000
"""Samples that are read at random."""
PAPER = 2_300_000
"""Pairs of the largest training set that is meant to open."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000, metavar="N", help="images (%(default)s)")
    parser.add_argument("--pairs", type=int, default=10, metavar="N", help="pairs of each (%(default)s)")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="for the generated file")
    parser.add_argument("--out", type=Path, metavar="PATH", help="write PATH.json and PATH.md")
    parser.add_argument("--parsed", action="store_true", help="measure the whole file in memory too")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"bench_{options.images}_{options.pairs}.json"
    if not path.is_file():
        generate(path, options.images, options.pairs)
    for rows in options.folder.glob(f".{path.name}*"):
        rows.unlink()
    figures: dict[str, Any] = {
        "images": options.images,
        "pairs": options.images * options.pairs,
        "objects": options.images * OBJECTS,
        "file_mib": path.stat().st_size / 2**20,
        "first_open": alone(open_file, path),
        "second_open": alone(open_file, path),
        "loader_process": alone(read_some, path),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
    }
    figures["rows_mib"] = next(options.folder.glob(f".{path.name}.rows*")).stat().st_size / 2**20
    if options.parsed:
        figures["parsed"] = alone(parse, path)
    text = as_markdown(figures)
    print(text)
    if options.out:
        write_json(options.out.with_suffix(".json"), figures, indent=1)
        write_text(options.out.with_suffix(".md"), text)
    return 0


def generate(path: Path, images: int, pairs: int) -> None:
    """Write a file of ``images`` records, each with a few objects and ``pairs`` conversations, a piece at a time."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = []
    for _ in range(50):
        y, x, height, width = rng.integers((100, 150, 40, 50), (380, 490, 160, 240))
        wave = 1 + 0.2 * np.sin(np.arctan2(rows - y, columns - x) * rng.integers(3, 9))
        masks.append(encode_rle(((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < wave))

    def annotation(number: int, image: int) -> dict[str, Any]:
        mask = masks[number % len(masks)]
        record = {"id": number, "image_id": image, "category_id": 1 + number % 80, "segmentation": mask}
        boxes = {"area": 20000, "bbox": [100.0, 100.0, 200.0, 150.0], "visible_bbox": [100.0, 100.0, 200.0, 150.0]}
        state = {"occlude_rate": 0.25, "occluded_by": [], "iscrowd": 0, "invisible_mask": mask}
        return {**record, "visible_mask": mask, **boxes, **state}

    def conversation(number: int, image: int) -> dict[str, Any]:
        question = (
            f"Which two things could a person use here to have a drink, and what hides a part of number {number}?"
        )
        answer = "A person could drink from the cup [SEG], a part of which is hidden by the book [SEG]."
        turn = {"question": question, "answer": answer, "objects": [OBJECTS * image, OBJECTS * image + 1]}
        return {"id": number, "image_id": image, "turns": [turn], "provenance": {"generator": "offline", "seed": 0}}

    lists: dict[str, tuple[int, Callable[[int], dict[str, Any]]]] = {
        "categories": (80, lambda n: {"id": n + 1, "name": f"thing {n + 1}", "supercategory": ""}),
        "images": (images, lambda n: {"id": n, "file_name": f"{n:012d}.jpg", "height": SIZE[0], "width": SIZE[1]}),
        "annotations": (images * OBJECTS, lambda n: annotation(n, n // OBJECTS)),
        "conversations": (images * pairs, lambda n: conversation(n, n // pairs)),
    }
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info":{},"licenses":[]')
        for name, (count, record) in lists.items():
            file.write(f',"{name}":[')
            for number in range(count):
                file.write("," * bool(number) + json.dumps(record(number), separators=(",", ":")))
            file.write("]")
        file.write("}\n")


def alone(act: Callable[[Path], dict[str, float]], path: Path) -> dict[str, float]:
    """Figures of ``act`` in a fresh process, and its time and memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (act, path))


def _measured(act: Callable[[Path], dict[str, float]], path: Path) -> dict[str, float]:
    before, begin, worked = _peak(), time.perf_counter(), time.process_time()
    found = act(path)
    seconds = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - worked}
    return {**seconds, "peak_mib": _peak(), "own_mib": _peak() - before, **found}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def open_file(path: Path) -> dict[str, float]:
    """What rank 0 does before the checks: open, count, name the pictures, the identity's digest."""
    dataset = AmodalReasonSeg.load(path)
    assert conversation_counts(dataset).all() and records_digest(dataset)
    return {"pictures": sum(1 for _ in pictures(dataset))}


def read_some(path: Path) -> dict[str, float]:
    """What a loader process does: samples in random order."""
    dataset = AmodalReasonSeg.load(path)
    order = np.random.default_rng(0).permutation(len(dataset))
    begin = time.perf_counter()
    for position in order[:READ]:
        assert dataset[int(position)].conversations
    return {"milliseconds_a_sample": (time.perf_counter() - begin) / READ * 1000}


def parse(path: Path) -> dict[str, float]:
    """Every record as an object, in one process."""
    return {"images": len(AmodalReasonSeg(json.loads(path.read_text(encoding="utf-8")), source=path))}


def as_markdown(figures: dict[str, Any]) -> str:
    """The figures as a table, and what follows for the largest set."""
    names = {"first_open": "first opening (makes the rows)", "second_open": "every later opening"}
    names |= {"loader_process": f"a loader process, {READ} samples at random", "parsed": "the whole file as objects"}
    factor = PAPER / figures["pairs"]
    lines = [
        "# How training records open",
        "",
        f"`scripts/bench_dataset.py` on a made file: {figures['images']:,} images, {figures['objects']:,} objects, "
        f"{figures['pairs']:,} pairs ({figures['file_mib']:,.0f} MiB; rows: {figures['rows_mib']:,.0f} MiB); "
        f"{figures['machine']}.",
        "",
        "| process | seconds | of them CPU | memory of the records (MiB) |",
        "|---|---|---|---|",
    ]
    for key, name in names.items():
        if found := figures.get(key):
            lines.append(f"| {name} | {found['seconds']:.2f} | {found['cpu_seconds']:.2f} | {found['own_mib']:.0f} |")
    each = figures["loader_process"]["milliseconds_a_sample"]
    first = figures["first_open"]["cpu_seconds"] * factor / 60
    second = figures["second_open"]["cpu_seconds"] * factor
    lines += [
        "",
        f"A sample is read in {each:.2f} ms. Memory is the peak above that of a process that has imported the library.",
        "",
        f"By the same rates {PAPER:,} pairs take {first:.1f} minutes of one core once, and {second:.1f} s at every "
        "later start.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
