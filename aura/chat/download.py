"""The masks of an answer to take away: one zip with a COCO file and a PNG per mask."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from aura.masks import encode_rle, mask_area, mask_to_bbox
from aura.types import Reply, ReplyObject, kinds_of

COCO_FILE = "annotations.json"
_YEAR = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the zip, so that the same masks are the same bytes."""


def safe_name(text: str, fallback: str, *, longest: int = 40) -> str:
    """``text`` as a part of a file's name on any system: letters, digits, ``_``, ``-``, at most ``longest`` bytes."""
    kept = re.sub(r"[^\w-]+", "_", text).strip("_-").encode("utf-8", "ignore")[:longest].decode("utf-8", "ignore")
    return kept.strip("_-") or fallback


def mask_files(reply: Reply) -> list[tuple[str, np.ndarray]]:
    """(name, bool [H, W]) of every mask, such as ``02_red_bus_amodal.png`` of the second object."""
    files = []
    for number, obj in enumerate(reply.objects, start=1):
        stem = f"{number:02d}_{safe_name(obj.name, 'object')}"
        masks = (("visible", obj.visible), ("amodal", obj.amodal), ("invisible", _invisible(obj)))
        files += [(f"{stem}_{kind}.png", mask) for kind, mask in masks if mask is not None]
    return files


def _invisible(obj: ReplyObject) -> np.ndarray | None:
    """The invisible mask; ``None`` where the model does not predict both others."""
    return None if obj.visible is None or obj.amodal is None else obj.amodal & ~obj.visible


def coco_document(file_name: str, width: int, height: int, question: str, reply: Reply) -> dict[str, Any]:
    """An answer as COCO: every object an annotation, with the fields of COCOA-cls beside COCO's.

    ``segmentation``, ``area`` and ``bbox`` are the amodal mask's, or, of a model of visible masks, the visible one's;
    ``info.segmentation`` says which. ``occlude_rate`` is that of the masks, ``predicted_occlusion_rate`` the model's
    own estimate. ``conversations`` has the question and the answer, as in our own format.
    """
    names = list(dict.fromkeys(obj.name for obj in reply.objects))
    annotations = [_annotation(obj, number, names.index(obj.name) + 1) for number, obj in enumerate(reply.objects, 1)]
    kinds = {"visible" if kinds_of(obj.visible, obj.amodal) == "visible" else "amodal" for obj in reply.objects}
    asked = tuple(obj.asked for obj in reply.objects)
    turn: dict[str, Any] = {"question": question, "answer": reply.text, "objects": [a["id"] for a in annotations]}
    if set(asked) - {"both"}:
        turn["asked"] = list(asked)
    return {
        "info": {"description": "masks predicted by AURA", "segmentation": kinds.pop() if len(kinds) == 1 else None},
        "licenses": [],
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(names, start=1)],
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "annotations": annotations,
        "conversations": [{"id": 1, "image_id": 1, "turns": [turn], "provenance": {"generator": "AURA"}}],
    }


def _annotation(obj: ReplyObject, number: int, category: int) -> dict[str, Any]:
    whole = obj.visible if obj.amodal is None else obj.amodal
    assert whole is not None, "an object has at least one mask"
    record: dict[str, Any] = {
        "id": number,
        "image_id": 1,
        "category_id": category,
        "segmentation": encode_rle(whole),
        "area": mask_area(whole),
        "bbox": mask_to_bbox(whole),
        "iscrowd": 0,
    }
    if obj.visible is not None:
        record |= {"visible_mask": encode_rle(obj.visible), "visible_bbox": mask_to_bbox(obj.visible)}
    invisible = _invisible(obj)
    if invisible is not None and invisible.any():
        record |= {"invisible_mask": encode_rle(invisible), "occlude_rate": mask_area(invisible) / mask_area(whole)}
    if obj.occlusion_rate is not None:
        record["predicted_occlusion_rate"] = obj.occlusion_rate
    return record


def mask_archive(name: str, size: tuple[int, int], question: str, reply: Reply) -> bytes:
    """The zip's bytes.

    Args:
        name: The picture's file; its folder is left out.
        size: Its (width, height) upright, which the masks have.
        question: In the user's words.
        reply: The answer to it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        document = coco_document(PurePath(name).name, *size, question, reply)
        _add(archive, COCO_FILE, json.dumps(document, allow_nan=False, indent=1).encode())
        for file, mask in mask_files(reply):
            png = io.BytesIO()
            Image.fromarray(mask).save(png, "PNG")
            _add(archive, file, png.getvalue())
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _YEAR)
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)
