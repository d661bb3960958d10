"""What ``scripts/bench_train.py`` and ``scripts/bench_eval.py`` share: options, the rows of a section, its charts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from aura import environment
from aura.bench import measure, page
from aura.bench.sizes import SIZES
from aura.bench.work import MODES, Mode

SWEEPS: dict[str, list[Any]] = {
    "conversations": [1, 2, 3, 5, 8, 11],
    "objects": [1, 2, 4, 8],
    "height": [240, 480, 960, 1920],
}
TITLES = {"conversations": "questions", "objects": "objects a question", "height": "height of the image (4:3)"}


def options(argv: Sequence[str] | None, program: str, about: str | None) -> argparse.Namespace:
    """The command line's, with the device ready."""
    parser = argparse.ArgumentParser(
        prog=program, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["mini", "small", "medium"], metavar="SIZE")
    parser.add_argument("--questions", nargs="+", type=int, default=[1, 3, 11], metavar="N", help="(1 3 11)")
    parser.add_argument("--sweep", choices=list(SIZES), metavar="SIZE", help="size of the charts (default: none)")
    parser.add_argument("--repeat", type=int, default=2, metavar="N", help="timings of which the median counts (2)")
    parser.add_argument("--no-memory", action="store_true", help="without the processes that measure memory")
    parser.add_argument("--device", default="cpu", help="cpu (default), or such as cuda")
    parser.add_argument("--out", type=Path, metavar="PATH", help="write PATH.json, PATH.md and charts in PATH/")
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    found = parser.parse_args(argv)
    environment.prepare()  # the allocator, as in every command that computes
    found.device = torch.device(found.device)
    if found.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    return found


def rows_of(
    chosen: argparse.Namespace, task: str, script: str, modes: Sequence[Mode] = MODES
) -> Iterator[dict[str, Any]]:
    """One for each size and number of questions, each with its ways' seconds, parts and memory, as they come."""
    for size in chosen.sizes:
        model = measure.model_of(size, chosen.device)
        for questions in chosen.questions:
            row = measure.compare(model, size, task, repeat=chosen.repeat, modes=modes, conversations=questions)
            if not chosen.no_memory:
                for mode in modes:
                    asked = {"size": size, "task": task, "mode": mode, "device": str(chosen.device)}
                    row[mode] |= measure.peak_elsewhere(script, {**asked, "changes": {"conversations": questions}})
            print(line_of(row, modes), flush=True)
            yield row


def sweeps(chosen: argparse.Namespace, task: str) -> Iterator[dict[str, Any]]:
    """Charts of one size's seconds against questions, objects and the image's size."""
    if chosen.sweep is None:
        return
    model = measure.model_of(chosen.sweep, chosen.device)
    for field, values in SWEEPS.items():
        rows = []
        for value in values:
            changes = {field: value, **({"width": value * 4 // 3} if field == "height" else {})}
            rows.append(measure.compare(model, chosen.sweep, task, repeat=1, **changes))
            print(f"{field} {value}: {line_of(rows[-1])}", flush=True)
        title = f"{task}, {chosen.sweep}: against {TITLES[field]}"
        yield page.chart(rows, MODES, field, file=f"{task}_{field}", title=title, x=TITLES[field])


def line_of(row: dict[str, Any], modes: Sequence[Mode] = MODES) -> str:
    """A row in a line, for the terminal."""
    ways = (
        f"{mode} {row[mode]['seconds']:.3g} s (CPU {row[mode]['cpu_seconds']:.3g}"
        + (f", {row[mode]['peak_gib']:.2f} GiB)" if "peak_gib" in row[mode] else ")")
        for mode in modes
    )
    return f"{row['size']}, {row['task']}, {row.get('conversations', 3)} questions: {', '.join(ways)}"


def answer_row(row: dict[str, Any]) -> int:
    """The memory of one row, asked for by :func:`measure.peak_elsewhere`."""
    found = measure.peak(row["size"], row["task"], row["mode"], torch.device(row["device"]), row["changes"])
    print(json.dumps(found))
    return 0


def complain(program: str, error: Exception) -> int:
    print(f"{program}: {error}", file=sys.stderr)
    return 2
