#!/usr/bin/env python
"""Write question-answer pairs for an annotation file and save both as an AmodalReasonSeg data set.

    python scripts/generate_questions.py --annotations COCO_amodal_val2014_with_classes.json --images val2014 \
        --out data/cocoa_val.json --pairs-per-image 10 --seed 0

With --visible-only the file is one of COCO's instances: masks of what can be seen. Then no object's whole shape is
known, and evaluation scores its visible mask alone.

Works offline: the questions come from a grammar and from what the masks say. The same arguments give the same bytes.
An up-to-date OUT is left alone, an outdated one is replaced, an edited one is only replaced with --force.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aura.datagen.offline.generator import GENERATOR, VERSION, generate_conversations
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.instances import InstanceFile
from aura.formats.pictures import find_picture
from aura.formats.reading import read_json_object
from aura.formats.sources import AnnotatedImage, load_cocoa_cls
from aura.types import Conversation


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="COCOA-cls file, or a COCO instances file")
    parser.add_argument("--images", type=Path, required=True, help="folder of its pictures")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--pairs-per-image", type=int, default=10, metavar="N", help="question-answer pairs (default 10)"
    )
    parser.add_argument("--visible-only", action="store_true", help="a COCO instances file: no whole shapes are known")
    parser.add_argument("--seed", type=int, default=0, help="another seed asks other questions (default 0)")
    parser.add_argument(
        "--intents", action="store_true", help="many questions mean one kind of mask (model.intent learns which)"
    )
    parser.add_argument("--force", action="store_true", help="write OUT even if it is up to date or was edited")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Do what the parsed options say; returns the exit code."""
    if not options.images.is_dir():
        raise ValueError(f"{options.images}: no such folder; give the pictures' folder with --images")
    if not options.annotations.is_file():
        raise ValueError(f"{options.annotations}: no such file; give the annotation file with --annotations")
    made_from = {
        "generator": GENERATOR,
        "version": VERSION,
        "seed": options.seed,
        "pairs_per_image": options.pairs_per_image,
        "annotations": options.annotations.name,
        "annotations_sha256": hashlib.sha256(options.annotations.read_bytes()).hexdigest(),
    }
    for name in ("visible_only", "intents"):
        if getattr(options, name):
            made_from[name] = True
    if options.out.exists() and not options.force:
        info = _unchanged_info(options.out)
        if info is None:
            raise ValueError(
                f"{options.out} exists and was not made by this script, or was edited since; --force overwrites it"
            )
        if info["made_from"] == made_from:
            print(f"{options.out} is up to date")
            return 0
    images, crowds = _read(options)
    _check_pictures(images, options.images)
    conversations: dict[int, list[Conversation]] = {}
    following = 1
    for image in tqdm(images, desc="questions", unit="image", disable=None):
        conversations[image.image_id] = generate_conversations(
            image,
            pairs=options.pairs_per_image,
            seed=options.seed,
            first_id=following,
            crowds=crowds.get(image.image_id),
            intents=options.intents,
        )
        following += len(conversations[image.image_id])
    source = read_json_object(options.annotations)
    licenses = source.get("licenses")
    dataset = AmodalReasonSeg.build(
        images,
        conversations,
        source=options.out,
        image_folder=Path(os.path.relpath(options.images, options.out.parent)).as_posix(),
        info={**_described(source), "made_from": made_from},
        licenses=licenses if isinstance(licenses, list) else (),
    )
    dataset.document["info"]["content_sha256"] = _content_digest(dataset.document)
    dataset.save()
    figures = dataset.statistics()
    print(
        f"{options.out}: {figures['images']} images, {figures['objects']} objects, {figures['pairs']} pairs "
        f"({figures['pairs_per_image']:.1f} per image, {figures['objects_per_answer']:.2f} objects per answer)"
    )
    return 0


def _read(options: argparse.Namespace) -> tuple[list[AnnotatedImage], dict[int, dict[str, str]]]:
    """The images with objects, and by image id the crowds that are there besides."""
    if not options.visible_only:
        whole = [image for image in load_cocoa_cls(options.annotations) if image.objects]
        if not any(o.occlusion_rate for image in whole for o in image.objects):
            print(f"{options.annotations}: no object is hidden; if its masks show what can be seen, say --visible-only")
        return whole, {}
    file = InstanceFile(options.annotations)
    numbers = {name: number for name, (number, _) in file.categories.items()}
    images, crowds = [], {}
    for image in file:
        annotated = image.as_annotated(numbers)
        if annotated.objects:
            images.append(annotated)
            crowds[image.image_id] = image.crowds
    return images, crowds


def _content_digest(document: Mapping[str, Any]) -> str:
    """Hash of everything but ``info``: tells a file that was edited by hand."""
    content = {key: value for key, value in document.items() if key != "info"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _unchanged_info(path: Path) -> dict[str, Any] | None:
    """``info`` of a file that this script wrote and nobody changed; ``None`` for any other file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        info = document["info"]
        return info if "made_from" in info and info["content_sha256"] == _content_digest(document) else None
    except (ValueError, KeyError, TypeError):
        return None


def _described(source: dict[str, Any]) -> dict[str, Any]:
    """Where the annotations come from, in the words of their own file."""
    info = source.get("info")
    return {"source": info} if isinstance(info, dict) else {}


def _check_pictures(images: list[AnnotatedImage], folder: Path) -> None:
    missing = [image.file_name for image in images if not find_picture(folder, image.file_name).is_file()]
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} of {len(images)} pictures are not there, such as {missing[0]}; "
            "is this the right folder?"
        )


if __name__ == "__main__":
    raise SystemExit(main())
