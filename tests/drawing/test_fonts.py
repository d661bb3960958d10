"""Letters that DejaVu Sans lacks, scripts from right to left, and texts that are too long."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from aura.drawing import fonts
from aura.drawing.fonts import BOLD, PLAIN, pieces
from aura.drawing.typesetting import Word, draw_text, fit, font, text_width, visual_order, words, wrap
from aura.drawing.visualize import ShownObject, overlay

CHINESE = "桌子上有什么东西被挡住了"


@pytest.fixture(autouse=True)
def no_other_fonts(monkeypatch):
    """This machine has no font but DejaVu Sans, and nothing was noted yet."""
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    monkeypatch.setattr(fonts, "_NOTED", [])
    fonts._elsewhere.cache_clear()
    pieces.cache_clear()
    yield
    fonts._elsewhere.cache_clear()
    pieces.cache_clear()


@pytest.fixture
def chinese_font(tmp_path, monkeypatch):
    """A font of the machine with two letters: 桌 is a block, 子 a low bar; behind a file that is no font."""
    builder = FontBuilder(1000, isTTF=True)
    glyphs = {".notdef": None, "table": 800, "child": 200}
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord("桌"): "table", ord("子"): "child"})
    drawn = {}
    for name, height in glyphs.items():
        pen = TTGlyphPen(None)
        if height:
            pen.moveTo((100, 0))
            for corner in ((100, height), (900, height), (900, 0)):
                pen.lineTo(corner)
            pen.closePath()
        drawn[name] = pen.glyph()
    builder.setupGlyf(drawn)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupOS2()
    builder.setupPost()
    path, broken = tmp_path / "chinese.ttf", tmp_path / "broken.ttf"
    builder.save(path)
    broken.write_bytes(b"no font")
    monkeypatch.setattr(fonts, "_system_fonts", lambda: (broken, path))
    return path


def test_a_letter_is_borrowed_from_a_font_that_has_it(chinese_font, caplog):
    assert [tuple(piece) for piece in pieces("a 桌子 b")] == [("a ", PLAIN), ("桌子", chinese_font), (" b", PLAIN)]
    face = font(20)
    assert face.getlength("桌子") == 40
    mask = np.asarray(face._mask("桌子"))
    assert (mask[:, 2:18].max(1) > 0).sum() == 16 and (mask[:, 22:38].max(1) > 0).sum() == 4
    assert not caplog.records


def test_letters_of_no_font_show_their_numbers_and_are_noted_once(caplog):
    caplog.set_level(logging.WARNING)
    face = font(20, True)
    assert bytes(face.getmask("桌")) != bytes(face.getmask("물")) != bytes(face.getmask("🥤"))
    (record,) = caplog.records
    assert "桌 (U+684C)" in record.getMessage() and "fonts-noto" in record.getMessage()


def test_plain_text_is_one_piece_and_steering_signs_leave_no_box():
    assert pieces("naïve e\u0301 ☕", True) == (("naïve e\u0301 ☕", BOLD),)
    assert pieces("👩\u200d🚀 🥤\ufe0f") == (("👩🚀", None), (" ", PLAIN), ("🥤", None))


@pytest.mark.parametrize("text", [CHINESE * 8, "x" * 300, f"a{CHINESE} b " * 9])
def test_what_has_no_spaces_is_broken_between_letters(text):
    lines = wrap(words(text, bold=True), 300, 20)
    assert len(lines) > 3
    assert max(text_width(line, 20) for line in lines) <= 300
    assert "".join(word.text for line in lines for word in line) == text.replace(" ", "")


def test_no_line_begins_with_a_combining_mark():
    for width in range(20, 60):
        lines = wrap([Word("e\u0301" * 12)], width, 14)
        assert all(line[0].text[0] == "e" for line in lines)


def test_words_from_right_to_left_change_places():
    line = words("see كوب أحمر 12 [SEG] الطاولة now")
    assert [word.text for word in visual_order(line)] == ["see", "الطاولة", "1", "12", "أحمر", "كوب", "now"]
    line = words("كوب, 3 cups")
    assert [word.text for word in visual_order(line)] == ["كوب,", "3", "cups"]


def test_too_long_a_text_is_cut_where_it_no_longer_fits():
    text = words("a very long name " * 20)
    cut = fit(text, 200, 14)
    assert cut[-1].text.endswith("…") and len(wrap(cut, 200, 14)) == 1
    assert text_width(cut, 14) > 150
    assert fit(words("short"), 200, 14) == words("short")
    assert len(wrap(fit(text, 200, 14, 3), 200, 14)) == 3
    assert fit(words("mm mm"), 1, 14) == [Word("…")]


def test_long_texts_make_no_endless_page():
    mask = np.ones((30, 40), bool)
    page = overlay(np.zeros((30, 40, 3), np.uint8), [ShownObject("x" * 100_000, mask, mask, 0.3)], "word 桌 " * 20_000)
    assert page.height < 2000
    legend = np.asarray(page)[-20:, -6:]
    assert (legend == 255).all(), "the name runs into the margin"


def test_borrowed_letters_are_drawn_where_the_line_is(chinese_font):
    canvas = Image.new("RGB", (100, 40), "white")
    assert draw_text(ImageDraw.Draw(canvas), (0, 0), words("桌"), 90, 20) == 30
    rows, columns = np.nonzero(np.asarray(canvas).min(2) < 128)
    assert rows.min() >= 3 and rows.max() <= 26 and columns.min() == 2 and columns.max() == 17
