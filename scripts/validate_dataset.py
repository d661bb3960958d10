#!/usr/bin/env python
"""Check every invariant of AmodalReasonSeg files and print their statistics.

    python scripts/validate_dataset.py data/mini/mini_train.json data/mini/mini_test.json
    python scripts/validate_dataset.py my_train.json --images photos/
    python scripts/validate_dataset.py my_train.json --images photos/ --config configs/aura_7b.yaml

Two or more files must also share no image. With the --config layers of a training, every conversation is tokenised as
that training will, which reads the model's tokenizer and none of its weights. What was found about pictures and texts
is kept in a hidden file beside FILE, and serves the training's own check at its start. Exit code 0: sound; 1: problems,
each listed by record; 2: cannot be read.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from aura.config import load_config
from aura.data.findings import Findings
from aura.data.preflight import BadRecord, inspect_texts, read_pictures
from aura.data.selection import pictures
from aura.formats.amodal_reason_seg import AmodalReasonSeg, image_folder
from aura.formats.checks import problems, shared_images
from aura.formats.pictures import find_picture, name_flaw, orientation_note
from aura.formats.reading import read_json_object

if TYPE_CHECKING:
    from aura.data.conversations import ConversationTokenizer


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
    parser.add_argument(
        "--config", type=Path, action="append", metavar="YAML", help="a training's: check texts with its tokenizer too"
    )
    options = parser.parse_args(arguments)
    if len(options.images) not in (0, 1, len(options.files)):
        parser.error(f"--images is given {len(options.images)} times for {len(options.files)} files")
    try:
        documents = [read_json_object(path) for path in options.files]
        tokenizer = _tokenizer(options.config) if options.config else None
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folders = options.images * (len(documents) if len(options.images) == 1 else 1) or [
        image_folder(document, path) for document, path in zip(documents, options.files, strict=True)
    ]
    console = Console(stderr=False, highlight=False)
    found, kept = 0, [Findings(path) for path in options.files]
    for path, document, folder, findings in zip(options.files, documents, folders, kept, strict=True):
        found += _check(console, path, document, None if options.no_images else folder, findings, tokenizer)
    for one, other in combinations(range(len(documents)), 2):
        pair = None if options.no_images else (folders[one], folders[other])
        shared = shared_images(documents[one], documents[other], pair, _digest_by(kept[one], kept[other]))
        _list(console, f"{options.files[one]} and {options.files[other]}", [str(problem) for problem in shared])
        found += len(shared)
    console.print(Text(f"{found} problems" if found else "no problems", style="bold red" if found else "bold green"))
    return 1 if found else 0


def _tokenizer(layers: list[Path]) -> ConversationTokenizer:
    from aura.weights.text import load_text_side  # imports torch

    config = load_config(*layers)
    return load_text_side(config.model, config.data)


def _digest_by(*kept: Findings) -> Callable[[Path], str | None]:
    """The digest of a picture, from what is known of it where something is."""

    def digest(path: Path) -> str | None:
        known = (findings.known(path) for findings in kept)
        return next((facts.sha256 for facts in known if facts is not None), None) or None

    return digest


def _check(
    console: Console,
    path: Path,
    document: dict[str, Any],
    folder: Path | None,
    findings: Findings,
    tokenizer: ConversationTokenizer | None,
) -> int:
    """List the file's problems and, if it can be read, its statistics; returns how many problems there are."""
    if folder is not None:
        read_pictures(
            (find_picture(folder, name) for name in _file_names(document)), findings, name=f"{path.name}: pictures"
        )
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(path.name, total=None)
        found = problems(
            document,
            images=folder,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            examine=findings.facts,
        )
    lines = [str(problem) for problem in found]
    try:
        dataset = AmodalReasonSeg.load(path, folder)
    except (ValueError, OSError) as error:
        _list(console, str(path), lines)
        console.print(Text(f"no statistics: {error}", style="yellow"))
        return max(len(found), 1)
    if tokenizer is not None:
        known = " ".join(lines)
        texts = inspect_texts(dataset, tokenizer, findings, name=f"{path.name}: texts")
        lines += [record.reason for record in texts if not _is_told(record, known)]
    _list(console, str(path), lines)
    if folder is not None:
        _notes(console, dataset, findings)
    console.print(_table(path, dataset.statistics()))
    return len(lines)


def _is_told(record: BadRecord, known: str) -> bool:
    """Whether the record's own check has found a reserved token, which the tokenizer finds as well."""
    return "reserved token" in record.reason and f"conversation {record.conversation_id}, turn" in known


def _file_names(document: dict[str, Any]) -> list[str]:
    records = document.get("images")
    names = [r.get("file_name") for r in records if isinstance(r, dict)] if isinstance(records, list) else []
    return [name for name in names if isinstance(name, str) and name.strip() and name_flaw(name) is None]


def _notes(console: Console, dataset: AmodalReasonSeg, findings: Findings) -> None:
    """Print what no check can settle."""
    notes = [orientation_note(picture, findings.facts(picture.path)) for picture in pictures(dataset)]
    for note in filter(None, notes):
        console.print(Text(f"  note: {note}", style="yellow"), soft_wrap=True)


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
