"""Small data sets of the field, in the exact layouts that their own readers expect."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

H, W = 24, 32


def picture(path: Path, size: tuple[int, int] = (H, W)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)
    return path


def written(path: Path, value: Any, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding=encoding)
    return path


def box(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    """The polygon that COCO fills from x0 to x1 - 1 and y0 to y1 - 1."""
    return [float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]


# --- ReasonSeg --------------------------------------------------------------------------------------------------------


def shape(label: str, *points: tuple[float, float]) -> dict:
    return {
        "label": label,
        "labels": [label],
        "shape_type": "polygon",
        "image_name": "a.jpg",
        "points": [list(point) for point in points],
        "group_id": None,
        "group_ids": [None],
        "flags": {},
    }


def square(label: str, x0: float, y0: float, x1: float, y1: float) -> dict:
    return shape(label, (x0, y0), (x1, y0), (x1, y1), (x0, y1))


def reason_seg(root: Path) -> Path:
    """``train`` with two pictures, one of them explained; ``val`` with a phrase and a sentence."""
    sentence = {"text": ["What would keep me dry?", "Which thing helps in the rain?"], "is_sentence": True}
    phrase = {"text": ["the unusual part"], "is_sentence": False}
    target = square("target", 4, 2, 12, 10)
    pictures = {"train/a": sentence, "train/b": phrase, "val/c": sentence, "val/d": phrase}
    for name, said in pictures.items():
        picture(root / f"{name}.jpg")
        written(root / f"{name}.json", {**said, "shapes": [target]})
    written(
        root / "explanatory" / "train.json",
        [{"image": "a.jpg", "query": "What would keep me dry?", "outputs": "An umbrella keeps the rain off."}],
    )
    return root


# --- RefCOCO, gRefCOCO ------------------------------------------------------------------------------------------------


def instances() -> dict:
    """Image 7 with two cups and a table, image 9 with a cup."""
    boxes = {70: (2, 2, 8, 8), 71: (10, 2, 18, 8), 72: (0, 12, 32, 24), 90: (4, 4, 10, 10)}
    return {
        "info": {},
        "licenses": [{"id": 1, "name": "none", "url": ""}],
        "images": [
            {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": H, "width": W, "license": 1},
            {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": H, "width": W, "license": 1},
        ],
        "annotations": [
            {
                "id": number,
                "image_id": number // 10,
                "category_id": 67 if number == 72 else 47,
                "segmentation": [box(*at)],
                "area": 1,
                "bbox": [0, 0, 1, 1],
                "iscrowd": 0,
            }
            for number, at in boxes.items()
        ],
        "categories": [
            {"id": 47, "name": "cup", "supercategory": "kitchen"},
            {"id": 67, "name": "dining table", "supercategory": "furniture"},
        ],
    }


def sentences(*texts: str, first: int = 0) -> dict:
    said = [
        {"sent_id": n, "sent": text, "raw": text.upper(), "tokens": text.split()} for n, text in enumerate(texts, first)
    ]
    return {"sentences": said, "sent_ids": [s["sent_id"] for s in said]}


def refs() -> list[dict]:
    common = {"category_id": 47, "file_name": "COCO_train2014_000000000007_70.jpg", "image_id": 7}
    return [
        {**common, "ref_id": 1, "ann_id": 70, "split": "train", **sentences("left cup", "the one at the left")},
        {**common, "ref_id": 2, "ann_id": 71, "split": "testA", **sentences("right cup", first=2)},
        {**common, "ref_id": 3, "ann_id": 90, "image_id": 9, "split": "train", **sentences("cup", first=3)},
    ]


def grefs() -> list[dict]:
    common = {"file_name": "COCO_train2014_000000000007_0.jpg", "image_id": 7, "split": "val"}
    some, none = {**common, "no_target": False}, {**common, "no_target": True}
    return [
        {**some, "ref_id": 1, "ann_id": [71, 70], "category_id": [47, 47], **sentences("both cups")},
        {**none, "ref_id": 2, "ann_id": [-1], "category_id": [-1], **sentences("a cat", first=1)},
        {**some, "ref_id": 3, "ann_id": [72], "category_id": [67], **sentences("table", first=2)},
    ]


def refer(root: Path, *, records: Any = None, by: str = "unc", protocol: int = 2) -> Path:
    """A folder of ``refs(by).p``, ``instances.json`` and ``train2014``."""
    root.mkdir(parents=True, exist_ok=True)
    (root / f"refs({by}).p").write_bytes(pickle.dumps(refs() if records is None else records, protocol=protocol))
    content = instances()
    written(root / "instances.json", content)
    for image in content["images"]:
        picture(root / "train2014" / image["file_name"])
    return root


def grefer(root: Path, records: Any = None) -> Path:
    refer(root)
    (root / "refs(unc).p").unlink()
    written(root / "grefs(unc).json", grefs() if records is None else records)
    return root


# --- LLaVA-Instruct ---------------------------------------------------------------------------------------------------


def llava() -> list[dict]:
    return [
        {
            "id": "000000033471",
            "image": "000000033471.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat colour is the bus?"},
                {"from": "gpt", "value": "The bus is white and red."},
                {"from": "human", "value": "What stands behind it?"},
                {"from": "gpt", "value": "A building stands behind it."},
            ],
        },
        {"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {
            "id": "000000052846",
            "image": "000000052846.jpg",
            "conversations": [
                {"from": "human", "value": "Where is the cat?\n<image>"},
                {"from": "gpt", "value": "On a plate."},
            ],
        },
        {
            "id": "000000033471",
            "image": "000000033471.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe it."},
                {"from": "gpt", "value": "A bus on a street."},
            ],
        },
    ]
