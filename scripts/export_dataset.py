#!/usr/bin/env python
"""Write a data set as the codebases read it that AURA is compared with, so that they train on it as it is.

    python scripts/export_dataset.py --data data/mini/mini_train.json --to lisa_reasonseg --masks amodal --out lisa/
    python scripts/export_dataset.py --data data/mini/mini_train.json --to coco_amodal --out cocoa/train.json

    lisa_reasonseg  LISA, GSVA: OUT/reason_seg/NAME/SPLIT, a picture and a JSON file a question
    coco_instances  detectors: one COCO file, the masks of one kind
    coco_amodal     VRSP, AISFormer, C2F-Seg: one COCOA-cls file, both kinds
    glamm_gcg       GLaMM, Sa2VA: OUT/GranDf, a caption with grounded phrases an answer

What comes out appears whole or not at all and replaces nothing. docs/compare.md shows both sides of each.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from aura.data.answers import object_names
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.exports.coco import export_amodal, export_instances
from aura.formats.exports.common import Account
from aura.formats.exports.gcg import export_gcg
from aura.formats.exports.reason_seg import export_reason_seg

FORMS = ("lisa_reasonseg", "coco_instances", "coco_amodal", "glamm_gcg")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="AmodalReasonSeg JSON file")
    parser.add_argument("--images", type=Path, metavar="DIR", help="its pictures (by default where the file says)")
    parser.add_argument("--to", choices=FORMS, required=True, help="the form")
    parser.add_argument("--masks", choices=("visible", "amodal"), help="the kind of mask; coco_amodal has both")
    parser.add_argument("--out", type=Path, required=True, help="a .json file for the COCO forms, else a folder")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="(%(default)s)")
    parser.add_argument("--name", help="of a ReasonSeg set (AmodalReasonSeg_MASKS)")
    parser.add_argument(
        "--pictures",
        choices=("link", "copy"),
        default="link",
        help="how a picture comes beside each question: a hard link where the disk allows it, or a copy (%(default)s)",
    )
    parser.add_argument("--first-turns", action="store_true", help="leave out questions that follow others")
    parser.add_argument(
        "--first-object", action="store_true", help="ReasonSeg's target is an answer's first object, not all of them"
    )
    options = parser.parse_args(arguments)
    if options.first_object and options.to != "lisa_reasonseg":
        parser.error("--first-object is for lisa_reasonseg; the other forms keep objects apart")
    if (options.masks is None) == (options.to != "coco_amodal"):
        parser.error("--masks visible or amodal is needed, and for coco_amodal, which has both, is not")
    try:
        account = export(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: " + "\n".join(account.lines()))
    return 0


def export(options: argparse.Namespace) -> Account:
    """Do what the parsed options say."""
    dataset = AmodalReasonSeg.load(options.data, options.images)
    bar = {"desc": options.to, "disable": None}
    if options.to.startswith("coco"):
        watch = partial(tqdm, unit="record", **bar)
        if options.to == "coco_amodal":
            return export_amodal(dataset, options.out, watch=watch)
        return export_instances(dataset, options.out, kind=options.masks, watch=watch)
    shared = {
        "kind": options.masks,
        "split": options.split,
        "pictures": options.pictures,
        "first_turns": options.first_turns,
    }
    samples = tqdm(dataset, total=len(dataset), unit="image", **bar)
    if options.to == "glamm_gcg":
        return export_gcg(samples, options.out, names=object_names, **shared)
    name = options.name or f"AmodalReasonSeg_{options.masks}"
    return export_reason_seg(samples, options.out, name=name, first_object=options.first_object, **shared)


if __name__ == "__main__":
    sys.exit(main())
