"""Text, number chips and occlusion bars for pictures: wrapping, colours, sizes; drawn with Pillow.

A text is a sequence of :class:`Word` s; a word may be a chip, the coloured number that stands for an object.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from PIL import Image, ImageDraw

from aura.drawing.fonts import Font
from aura.types import SEG_TOKEN

Rgb = tuple[int, int, int]

INK: Rgb = (33, 37, 41)
FAINT: Rgb = (108, 117, 125)
PAPER: Rgb = (255, 255, 255)
LINE: Rgb = (222, 226, 230)


class Colour(NamedTuple):
    """A colour and its name in plain English."""

    name: str
    rgb: Rgb


PALETTE = (
    Colour("vermilion", (213, 94, 0)),
    Colour("sky blue", (86, 180, 233)),
    Colour("green", (0, 158, 115)),
    Colour("yellow", (240, 228, 66)),
    Colour("purple", (204, 121, 167)),
    Colour("blue", (0, 114, 178)),
    Colour("orange", (230, 159, 0)),
)
"""Okabe and Ito's colours for all kinds of colour vision, the most different first."""


def colour_of(index: int) -> Colour:
    """The colour of the ``index``-th ``[SEG]`` of an answer; after seven they repeat and the number tells."""
    return PALETTE[index % len(PALETTE)]


def text_colour(background: Rgb) -> Rgb:
    """Black or white, whichever is easier to read on ``background``."""
    red, green, blue = background
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER


class Word(NamedTuple):
    """A word, or the chip of object ``chip`` (from 0) when ``chip`` is not ``None``.

    A ``glued`` word stays on the line of the one before it.
    """

    text: str
    chip: int | None = None
    bold: bool = False
    colour: Rgb = INK
    glued: bool = False


@lru_cache(maxsize=64)
def font(size: int, bold: bool = False) -> Font:
    """DejaVu Sans, with the letters of other fonts that it lacks."""
    return Font(size, bold)


def words(text: str, *, bold: bool = False, colour: Rgb = INK) -> list[Word]:
    """Split at white space; every ``[SEG]`` becomes the chip of the next object."""
    result: list[Word] = []
    chips = 0
    for piece in re.split(rf"({re.escape(SEG_TOKEN)})", text):
        if piece == SEG_TOKEN:
            result.append(Word(str(chips + 1), chips))
            chips += 1
        else:
            parts = [Word(part, None, bold, colour) for part in piece.split()]
            if result and parts and _closes(parts[0]):
                parts[0] = parts[0]._replace(glued=True)
            result += parts
    return result


def word_width(word: Word, size: int) -> float:
    """Pixels from left to right at font size ``size``."""
    length = float(font(size, word.bold or word.chip is not None).getlength(word.text))
    return max(length + 0.7 * size, 1.3 * size) if word.chip is not None else length


def text_width(text: Sequence[Word], size: int) -> float:
    """Pixels of the whole text on one line."""
    gaps = sum(_gap(before, after, size) for before, after in pairwise(text))
    return sum(word_width(word, size) for word in text) + gaps


def wrap(text: Sequence[Word], width: float, size: int) -> list[list[Word]]:
    """Break into lines of at most ``width`` pixels.

    What is wider in itself (a long word, Chinese) is broken between letters; where not one letter fits it has a line of
    its own.
    """
    units: list[list[Word]] = []
    for word in text:
        if word.glued and units:
            units[-1].append(word)
        else:
            units.append([word])
    lines: list[list[Word]] = []
    for unit in units:
        if lines and text_width([*lines[-1], *unit], size) <= width:
            lines[-1] += unit
        elif text_width(unit, size) <= width:
            lines.append(list(unit))
        else:
            lines += [list(part) for part in _broken(unit, width, size)]
    return lines


def _broken(unit: Sequence[Word], width: float, size: int) -> list[list[Word]]:
    """A unit that is too wide: its long words in parts, each on a line of its own, the rest behind the last of them."""
    lines: list[list[Word]] = []
    for word in unit:
        parts = [word] if word.chip is not None else _parts(word, width, size)
        if lines and len(parts) == 1 and text_width([*lines[-1], word], size) <= width:
            lines[-1].append(word)
        else:
            lines += [[part] for part in parts]
    return lines if all(text_width(line, size) <= width for line in lines) else [list(unit)]


def _parts(word: Word, width: float, size: int) -> list[Word]:
    """Parts of at most ``width`` pixels, each as long as fits; no combining mark begins one."""
    parts: list[Word] = []
    rest = word.text
    while rest:
        low, high = 1, min(len(rest), int(8 * width / size) + 1)  # hardly a letter is narrower than an eighth
        while low < high:  # the longest that fits; widths grow with every letter, near enough
            middle = (low + high + 1) // 2
            low, high = (middle, high) if font(size, word.bold).getlength(rest[:middle]) <= width else (low, middle - 1)
        while low < len(rest) and unicodedata.category(rest[low]) in ("Mn", "Me", "Cf"):
            low += 1
        parts.append(word._replace(text=rest[:low], glued=word.glued and not parts))
        rest = rest[low:]
    return parts


def fit(text: Sequence[Word], width: float, size: int, lines: int = 1) -> list[Word]:
    """As much of ``text`` as ``lines`` lines hold, with ``…`` behind it where it was cut."""
    wrapped = wrap(text, width, size)
    if len(wrapped) <= lines:
        return list(text)
    whole, last = [word for line in wrapped[: lines - 1] for word in line], wrapped[lines - 1]
    while last:
        word = last.pop()
        for end in range(len(word.text) if word.chip is None else 0, 0, -1):
            cut = [*last, word._replace(text=word.text[:end] + "…")]
            if text_width(cut, size) <= width:
                return [*whole, *cut]
    return [*whole, Word("…")]


def visual_order(line: Sequence[Word]) -> list[Word]:
    """A line's words from left to right: those of scripts that run from right to left change places among themselves.

    Numbers and chips between two such words go with them.
    """
    result: list[Word] = []
    leftward: list[Word] = []
    neutral: list[Word] = []
    for word in line:
        direction = "" if word.chip is not None else _direction(word.text)
        if direction == "rtl":
            leftward += [*neutral, word]
            neutral = []
        elif not direction and leftward:
            neutral.append(word)
        else:
            result += [*reversed(leftward), *neutral, word]
            leftward, neutral = [], []
    return [*result, *reversed(leftward), *neutral]


def _direction(text: str) -> str:
    """Of the first letter that has one."""
    kinds = (unicodedata.bidirectional(letter) for letter in text)
    return next(("rtl" if kind in ("R", "AL") else "ltr" for kind in kinds if kind in ("L", "R", "AL")), "")


def _closes(word: Word) -> bool:
    return re.match(r"[.,;:!?)\]]", word.text) is not None


def _gap(before: Word, after: Word, size: int) -> float:
    """White space between two words; next to none between a chip and punctuation."""
    return (0.12 if before.chip is not None and _closes(after) else 0.32) * size


def line_height(size: int) -> int:
    """Distance of two baselines."""
    return round(1.5 * size)


def text_height(text: Sequence[Word], width: float, size: int) -> int:
    """Height of ``text`` wrapped to ``width``."""
    return line_height(size) * len(wrap(text, width, size))


def draw_text(draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: Sequence[Word], width: float, size: int) -> int:
    """Write wrapped text with its top left corner at ``xy``; returns its height."""
    left, top = xy
    lines = wrap(text, width, size)
    for number, line in enumerate(lines):
        x, middle = left, top + (number + 0.5) * line_height(size)
        line = visual_order(line)
        for place, word in enumerate(line):
            x += _gap(line[place - 1], word, size) if place else 0
            if word.chip is not None:
                draw_chip(draw, (x + word_width(word, size) / 2, middle), word.chip, size, word.text)
            else:
                font(size, word.bold).draw(draw, (x, middle), word.text, word.colour, "lm")
            x += word_width(word, size)
    return line_height(size) * len(lines)


def draw_chip(
    draw: ImageDraw.ImageDraw, centre: tuple[float, float], index: int, size: int, text: str | None = None
) -> None:
    """The number of object ``index`` (shown from 1) on a rounded patch of its colour."""
    word = Word(text or str(index + 1), index)
    half, tall = round(word_width(word, size) / 2), round(0.65 * size)
    x, y = round(centre[0]), round(centre[1])
    rgb = colour_of(index).rgb
    draw.rounded_rectangle(
        (x - half, y - tall, x + half, y + tall), radius=min(half, tall) - 0.5, fill=rgb, outline=PAPER, width=1
    )
    font(round(0.85 * size), bold=True).draw(draw, (x, y), word.text, text_colour(rgb), "mm")


def draw_bar(image: Image.Image, box: tuple[int, int, int, int], index: int, hidden: float) -> None:
    """A bar whose right part, a share ``hidden`` of it, is hatched in the object's colour instead of filled."""
    left, top, right, bottom = box
    draw = ImageDraw.Draw(image)
    rgb = colour_of(index).rgb
    border = round(right - min(max(hidden, 0.0), 1.0) * (right - left))
    scale = 4
    patch = Image.new("RGB", ((right - border) * scale, (bottom - top) * scale), PAPER) if right > border else None
    if patch is not None:
        pen = ImageDraw.Draw(patch)
        for x in range(-patch.height, patch.width + patch.height, 5 * scale):
            pen.line((x, patch.height, x + patch.height, 0), fill=rgb, width=round(1.6 * scale))
        image.paste(patch.resize((right - border, bottom - top), Image.Resampling.LANCZOS), (border, top))
    if border > left:
        draw.rectangle((left, top, border - 1, bottom - 1), fill=rgb)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=rgb)
