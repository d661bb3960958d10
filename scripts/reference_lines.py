#!/usr/bin/env python
"""What SAM scores when it is told where every object is: lines to read a model's table against.

    python scripts/reference_lines.py --sam weights/mobile_sam --data data/photos/test/test.json --out runs/photos/lines

For every object that the questions ask for, SAM gets the box around its true visible mask, and then the one around its
true amodal mask. Objects, metrics and files are those of eval.py (teacher_forced): OUT/visible_box and OUT/amodal_box
hold a report.json each, which scripts/join_reports.py puts beside others. With --checkpoint the image encoder of that
run is used, so that both share one feature cache; the decoder is the one of --sam in any case.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import sys
from pathlib import Path
from typing import Any


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam", required=True, metavar="PATH", help="folder or .pth file, as model.sam takes it")
    parser.add_argument("--data", required=True, metavar="FILE", help="AmodalReasonSeg JSON")
    parser.add_argument("--images", metavar="DIR", help="folder of its images (default: as the file says)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the two reports")
    parser.add_argument("--name", default="SAM", help="of the SAM in the tables (%(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--feature-cache", metavar="DIR", help="keep the image encoder's outputs there")
    parser.add_argument("--checkpoint", metavar="DIR", help="a run that was trained with this SAM; shares its cache")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the first GPU, else the CPU)")
    options = parser.parse_args(argv)
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit must be positive, got {options.limit}")
    return options


def run(options: argparse.Namespace) -> None:
    """Score the split, print the tables and write the reports."""
    import torch
    from tqdm import tqdm
    from transformers.utils import logging

    from aura.data.feature_cache import FeatureCache
    from aura.evaluation import tables
    from aura.evaluation.boxes import BoxScorer, SamAlone
    from aura.features import encode
    from aura.formats.amodal_reason_seg import AmodalReasonSeg
    from aura.weights.sam import load_sam

    logging.disable_progress_bar()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dataset = AmodalReasonSeg.load(options.data, options.images)
    samples = [sample for sample in dataset if sample.conversations][: options.limit]
    if not samples:
        raise ValueError(f"{options.data}: no image with a question; scripts/generate_questions.py writes some")
    sam, _ = load_sam(options.sam, dtype=torch.float32)
    sam = sam.to(device).eval()
    encoder: Any
    reader: Any
    if options.checkpoint:
        from aura.chat.assistant import Assistant

        assistant = Assistant.from_pretrained(options.checkpoint, device)
        encoder, reader = assistant.model, assistant.processor
    else:
        encoder = reader = SamAlone(sam)
    cache = FeatureCache.open(options.feature_cache, encoder, reader)
    scorer = BoxScorer(sam)
    for sample in tqdm(samples, desc="SAM in true boxes", unit="image", leave=False, disable=None):
        (features,) = encode(encoder, reader, [sample], cache)
        scorer.add(sample, features.sam_embeddings)
    reports = scorer.reports(options.name)
    for kind, report in reports.items():
        report.write(options.out / f"{kind}_box")
    tables.show({report.name: report.as_dict() for report in reports.values()})


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can mend (with one line on stderr)."""
    options = parse(argv)
    environment.prepare()
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"reference_lines.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
