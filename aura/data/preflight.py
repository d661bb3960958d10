"""What would stop a run at a bad record hours later, found before it begins: texts, masks and pictures of all records.

Every conversation is tokenised, every mask it needs is counted through, every picture is read to its end, by as many
processes as there are cores. :class:`~aura.data.findings.Findings` keeps the outcome, so that the next start looks at
the pictures' sizes and times only.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from aura.data.findings import Findings
from aura.data.selection import content_of, conversation_counts, pictures
from aura.formats.pictures import examine, orientation_note, picture_flaw
from aura.masks import rle_area
from aura.types import Sample

if TYPE_CHECKING:
    from aura.data.conversations import ConversationTokenizer

VERSION = 1
"""Raise it when the checks change: what older ones found is then looked at again."""
CHUNK = 64
"""Records that a process takes at once."""


class BadRecord(NamedTuple):
    """A record that training would refuse: an image, or one of its conversations.

    ``reason`` is a whole line: the record, what is wrong, what to do.
    """

    image_id: int
    conversation_id: int | None
    reason: str


class Inspection(NamedTuple):
    """All bad records, in the order of the images, and doubts that no check can settle."""

    bad: list[BadRecord]
    notes: list[str]


def inspect(
    samples: Sequence[Sample],
    tokenizer: ConversationTokenizer | None,
    findings: Findings,
    *,
    option: str = "--images",
    name: str = "records",
    quiet: bool = False,
) -> Inspection:
    """Check every image that has a conversation.

    Args:
        samples: The records.
        tokenizer: The model's text side; without it texts and masks are not looked at.
        findings: Where the outcome is kept.
        option: With what a user says where the pictures lie.
        name: Of the records, for the progress bar.
        quiet: Show no progress bar.
    """
    counts = conversation_counts(samples)
    paths = (picture.path for picture, used in zip(pictures(samples), counts, strict=True) if used)
    read_pictures(paths, findings, name=f"{name}: pictures", quiet=quiet)
    bad: list[BadRecord] = []
    notes = []
    for picture, used in zip(pictures(samples), counts, strict=True):
        if not used:
            continue
        facts = findings.facts(picture.path)
        if flaw := picture_flaw(picture, facts, option=option):
            remedy = "" if ";" in flaw else "; use the picture that was annotated"
            bad.append(BadRecord(picture.image_id, None, f"image {picture.image_id}: {flaw}{remedy}"))
        elif note := orientation_note(picture, facts):
            notes.append(f"image {picture.image_id}: {note}")
    if tokenizer is not None:
        bad += inspect_texts(samples, tokenizer, findings, name=f"{name}: texts and masks", quiet=quiet)
    named = {record.image_id for record in bad}
    place_of = {p.image_id: place for place, p in enumerate(pictures(samples)) if p.image_id in named}
    return Inspection(sorted(bad, key=lambda record: place_of[record.image_id]), notes)


def read_pictures(paths: Iterator[Path], findings: Findings, *, name: str = "pictures", quiet: bool = False) -> None:
    """Find out about every picture that is new or has changed since it was last read."""
    missing = [path for path in dict.fromkeys(paths) if findings.known(path) is None]
    with _bar(name, len(missing), quiet) as bar:
        for found in _spread(_examine, None, missing):
            findings.keep(found)
            bar.update(len(found))


def inspect_texts(
    samples: Sequence[Sample],
    tokenizer: ConversationTokenizer,
    findings: Findings,
    *,
    name: str = "texts and masks",
    quiet: bool = False,
) -> list[BadRecord]:
    """The conversations that cannot be tokenised, and the images with a damaged mask that one of theirs needs."""
    used = np.flatnonzero(conversation_counts(samples))
    content = content_of(samples)
    key = f"{content}/{text_fingerprint(tokenizer)}"
    kept = findings.result(key) if content is not None else None
    if kept is not None:
        return [BadRecord(*record) for record in json.loads(kept)]
    bad = []
    with _bar(name, len(used), quiet) as bar:
        for chunk, found in zip(_chunks(used), _spread(_check, (samples, tokenizer), used), strict=True):
            bad += found
            bar.update(len(chunk))
    if content is not None:
        findings.keep_result(key, json.dumps(bad))
    return bad


def text_fingerprint(tokenizer: ConversationTokenizer) -> str:
    """Changes whenever a conversation could get other tokens, or another limit."""
    inner: Any = tokenizer.tokenizer
    backend = getattr(inner, "backend_tokenizer", None)
    parts = [
        VERSION,
        backend.to_str() if backend is not None else sorted(inner.get_vocab().items()),
        sorted((number, str(token.content)) for number, token in inner.added_tokens_decoder.items()),
        (inner.bos_token, inner.eos_token, tokenizer.template, tokenizer.use_im_start_end),
        (tokenizer.num_image_tokens, tokenizer.max_length),
        *([tokenizer.objects_per_answer] if tokenizer.objects_per_answer != "all" else []),
    ]
    return hashlib.sha256(repr(parts).encode("utf-8", "replace")).hexdigest()[:16]


def check_sample(sample: Sample, tokenizer: ConversationTokenizer) -> list[BadRecord]:
    """What training would refuse of an image's texts and masks."""
    bad = []
    for conversation in sample.conversations:
        try:
            tokenizer.conversation(conversation, sample.image_id)
        except ValueError as error:
            bad.append(BadRecord(sample.image_id, conversation.id, str(error)))
    named = {number for conversation in sample.conversations for turn in conversation.turns for number in turn.objects}
    for obj in sample.objects:
        for kind, mask in (("visible", obj.visible), ("amodal", obj.amodal)) if obj.id in named else ():
            try:
                if mask is not None:
                    rle_area(mask)
            except ValueError as error:
                where = f"image {sample.image_id}, annotation {obj.id}: the {kind} mask"
                bad.append(BadRecord(sample.image_id, None, f"{where}: {error}; correct the mask"))
    return bad


# --- processes --------------------------------------------------------------------------------------------------------


def _bar(name: str, total: int, quiet: bool) -> Any:
    return tqdm(total=total, desc=name, unit="image", disable=quiet, leave=False, delay=1)


def _chunks(items: Any) -> Iterator[Any]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def _examine(_: None, paths: Collection[Path]) -> list[Any]:
    return [(path, examine(path)) for path in paths]


def _check(state: tuple[Sequence[Sample], ConversationTokenizer], places: Collection[int]) -> list[BadRecord]:
    samples, tokenizer = state
    return [record for place in places for record in check_sample(samples[int(place)], tokenizer)]


_state: Any = None
"""Of a worker process: what its work reads."""


def _begin(state: Any) -> None:
    global _state
    _state = state
    # Ctrl-C is for the process that waits for this one, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _work(work: Callable[[Any, Any], list[Any]], chunk: Any) -> list[Any]:
    return work(_state, chunk)


def _spread(work: Callable[[Any, Any], list[Any]], state: Any, items: Any) -> Iterator[list[Any]]:
    """``work(state, chunk)`` of each chunk, in order, by as many processes as there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or len(items) <= 4 * CHUNK:
        for chunk in _chunks(items):
            yield work(state, chunk)
        return
    # A forked process has what it needs already; where none can be forked, it is sent.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    try:
        with ProcessPoolExecutor(min(cores, 64), context, initializer=_begin, initargs=(state,)) as pool:
            yield from pool.map(partial(_work, work), list(_chunks(items)))
    except BrokenProcessPool as error:
        raise ValueError(
            "a process that checked the records was killed, perhaps for want of memory; start again"
        ) from error
