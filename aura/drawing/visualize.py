"""Answers as pictures: the visible area filled, the invisible area hatched in the same colour, with a legend.

Small images are enlarged first, so that outlines and legends are legible; masks get smooth borders on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from aura.drawing.typesetting import (
    FAINT,
    LINE,
    PAPER,
    Word,
    colour_of,
    draw_bar,
    draw_chip,
    draw_text,
    fit,
    line_height,
    text_height,
    text_width,
    words,
)
from aura.types import Masks

Pixels = NDArray[np.float32]
ASKED_WORDS: dict[Masks, str] = {"visible": "visible part", "amodal": "whole shape", "both": "both"}
WHITE: Pixels = np.full(3, 255, np.float32)
MOST_LINES, LONGEST_TEXT = 24, 4000
"""A title is cut there: lines, and letters before any is measured."""
SMALLEST_SIDE, LARGEST_FACTOR, SMALLEST_PAGE = 768, 16.0, 360
"""An overlay's longer side is at least 768 pixels, unless that needs more than a 16-fold enlargement; its page, with
title and legend, is at least 360 pixels wide."""


class Shown(Protocol):
    """What can be drawn: masks bool [H, W] at the image's size, such as :class:`aura.types.ReplyObject`.

    One of the two masks may be ``None``; the other is then drawn as a plain area. If the question means one kind of
    mask (``asked``), that one is drawn as a plain area, and of the other no more than a dashed line.
    """

    @property
    def name(self) -> str: ...
    @property
    def visible(self) -> np.ndarray | None: ...
    @property
    def amodal(self) -> np.ndarray | None: ...
    @property
    def occlusion_rate(self) -> float | None: ...
    @property
    def asked(self) -> Masks: ...


@dataclass(frozen=True)
class ShownObject:
    """One object to draw."""

    name: str
    visible: np.ndarray | None
    amodal: np.ndarray | None
    occlusion_rate: float | None = None
    asked: Masks = "both"


@dataclass(frozen=True)
class SheetRow:
    """One question of a contact sheet; ``[SEG]`` in the answers stand for the objects in order."""

    image: Image.Image | np.ndarray
    question: str
    true_answer: str
    true: Sequence[Shown]
    answer: str
    predicted: Sequence[Shown]
    note: str = ""


def overlay(image: Image.Image | np.ndarray, objects: Sequence[Shown], title: str | None = None) -> Image.Image:
    """Objects over their image, with a legend below and an optional title above.

    Args:
        image: RGB, uint8 [H, W, 3] or PIL.
        objects: In the order of the answer's ``[SEG]``, which gives number and colour.
        title: Such as the question, or the answer with its ``[SEG]`` marks (shown as numbers).
    """
    picture = paint(image, objects, SMALLEST_SIDE)
    size = max(15, round(min(max(picture.size), 2 * picture.width) / 46))
    margin = round(0.8 * size)
    page = max(picture.width, SMALLEST_PAGE)
    width = page - 2 * margin
    heading = fit(words((title or "")[:LONGEST_TEXT], bold=True), width, size, MOST_LINES)
    head = text_height(heading, width, size) + margin if heading else 0
    entries = _columns(objects, width, size)
    legend = len(entries) * round(1.9 * size) + (margin if entries else 0)
    canvas = Image.new("RGB", (page, picture.height + head + legend), PAPER)
    canvas.paste(picture, ((page - picture.width) // 2, head))
    draw = ImageDraw.Draw(canvas)
    draw_text(draw, (margin, margin // 2), heading, width, size)
    for row, entry in enumerate(entries):
        middle = head + picture.height + margin // 2 + round((row + 0.5) * 1.9 * size)
        for x, index in entry:
            room = width / (len(entries[0]) or 1) - (6.5 * size if len(entries[0]) > 1 else 5.1 * size)
            _legend_entry(canvas, (margin + x, middle), index, objects[index], size, room)
    return canvas


def _legend_words(obj: Shown) -> tuple[list[Word], list[Word]]:
    """Name, and what is hidden."""
    name = words(obj.name[:LONGEST_TEXT] or "object", bold=True)
    return name, words(_state_text(obj), colour=FAINT)


def _state_text(obj: Shown) -> str:
    return ", ".join(filter(None, (hidden_text(obj.occlusion_rate), asked_text(obj.asked))))


def asked_text(asked: Masks) -> str:
    """Which mask a question means, in words; nothing of both."""
    return "" if asked == "both" else f"{ASKED_WORDS[asked]} asked"


def hidden_text(rate: float | None) -> str:
    """An occlusion rate in words."""
    return "" if rate is None else "fully visible" if rate < 0.005 else f"{100 * rate:.0f} % hidden"


def _columns(objects: Sequence[Shown], width: int, size: int) -> list[list[tuple[int, int]]]:
    """(x, object) of the legend's entries, line by line; all columns are as wide as the widest entry."""
    if not objects:
        return []
    widest = (
        max(text_width([word for part in _legend_words(obj) for word in part], size) for obj in objects) + 6.5 * size
    )
    count = max(1, min(len(objects), int(width // widest)))
    places = [(round((i % count) * width / count), i) for i in range(len(objects))]
    return [places[i : i + count] for i in range(0, len(places), count)]


def _legend_entry(canvas: Image.Image, at: tuple[int, int], index: int, obj: Shown, size: int, room: float) -> None:
    x, middle = at
    draw = ImageDraw.Draw(canvas)
    draw_chip(draw, (x + 0.7 * size, middle), index, size)
    bar = (x + round(1.8 * size), middle - round(0.45 * size), x + round(4.6 * size), middle + round(0.45 * size))
    draw_bar(canvas, bar, index, obj.occlusion_rate or 0.0)
    name, hidden = _legend_words(obj)
    name = fit(name, room - text_width(hidden, size) - 0.4 * size, size)
    draw_text(draw, (x + 5.1 * size, middle - line_height(size) / 2), [*name, *hidden], canvas.width, size)


# --- masks over an image ----------------------------------------------------------------------------------------------


def paint(
    image: Image.Image | np.ndarray, objects: Sequence[Shown], longest: int, *, enlarge: bool = True
) -> Image.Image:
    """The image with its objects, without legend.

    ``longest`` is the least length of the longer side (within LARGEST_FACTOR); with ``enlarge=False`` the exact one.
    """
    pil = (Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB")
    for obj in objects:
        for mask in (obj.visible, obj.amodal):
            if mask is not None and mask.shape != (pil.height, pil.width):
                raise ValueError(f"the masks of {obj.name!r} are {mask.shape}, the image is {(pil.height, pil.width)}")
    factor = longest / max(pil.size)
    factor = min(max(1.0, factor), LARGEST_FACTOR) if enlarge else factor
    size = (max(1, round(pil.width * factor)), max(1, round(pil.height * factor)))
    pixels: Pixels = np.array(pil.resize(size, Image.Resampling.LANCZOS), np.float32)
    unit = max(size) / 400  # line widths follow the picture's size

    # Large objects first, so that small ones stay in sight; all hatching last, over whatever hides the object.
    order = sorted(range(len(objects)), key=lambda i: -int(np.count_nonzero(_whole(objects[i]))))
    for draw_part in (_paint_visible, _paint_hidden):
        for index in order:
            draw_part(pixels, objects[index], index, factor, unit)
    result = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    _paint_numbers(result, objects, factor)
    return result


def _seen(obj: Shown) -> np.ndarray:
    """What is filled: the visible area, or the only mask there is."""
    mask = obj.amodal if obj.visible is None else obj.visible
    assert mask is not None, "an object has at least one mask"
    return mask


def _whole(obj: Shown) -> np.ndarray:
    """The amodal mask, or the only one there is."""
    return _seen(obj) if obj.amodal is None else obj.amodal


def _paint_visible(pixels: Pixels, obj: Shown, index: int, factor: float, unit: float) -> None:
    """Fill and outline the visible area, or the whole one where that is asked for, in place."""
    shown = _whole(obj) if obj.asked == "amodal" else _seen(obj)
    window, visible = _resample(shown, pixels.shape[:2], factor, unit)
    if window is None:
        return
    colour = np.array(colour_of(index).rgb, np.float32)
    part = _blend(pixels[window], colour, 0.48 * visible)
    pixels[window] = _stroke(part, colour, _outline(visible, unit), unit)


def _paint_hidden(pixels: Pixels, obj: Shown, index: int, factor: float, unit: float) -> None:
    """Hatch the invisible area and dash its outline, in place; no hatching where one kind of mask is asked for."""
    window, hidden = _resample(_whole(obj) & ~_seen(obj), pixels.shape[:2], factor, unit)
    if window is None:
        return
    colour = np.array(colour_of(index).rgb, np.float32)
    part = pixels[window]
    if obj.asked == "both":
        part = _blend(part, WHITE, 0.3 * hidden)
        lines = _hatching(pixels.shape[:2], index, unit)[window]
        part = _blend(part, colour, 0.95 * hidden * lines)
    pixels[window] = _stroke(part, colour, _dashed_outline(hidden, unit), unit)


def _blend(pixels: Pixels, colour: Pixels, opacity: Pixels) -> Pixels:
    return pixels + opacity[..., None] * (colour - pixels)


def _stroke(pixels: Pixels, colour: Pixels, line: Pixels, unit: float) -> Pixels:
    """A line with a white halo, which keeps it apart from any background."""
    halo = cv2.GaussianBlur(line, (0, 0), max(0.6, 0.9 * unit))
    return _blend(_blend(pixels, WHITE, np.minimum(0.8, 1.4 * halo)), colour, line)


def _resample(
    mask: np.ndarray, shape: tuple[int, ...], factor: float, unit: float
) -> tuple[tuple[slice, slice] | None, Pixels]:
    """The part of the picture around a mask, and the mask there, in [0, 1] with a smooth border."""
    method = cv2.INTER_LINEAR if factor >= 1 else cv2.INTER_AREA
    soft = cv2.resize(mask.astype(np.float32), (shape[1], shape[0]), interpolation=method)
    if factor > 1:
        soft = cv2.GaussianBlur(soft, (0, 0), 0.45 * factor)
        soft = np.clip((soft - 0.5) * 2 * factor + 0.5, 0, 1)
    rows, columns = np.flatnonzero(soft.any(1)), np.flatnonzero(soft.any(0))
    if not len(rows):
        return None, soft.astype(np.float32)
    margin = 3 + round(4 * unit)
    window = (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + margin + 1),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + margin + 1),
    )
    return window, soft[window].astype(np.float32)


@lru_cache(maxsize=4)
def _hatching(shape: tuple[int, ...], index: int, unit: float) -> Pixels:
    """Parallel lines in [0, 1]; neighbouring objects lean to different sides."""
    if index > 1:
        return _hatching(shape, index % 2, unit)
    rows = np.arange(shape[0], dtype=np.float32)[:, None]
    columns = np.arange(shape[1], dtype=np.float32)
    across = (columns + (rows if index == 0 else -rows)) / np.float32(np.sqrt(2))
    period, width = max(5.0, 6 * unit), max(1.2, 1.5 * unit)
    distance = np.abs(across % period - period / 2)
    lines: Pixels = np.clip(width / 2 - distance + 0.5, 0, 1).astype(np.float32)
    return lines


def _contours(soft: Pixels) -> list[NDArray[Any]]:
    found, _ = cv2.findContours((soft > 0.5).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [contour[:, 0, :] for contour in found]


def _outline(soft: Pixels, unit: float) -> Pixels:
    canvas = np.zeros(soft.shape, np.uint8)
    cv2.polylines(canvas, _contours(soft), True, 255, max(1, round(1.3 * unit)), cv2.LINE_AA)
    return canvas.astype(np.float32) / np.float32(255)


def _dashed_outline(soft: Pixels, unit: float) -> Pixels:
    canvas = np.zeros(soft.shape, np.uint8)
    dash = max(3, round(5 * unit))
    for contour in _contours(soft):
        closed = np.concatenate([contour, contour[:1]])
        for start in range(0, len(contour), 2 * dash):
            cv2.polylines(
                canvas, [closed[start : start + dash + 1]], False, 255, max(1, round(1.3 * unit)), cv2.LINE_AA
            )
    return canvas.astype(np.float32) / np.float32(255)


def _paint_numbers(picture: Image.Image, objects: Sequence[Shown], factor: float) -> None:
    """Each object's number on the widest part of its visible area (or of its amodal area, if nothing is visible)."""
    draw = ImageDraw.Draw(picture)
    size = max(10, round(max(picture.size) / 42))
    taken: list[tuple[float, float]] = []
    for index, obj in enumerate(objects):
        mask = _seen(obj) if _seen(obj).any() else _whole(obj)
        if not mask.any():
            continue
        inside = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        row, column = np.unravel_index(int(inside.argmax()), inside.shape)
        x, y = (float(column) + 0.5) * factor, (float(row) + 0.5) * factor
        while any(abs(x - a) < 1.4 * size and abs(y - b) < 1.4 * size for a, b in taken):
            x += 1.6 * size
        x = min(max(x, size), picture.width - size)
        y = min(max(y, size), picture.height - size)
        taken.append((x, y))
        draw_chip(draw, (x, y), index, size)


# --- contact sheet ----------------------------------------------------------------------------------------------------


def contact_sheet(rows: Sequence[SheetRow], title: str = "", *, cell: int = 300) -> Image.Image:
    """A page with one line per question: image, truth, prediction, and the texts.

    Args:
        rows: At least one.
        title: Above the page.
        cell: Width of each picture in pixels.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    size, gap, column = 14, 16, 460
    pictures = [_row_pictures(row, cell) for row in rows]
    texts = [[fit(part, column, size, MOST_LINES) for part in _row_text(row)] for row in rows]
    heights = [
        max(max(p.height for p in three), sum(text_height(part, column, size) + 8 for part in text))
        for three, text in zip(pictures, texts, strict=True)
    ]
    head = 2 * gap + (2 * line_height(size) if title else 0) + line_height(size)
    width = 3 * cell + column + 5 * gap
    sheet = Image.new("RGB", (width, head + sum(height + 2 * gap for height in heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = gap
    if title:
        top += draw_text(draw, (gap, top), words(title, bold=True), width - 2 * gap, 18) + gap // 2
    for number, name in enumerate(("Image", "Truth", "Prediction", "Question and answers")):
        draw_text(draw, (gap + number * (cell + gap), top), words(name, colour=FAINT), column, size)
    top = head
    for three, text, height in zip(pictures, texts, heights, strict=True):
        draw.line((gap, top - gap // 2, width - gap, top - gap // 2), fill=LINE)
        for number, picture in enumerate(three):
            sheet.paste(picture, (gap + number * (cell + gap), top))
        y = float(top)
        for part in text:
            y += draw_text(draw, (4 * gap + 3 * cell, y), part, column, size) + 8
        top += height + 2 * gap
    return sheet


def _row_pictures(row: SheetRow, cell: int) -> list[Image.Image]:
    image = row.image if isinstance(row.image, Image.Image) else Image.fromarray(row.image)
    longest = round(cell * max(image.size) / image.width)
    return [paint(image, objects, longest, enlarge=False) for objects in ((), row.true, row.predicted)]


def _row_text(row: SheetRow) -> list[list[Word]]:
    parts = [words(row.question[:LONGEST_TEXT], bold=True)]
    for label, answer, objects in (("Truth:", row.true_answer, row.true), ("Prediction:", row.answer, row.predicted)):
        parts.append([*words(label, colour=FAINT), *words(answer[:LONGEST_TEXT])])
        rates = [
            word
            for index, obj in enumerate(objects)
            for word in (Word(str(index + 1), index), Word(_state_text(obj), colour=FAINT, glued=True))
        ]
        parts.append(rates or words("no object is marked", colour=FAINT))
    return [*parts, words(row.note, colour=FAINT)] if row.note else parts
