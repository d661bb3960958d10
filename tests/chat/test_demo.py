"""What the page does, without the page: it streams, draws what is switched on, and gives masks to take away."""

from __future__ import annotations

import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from aura.chat.demo import Demo, draw, numbered, object_rows, switched, switches_of, write_masks
from aura.types import Reply, ReplyObject

MASK = np.zeros((40, 60), bool)
MASK[:, :30] = True
REPLY = Reply("Take the bus [SEG].", (ReplyObject("bus", MASK[:, ::-1], MASK, 0.5),))


class Session:
    image = Image.new("RGB", (60, 40))

    def ask(self, question, on_text, on_object):
        if not question:
            raise ValueError("the question is empty")
        for piece in ("Take the ", "bus ", "[SEG]", "."):
            on_text(piece)
        for obj in REPLY.objects:
            on_object(obj)
        return REPLY


class Assistant:
    def conversation(self, path):
        if path == "gone.png":
            raise ValueError("the image gone.png does not exist")
        return Session()


def test_an_answer_streams_and_ends_with_overlay_and_table():
    *pieces, last = Demo(Assistant()).answer(Session(), "What?")
    *words, drawn = pieces
    assert [text for text, _, _ in words] == ["Take the ", "Take the bus ", "Take the bus (1)", "Take the bus (1)."]
    assert all(picture is None and rows == [] for _, picture, rows in words)
    assert drawn == ("Take the bus (1).", None, last[2]), "an object is told before the overlay is drawn"
    text, picture, rows = last
    assert text == "Take the bus (1)."
    assert picture.width >= 60
    assert rows == [[1, "bus", "50%", "1,200", "1,200"]]


def test_what_cannot_be_asked_is_an_error_and_the_next_question_is_answered():
    demo = Demo(Assistant())
    with pytest.raises(ValueError, match="empty"):
        list(demo.answer(Session(), ""))
    assert list(demo.answer(Session(), "What?"))[-1][0] == "Take the bus (1)."


def test_marks_and_missing_masks():
    assert numbered("a [SEG] and b [SEG]") == "a (1) and b (2)"
    assert object_rows(Reply("b [SEG]", (ReplyObject("b", MASK, None, None),))) == [[1, "b", "–", "1,200", "–"]]


def test_switches_draw_one_mask_or_none_and_keep_the_number():
    obj = REPLY.objects[0]
    assert switches_of(obj) == ["both", "visible", "amodal", "hidden"]
    assert switches_of(replace(obj, amodal=None)) == ["visible", "hidden"]
    assert switches_of(replace(obj, visible=None)) == ["amodal", "hidden"]
    assert switched(obj, "both") == obj
    one_kind = replace(obj, asked="visible")
    assert switches_of(one_kind) == ["asked", "both", "visible", "amodal", "hidden"]
    assert switched(one_kind, "asked") is one_kind and switched(one_kind, "both").asked == "both"
    assert switched(obj, "visible").amodal is None and switched(obj, "visible").visible is obj.visible
    assert switched(obj, "amodal").visible is None and switched(obj, "amodal").amodal is obj.amodal
    for one in (obj, replace(obj, visible=None), replace(obj, amodal=None)):
        off = switched(one, "hidden")
        assert not off.visible.any() and off.amodal is None and off.name == obj.name
    image = Image.new("RGB", (60, 40), (10, 20, 30))
    pictures = {switch: np.asarray(draw(image, "Q", REPLY, [switch])) for switch in switches_of(obj)}
    assert len({picture.tobytes() for picture in pictures.values()}) == 4
    assert (pictures["both"] == np.asarray(draw(image, "Q", REPLY))).all()
    assert len({picture.shape for picture in pictures.values()}) == 1


def test_masks_are_written_whole_in_a_place_of_their_own(tmp_path):
    image = Image.new("RGB", (60, 40))
    first, second = (write_masks(tmp_path, "../../a b/ü?<x>.png", image, "Q", REPLY) for _ in range(2))
    assert first.parent.parent == second.parent.parent == tmp_path and first != second
    assert first.name == "ü_x_masks.zip" and [p.name for p in first.parent.iterdir()] == [first.name]
    assert zipfile.ZipFile(first).testzip() is None
    assert write_masks(tmp_path, "..", image, "Q", REPLY).name == "image_masks.zip"


def test_an_asked_mask_stands_behind_the_name():
    whole = Reply("The bus [SEG].", (ReplyObject("bus", MASK, MASK, 0.0, "amodal"),))
    assert object_rows(whole) == [[1, "bus, whole shape asked", "0%", "1,200", "1,200"]]
