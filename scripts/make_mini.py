#!/usr/bin/env python
"""Make the mini benchmark: composed scenes with exact visible and amodal masks, in COCOA-cls format.

    python scripts/make_mini.py --out data/mini
    python scripts/make_mini.py --cutouts my_objects/ --backgrounds my_photos/ --num-images 500 --out data/mine

Own cut-outs are pictures with a transparent background, laid out as category/name.png (or name.png, where the name is
the category). Own backgrounds are any photographs, three or more, so that train, val and test share none. The same
arguments give the same bytes; a second call with the same arguments does nothing.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from aura.mini.benchmark import MiniSummary, write_mini
from aura.mini.pictures import load_backgrounds, load_cutouts


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cutouts", type=Path, metavar="DIR", help="cut-outs (default: the bundled ones)")
    parser.add_argument("--backgrounds", type=Path, metavar="DIR", help="photographs (default: the bundled ones)")
    parser.add_argument("--num-images", type=int, default=3000, metavar="N", help="scenes to train on (%(default)s)")
    parser.add_argument("--num-val", type=int, default=100, metavar="N", help="scenes to validate on (%(default)s)")
    parser.add_argument("--num-test", type=int, default=200, metavar="N", help="scenes to test on (%(default)s)")
    parser.add_argument("--size", type=int, default=192, metavar="PX", help="longest side in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/mini"), metavar="DIR", help="where to (%(default)s)")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes (%(default)s)")
    parser.add_argument("--force", action="store_true", help="make it again even though it is there")
    return parser.parse_args(argv)


def summary_table(summaries: list[MiniSummary]) -> Table:
    """Images, objects, and the share of objects in each bucket of the occlusion rate."""
    table = Table(title="Objects by hidden fraction", box=box.SIMPLE_HEAD)
    table.add_column("split")
    for column in ("images", "objects", "none", "to 0.1", "to 0.3", "to 0.5", "to 0.7", "to 0.9"):
        table.add_column(column, justify="right")
    for summary in summaries:
        rates = np.array(summary.occlusion_rates)
        counts = [np.count_nonzero(rates == 0), *np.histogram(rates[rates > 0], (0, 0.1, 0.3, 0.5, 0.7, 0.9))[0]]
        shares = [f"{100 * count / max(1, len(rates)):.0f}%" for count in counts]
        table.add_row(summary.split, str(summary.num_images), str(summary.num_objects), *shares)
    return table


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    num_images = {"train": args.num_images, "val": args.num_val, "test": args.num_test}
    try:
        cutouts = load_cutouts(args.cutouts)
        backgrounds = load_backgrounds(args.backgrounds)
        with tqdm(total=sum(num_images.values()), desc="scenes", unit="image", leave=False) as bar:
            summaries = write_mini(
                args.out,
                cutouts,
                backgrounds,
                num_images=num_images,
                size=args.size,
                seed=args.seed,
                num_workers=args.workers,
                force=args.force,
                on_image=bar.update,
            )
    except (ValueError, OSError) as error:
        print(f"make_mini.py: {error}", file=sys.stderr)
        return 2
    if summaries is None:
        print(f"{args.out} is complete already; --force makes it again")
        return 0
    num_categories = len({cutout.category for cutout in cutouts})
    print(f"{args.out}: {num_categories} categories, {len(cutouts)} cut-outs, {len(backgrounds)} background pictures")
    Console().print(summary_table(summaries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
