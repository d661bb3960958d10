"""The zip of an answer's masks: what COCO tools and our own readers find in it, and how its files are called."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from aura.chat.download import COCO_FILE, coco_document, mask_archive, safe_name
from aura.formats.sources import load_cocoa_cls
from aura.masks import decode_rle
from aura.types import Reply, ReplyObject

AMODAL = np.zeros((40, 60), bool)
AMODAL[10:30, 10:50] = True
FRONT = np.zeros((40, 60), bool)
FRONT[10:30, 40:60] = True
CUP = ReplyObject("tea/cup", AMODAL & ~FRONT, AMODAL, 0.3)
REPLY = Reply("The cup [SEG] behind a box [SEG].", (CUP, ReplyObject("box", FRONT, FRONT, 0.0)))


def opened(reply: Reply = REPLY) -> tuple[dict[str, bytes], dict]:
    archive = zipfile.ZipFile(io.BytesIO(mask_archive("/tmp/kitchen.png", (60, 40), "What?", reply)))
    files = {name: archive.read(name) for name in archive.namelist()}
    return files, json.loads(files[COCO_FILE])


def test_every_mask_is_a_png_of_the_picture_s_size():
    files, _ = opened()
    names = [f"01_tea_cup_{kind}.png" for kind in ("visible", "amodal", "invisible")]
    assert sorted(files) == sorted(
        [COCO_FILE, *names, *(f"02_box_{kind}.png" for kind in ("visible", "amodal", "invisible"))]
    )
    for name, mask in zip(names, (AMODAL & ~FRONT, AMODAL, AMODAL & FRONT), strict=True):
        assert (np.asarray(Image.open(io.BytesIO(files[name]))) == mask).all()
    assert mask_archive("a", (60, 40), "What?", REPLY) == mask_archive("a", (60, 40), "What?", REPLY)


def test_coco_tools_and_our_readers_find_the_masks(tmp_path):
    files, document = opened()
    path = tmp_path / "a.json"
    path.write_bytes(files[COCO_FILE])
    coco = COCO(str(path))
    assert document["images"] == [{"id": 1, "file_name": "kitchen.png", "width": 60, "height": 40}]
    assert (coco.annToMask(coco.anns[1]).astype(bool) == AMODAL).all()
    (image,) = load_cocoa_cls(path)
    cup, box = image.objects
    assert (cup.category, cup.occlusion_rate) == ("tea/cup", 0.25)  # 10 of 40 columns; the model said 0.3
    assert document["annotations"][0]["predicted_occlusion_rate"] == 0.3
    assert (decode_rle(cup.visible) == (AMODAL & ~FRONT)).all() and (decode_rle(cup.amodal) == AMODAL).all()
    assert box.occlusion_rate == 0 and "invisible_mask" not in document["annotations"][1]
    assert document["conversations"][0]["turns"] == [
        {"question": "What?", "answer": "The cup [SEG] behind a box [SEG].", "objects": [1, 2]}
    ]


def test_which_mask_was_asked_for_stands_with_the_question():
    reply = replace(REPLY, objects=(replace(CUP, asked="visible"), REPLY.objects[1]))
    assert opened(reply)[1]["conversations"][0]["turns"][0]["asked"] == ["visible", "both"]
    assert "asked" not in opened()[1]["conversations"][0]["turns"][0]


@pytest.mark.parametrize("kind", ["visible", "amodal"])
def test_a_model_of_one_kind_says_which_the_segmentation_is(kind: str):
    other = {"visible": "amodal", "amodal": "visible"}[kind]
    reply = Reply("The cup [SEG].", (replace(CUP, **{other: None}, occlusion_rate=None),))
    files, document = opened(reply)
    assert sorted(files) == [f"01_tea_cup_{kind}.png", COCO_FILE]
    (annotation,) = document["annotations"]
    assert document["info"]["segmentation"] == kind
    assert (decode_rle(annotation["segmentation"]) == getattr(CUP, kind)).all()
    assert ("visible_mask" in annotation) == (kind == "visible") and "occlude_rate" not in annotation


def test_an_answer_without_objects_and_one_with_empty_masks():
    files, document = opened(Reply("Nothing.", ()))
    assert list(files) == [COCO_FILE] and document["annotations"] == [] and document["info"]["segmentation"] is None
    empty = np.zeros((40, 60), bool)
    _, document = opened(Reply("[SEG]", (ReplyObject("", empty, empty, 0.0),)))
    assert document["annotations"][0]["area"] == 0 and document["annotations"][0]["bbox"] == [0.0] * 4


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("the red bus", "the_red_bus"),
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\con\0<>|", "C_con"),
        ("杯子", "杯子"),
        ("杯" * 100, "杯" * 13),
        ("...", "object"),
        ("", "object"),
        ("a" * 300, "a" * 40),
        ("\ud800x", "x"),
    ],
)
def test_names_fit_any_file_system(text: str, name: str):
    assert safe_name(text, "object") == name
    assert len(safe_name(text, "object").encode()) <= 40


def test_the_document_survives_any_text():
    reply = Reply("\ud800 [SEG]", (replace(CUP, name='\ud800"\n'),))
    files, document = opened(reply)
    assert document["categories"][0]["name"] == coco_document("a", 60, 40, "", reply)["categories"][0]["name"]
    assert any(name.endswith("_visible.png") for name in files)
