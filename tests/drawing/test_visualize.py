"""Overlays and contact sheets: what is filled, hatched and left alone, at every image size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from aura.drawing.typesetting import PALETTE, Word, colour_of, text_width, words, wrap
from aura.drawing.visualize import (
    SheetRow,
    ShownObject,
    _row_text,
    asked_text,
    contact_sheet,
    hidden_text,
    overlay,
    paint,
)
from aura.types import ReplyObject


def scene(height: int = 64, width: int = 96) -> tuple[np.ndarray, ReplyObject]:
    """A grey image; an object on its left half whose lower part is hidden."""
    visible, amodal = np.zeros((2, height, width), bool)
    amodal[8:-8, 8 : width // 2] = True
    visible[8 : height // 2, 8 : width // 2] = True
    return np.full((height, width, 3), 120, np.uint8), ReplyObject("bus", visible, amodal, 0.5)


def test_small_images_are_enlarged_and_get_a_legend() -> None:
    image, obj = scene()
    picture = overlay(image, [obj], "What could I ride?")
    assert picture.width == 768 and picture.mode == "RGB"
    assert picture.height > 512 + 2 * 16
    assert overlay(image, []).size == (768, 512)


def test_large_images_keep_their_size() -> None:
    image, obj = scene(600, 1000)
    assert paint(image, [obj], 768).size == (1000, 600)
    assert paint(image, [obj], 300, enlarge=False).size == (300, 180)


def test_visible_is_filled_hidden_is_hatched_and_the_rest_is_untouched() -> None:
    image, obj = scene()
    pixels = np.asarray(paint(image, [obj], 768)).astype(int)
    colour = np.array(colour_of(0).rgb)
    filled = pixels[90:230, 270:350]  # inside the visible area, away from number and border
    assert np.ptp(filled.reshape(-1, 3), axis=0).max() <= 2
    np.testing.assert_allclose(filled.mean((0, 1)), 0.52 * 120 + 0.48 * colour, atol=2)
    hatched = pixels[290:420, 100:350]
    close_to_colour = (np.abs(hatched - colour).max(-1) < 40).mean()
    assert 0.1 < close_to_colour < 0.4
    assert hatched.std((0, 1)).max() > 20 > 2 > filled.std((0, 1)).max()
    assert (pixels[:, 420:] == 120).all()


def test_hatching_lies_over_the_object_in_front() -> None:
    image, back = scene()
    front_mask = back.amodal & ~back.visible
    front = ReplyObject("tree", front_mask, front_mask, 0.0)
    pixels = np.asarray(paint(image, [back, front], 768)).astype(int)
    region = pixels[290:420, 100:350]
    assert (np.abs(region - np.array(colour_of(0).rgb)).max(-1) < 40).mean() > 0.1
    assert (np.abs(region - np.array(colour_of(1).rgb)).max(-1) < 110).mean() > 0.2


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (192, 144)])
def test_any_shape_and_empty_masks_can_be_drawn(shape) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    objects = [
        ShownObject("", empty, empty, None),
        ShownObject("all", empty, full, 1.0),
        ShownObject("x", full, full, 0),
    ]
    objects = objects * 4  # more than there are colours
    picture = overlay(Image.fromarray(image), objects, "[SEG] and [SEG]")
    assert picture.width >= 360


def test_an_only_mask_is_a_plain_area() -> None:
    image, obj = scene()
    expected = np.asarray(paint(image, [ShownObject("bus", obj.amodal, obj.amodal)], 768))
    for masks in ((obj.amodal, None), (None, obj.amodal)):
        np.testing.assert_array_equal(np.asarray(paint(image, [ShownObject("bus", *masks)], 768)), expected)
    assert overlay(image, [ReplyObject("bus", None, obj.amodal, None)]).width == 768


def test_masks_of_another_size_are_refused() -> None:
    image, obj = scene()
    with pytest.raises(ValueError, match=r"masks of 'bus' are \(64, 96\), the image is \(64, 90\)"):
        overlay(image[:, :90], [obj])


def test_drawing_is_deterministic() -> None:
    image, obj = scene()
    assert overlay(image, [obj, obj], "Twice [SEG]").tobytes() == overlay(image, [obj, obj], "Twice [SEG]").tobytes()


def test_contact_sheet_has_a_line_per_question() -> None:
    image, obj = scene()
    row = SheetRow(
        image, "What could I ride?", "The bus [SEG].", [obj], "The tree [SEG] and [SEG].", [obj, obj], "note"
    )
    one, two = contact_sheet([row]), contact_sheet([row, row], "Title")
    assert one.width == two.width
    assert two.height > 2 * one.height - 100
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([])


def test_an_answer_without_objects_says_so_on_the_sheet() -> None:
    row = SheetRow(Image.new("RGB", (40, 30)), "What?", "The [SEG].", (), "Nothing.", ())
    assert [word.text for part in _row_text(row)[2::2] for word in part] == ["no", "object", "is", "marked"] * 2


def test_palette_names_and_colours_differ() -> None:
    assert len({c.name for c in PALETTE}) == len({c.rgb for c in PALETTE}) == 7
    assert colour_of(7) == colour_of(0)


@pytest.mark.parametrize(
    ("rate", "text"), [(None, ""), (0.0, "fully visible"), (0.004, "fully visible"), (0.37, "37 % hidden")]
)
def test_occlusion_in_words(rate, text) -> None:
    assert hidden_text(rate) == text


def test_seg_marks_become_numbered_chips() -> None:
    text = words("The bus [SEG], then[SEG].")
    assert [(w.text, w.chip) for w in text] == [
        ("The", None), ("bus", None), ("1", 0), (",", None), ("then", None), ("2", 1), (".", None)
    ]  # fmt: skip


def test_lines_fit_and_punctuation_stays_with_its_chip() -> None:
    text = words("Look at the bus [SEG], the tree [SEG], and the very long fence [SEG].")
    for width in range(60, 600, 7):
        lines = wrap(text, width, 14)
        assert [w for line in lines for w in line] == text
        assert all(text_width(line, 14) <= width or len([w for w in line if not w.glued]) == 1 for line in lines)
        assert not any(line[0].text in ",." for line in lines)
    assert wrap([Word("unbreakable")], 5, 14) == [[Word("unbreakable")]]


def test_the_asked_mask_is_the_plain_area() -> None:
    image, obj = scene()
    colour = np.array(colour_of(0).rgb)
    filled = 0.52 * 120 + 0.48 * colour
    hidden = {}
    for asked in ("both", "visible", "amodal"):
        pixels = np.asarray(paint(image, [replace(obj, asked=asked)], 768)).astype(int)  # type: ignore[arg-type]
        hidden[asked] = pixels[300:420, 100:350].reshape(-1, 3)  # inside the invisible area, away from its border
        np.testing.assert_allclose(pixels[90:230, 270:350].mean((0, 1)), filled, atol=2)
    assert hidden["both"].std(0).max() > 20
    assert (hidden["visible"] == 120).all()
    np.testing.assert_allclose(hidden["amodal"].mean(0), filled, atol=2)
    assert np.ptp(hidden["amodal"], axis=0).max() <= 2


def test_the_legend_says_which_mask_is_asked_for() -> None:
    image, obj = scene()
    assert asked_text("both") == "" and asked_text("amodal") == "whole shape asked"
    row = SheetRow(image, "What?", "A [SEG].", [replace(obj, asked="visible")], "A [SEG].", [obj])
    texts = [[word.text for word in part] for part in _row_text(row)]
    assert any("50 % hidden, visible part asked" in " ".join(part) for part in texts)
