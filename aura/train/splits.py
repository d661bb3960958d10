"""The records of a run: opened, checked before any weight is loaded, and kept apart from those it validates on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from rich.console import Console
from rich.text import Text

from aura.config import Config, SourceSettings, SplitSettings, load_config
from aura.data.conversations import ConversationTokenizer
from aura.data.findings import Findings
from aura.data.mixture import Mixture, hold_out_of
from aura.data.preflight import BadRecord, Inspection, inspect
from aura.data.selection import Selection, conversation_counts, pictures
from aura.files import write_json, write_text
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.machine import ranks
from aura.train.engine import Process
from aura.types import Sample

SHOWN = 50
"""Bad records that are printed; the file has them all."""
LEFT_OUT, BAD, HELD_OUT = "left_out.json", "bad_records.txt", "held_out.json"
"""In the run folder: what ``data.on_bad_record skip`` left out, what ``stop`` found where that is long, and the images
that are kept for validation (``data.held_out``)."""

T = TypeVar("T")


class Splits(NamedTuple):
    """What a run trains on, what it validates on, and what it says about both in its first lines."""

    train: Sequence[Sample]
    val: Sequence[Sample] | None
    told: list[str]


def open_splits(config: Config, tokenizer: ConversationTokenizer, process: Process) -> Splits:
    """Open both splits and check every record of theirs; the main process checks for all.

    Raises:
        ValueError: An annotation file is missing or malformed, the splits share a picture, or a record is one that
            training would refuse and ``data.on_bad_record`` is ``stop``.
    """
    data, run = config.data, Path(config.train.output_dir)
    files, own_val = {**data.files(), **data.val_files()}, data.val_files()
    opened = {name: in_turn(process, partial(load_split, split, name)) for name, split in files.items()}
    splits: dict[str, Sequence[Sample]] = {"train": _together(data.train, [opened[name] for name in data.files()])}
    if own_val:
        splits["val"] = _together(data.val, [opened[name] for name in own_val])
    elif config.train.validate_every and data.held_out:
        train, held = hold_out_of(splits["train"], data.held_out)
        if len(held):  # or the records stay those of the whole file, as in runs that hold nothing out
            splits = {"train": train, "val": held}
    told: list[str] = []
    if process.is_main:
        refused, unwanted = ranks.from_first(lambda: _check(config, opened, splits, tokenizer, run, told))
    else:
        refused, unwanted = ranks.from_first(lambda: ({}, {}))
    of_val = {name: refused.get(name, []) for name in own_val} if own_val else refused
    for name, bad in (("train", unwanted), ("val", of_val)):
        if name in splits and any(bad.values()):
            source = name if name == "val" and own_val else "train"
            splits[name] = _without_those(splits[name], bad, source)
            if not conversation_counts(splits[name]).any():
                raise ValueError(f"data.{source}: every record is a bad one ({run / LEFT_OUT}); nothing is left")
    if process.is_main:
        told.append(_validation_told(config, splits.get("val"), run))
    return Splits(splits["train"], splits.get("val"), told)


def _together(split: SplitSettings, parts: Sequence[Sequence[Sample]]) -> Sequence[Sample]:
    """The records of a split: of the one file, or a mixture of several."""
    sources = split.sources
    if not sources:
        return parts[0]
    return Mixture(parts, short_names([s.annotations for s in sources]), [s.weight for s in sources])


def short_names(files: Sequence[str]) -> list[str]:
    """The ends of different paths, as long as it takes to tell them apart; without ``.json``."""
    paths = [Path(file).with_suffix("").parts for file in files]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return list(files)


def _without_those(
    samples: Sequence[Sample], bad: Mapping[str, Sequence[BadRecord]], name: str = "train"
) -> Sequence[Sample]:
    """The samples without the bad records of ``name``, or without those of ``name[k]`` in part k of a mixture."""
    if not isinstance(samples, Mixture):
        return without(samples, bad.get(name, ()))
    return samples.of([without(part, bad.get(f"{name}[{k}]", ())) for k, part in enumerate(samples.parts)])


def kept_for_validation(run: Path, images: str | None = None) -> tuple[Sequence[Sample], str]:
    """What a run validated on, and the name of that file: its own ``data.val``, or what it held out.

    Args:
        run: The run folder.
        images: Folder of the pictures, where it is another one now.

    Raises:
        ValueError: It names no such split.
    """
    data = load_config(run / "config.yaml").data if (run / "config.yaml").is_file() else None
    own = data is not None and bool(data.val_files())
    found = {} if data is None else data.val_files() or data.files()
    files = [split for split in found.values() if split.annotations is not None]
    if data is None or not files or not (own or (run / HELD_OUT).is_file()):
        raise ValueError(f"{run} names no validation split; say what to evaluate with --data FILE")
    if images is not None and len(files) > 1:
        what = "validated" if own else "trained"
        raise ValueError(f"--images is one folder, but {run} {what} on {len(files)} files; leave it out")
    split = data.val if own else data.train
    dataset = _together(split, [AmodalReasonSeg.load(str(f.annotations), images or f.images) for f in files])
    names = " + ".join(str(f.annotations) for f in files)
    if own:
        return dataset, names
    held = set(json.loads((run / HELD_OUT).read_text(encoding="utf-8"))["image_ids"])
    places = [place for place, picture in enumerate(pictures(dataset)) if picture.image_id in held]
    if len(places) < len(held):
        raise ValueError(f"{names} lacks images that {run / HELD_OUT} lists; give --data FILE")
    at, listed = np.array(places, dtype=np.int64), run / LEFT_OUT
    chosen = dataset.select(at) if isinstance(dataset, Mixture) else Selection(dataset, at)
    left_out = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
    bad = {
        name.removeprefix("data."): [BadRecord(**record) for record in records] for name, records in left_out.items()
    }
    return _without_those(chosen, bad), names


def _validation_told(config: Config, val: Sequence[Sample] | None, run: Path) -> str:
    """One sentence about what the run validates on; lists what it holds out."""
    data, every = config.data, config.train.validate_every
    listed = run / HELD_OUT
    if not data.val_files() and val is not None:
        ids = [picture.image_id for picture in pictures(val)]
        files = [split.annotations for split in data.files().values()]
        write_json(listed, {"annotations": files if len(files) > 1 else files[0], "image_ids": ids}, indent=1)
        return f"validates every {every} steps on {len(ids)} images held out of data.train, never trained on: {listed}"
    listed.unlink(missing_ok=True)
    if every and val is not None:
        names = " + ".join(str(split.annotations) for split in data.val_files().values())
        return f"validates every {every} steps on data.val, {names}"
    if not every:
        return "does not validate (train.validate_every is 0); the last step is exported"
    why = "data.held_out is 0" if not data.held_out else "data.train has too few images to hold a tenth of them out"
    return f"does not validate: data.val names no file and {why}; the last step is exported"


def load_split(split: SplitSettings | SourceSettings, name: str) -> AmodalReasonSeg:
    """Open a split, and look whether its pictures' folder is the right one.

    Raises:
        ValueError: Its annotations are not set, or not valid; no picture is there; there is no conversation.
    """
    if split.annotations is None:
        raise ValueError(f"data.{name}.annotations is not set; give an AmodalReasonSeg JSON file")
    dataset = AmodalReasonSeg.load(split.annotations, split.images)
    counts = conversation_counts(dataset)
    if not counts.any():
        raise ValueError(
            f"{split.annotations} (data.{name}) has no conversation; scripts/generate_questions.py writes some"
        )
    used = (picture for picture, count in zip(pictures(dataset), counts, strict=True) if count)
    first = next(used)
    if not first.path.is_file() and not any(picture.path.is_file() for picture in used):
        number = np.count_nonzero(counts)
        raise ValueError(
            f"{split.annotations} (data.{name}): {number} of {number} pictures do not exist, the first is {first.path} "
            f"of image {first.image_id}; give their folder with data.{name}.images"
        )
    return dataset


def without(samples: Sequence[Sample], bad: Sequence[BadRecord]) -> Selection:
    """The samples without the bad images, and without the bad conversations of others."""
    images = {record.image_id for record in bad if record.conversation_id is None}
    conversations = defaultdict(set)
    for record in bad:
        if record.conversation_id is not None and record.image_id not in images:
            conversations[record.image_id].add(record.conversation_id)
    kept = [place for place, picture in enumerate(pictures(samples)) if picture.image_id not in images]
    return Selection(samples, np.array(kept, dtype=np.int64), conversations)


def _check(
    config: Config,
    opened: Mapping[str, AmodalReasonSeg],
    splits: Mapping[str, Sequence[Sample]],
    tokenizer: ConversationTokenizer,
    run: Path,
    told: list[str],
) -> tuple[dict[str, list[BadRecord]], dict[str, list[BadRecord]]]:
    """The bad records of each file, said and listed; and the records of each file that are not trained on."""
    inspected, kept = {}, {}
    for name, samples in opened.items():
        kept[name] = Findings(Path(samples.source))
        option = f"data.{name}.images" if "[" in name else f"--data.{name}.images"
        inspected[name] = inspect(samples, tokenizer, kept[name], option=option, name=f"data.{name}")
    own_val = config.data.val_files()
    if own_val:
        train, val = (
            {digest: path for name in names for digest, path in used_pictures(opened[name], kept[name]).items()}
            for names in (config.data.files(), own_val)
        )
        refuse_leak(train, val)
    for name, (_, notes) in inspected.items():
        if notes:
            told.append(f"data.{name}: {len(notes)} pictures may lie otherwise than their masks, such as {notes[0]}")
    refused = {name: bad for name, (bad, _) in inspected.items() if bad}
    if config.data.on_bad_record == "stop":
        _refuse(config, inspected, run)
    elif refused:
        listed = {f"data.{name}": [record._asdict() for record in bad] for name, bad in refused.items()}
        write_json(run / LEFT_OUT, listed, indent=1)
        counted = " and ".join(f"{_counted(bad)} of data.{name}" for name, bad in refused.items())
        told.append(f"left out {counted}: {run / LEFT_OUT} lists them")
    else:
        (run / LEFT_OUT).unlink(missing_ok=True)
    twins = held_out_elsewhere(splits["train"], None if own_val else splits.get("val"), kept)
    if number := sum(map(len, twins.values())):
        told.append(f"left out {number} images of data.train whose pictures are held out of another source")
    if isinstance(mixture := splits["train"], Mixture):
        told += mixture.told()
    return refused, {name: refused.get(name, []) + twins.get(name, []) for name in config.data.files()}


def held_out_elsewhere(
    train: Sequence[Sample], val: Sequence[Sample] | None, findings: Mapping[str, Findings]
) -> dict[str, list[BadRecord]]:
    """The images of several sources whose pictures, by their content, are held out of one of them, by source."""
    found: dict[str, list[BadRecord]] = {}
    if not (isinstance(train, Mixture) and isinstance(val, Mixture)):
        return found
    held: set[str] = set()
    for number, part in enumerate(val.parts):
        held |= used_pictures(part, findings[f"train[{number}]"]).keys() - {""}
    for number, part in enumerate(train.parts):
        name = f"train[{number}]"
        for picture, count in zip(pictures(part), conversation_counts(part), strict=True):
            if count and findings[name].facts(picture.path).sha256 in held:
                reason = f"image {picture.image_id}: its picture is held out of another source"
                found.setdefault(name, []).append(BadRecord(picture.image_id, None, reason))
    return found


def _refuse(config: Config, inspected: dict[str, Inspection], run: Path) -> None:
    """Raise ``ValueError`` for bad records, once they are listed."""
    bad = [record.reason for found in inspected.values() for record in found.bad]
    if not bad:
        return
    console = Console()
    for reason in bad[:SHOWN]:
        console.print(Text(f"  {reason}"), soft_wrap=True)
    where = "above"
    if len(bad) > SHOWN:
        write_text(run / BAD, "\n".join(bad) + "\n")
        where = f"in {run / BAD}"
    files = " and ".join(
        f"{split.annotations} (data.{name})"
        for name, split in {**config.data.files(), **config.data.val_files()}.items()
        if name in inspected and inspected[name].bad
    )
    raise ValueError(
        f"{files}: {_counted(bad)}, listed {where}, the first: {bad[0]}. Mend them, or train without them: "
        "--data.on_bad_record skip"
    )


def used_pictures(samples: Sequence[Sample], findings: Findings) -> dict[str, Path]:
    """The pictures of the images that have a conversation, by their content."""
    counts = conversation_counts(samples)
    used = (picture.path for picture, count in zip(pictures(samples), counts, strict=True) if count)
    return {findings.facts(path).sha256: path for path in used}


def refuse_leak(train: Mapping[str, Path], val: Mapping[str, Path]) -> None:
    """Raise ``ValueError`` if a picture is in both splits; each holds its own by their content."""
    shared = sorted(str(path) for digest, path in val.items() if digest and digest in train)
    if shared:
        raise ValueError(
            f"{len(shared)} images are in data.train and in data.val, the first {shared[0]}; splits must be disjoint"
        )


def _counted(bad: Sequence[object]) -> str:
    return f"{len(bad)} bad record{'s' if len(bad) > 1 else ''}"


# --- several processes ------------------------------------------------------------------------------------------------


def in_turn(process: Process, act: Callable[[], T]) -> T:
    """Let the main process act first, then the first of each machine, then the others: what is made is made once."""
    result: list[T] = []
    refused: ValueError | None = None
    for turn in range(3):
        mine = 0 if process.is_main else 1 if process.local_rank == 0 else 2
        if turn == mine:
            try:
                result.append(act())
            except ValueError as error:  # the others would wait for this process
                refused = error
        if process.world_size > 1:
            ranks.wait()
    if refused is not None:
        raise refused
    return result[0]
