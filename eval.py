"""Evaluate AURA: ``python eval.py --checkpoint runs/mini --data data/mini/mini_test.json --out runs/mini/eval``.

Killed, it goes on with the same command: answers wait in ``OUT/unfinished`` until their report is written.

With ``torchrun --nproc-per-node N eval.py ...`` N processes share the images.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import get_args

from aura.config import GiouOver, Protocol
from aura.types import Sample


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eval.py", description="gIoU and cIoU of a trained model, and more.")
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="run or export folder, or OWNER/NAME on the hub"
    )
    parser.add_argument("--data", metavar="FILE", help="AmodalReasonSeg JSON (default: what the run validated on)")
    parser.add_argument("--images", metavar="DIR", help="folder of its images (default: as the file says)")
    parser.add_argument("--protocol", action="append", choices=get_args(Protocol), help="repeatable; teacher_forced")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the report; DIR/PROTOCOL if there are several")
    parser.add_argument("--name", default="AURA", help="the model's row in the tables")
    parser.add_argument(
        "--giou",
        choices=get_args(GiouOver),
        default="image",
        help="what the gIoU of the first table is the mean over (image: the paper's words); the reports have all three",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate the first N images only")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images per forward pass")
    parser.add_argument("--feature-cache", metavar="DIR", help="keep the frozen encoders' outputs there")
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="FILE", help="picture of answers (last protocol) and truth"
    )
    parser.add_argument("--num", type=int, default=12, metavar="N", help="questions on the contact sheet")
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="write the masks (last protocol), as JSON")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest generated answer")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the first GPU, else the CPU)")
    parser.add_argument("--device-map", choices=("auto",), help="spread the model over all GPUs")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the language model (default: what suits)")
    parser.add_argument("--quantize", choices=("none", "int8", "int4"), default="none", help="of the language model")
    parser.add_argument("--timeout-hours", type=int, default=24, metavar="N", help="how long ranks wait for each other")
    options = parser.parse_args(argv)
    for key in ("limit", "batch_size", "num", "max_new_tokens", "timeout_hours"):
        if (value := getattr(options, key)) is not None and value < 1:
            parser.error(f"--{key.replace('_', '-')} must be positive, got {value}")
    for key in ("out", "feature_cache"):
        if (folder := getattr(options, key)) is not None and Path(folder).exists() and not Path(folder).is_dir():
            parser.error(f"--{key.replace('_', '-')} {folder} is a file; give a folder")
    options.protocol = list(dict.fromkeys(options.protocol or ["teacher_forced"]))
    return options


def run(options: argparse.Namespace) -> None:
    """Load, evaluate under every protocol, print and write."""
    from transformers.utils import logging

    from aura.chat.assistant import Assistant
    from aura.data.feature_cache import FeatureCache
    from aura.evaluation import tables
    from aura.evaluation.evaluate import evaluate_all
    from aura.evaluation.gallery import Gallery, PredictionFile, picture_format
    from aura.formats.amodal_reason_seg import AmodalReasonSeg
    from aura.machine import ranks
    from aura.train.splits import kept_for_validation
    from aura.train.validation import by_source
    from aura.weights import hub

    logging.disable_progress_bar()
    if options.contact_sheet:
        picture_format(options.contact_sheet)  # an evaluation takes minutes; a wrong file name should not
    annotations: str = options.data
    dataset: Sequence[Sample]
    if annotations is None:
        dataset, annotations = kept_for_validation(Path(options.checkpoint), options.images)
    else:
        dataset = AmodalReasonSeg.load(annotations, options.images)
    if options.device_map and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--device-map gives all GPUs to one process; leave it out, or start eval.py without torchrun")
    device = ranks.start(options.device, timedelta(hours=options.timeout_hours))
    hub.together(lambda: hub.local_folder(options.checkpoint, "checkpoint"))
    assistant = Assistant.from_pretrained(
        options.checkpoint,
        device,
        options.dtype,
        quantize=options.quantize,
        device_map=options.device_map,
    )
    model, processor = assistant.model, assistant.processor
    cache = FeatureCache.open(options.feature_cache, model, processor)

    is_main = ranks.rank_and_world()[0] == 0
    gallery, predictions = Gallery(options.num), PredictionFile()
    figures, several = {}, len(options.protocol) > 1
    for protocol, report in evaluate_all(
        model,
        processor,
        dataset,
        options.protocol,
        cache=cache,
        limit=options.limit,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        name=options.name,
        unfinished=options.out / "unfinished" if options.out else None,
        observers=[gallery] * bool(options.contact_sheet) + [predictions] * bool(options.predictions),
    ):
        row = f"{options.name} ({protocol})" if several else options.name
        figures[row] = report.as_dict()
        sources = by_source(report, getattr(dataset, "names", ()))
        parts = {f"{options.name}, {source}": part.as_dict() for source, part in sources.items()}
        figures |= {name.replace(options.name, row, 1): part for name, part in parts.items()}
        if options.out and is_main:
            report.write(options.out / protocol if several else options.out, parts, options.giou)
    if options.out and is_main:
        with contextlib.suppress(OSError):  # not empty: of other protocols
            (options.out / "unfinished").rmdir()
    if options.predictions:
        predictions.save(options.predictions)
    if is_main:
        tables.show(figures, giou=options.giou)
        if options.contact_sheet:
            gallery.save(options.contact_sheet, f"{options.name}, {options.protocol[-1]}, {Path(annotations).name}")
    ranks.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can mend (with one line on stderr)."""
    options = parse(argv)
    environment.prepare()
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"eval.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
