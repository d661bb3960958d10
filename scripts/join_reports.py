#!/usr/bin/env python
"""Put reports of several methods, protocols or data sets into one table, a row each.

    python scripts/join_reports.py "AURA=runs/photos/eval/scenes/teacher_forced" "SAM=runs/photos/lines/visible_box" \
        --out runs/photos/table.md

A report is a folder with a report.json, as eval.py, scripts/score_predictions.py and scripts/reference_lines.py write
them. OUT ends in .md (the table, and JSON of all figures beside it), and is printed.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import sys
from pathlib import Path

from rich.console import Console

from aura.evaluation.report import read_figures
from aura.evaluation.tables import as_markdown, as_rich, overview_table
from aura.files import write_json, write_text


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can mend (with one line on stderr)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", metavar="NAME=REPORT", help="the row's name, and where its report is")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the table there")
    options = parser.parse_args(argv)
    if options.out and options.out.suffix != ".md":
        parser.error(f"--out {options.out} must end in .md")
    try:
        figures = {}
        for entry in options.reports:
            name, separator, path = entry.partition("=")
            if not separator or name in figures:
                raise ValueError(f"a report is NAME=REPORT with a name of its own, got {entry!r}")
            figures[name] = read_figures(path)
        table = overview_table(figures)
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, Console(width=1000).measure(as_rich(table, ruled=False)).maximum)
        console.print(as_rich(table, ruled=False))
        if options.out:
            write_json(options.out.with_suffix(".json"), figures, indent=1)
            write_text(options.out, as_markdown(table))
    except (ValueError, OSError) as error:
        print(f"join_reports.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
