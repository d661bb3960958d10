#!/usr/bin/env python
"""Make amodal training data from photographs with instance masks (COCO, or any file in its format).

    python scripts/make_occlusions.py --annotations instances_train2017.json --images train2017 --num-images 20000 \
        --out data/photos

Whole objects are cut from photographs and laid over objects of other photographs, so that the covered object's whole
shape is known exactly. Occlusion rates go from 0 to 0.9. Crowds, objects at the border and objects that another one
touches are not taken as whole: they stay in the picture with their visible mask and an unknown amodal mask. The offline
generator writes the questions. The photographs are dealt out to train, val and test by a hash of their id, or all go to
the split that --split names. The same arguments give the same bytes.
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

from aura.datagen.occlusions.stock import SPLITS, split_of
from aura.datagen.occlusions.write import Summary, make_occlusions

EDGES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="COCO instances file")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of its pictures")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to")
    parser.add_argument("--num-images", type=int, required=True, metavar="N", help="scenes of train, or of --split")
    parser.add_argument("--num-val", type=int, default=100, metavar="N", help="scenes of val (%(default)s)")
    parser.add_argument("--num-test", type=int, default=200, metavar="N", help="scenes of test (%(default)s)")
    parser.add_argument("--split", choices=SPLITS, help="make this split alone, of all photographs")
    parser.add_argument("--val-share", type=float, default=0.05, help="photographs of val (%(default)s)")
    parser.add_argument("--test-share", type=float, default=0.1, help="photographs of test (%(default)s)")
    parser.add_argument("--pairs-per-image", type=int, default=10, metavar="N", help="questions (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (%(default)s)")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes (%(default)s)")
    args = parser.parse_args(argv)
    for key in ("num_images", "pairs_per_image", "workers"):
        if getattr(args, key) < 1:
            parser.error(f"--{key.replace('_', '-')} must be positive, got {getattr(args, key)}")
    for key in ("num_val", "num_test", "seed"):
        if getattr(args, key) < 0:
            parser.error(f"--{key.replace('_', '-')} must not be negative, got {getattr(args, key)}")
    if not (0 <= args.val_share < 1 and 0 <= args.test_share < 1 and args.val_share + args.test_share < 1):
        parser.error("--val-share and --test-share are fractions that leave something to train on")
    if not args.images.is_dir():
        parser.error(f"--images {args.images}: no such folder")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file; give a folder")
    return args


def summary_table(summaries: list[Summary]) -> Table:
    """Images, objects, and the share of objects of known shape in each bucket of the occlusion rate."""
    table = Table(title="Objects by hidden fraction (unknown: of unknown shape)", box=box.SIMPLE_HEAD)
    table.add_column("split")
    columns = ("photos", "scenes", "pairs", "objects", "unknown", "none", *(f"to {edge}" for edge in EDGES[1:]))
    for column in columns:
        table.add_column(column, justify="right")
    for summary in summaries:
        known = np.array([rate for rate in summary.rates if rate is not None])
        counts = [np.count_nonzero(known == 0), *np.histogram(known[known > 0], EDGES)[0]]
        shares = [f"{100 * count / max(1, len(known)):.0f}%" for count in counts]
        figures = (summary.num_photos, summary.num_images, summary.num_pairs, len(summary.rates))
        unknown = str(len(summary.rates) - len(known))
        table.add_row(summary.split, *map(str, figures), unknown, *shares)
    return table


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can mend (with one line on stderr)."""
    args = parse_arguments(argv)
    if args.split:
        num_images = {args.split: args.num_images}
    else:
        num_images = {"train": args.num_images, "val": args.num_val, "test": args.num_test}
    shares = (args.val_share, args.test_share)
    try:
        with (
            tqdm(desc="reading masks", unit="photo", leave=False, disable=None) as photos,
            tqdm(total=sum(num_images.values()), desc="scenes", unit="image", leave=False, disable=None) as scenes,
        ):
            summaries = make_occlusions(
                args.annotations,
                args.images,
                args.out,
                num_images=num_images,
                choose=lambda image_id: args.split or split_of(image_id, shares),
                seed=args.seed,
                pairs_per_image=args.pairs_per_image,
                num_workers=args.workers,
                note={"annotations": args.annotations.name, "shares": None if args.split else list(shares)},
                on_photo=photos.update,
                on_image=scenes.update,
            )
    except (ValueError, OSError) as error:
        print(f"make_occlusions.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    Console().print(summary_table(summaries))
    for summary in summaries:
        if summary.passed_over:
            print(f"{summary.split}: in {summary.passed_over} scenes nothing could be covered; they were left out")
    print(f"{args.out} is complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
