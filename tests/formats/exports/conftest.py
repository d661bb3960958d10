"""A small data set with what is hard to carry over: holes, parts, unknown shapes, later turns, empty answers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.sources import AnnotatedImage
from aura.masks import decode_rle, encode_rle
from aura.types import AmodalObject, Conversation, Turn

SIZE = (24, 32)


def thing(number: int, category: str, visible: np.ndarray, amodal: np.ndarray | None) -> AmodalObject:
    rate = None if amodal is None else float(1 - visible.sum() / amodal.sum())
    whole = None if amodal is None else encode_rle(amodal)
    return AmodalObject(number, category, encode_rle(visible), whole, rate, (), "vehicle")


@pytest.fixture
def dataset(tmp_path) -> AmodalReasonSeg:
    whole = np.zeros(SIZE, bool)
    whole[2:20, 3:25] = True
    whole[6:12, 8:14] = False  # a hole
    seen = whole.copy()
    seen[:, 15:18] = False  # two parts
    front = np.zeros(SIZE, bool)
    front[:, 15:18] = True
    dot = np.zeros(SIZE, bool)
    dot[23, 31] = True
    first = (thing(7, "bus", seen, whole), thing(8, "tree", front, front), thing(9, "flag", dot, None))
    second = (thing(11, "bus", front, front),)
    two = Turn(
        "What could I ride, and what hides it?", "You could ride the bus [SEG], which a tree [SEG] hides.", (7, 8)
    )
    follow = Turn("And which is taller?", "[SEG] is.", (8,))
    conversations = {
        4: [
            Conversation(3, (two, follow)),
            Conversation(5, (Turn("Is there a cat?", "No.", ()),)),
            Conversation(6, (Turn("Where is the flag?", "Here is the flag [SEG].", (9,)),)),
        ],
        2: [Conversation(8, (Turn("Which buses?", "The buses [SEG] and [SEG].", (11, 11)),))],
    }
    images = [
        AnnotatedImage(4, "street/a.jpg", *SIZE, first, {"license": 2}, {"bus": 6, "tree": 2, "flag": 90}),
        AnnotatedImage(2, "b.jpg", *SIZE, second, {}, {"bus": 6}),
    ]
    (tmp_path / "images" / "street").mkdir(parents=True)
    for name in ("street/a.jpg", "b.jpg"):
        pixels = np.full((*SIZE, 3), 90, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name, "PNG" if name == "b.jpg" else "JPEG")
    path = tmp_path / "data.json"
    AmodalReasonSeg.build(images, conversations, source=path, image_folder="images", licenses=[{"id": 2}]).save()
    return AmodalReasonSeg.load(path)


@pytest.fixture
def masks(dataset):
    """``masks(kind)``: annotation id -> mask, bool [H, W], of those that have one."""
    objects = [o for sample in dataset for o in sample.objects]

    def of(kind: str) -> dict[int, np.ndarray]:
        found = {o.id: o.visible if kind == "visible" else o.amodal for o in objects}
        return {number: decode_rle(mask) for number, mask in found.items() if mask is not None}

    return of
