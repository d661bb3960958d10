"""Score any method's masks with the code that scores AURA, and print the same tables.

    python scripts/score_predictions.py --data data/mini/mini_test.json --predictions theirs.json --name C2F-Seg

The prediction file is a JSON list of

    {"conversation_id": 7, "turn": 0, "index": 0, "visible": RLE, "amodal": RLE, "occlusion_rate": 0.4}

with COCO RLE at the image's size. ``turn`` and ``index`` (the place of the ``[SEG]`` in its answer) count from 0. The
rate is optional. What is missing counts as an empty mask.

Files of other methods are read as they write them; give those of visible masks, of amodal masks, or both:

    python scripts/score_predictions.py --data data/mini/mini_test.json --from vrsp --name VRSP \\
        --visible coco_instances_visible_results.json --amodal coco_instances_amodal_results.json

    coco, vrsp, aisformer    COCO results: a JSON list of segmentations with scores
    masks, lisa, gsva        a folder of masks (PNG, JPEG, npz, npy) named c7_t0 (conversation, turn), a12 (annotation)
    c2f_seg, sd_amodal       either of these
    glamm, sa2va             a folder with a JSON file an answer; Sa2VA's results.json
    psalm                    COCO results, or the pickle of its referring task

Masks are known by question, by annotation id, or by image; the latter are given to the asked objects by best visible
IoU and category. The policy stands in the tables. docs/compare.md shows both sides of each method.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from aura.config import GiouOver, Protocol
from aura.evaluation.matching import Matching, match
from aura.evaluation.report import read_figures
from aura.evaluation.scoring import load_predictions, save_predictions, score
from aura.evaluation.tables import show
from aura.files import write_json
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.results.readers import READERS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="AmodalReasonSeg JSON file")
    parser.add_argument("--predictions", help="JSON list of predictions, in the form above")
    parser.add_argument("--from", dest="method", choices=sorted(READERS), metavar="NAME", help=", ".join(READERS))
    parser.add_argument("--visible", metavar="PATH", help="of --from: the file or folder of visible masks")
    parser.add_argument("--amodal", metavar="PATH", help="of --from: the file or folder of amodal masks")
    parser.add_argument("--min-score", type=float, default=0.0, help="of --from: pass over less sure masks of an image")
    parser.add_argument("--save", metavar="FILE", help="of --from: write the matched masks in the form above")
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
    theirs = bool(options.visible or options.amodal)
    if (options.predictions is None) != theirs or (options.method is None) == theirs:
        parser.error("give --predictions FILE, or --from NAME with --visible PATH, --amodal PATH or both")
    try:
        others = _others(options.compare)
        dataset = AmodalReasonSeg.load(options.data, None)
        if theirs:
            matching = _matched(dataset, options)
            predictions, name = matching.predictions, f"{options.name} (matched {matching.policy})"
        else:
            matching, predictions, name = None, load_predictions(options.predictions), options.name
        source = options.predictions or options.visible or options.amodal
        report = score(dataset, predictions, protocol=options.protocol, name=name, source=source)
        show({**others, report.name: report.as_dict()}, giou=options.giou)
        if matching:
            print(matching.line())
        if options.out:
            if matching:
                write_json(Path(options.out) / "matching.json", matching.as_dict(), indent=2)
            report.write(options.out, others, options.giou)
        if matching and options.save:
            save_predictions(options.save, matching.predictions)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _others(entries: Iterable[str]) -> dict[str, Any]:
    """The figures of the methods that --compare names."""
    others = {}
    for entry in entries:
        name, separator, path = entry.partition("=")
        if not separator:
            raise ValueError(f"--compare takes NAME=REPORT, got {entry!r}")
        others[name] = read_figures(path)
    return others


def _matched(dataset: AmodalReasonSeg, options: argparse.Namespace) -> Matching:
    read = READERS[options.method]
    found = {kind: read(path) for kind in ("visible", "amodal") if (path := getattr(options, kind))}
    return match(dataset, dataset.categories(), min_score=options.min_score, **found)


if __name__ == "__main__":
    sys.exit(main())
