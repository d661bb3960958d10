"""What we export as ReasonSeg is what our reader of ReasonSeg reads: the same pixels and words."""

from __future__ import annotations

import numpy as np
from PIL import Image

from aura.formats.exports.reason_seg import export_reason_seg
from aura.formats.reason_seg import ReasonSegFolder
from aura.masks import decode_rle, encode_rle
from aura.types import AmodalObject, Conversation, Sample, Turn

SIZE = (40, 50)


def test_reason_seg(tmp_path):
    rng = np.random.default_rng(1)
    coarse = rng.random((8, 10)) < 0.5  # parts, holes, and corners that touch
    masks = [np.kron(coarse, np.ones((5, 5), bool)), rng.random(SIZE) < 0.3]
    objects = tuple(AmodalObject(n, "thing", encode_rle(mask), None, None) for n, mask in enumerate(masks))
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)
    one = Turn("Which one?", "The thing [SEG].", (0,))
    both = Turn("Which?", "The thing [SEG] and the thing [SEG].", (0, 1))
    talks = (Conversation(1, (one,)), Conversation(2, (both,)))
    ignored = (rng.random(SIZE) < 0.2) & ~masks[0] & ~masks[1]
    sample = Sample(1, path, *SIZE, objects, talks, encode_rle(ignored))
    export_reason_seg([sample], tmp_path, kind="visible", name="ours", split="train")
    folder = tmp_path / "reason_seg" / "ours"
    read = list(ReasonSegFolder(folder / "train", explanations=folder / "explanatory" / "train.json"))
    assert [[q.text for q in asked.questions] for asked in read] == [["Which one?"], ["Which?"]]
    assert read[0].questions[0].explanation == "The thing."
    for asked, expected in zip(read, (masks[0], masks[0] | masks[1]), strict=True):
        assert (decode_rle(asked.image.objects[0].visible) == expected).all()
        assert (decode_rle(asked.image.ignore) == ignored).all()
