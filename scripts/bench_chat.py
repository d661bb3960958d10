#!/usr/bin/env python
"""A conversation about an image the plain way and ours: the first word, the first answer of 64 tokens, a follow-up.

    python scripts/bench_chat.py --out docs/results/performance_chat
    python scripts/bench_chat.py --sizes medium --tokens 16

On a CPU, in one process, on the same random weights. The masks of both ways must agree.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

PROGRAM = "bench_chat.py"
ABOUT = (
    "A question of 64 tokens and an answer of {tokens} with three masks, a follow-up of the same lengths, the first "
    "word of another conversation about the same image. *Plain*: SAM and CLIP first, the whole conversation read again "
    "for each token, masks at the end. *Ours*: SAM's encoder beside the words, keys kept for the conversation and for "
    "the image, lean steps, masks one by one on the image's canvas. `plain / ours` is of CPU seconds."
)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    from aura.bench.sizes import SIZES

    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["mini", "small", "medium"], metavar="SIZE")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="of an answer (64)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="timings of which the median counts (1)")
    parser.add_argument("--out", type=Path, metavar="PATH", help="write PATH.json and PATH.md")
    chosen = parser.parse_args(argv)
    if chosen.tokens < 8 or chosen.repeat < 1:
        parser.error("--tokens must be at least 8, --repeat at least 1")
    return chosen


def table(row: dict[str, Any]) -> list[list[Any]]:
    """The row's lines: moment, seconds (CPU seconds) of both ways, and their ratio."""
    from aura.bench.talk import MOMENTS

    lines = []
    for moment in MOMENTS:
        plain, ours = row["plain"][moment], row["ours"][moment]
        ways = [f"{wall:.3g} ({cpu:.3g})" for wall, cpu in (plain, ours)]
        lines.append([row["size"], moment, *ways, f"{plain[1] / ours[1]:.1f}x", f"{plain[0] / ours[0]:.1f}x"])
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 with one line on stderr."""
    chosen = options(argv)
    environment.prepare()
    from aura.bench import measure, page, talk

    device, lines = torch.device("cpu"), []
    try:
        for size in chosen.sizes:
            model = measure.model_of(size, device).eval()
            if model.config.lora is not None:
                model.merge_lora()  # as an export is
            lines += table(talk.compare(model, size, tokens=chosen.tokens, repeat=chosen.repeat))
            for line in lines[-len(talk.MOMENTS) :]:
                print(" | ".join(map(str, line)), flush=True)
        if chosen.out is not None:
            head = ["size", "moment", "plain s (CPU s)", "ours s (CPU s)", "plain / ours", "on the clock"]
            section = {
                "title": "A conversation",
                "made_by": f"scripts/{PROGRAM}",
                "machine": measure.machine(device),
                "about": ABOUT.format(tokens=chosen.tokens),
                "tables": [{"title": "A conversation: seconds", "head": head, "rows": lines}],
            }
            page.put(chosen.out, "chat", section)
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
