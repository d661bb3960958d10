#!/usr/bin/env python
"""The evaluation of an image the plain way and ours: its true answers read, and answers written, with their masks.

    python scripts/bench_eval.py --sweep medium --out docs/results/performance
    python scripts/bench_eval.py --sizes medium --questions 3 --device cuda

As ``scripts/bench_train.py``, without gradients. The chart against the number of images is of whole data sets, read one
image after the other.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from aura.bench import command, measure, page
from aura.bench.work import MODES

PROGRAM = "bench_eval.py"
IMAGES = (1, 2, 4, 8, 16)


def data_sets(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """A chart of the seconds that whole data sets of the mini model take to be read."""
    if chosen.sweep is None:
        return []
    size = "tiny" if chosen.sweep == "tiny" else "mini"
    model = measure.model_of(size, chosen.device)
    series: dict[str, list[list[float]]] = {mode: [] for mode in MODES}
    sums = dict.fromkeys(MODES, 0.0)
    for number in range(max(IMAGES)):
        row = measure.compare(model, size, "read", repeat=1, seed=number)
        for mode in MODES:
            sums[mode] += row[mode]["cpu_seconds"]
            if number + 1 in IMAGES:
                series[mode].append([float(number + 1), sums[mode]])
    title = f"read, {size}: against the images of the data set"
    return [{"file": "read_images", "title": title, "x": "images", "y": "CPU seconds", "series": series}]


def section(
    chosen: argparse.Namespace, rows: dict[str, list[dict[str, Any]]], charts: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the page says so far."""
    titles = {"read": "Read", "write": "Written"}
    return {
        "title": "The evaluation of an image",
        "made_by": f"scripts/{PROGRAM}",
        "machine": measure.machine(chosen.device),
        "about": f"*Read*: teacher-forced. *Written*: {measure.TOKENS} tokens for each question, then its mask.",
        "tables": [table for task, found in rows.items() if found for table in page.tables(found, MODES, titles[task])],
        "charts": charts,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 with one line on stderr."""
    chosen = command.options(argv, PROGRAM, __doc__)
    if chosen.row is not None:
        return command.answer_row(chosen.row)
    rows: dict[str, list[dict[str, Any]]] = {"read": [], "write": []}
    charts: list[dict[str, Any]] = []

    def keep() -> None:
        if chosen.out is not None:
            page.put(chosen.out, "evaluation", section(chosen, rows, charts))

    try:
        for task, found in rows.items():
            for row in command.rows_of(chosen, task, __file__):
                found.append(row)
                keep()
        for chart in itertools.chain(command.sweeps(chosen, "read"), data_sets(chosen)):
            charts.append(chart)
            keep()
    except (ValueError, OSError) as error:
        return command.complain(PROGRAM, error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
