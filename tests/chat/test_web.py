"""The browser demo: what it streams and shows; the page itself where Gradio is installed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from aura.chat import web
from aura.chat.web import Demo, numbered, object_rows
from aura.types import Reply, ReplyObject

MASK = np.zeros((40, 60), bool)
MASK[:, :30] = True
REPLY = Reply("Take the bus [SEG].", (ReplyObject("bus", MASK[:, ::-1], MASK, 0.5),))


class Session:
    image = Image.new("RGB", (60, 40))

    def ask(self, question, on_text):
        if not question:
            raise ValueError("the question is empty")
        for piece in ("Take the ", "bus ", "[SEG]", "."):
            on_text(piece)
        return REPLY


class Assistant:
    def conversation(self, path):
        if path == "gone.png":
            raise ValueError("the image gone.png does not exist")
        return Session()


def test_an_answer_streams_and_ends_with_overlay_and_table():
    *pieces, last = Demo(Assistant()).answer(Session(), "What?")
    assert [text for text, _, _ in pieces] == ["Take the ", "Take the bus ", "Take the bus (1)", "Take the bus (1)."]
    assert all(picture is None and rows == [] for _, picture, rows in pieces)
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


def test_without_gradio_the_remedy_is_said(monkeypatch, capsys):
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    assert web.main(["--checkpoint", "anywhere"]) == 2
    assert capsys.readouterr().err == "aura.chat.web: Gradio is not installed; pip install .[web]\n"


def test_the_page_takes_the_chat_s_options(monkeypatch, capsys):
    asked = {}

    def load(*args, **options):
        asked.update(options)
        raise ValueError("not here")

    monkeypatch.setattr(web, "find_spec", lambda name: True)
    monkeypatch.setattr(web.Assistant, "from_pretrained", load)
    options = ["--device-map", "auto", "--max-new-tokens", "64", "--quantize", "int4"]
    assert web.main(["--checkpoint", "run", *options]) == 2
    assert asked == {"quantize": "int4", "device_map": "auto", "max_new_tokens": 64}
    assert "not here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        web.main(["--checkpoint", "run", "--max-new-tokens", "0"])


def test_a_picture_comes_as_it_was_sent(tmp_path):
    gradio = pytest.importorskip("gradio")
    from gradio.data_classes import ImageData

    page = web.build(Demo(Assistant()))
    image = next(b for b in page.blocks.values() if isinstance(b, gradio.Image) and b.label == "Image")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    Image.new("RGBA", (60, 40)).save(tmp_path / "clear.png")
    for name in ("phone.heic", "clear.png"):
        path = str(tmp_path / name)
        assert image.preprocess(ImageData(path=path, orig_name=name)) == path


def test_the_page_is_served_and_answers(tmp_path):
    gradio = pytest.importorskip("gradio")
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    page = web.build(Demo(Assistant()))
    assert isinstance(page, gradio.Blocks)
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        from urllib.request import urlopen

        assert b"AURA" in urlopen(url).read()
    finally:
        page.close()
