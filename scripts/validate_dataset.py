#!/usr/bin/env python
"""Check every invariant of AmodalReasonSeg files and print their statistics.

    python scripts/validate_dataset.py data/mini/mini_train.json data/mini/mini_test.json
    python scripts/validate_dataset.py my_train.json --images photos/

Two or more files must also share no image. Exit code 0: sound; 1: problems, each listed by record; 2: cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from aura.formats.amodal_reason_seg import AmodalReasonSeg, image_folder
from aura.formats.checks import problems, shared_images
from aura.formats.reading import read_json_object


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="AmodalReasonSeg files, such as two splits")
    parser.add_argument(
        "--images",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of the pictures, once for all FILEs or once for each",
    )
    parser.add_argument("--no-images", action="store_true", help="check the records only, open no picture")
    options = parser.parse_args(arguments)
    if len(options.images) not in (0, 1, len(options.files)):
        parser.error(f"--images is given {len(options.images)} times for {len(options.files)} files")
    try:
        documents = [read_json_object(path) for path in options.files]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folders = options.images * (len(documents) if len(options.images) == 1 else 1) or [
        image_folder(document, path) for document, path in zip(documents, options.files, strict=True)
    ]
    console = Console(stderr=False, highlight=False)
    found = 0
    for path, document, folder in zip(options.files, documents, folders, strict=True):
        found += _check(console, path, document, None if options.no_images else folder)
    for one, other in combinations(range(len(documents)), 2):
        pair = None if options.no_images else (folders[one], folders[other])
        shared = shared_images(documents[one], documents[other], pair)
        _list(console, f"{options.files[one]} and {options.files[other]}", [str(problem) for problem in shared])
        found += len(shared)
    console.print(Text(f"{found} problems" if found else "no problems", style="bold red" if found else "bold green"))
    return 1 if found else 0


def _check(console: Console, path: Path, document: dict[str, Any], folder: Path | None) -> int:
    """List the file's problems and, if it can be read, its statistics; returns how many problems there are."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(path.name, total=None)
        found = problems(
            document, images=folder, progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    _list(console, str(path), [str(problem) for problem in found])
    try:
        console.print(_table(path, AmodalReasonSeg(document, images=folder, source=path).statistics()))
    except ValueError as error:
        console.print(Text(f"no statistics: {error}", style="yellow"))
        return max(len(found), 1)
    return len(found)


def _list(console: Console, title: str, lines: list[str]) -> None:
    if lines:
        console.print(Text(f"{title}: {len(lines)} problems", style="bold red"))
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)


def _table(path: Path, figures: dict[str, Any]) -> Table:
    table = Table(title=str(path), show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for key, value in figures.items():
        if key != "occlusion_histogram":
            table.add_row(key.replace("_", " "), _shown(value))
    largest = max([*figures["occlusion_histogram"], 1])
    table.add_section()
    for bin_number, count in enumerate(figures["occlusion_histogram"]):
        bar = "█" * round(20 * count / largest)
        table.add_row(f"occlusion {bin_number / 10:.1f} to {(bin_number + 1) / 10:.1f}", f"{bar} {count}")
    return table


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {count}" for key, count in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
