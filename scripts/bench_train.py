#!/usr/bin/env python
"""A training step the plain way and ours: seconds, CPU seconds, peak memory, parts, and how they grow.

    python scripts/bench_train.py --sweep medium --out docs/results/performance
    python scripts/bench_train.py --sizes medium --questions 3 --device cuda

Random weights at three sizes; all ways compute the same loss in one process on the same weights, in turns. Memory is
that of a process of its own for each row. Nothing here is a test: times depend on the machine.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from aura.bench import command, measure, modules, page
from aura.bench.work import TRAIN_MODES

PROGRAM = "bench_train.py"


def section(
    chosen: argparse.Namespace,
    rows: list[dict[str, Any]],
    alone: list[dict[str, Any]],
    charts: list[dict[str, Any]],
) -> dict[str, Any]:
    """What the page says so far."""
    return {
        "title": "A training step",
        "made_by": f"scripts/{PROGRAM}",
        "machine": measure.machine(chosen.device),
        "about": "Forward, losses, backward and AdamW, in fp32; *bf16* is *cached* under `train.autocast: bf16`.",
        "tables": [*page.tables(rows, TRAIN_MODES, "A training step"), *alone],
        "charts": charts,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 with one line on stderr."""
    chosen = command.options(argv, PROGRAM, __doc__)
    if chosen.row is not None:
        return command.answer_row(chosen.row)
    rows: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    charts: list[dict[str, Any]] = []

    def keep() -> None:
        if chosen.out is not None:
            page.put(chosen.out, "train", section(chosen, rows, alone, charts))

    try:
        for row in command.rows_of(chosen, "train", __file__, TRAIN_MODES):
            rows.append(row)
            keep()
        for size in chosen.sizes:
            alone.append(modules.alone(measure.model_of(size, chosen.device), size))
            keep()
        for chart in command.sweeps(chosen, "train"):
            charts.append(chart)
            keep()
    except (ValueError, OSError) as error:
        return command.complain(PROGRAM, error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
