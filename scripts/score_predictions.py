"""Score any method's masks with the code that scores AURA, and print the same tables.

    python scripts/score_predictions.py --data data/mini/mini_test.json --predictions theirs.json --name C2F-Seg

The prediction file is a JSON list of

    {"conversation_id": 7, "turn": 0, "index": 0, "visible": RLE, "amodal": RLE, "occlusion_rate": 0.4}

with COCO RLE at the image's size. ``turn`` and ``index`` (the place of the ``[SEG]`` in its answer) count from 0. The
rate is optional. What is missing counts as an empty mask.
"""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from aura.config import GiouOver, Protocol
from aura.evaluation.report import read_figures
from aura.evaluation.scoring import load_predictions, score
from aura.evaluation.tables import show
from aura.formats.amodal_reason_seg import AmodalReasonSeg


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="AmodalReasonSeg JSON file")
    parser.add_argument("--predictions", required=True, help="JSON list of predictions")
    parser.add_argument("--name", default="predictions", help="the method's row in the tables")
    parser.add_argument(
        "--protocol",
        choices=get_args(Protocol),
        default="teacher_forced",
        help="teacher_forced: one prediction per [SEG] of the data; the others allow answers with more or fewer",
    )
    parser.add_argument(
        "--giou",
        choices=get_args(GiouOver),
        default="image",
        help="what the gIoU of the first table is the mean over (image: the paper's words); the reports have all three",
    )
    parser.add_argument("--out", help="folder for report.json, .md, .tex, .csv and objects.jsonl")
    parser.add_argument(
        "--compare", nargs="*", default=[], metavar="NAME=REPORT", help="report.json files to put in the same tables"
    )
    options = parser.parse_args(arguments)
    try:
        others = {}
        for entry in options.compare:
            name, separator, path = entry.partition("=")
            if not separator:
                raise ValueError(f"--compare takes NAME=REPORT, got {entry!r}")
            others[name] = read_figures(path)
        dataset = AmodalReasonSeg.load(options.data, None)
        predictions = load_predictions(options.predictions)
        report = score(dataset, predictions, protocol=options.protocol, name=options.name, source=options.predictions)
        show({**others, report.name: report.as_dict()}, giou=options.giou)
        if options.out:
            report.write(options.out, others, options.giou)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
