#!/usr/bin/env python
"""Turn a data set of the field into AmodalReasonSeg's format, so that it can be trained on or evaluated.

  reasonseg  ReasonSeg, LISA's instructions with polygons
  refer      RefCOCO, RefCOCO+, RefCOCOg, RefCLEF, gRefCOCO: referring expressions
  instances  COCO, LVIS, PACO: where is every object of a category?
  labels     ADE20K, COCO-Stuff, Mapillary: the class of each pixel
  llava      LLaVA-Instruct: conversations without masks
  selective  queries for the visible or the whole shape (R2SM's task) on COCOA-cls, D2SA, KINS

    python scripts/prepare_data.py reasonseg --data ReasonSeg --split val --for evaluation --out data/val.json

With --for evaluation questions, answers and masks are those of LISA's evaluation. The whole shape of an object is
unknown in all these sets but the last. The same input gives the same bytes. The file appears whole or not at all. Exit
code 0: written; 2: it could not be (one line says why). More, and where the sets come from: docs/datasets.md.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from aura.files import write_text
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.category_sets import CategorySet
from aura.formats.label_maps import LabelMaps
from aura.formats.llava_instruct import LlavaFile
from aura.formats.pictures import find_picture
from aura.formats.questions import AskedImage, conversations_of, joined
from aura.formats.reading import Flaws
from aura.formats.reason_seg import ReasonSegFolder
from aura.formats.refer import ReferFolder
from aura.formats.selective import SelectiveQueries
from aura.formats.split_writer import SplitWriter

SHOWN = 20
"""Bad records that are printed; the report has them all."""


class Source(Protocol):
    """A reader of :mod:`aura.formats`."""

    def __iter__(self) -> Iterator[AskedImage]: ...
    def __len__(self) -> int: ...


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"prepare_data.py: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = whole.add_subparsers(dest="name", required=True, metavar="SET")

    def add(name: str, told: str, make: Callable[[argparse.Namespace, Flaws], Source]) -> argparse.ArgumentParser:
        own = sets.add_parser(name, help=told, description=told)
        own.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
        own.add_argument(
            "--for", dest="purpose", choices=("training", "evaluation"), default="training", help="(%(default)s)"
        )
        own.add_argument("--seed", type=int, default=0, metavar="N", help="of the words around phrases (%(default)s)")
        own.add_argument("--limit", type=int, metavar="N", help="take the first N images only")
        own.add_argument("--on-error", choices=("stop", "skip-with-report"), default="stop", help="(%(default)s)")
        own.add_argument("--force", action="store_true", help="replace a file that is there")
        own.set_defaults(make=make)
        return own

    own = add("reasonseg", "ReasonSeg, LISA's instructions with polygons", _reason_seg)
    own.add_argument("--data", type=Path, required=True, metavar="DIR", help="ReasonSeg, with train/, val/, ...")
    own.add_argument("--split", required=True, metavar="NAME", help="train, val or test: its folder")
    own.add_argument("--queries", choices=("all", "short", "long"), default="all", help="phrases or sentences alone")
    own = add("refer", "RefCOCO, RefCOCO+, RefCOCOg, RefCLEF, gRefCOCO: referring expressions", _refer)
    own.add_argument("--data", type=Path, required=True, metavar="DIR", help="with refs(BY).p and instances.json")
    own.add_argument("--by", required=True, metavar="NAME", help="who made the splits: unc, google, umd, berkeley")
    own.add_argument("--split", required=True, metavar="NAME", help="train, val, test, testA or testB")
    own.add_argument("--images", type=Path, required=True, metavar="DIR", help="COCO's train2014")
    own = add("instances", "COCO, LVIS, PACO: where is every object of a category?", _instances)
    own.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="COCO's instances file")
    own.add_argument("--images", type=Path, required=True, metavar="DIR", help="of the pictures (for LVIS: coco)")
    own.add_argument("--most", type=int, default=6, metavar="N", help="objects that one question means (%(default)s)")
    own = add("labels", "ADE20K, COCO-Stuff, Mapillary: the class of each pixel", _label_maps)
    own.add_argument("--layout", choices=("ade20k", "cocostuff", "mapillary"), required=True)
    own.add_argument("--labels", type=Path, required=True, metavar="DIR", help="of the maps, NAME.png")
    own.add_argument("--images", type=Path, required=True, metavar="DIR", help="of the pictures, NAME.jpg")
    own.add_argument("--classes", type=Path, required=True, metavar="FILE", help="names of the classes")
    own = add("llava", "LLaVA-Instruct: conversations without masks", _llava)
    own.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="such as llava_instruct_150k.json")
    own.add_argument("--images", type=Path, required=True, metavar="DIR", help="of the pictures")
    own = add("selective", "queries for the visible or the whole shape on COCOA-cls, D2SA, KINS", _selective)
    own.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="with both masks of each object")
    own.add_argument("--queries", type=Path, required=True, metavar="FILE", help="a JSON list, see docs/datasets.md")
    own.add_argument("--images", type=Path, required=True, metavar="DIR", help="of the pictures")
    return whole


# --- the sets ---------------------------------------------------------------------------------------------------------


def _reason_seg(options: argparse.Namespace, flaws: Flaws) -> Source:
    explained = options.data / "explanatory" / "train.json"
    with_explanations = options.purpose == "training" and options.split == "train" and explained.is_file()
    options.images = options.data / options.split
    return ReasonSegFolder(
        options.images,
        explanations=explained if with_explanations else None,
        first_text_only=options.purpose == "evaluation",
        queries=options.queries,
        flaws=flaws,
    )


def _refer(options: argparse.Namespace, flaws: Flaws) -> Source:
    return ReferFolder(options.data, options.by, options.split, flaws=flaws)


def _instances(options: argparse.Namespace, flaws: Flaws) -> Source:
    if options.most < 1:
        raise ValueError(f"--most must be positive, got {options.most}")
    return CategorySet(options.annotations, most=options.most, flaws=flaws)


def _label_maps(options: argparse.Namespace, flaws: Flaws) -> Source:
    return LabelMaps(options.labels, options.images, options.classes, options.layout, flaws=flaws)


def _llava(options: argparse.Namespace, flaws: Flaws) -> Source:
    return LlavaFile(options.annotations, options.images, flaws=flaws)


def _selective(options: argparse.Namespace, flaws: Flaws) -> Source:
    return SelectiveQueries(options.annotations, options.queries, flaws=flaws)


# --- the file ---------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    """Do what the parsed options say."""
    out: Path = options.out
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be positive, got {options.limit}")
    if out.exists() and not options.force:
        raise ValueError(f"{out} is there already; --force replaces it, or give another --out")
    flaws = Flaws(skip=options.on_error == "skip-with-report")
    source = options.make(options, flaws)
    _refuse_wrong_folder(options.images)
    licenses = getattr(source, "licenses", None)
    said = {
        "source": options.name,
        "split": getattr(options, "split", ""),
        "purpose": options.purpose,
        "image_folder": Path(os.path.relpath(options.images, out.parent)).as_posix(),
    }
    with SplitWriter(out, info=said, licenses=[r for r in licenses or [] if isinstance(r, dict)]) as writer:
        for image, conversations in _told(source, options, flaws):
            writer.add(image, conversations)
            if writer.counts["images"] == options.limit:
                break
        if not writer.counts["images"]:
            raise ValueError(f"{out} is not written: no image of the set can be used{_first(flaws)}")
    _report(flaws, out)
    found = AmodalReasonSeg.load(out).statistics()  # reads the file as a run will
    counts = ", ".join(f"{found[key]} {key}" for key in ("images", "objects", "pairs"))
    print(f"{out}: {counts}, {found['objects_per_answer']:.2f} objects an answer")
    if without := getattr(source, "num_without_picture", 0):
        print(f"left out: {without} records about no picture")


def _told(source: Source, options: argparse.Namespace, flaws: Flaws) -> Iterator[tuple[Any, Any]]:
    """Each image with its conversations."""
    following = 1
    for found in tqdm(source, total=len(source), desc=options.name, unit="image", leave=False, disable=None):
        asked = joined(found) if options.purpose == "evaluation" else found
        ready = None
        with flaws.leaving_out():
            path = find_picture(options.images, asked.image.file_name)
            if not path.is_file():
                raise ValueError(
                    f"image {asked.image.image_id}: {path} does not exist; give the pictures' folder with --images"
                )
            image = dataclasses.replace(asked.image, file_name=path.relative_to(options.images).as_posix())
            conversations = conversations_of(
                asked, purpose=options.purpose, source=options.name, seed=options.seed, first_id=following
            )
            ready = image, conversations
        if ready is not None and ready[1]:
            following += len(ready[1])
            yield ready


def _refuse_wrong_folder(images: Path) -> None:
    if not images.is_dir():
        raise ValueError(f"{images}: no such folder; give the pictures' folder with --images")


def _report(flaws: Flaws, out: Path) -> None:
    report = out.with_name(f"{out.stem}.problems.txt")
    if not flaws.told:
        report.unlink(missing_ok=True)
        return
    write_text(report, "\n".join(flaws.told) + "\n")
    print(f"{len(flaws.told)} bad records were left out; all of them: {report}")
    for line in flaws.told[:SHOWN]:
        print(f"  {line}")


def _first(flaws: Flaws) -> str:
    return f" ({len(flaws.told)} bad records, the first: {flaws.told[0]})" if flaws.told else ""


if __name__ == "__main__":
    raise SystemExit(main())
