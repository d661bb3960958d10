"""Draw a run, finished or not, from the files in its folder: ``python scripts/plot_run.py runs/mini``.

Writes RUN/report.html, one file to look at or to send, and RUN/report.md. A run does so itself at its end.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from aura.train.page import write_page


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can mend (with one line on stderr)."""
    parser = argparse.ArgumentParser(prog="plot_run.py", description="Curves, tables and examples of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as runs/mini")
    try:
        for path in write_page(parser.parse_args(argv).run):
            print(path)
    except (ValueError, OSError) as error:
        print(f"plot_run.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
