#!/usr/bin/env python
"""Check released amodal annotations, derive who hides whom, and save them in AmodalReasonSeg's format, split by split.

    python scripts/prepare_cocoa.py --annotations annotations/ --images coco/ --out data/cocoa_cls
    python scripts/prepare_cocoa.py --annotations annotations/ --images coco/ --out data/cocoa_cls --questions

Reads COCOA-cls, COCOA, D2SA and KINS and tells them apart by their content. Every problem is listed by its record, on
the terminal and in OUT/NAME.problems.txt. A file with bad records is not written, unless --on-error skip-with-report
leaves them out. The same input gives the same bytes. Exit code 0: all written; 1: bad records; 2: cannot be read.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from aura.datagen.offline.generator import GENERATOR, VERSION, generate_conversations
from aura.files import write_text
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.checks import Problem
from aura.formats.layouts import recognise
from aura.formats.occlusion import DEPTH_ORDER
from aura.formats.pictures import Picture, examine, find_picture, orientation_note, picture_flaw
from aura.formats.reading import read_json
from aura.formats.sources import AnnotatedImage, AnnotationFile
from aura.types import Conversation

SHOWN = 20
"""Problems of a file that are printed; its report has them all."""
TRIED = 50
"""Pictures of a file that are looked for to find their folder."""
SPLITS = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}
"""Words in a file's name, and in the folders where its pictures may lie."""


@dataclass
class Split:
    """What became of one annotation file."""

    source: AnnotationFile
    folder: Path | None
    images: list[AnnotatedImage] = field(default_factory=list)
    without_objects: int = 0

    @property
    def stem(self) -> str:
        return self.source.reader.path.stem

    @property
    def num_objects(self) -> int:
        return sum(len(image.objects) for image in self.images)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, metavar="DIR", help="annotation files (or one)")
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument("--images", type=Path, metavar="DIR", help="their pictures, here or in folders below")
    pictures.add_argument("--no-images", action="store_true", help="check the records only, open no picture")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="one file per annotation file, same name"
    )
    parser.add_argument("--on-error", choices=("stop", "skip-with-report"), default="stop", help="(%(default)s)")
    parser.add_argument("--with-stuff", action="store_true", help="keep COCOA's regions of stuff (grass, sky)")
    parser.add_argument("--questions", action="store_true", help="add the offline generator's questions")
    parser.add_argument("--pairs-per-image", type=int, default=10, metavar="N", help="of --questions (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of --questions (%(default)s)")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    options = parser.parse_args(arguments)
    if options.pairs_per_image < 1:
        parser.error(f"--pairs-per-image must be positive, got {options.pairs_per_image}")
    try:
        return run(options)
    except (ValueError, OSError) as error:
        print(f"prepare_cocoa.py: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Do what the parsed options say; returns the exit code."""
    done: list[Split] = []
    failed = False
    seen: dict[tuple[str, str], str] = {}
    for path in _annotation_files(options.annotations):
        target = options.out / f"{path.stem}.json"
        made_from = _made_from(path, options)
        if target.exists() and target.samefile(path):
            raise ValueError(f"{target} is the annotation file itself; choose another --out")
        if target.exists() and not options.force:
            _refuse_unlike(target, made_from)
            print(f"{target} is there already; --force makes it again")
            continue
        split = _read(path, options)
        _report(split, options.out)
        leaks = [image.file_name for image in split.images if (split.source.layout.name, image.file_name) in seen]
        if leaks:
            other = seen[split.source.layout.name, leaks[0]]
            print(f"WARNING: {path.name} shares {len(leaks)} images with {other}, such as {leaks[0]}")
        seen |= {(split.source.layout.name, image.file_name): path.name for image in split.images}
        if split.source.problems and options.on_error == "stop":
            print(f"{target} is not written; correct the records, or leave them out with --on-error skip-with-report")
            failed = True
            continue
        _write(split, target, made_from, options)
        done.append(split)
    if done:
        Console().print(statistics(done))
    return 1 if failed else 0


# --- reading ----------------------------------------------------------------------------------------------------------


def _annotation_files(given: Path) -> list[Path]:
    """The files with amodal annotations; others are named and passed over.

    Raises:
        ValueError: There is none.
    """
    if given.is_file():
        return [given]
    found = []
    for path in sorted(path for path in given.glob("*.json") if not path.name.startswith(".")):
        root = read_json(path)
        if not isinstance(root, dict) or recognise(root) is None:
            print(f"{path.name}: passed over, it holds no amodal annotations")
        else:
            found.append(path)
    if not found:
        raise ValueError(
            f"{given}: no annotation file of COCOA-cls, COCOA, D2SA or KINS (*.json) there; give the unpacked folder"
        )
    return found


def _read(path: Path, options: argparse.Namespace) -> Split:
    """The file's images with objects, everything checked; pictures are opened one at a time."""
    source = AnnotationFile(path, with_stuff=options.with_stuff)
    folder = None if options.no_images else find_pictures(options.images, source.file_names(), path.stem)
    split = Split(source, folder)
    for image in tqdm(source, desc=path.name, unit="image", leave=False, disable=None):
        flaw = None
        if folder is not None:
            path_of = find_picture(folder, image.file_name)
            if (name := path_of.relative_to(folder).as_posix()) != image.file_name:
                source.notes.append(Problem(f"image {image.image_id}", f"its file is spelt {name!r} here"))
                image = dataclasses.replace(image, file_name=name)
            picture = Picture(image.image_id, path_of, image.height, image.width)
            facts = examine(picture.path)
            flaw = picture_flaw(picture, facts)
            if flaw is None and (note := orientation_note(picture, facts)):
                source.notes.append(Problem(f"image {image.image_id}", note))
        if flaw is not None:
            source.problems.append(Problem(f"image {image.image_id}", f"{flaw}; {len(image.objects)} objects with it"))
        elif image.objects:
            split.images.append(image)
        else:
            split.without_objects += 1
    return split


def find_pictures(root: Path, names: Sequence[str], stem: str) -> Path:
    """The folder, ``root`` or one at most two levels below, that holds the pictures ``names``.

    Where several hold equally many (KITTI numbers train and test alike), the one named after the file's split.

    Raises:
        ValueError: No folder has any of those tried, or several are equally likely.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give the pictures' folder with --images")
    tried = names[:: max(1, len(names) // TRIED)]
    below = [folder for depth in ("*/", "*/*/") for folder in sorted(root.glob(depth)) if folder.is_dir()]
    counts = {folder: sum(find_picture(folder, name).is_file() for name in tried) for folder in (root, *below)}
    most = max(counts.values())
    if tried and not most:
        raise ValueError(
            f"{root}: none of the pictures of {stem} is there or in a folder below, such as {tried[0]}; "
            "give their folder with --images"
        )
    best = [folder for folder, count in counts.items() if count == most]
    if len(best) > 1 and tried:
        words = next((words for word, words in SPLITS.items() if word in stem.lower()), ())
        named = [folder for word in words for folder in best if word in str(folder.relative_to(root)).lower()]
        if not named:
            raise ValueError(
                f"{root}: the pictures of {stem} could be those in {best[0]} or in {best[1]}; "
                "give one with --images, and one annotation file at a time"
            )
        return named[0]
    return best[0]


# --- writing ----------------------------------------------------------------------------------------------------------


def _made_from(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What decides the bytes of the result."""
    made_from: dict[str, Any] = {
        "annotations": path.name,
        "annotations_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "with_stuff": options.with_stuff,
        "pictures_checked": not options.no_images,
    }
    if options.questions:
        asked = {"generator": GENERATOR, "version": VERSION, "seed": options.seed, "pairs": options.pairs_per_image}
        made_from["questions"] = asked
    return made_from


def _refuse_unlike(target: Path, made_from: dict[str, Any]) -> None:
    try:
        info = json.loads(target.read_text(encoding="utf-8"))["info"]
        same = info["made_from"] == made_from
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ValueError(f"{target} exists and was made from something else; --force replaces it")


def _report(split: Split, out: Path) -> None:
    """Write the file's problems and notes, and print the first of them."""
    source = split.source
    bad = [f"bad record: {problem}" for problem in source.problems]
    notes = [f"note: {note}" for note in source.notes]
    report = out / f"{split.stem}.problems.txt"
    print(
        f"{source.reader.path.name}: {source.layout.name}, {len(source)} images, {source.num_annotations} annotations; "
        f"{len(bad)} bad records, {len(notes)} notes"
    )
    for line in (bad + notes)[:SHOWN]:
        print(f"  {line}")
    if bad or notes:
        write_text(report, "\n".join(bad + notes) + "\n")
        print(f"  all of them: {report}")
    else:
        report.unlink(missing_ok=True)


def _write(split: Split, target: Path, made_from: dict[str, Any], options: argparse.Namespace) -> None:
    source = split.source
    conversations: dict[int, list[Conversation]] = {}
    following = 1
    for image in tqdm(split.images if options.questions else [], desc="questions", unit="image", disable=None):
        written = generate_conversations(image, pairs=options.pairs_per_image, seed=options.seed, first_id=following)
        conversations[image.image_id] = written
        following += len(written)
    info = {
        "source": source.info if isinstance(source.info, dict) else {},
        "layout": source.layout.name,
        "occluded_by": DEPTH_ORDER if source.has_depth_order else "masks",
        "made_from": made_from,
        "left_out": {"bad_records": len(source.problems), "images_without_objects": split.without_objects},
    }
    folder = None if split.folder is None else Path(os.path.relpath(split.folder, options.out)).as_posix()
    AmodalReasonSeg.build(
        split.images,
        conversations,
        source=target,
        image_folder=folder,
        info=info,
        licenses=[item for item in source.licenses or [] if isinstance(item, dict)],
    ).save()
    pairs = sum(len(c.turns) for written in conversations.values() for c in written)
    print(f"{target}: {len(split.images)} images, {split.num_objects} objects, {pairs} question-answer pairs")


def statistics(splits: Sequence[Split]) -> Table:
    """Images, objects and their occlusion, a column per file."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    rows: dict[str, list[str]] = {}
    for split in splits:
        table.add_column(split.stem, justify="right")
        objects = [o for image in split.images for o in image.objects]
        rates = [o.occlusion_rate for o in objects]
        occluded = [o for o in objects if o.occlusion_rate > 0]
        figures: dict[str, Any] = {
            "images": len(split.images),
            "images without an object, left out": split.without_objects,
            "objects": len(objects),
            "categories": len({o.category for o in objects}),
            "objects per image": f"{len(objects) / max(1, len(split.images)):.2f}",
            "bad records, left out": len(split.source.problems),
            "occluded objects": len(occluded),
            "... by a labelled object": sum(bool(o.occluded_by) for o in occluded),
            "mean occlusion rate": f"{sum(rates) / max(1, len(rates)):.4f}",
            "occlusion 0": len(objects) - len(occluded),
        }
        for tenth in range(10):
            in_bin = sum(rate > 0 and min(9, int(rate * 10)) == tenth for rate in rates)
            figures[f"occlusion {tenth / 10:.1f} to {(tenth + 1) / 10:.1f}"] = in_bin
        for name, value in figures.items():
            rows.setdefault(name, []).append(str(value))
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
