"""Readers of data: annotations, questions, predictions, settings, pictures, what services answer."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from aura.config.parse import load_config, to_yaml
from aura.config.settings import Config
from aura.data.photos import open_photo
from aura.datagen.service.completions import read_completion
from aura.datagen.service.jsonl import index_answers, succeeded
from aura.datagen.service.reading import Unreadable, read_pairs
from aura.datagen.service.refusals import Refusal
from aura.evaluation.report import read_figures
from aura.evaluation.scoring import load_predictions
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
from aura.fuzz.damage import Reader
from aura.masks import encode_rle

H, W = 20, 30


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
COMPLETION = {
    "id": "c",
    "model": "m",
    "choices": [{"message": {"role": "assistant", "content": ANSWER, "refusal": None}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}},
    "error": None,
}
BATCH = b"".join(
    json.dumps({"custom_id": key, "response": {"status_code": 200, "body": COMPLETION}, "error": None}).encode() + b"\n"
    for key in "ab"
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


def _completion(value: Any) -> object:
    """Anything at all may come from a server: it never raises."""
    done = read_completion(value.get("body"))
    return done, Refusal.read(400, value.get("body")).described()


def _batch(path: Path) -> object:
    """Lines that are no answers are passed over."""
    return [succeeded(where) for where in index_answers([path]).values()]


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
    Reader("completions of services", {"body": COMPLETION}, _completion, ""),
    Reader("answers of batches", BATCH, _batch, ".jsonl"),
    Reader("JSON", REASON, read_json),
    Reader("PNG", _picture("PNG"), _examined, ".png"),
    Reader("transparent PNG", _picture("PNG", "RGBA"), _examined, ".png"),
    Reader("JPEG", _picture("JPEG"), _examined, ".jpg"),
    Reader("WebP", _picture("WEBP"), _examined, ".webp"),
    Reader("GIF", _picture("GIF"), _examined, ".gif"),
    Reader("TIFF", _picture("TIFF"), _examined, ".tiff"),
)
