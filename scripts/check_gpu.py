#!/usr/bin/env python
"""Prove on one GPU, within 8 minutes, as much as can be proved: before you rent eight of them.

    python scripts/check_gpu.py --out gpu_check
    python scripts/check_gpu.py --out gpu_check --seconds 300 --only 0,4,7
    python scripts/check_gpu.py --out gpu_check --scale tiny        # rehearses every section on a CPU

Needs no weights and no data: the 7B model gets random weights on the device, the mini model is in the repository. Every
section has a deadline of its own and leaves one line in OUT/gpu.jsonl at once; OUT/gpu.md and OUT/gpu.json are the
table, with the GPU's name. Exit code 0: nothing was disproved; 1: something was, or broke; 2: the options are wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # on a new machine nothing but this folder is there

from aura import environment

environment.command_line(__name__)

from rich.console import Console

from aura.gpucheck.runner import run
from aura.gpucheck.sections import BY_NUMBER, SECTIONS


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    listed = "\n".join(f"  {section.number:2} {section.title}" for section in SECTIONS)
    parser = argparse.ArgumentParser(
        prog="check_gpu.py",
        description=__doc__,
        epilog=f"sections:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), metavar="DIR", help="results (gpu_check)")
    parser.add_argument(
        "--seconds", type=float, default=480, metavar="N", help="in all; what no longer fits is skipped"
    )
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="tiny: a rehearsal on a CPU")
    parser.add_argument("--only", metavar="N,N", help="these sections alone")
    parser.add_argument("--write-trace", action="store_true", help="make section 11's CPU trace anew, and end")
    options = parser.parse_args(argv)
    if options.seconds <= 0:
        parser.error(f"--seconds must be positive, got {options.seconds:g}")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out} is a file; give a folder")
    try:
        chosen = [int(number) for number in options.only.split(",")] if options.only else list(BY_NUMBER)
    except ValueError:
        chosen = [-1]
    if not set(chosen) <= set(BY_NUMBER):
        parser.error(f"--only takes numbers of sections, such as 0,4,7, got {options.only!r}")
    options.only = [number for number in BY_NUMBER if number in chosen]
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options, console = parse(argv), Console()
    if options.write_trace:
        from aura import environment

        environment.prepare()
        from aura.gpucheck.lab import Lab
        from aura.gpucheck.trace import write_trace

        with Lab(tiny=False, out=options.out) as lab:
            write_trace(lab)
        return 0

    def show(record: dict[str, object]) -> None:
        console.print(f"{record['section']:>2} {record['title']}: {record['verdict']}, {record['seconds']:.0f} s")

    try:
        report = run(options.only, scale=options.scale, out=options.out, seconds=options.seconds, on_record=show)
    except KeyboardInterrupt:
        console.print(f"stopped; what was seen until then is in {options.out / 'gpu.md'}")
        return 130
    console.print(report.as_table())
    console.print(f"{options.out / 'gpu.md'}, {options.out / 'gpu.json'}; what the sections said: gpu.log")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
