"""Damages valid files of every kind that AURA reads, and holds every reader to one rule: a result or one clear error.

The error is a ``ValueError`` that names the file. Anything else is a fault: another exception, more than 5 seconds of
computing, or a message without the file's name. Hypothesis makes the damage and shrinks what it finds. Example::

    scripts/fuzz.py --num 10000 --out docs/results/fuzz.json
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import contextlib
import io
import json
import pickle
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from aura.config.parse import load_config, to_yaml
from aura.config.settings import Config
from aura.data.photos import open_photo
from aura.datagen.service.reading import Unreadable, read_pairs
from aura.evaluation.report import read_figures
from aura.evaluation.scoring import load_predictions
from aura.files import write_json
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.category_sets import CategorySet
from aura.formats.checks import problems
from aura.formats.instances import InstanceFile
from aura.formats.label_maps import read_classes
from aura.formats.llava_instruct import LlavaFile
from aura.formats.pickles import read_plain_pickle
from aura.formats.pictures import examine
from aura.formats.reading import read_json, to_rle
from aura.formats.reason_seg import ReasonSegFolder, read_explanations
from aura.formats.refer import ReferFolder
from aura.formats.selective import SelectiveQueries
from aura.formats.sources import AnnotationFile
from aura.masks import encode_rle

SECONDS = 5.0
"""Of computing, for one file of a few kilobytes."""
H, W = 20, 30


class Fault(Exception):
    """A reader broke the rule."""


@dataclass(frozen=True)
class Reader:
    """What is read, from a valid content; ``suffix`` is the file's, none where no file is read."""

    name: str
    content: Any
    read: Callable[[Any], object]
    suffix: str = ".json"


# --- valid contents ---------------------------------------------------------------------------------------------------


def _box(x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    mask = np.zeros((H, W), bool)
    mask[y0:y1, x0:x1] = True
    return dict(encode_rle(mask))


CUP, TABLE, SEEN, HIDDEN = _box(2, 2, 12, 12), _box(8, 4, 28, 14), _box(12, 4, 28, 14), _box(8, 4, 12, 14)
OUTLINE = [[2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]]
BASE: dict[str, Any] = {
    "info": {"image_folder": "pictures"},
    "images": [{"id": 7, "file_name": "a.jpg", "height": H, "width": W}],
    "categories": [{"id": 4, "name": "cup", "supercategory": "kitchen"}, {"id": 6, "name": "table"}],
}


def _annotations(**more: Any) -> list[dict[str, Any]]:
    shared = {"image_id": 7, "iscrowd": 0, **more}
    cup = {"id": 1, "category_id": 4, "segmentation": CUP, "visible_mask": CUP, "area": 100.0, "bbox": [2, 2, 10, 10]}
    table = {"id": 2, "category_id": 6, "segmentation": TABLE, "visible_mask": SEEN, "occlude_rate": 0.2}
    return [cup | {"occlude_rate": 0.0} | shared, table | {"invisible_mask": HIDDEN, "occluded_by": [1]} | shared]


MASKS = BASE | {"annotations": _annotations()}
REASON = MASKS | {
    "conversations": [
        {
            "id": 5,
            "image_id": 7,
            "turns": [{"question": "What could I drink from?", "answer": "The cup [SEG].", "objects": [1]}],
            "provenance": {"generator": "offline", "seed": 0},
        }
    ],
}
QUERIES = [{"annotation_id": 2, "image_id": 7, "query": "the table", "is_sentence": False, "mask": "amodal"}]
COCOA = {
    "images": BASE["images"],
    "annotations": [
        {
            "id": 3,
            "image_id": 7,
            "author": "a",
            "depth_constraint": "1-2",
            "regions": [
                {"name": "cup", "segmentation": OUTLINE[0], "order": 1, "isStuff": 0, "occlude_rate": 0, "area": 100},
                {"name": "table", "segmentation": TABLE, "visible_mask": SEEN, "order": 2, "occlude_rate": 0.2},
            ],
        }
    ],
}
KINS = BASE | {
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 4, "a_segm": OUTLINE, "i_segm": OUTLINE, "a_bbox": [2, 2, 10, 10]},
    ]
}
INSTANCES = BASE | {
    "annotations": [{"id": 1, "image_id": 7, "category_id": 4, "segmentation": OUTLINE, "iscrowd": 0, "area": 100}]
}
TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cup."}]
LLAVA = [{"id": "a", "image": "a.jpg", "conversations": TALK}]
REASON_SEG = {
    "text": ["What could I drink from?"],
    "is_sentence": True,
    "shapes": [{"label": "target", "points": [[2, 2], [12, 2], [12, 12]]}],
}
REF = {"ref_id": 1, "ann_id": [1], "image_id": 7, "category_id": 4, "split": "train", "sentences": [{"sent": "a cup"}]}
REFS = [REF]
PREDICTIONS = [{"conversation_id": 5, "turn": 0, "index": 0, "visible": SEEN, "amodal": TABLE, "occlusion_rate": 0.2}]
ANSWER = (
    '<think>Two things.</think>Here you are:\n```json\n{"pairs": [{"question": "What could I drink from?", '
    '"answer": "The cup [SEG].", "objects": [1]}, {"question": "And?", "answer": "A [SEG].", "objects": ["2"]}]}\n```'
)
CLASSES = b"1\t0.1\t1\t1\twall, brick wall\n2\t0.1\t1\t1\tsky\n"
FIGURES = {
    "protocol": "teacher_forced",
    **{part: {"gIoU": 0.5, "cIoU": 0.5} for part in ("visible", "amodal", "invisible", "amodal_from_visible")},
    "by_occlusion": [],
}


def _picture(form: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form)
    return buffer.getvalue()


# --- readers ----------------------------------------------------------------------------------------------------------


def _beside(path: Path, name: str, content: Any) -> Path:
    path.with_name(name).write_text(json.dumps(content), encoding="utf-8")
    return path


def _examined(path: Path) -> object:
    """The facts about a picture, which never raise; its pixels, which may."""
    examine(path)
    return open_photo(path)


def _answer(text: str) -> object:
    with contextlib.suppress(Unreadable):  # the answer is asked for again
        return read_pairs(text)
    return None


def _mask(value: Any) -> object:
    return to_rle(value.get("mask"), (H, W))


def _reason_seg(path: Path) -> object:
    Image.new("RGB", (W, H)).save(path.with_suffix(".jpg"))
    return list(ReasonSegFolder(path.parent))


def _refs(path: Path) -> object:
    path.replace(path.with_name("grefs(unc)" + path.suffix))
    return list(ReferFolder(_beside(path, "instances.json", INSTANCES).parent, "unc", "train"))


def _llava(path: Path) -> object:
    Image.new("RGB", (W, H)).save(path.with_name("a.jpg"))
    return list(LlavaFile(path, path.parent))


READERS = (
    Reader("AmodalReasonSeg", REASON, lambda path: list(AmodalReasonSeg.load(path))),
    Reader("AmodalReasonSeg's checks", REASON, lambda document: problems(document), ""),
    Reader("COCOA-cls", MASKS, lambda path: list(AnnotationFile(path))),
    Reader("COCOA", COCOA, lambda path: list(AnnotationFile(path))),
    Reader("KINS", KINS, lambda path: list(AnnotationFile(path))),
    Reader("COCO instances", INSTANCES, lambda path: list(InstanceFile(path))),
    Reader("category sets", INSTANCES, lambda path: list(CategorySet(path))),
    Reader("LLaVA-Instruct", LLAVA, _llava),
    Reader("ReasonSeg", REASON_SEG, _reason_seg),
    Reader("ReasonSeg's explanations", [{"image": "a.jpg", "outputs": "It holds."}], read_explanations),
    Reader("gRefCOCO", REFS, _refs),
    Reader("queries", QUERIES, lambda p: list(SelectiveQueries(p.with_name("m"), _beside(p, "m", MASKS)))),
    Reader("RefCOCO's pickles", pickle.dumps(REFS), read_plain_pickle, ".p"),
    Reader("classes", CLASSES, lambda path: read_classes(path, "ade20k"), ".txt"),
    Reader("predictions", PREDICTIONS, load_predictions),
    Reader("reports", FIGURES, read_figures),
    Reader("settings", yaml.safe_load(to_yaml(Config())), load_config, ".yaml"),
    Reader("masks", {"mask": CUP}, _mask, ""),
    Reader(
        "plain masks", {"mask": {"size": [H, W], "counts": [42, 10, 548]}}, lambda v: to_rle(v.get("mask"), (H, W)), ""
    ),
    Reader("outlines", {"mask": OUTLINE}, _mask, ""),
    Reader("answers of services", ANSWER, _answer, ""),
    Reader("JSON", REASON, read_json),
    Reader("PNG", _picture("PNG"), _examined, ".png"),
    Reader("transparent PNG", _picture("PNG", "RGBA"), _examined, ".png"),
    Reader("JPEG", _picture("JPEG"), _examined, ".jpg"),
    Reader("WebP", _picture("WEBP"), _examined, ".webp"),
    Reader("GIF", _picture("GIF"), _examined, ".gif"),
    Reader("TIFF", _picture("TIFF"), _examined, ".tiff"),
)


# --- damage -----------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from([2**31, 2**53 + 1, 2**63, -(2**63), 10**30, 10**400]), st.floats(width=64)
)
ODD = ["", " ", "[SEG]", "<image>", "\ud800", "../../etc/passwd", "1e999", "7", "\0"]
TEXTS = st.one_of(st.text(max_size=6), st.sampled_from(ODD))
EMPTY = st.sampled_from([[], {}, [[]], [{}], [[[]]]])
VALUES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.lists(NUMBERS, max_size=4), EMPTY)
EDITS = st.lists(
    st.tuples(st.integers(0, 999), st.sampled_from(["put", "put", "put", "drop", "twice", "swap"]), VALUES),
    min_size=1,
    max_size=3,
)
CUTS = st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 3), st.binary(max_size=4)), max_size=3)


def damaged_value(value: Any, edits: list[tuple[int, str, Any]]) -> Any:
    """A copy of a JSON value with some of its parts replaced, dropped, doubled or exchanged."""
    root = [deepcopy(value)]
    for place, what, new in edits:
        nodes = list(_places(root))
        holder, key = nodes[place % len(nodes)]
        if what == "drop" and holder is not root:
            del holder[key]
        elif what == "twice" and isinstance(holder, list) and holder is not root:
            holder.insert(key, deepcopy(holder[key]))
        elif what == "swap":
            other, at = nodes[(place * 7 + 3) % len(nodes)]
            holder[key] = deepcopy(other[at])
        else:
            holder[key] = deepcopy(new)
    return root[0]


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    for key in keys:
        yield holder, key
        if isinstance(holder[key], (dict, list)):
            yield from _places(holder[key])


def damaged_bytes(data: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    """Bytes replaced, put in, taken out, or cut off."""
    for place, what, new in cuts:
        at = place % (len(data) + 1)
        rest = (at + len(new), at, at + 1 + len(new), len(data))[what]
        data = data[:at] + new + data[rest:]
    return data


def damage(reader: Reader) -> st.SearchStrategy[Any]:
    """Damaged contents: bytes where a file is read, else a value."""
    if isinstance(reader.content, bytes):
        return st.builds(damaged_bytes, st.just(reader.content), CUTS)
    if isinstance(reader.content, str):
        cut = st.builds(damaged_bytes, st.just(reader.content.encode()), CUTS)
        return cut.map(lambda data: data.decode("utf-8", "replace"))
    values = st.builds(damaged_value, st.just(reader.content), EDITS)
    if not reader.suffix:
        return values.filter(lambda value: isinstance(value, dict))
    to_text = yaml.safe_dump if reader.suffix == ".yaml" else json.dumps
    # Three of four are well-formed files with wrong values.
    whole = values.map(lambda value: to_text(value).encode("utf-8", "surrogatepass"))
    return st.one_of(whole, whole, whole, st.builds(damaged_bytes, whole, CUTS))


# --- the rule ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Within ``with``: so much computing and no more, however busy the machine is."""

    def stop(*_: object) -> None:
        raise Fault(f"it computed for more than {seconds:.0f} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def outcome(reader: Reader, content: Any, folder: Path) -> str:
    """``read`` or ``refused``.

    Raises:
        Fault: The reader did anything else.
    """
    with tempfile.TemporaryDirectory(dir=folder) as own:
        path = Path(own) / f"subject{reader.suffix}"
        if reader.suffix:
            path.write_bytes(content)
        try:
            with time_limit(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader.read(path if reader.suffix else content)
        except ValueError as error:
            if reader.suffix and own not in str(error):
                raise Fault(f"{reader.name}: the message names no file: {error}") from error
            return "refused"
        except Exception as error:
            if isinstance(error, Fault):
                raise
            raise Fault(f"{reader.name}: {type(error).__name__}: {error}") from error
    return "read"


def fuzz(reader: Reader, num: int, folder: Path, number: int = 0) -> Counter[str]:
    """How ``num`` damaged contents were taken; the first fault raises, with the smallest content that shows it."""
    taken: Counter[str] = Counter()
    phases, checks = (Phase.generate, Phase.shrink), list(HealthCheck)

    @seed(number)
    @settings(max_examples=num, database=None, deadline=None, phases=phases, suppress_health_check=checks)
    @given(damage(reader))
    def hold(content: Any) -> None:
        taken[outcome(reader, content, folder)] += 1

    hold()
    return taken


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 if a reader broke the rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=10_000, metavar="N", help="bad files in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another one makes other files (%(default)s)")
    parser.add_argument("--only", metavar="NAME", help="the readers whose name contains this")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the counts as JSON")
    options = parser.parse_args(argv)
    readers = [reader for reader in READERS if (options.only or "").lower() in reader.name.lower()]
    counts: dict[str, dict[str, int]] = {}
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        for reader in readers:
            try:
                taken = fuzz(reader, -(-options.num // len(readers)), Path(folder), options.seed)
            except (Fault, ExceptionGroup) as fault:  # several at once come as a group
                faults += 1
                print("FAULT", fault, *getattr(fault, "__notes__", ()), sep="\n  ", flush=True)
                continue
            counts[reader.name] = dict(taken)
            print(f"{reader.name}: {taken['read']} read, {taken['refused']} refused", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    total = sum(sum(taken.values()) for taken in counts.values())
    print(f"{total} bad files, {faults} readers with a fault, at most {peak} MiB of memory")
    if options.out:
        write_json(options.out, {"bad_files": total, "peak_mib": peak, "faults": faults, "readers": counts}, indent=1)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
