"""Fonts for any letter: DejaVu Sans, else a font of this machine that has it, else its number in a box.

Scripts that join their letters or run from right to left are shaped by Pillow's libraqm, which its wheels bring along.
"""

from __future__ import annotations

import logging
import unicodedata
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

LOG = logging.getLogger(__name__)
OWN = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
PLAIN, BOLD = OWN / "DejaVuSans.ttf", OWN / "DejaVuSans-Bold.ttf"
"""They come with matplotlib."""


class Piece(NamedTuple):
    """Letters that one font has; ``None`` where no font has them."""

    text: str
    font: Path | None


class Font:
    """A size of DejaVu Sans that borrows the letters it lacks; measures and draws one line."""

    def __init__(self, size: int, bold: bool = False) -> None:
        self.size, self.bold = size, bold
        self._main = _load(BOLD if bold else PLAIN, size)

    def getlength(self, text: str) -> float:
        """Pixels from left to right."""
        return sum(self._length(piece) for piece in pieces(text, self.bold))

    def getmask(self, text: str) -> Any:
        """The letters' coverage of the line, as of Pillow's fonts."""
        return self._mask(text).im

    def draw(self, pen: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, fill: Any, anchor: str) -> None:
        """Write ``text``; ``anchor`` is ``lm`` or ``mm`` (Pillow's: left or middle, and the line's middle)."""
        if [piece.font for piece in pieces(text, self.bold)] == [BOLD if self.bold else PLAIN]:
            pen.text(xy, text, fill=fill, font=self._main, anchor=anchor)
            return
        mask = self._mask(text)
        left = xy[0] - (self.getlength(text) / 2 if anchor == "mm" else 0)
        pen.bitmap((round(left), round(xy[1] - mask.height / 2)), mask, fill=fill)

    def _mask(self, text: str) -> Image.Image:
        ascent, descent = self._main.getmetrics()
        mask = Image.new("L", (int(self.getlength(text)) + 2, ascent + descent))
        pen, x = ImageDraw.Draw(mask), 0.0
        for piece in pieces(text, self.bold):
            if piece.font is None:
                for number, letter in enumerate(piece.text):
                    _draw_number(pen, x + number * self._box_width(), letter, self.size, ascent)
            else:
                pen.text((x, ascent), piece.text, fill=255, font=_load(piece.font, self.size), anchor="ls")
            x += self._length(piece)
        return mask

    def _length(self, piece: Piece) -> float:
        if piece.font is None:
            return len(piece.text) * self._box_width()
        return float(_load(piece.font, self.size).getlength(piece.text))

    def _box_width(self) -> float:
        return 1.1 * self.size


@lru_cache(maxsize=1024)
def pieces(text: str, bold: bool = False) -> tuple[Piece, ...]:
    """``text`` by font. A combining mark goes with its letter; signs that only steer how emoji join are dropped."""
    fonts: list[tuple[str, Path | None]] = []
    for letter in text:
        joins = fonts and unicodedata.category(letter) in ("Mn", "Mc", "Me", "Cf")
        font = _font_of(letter, bold)
        if joins and (font is None or font == fonts[-1][1] or fonts[-1][1] is None):
            if font is not None and fonts[-1][1] is not None:
                fonts.append((letter, fonts[-1][1]))
        elif not (font is None and unicodedata.category(letter) == "Cf"):
            fonts.append((letter, font))
    return tuple(
        Piece("".join(letter for letter, _ in group), font) for font, group in groupby(fonts, key=lambda pair: pair[1])
    )


def _font_of(letter: str, bold: bool) -> Path | None:
    first = (BOLD, PLAIN) if bold else (PLAIN,)
    return next((font for font in first if _has(font, letter)), None) or _elsewhere(letter)


@cache
def _elsewhere(letter: str) -> Path | None:
    """The font of this machine that has the letter; a note where none has."""
    found = next((font for font in _system_fonts() if _has(font, letter)), None)
    if found is None and unicodedata.category(letter) not in ("Cf", "Mn", "Me"):
        _note(f"{letter} (U+{ord(letter):04X})")
    return found


@cache
def _system_fonts() -> tuple[Path, ...]:
    """The upright ones first, sans serif before the rest."""
    paths = (Path(path) for path in font_manager.findSystemFonts())
    return tuple(sorted(paths, key=lambda p: ("italic" in p.name.lower(), "sans" not in p.name.lower(), str(p))))


_NOTED: list[str] = []


def _note(letter: str) -> None:
    if not _NOTED:
        LOG.warning(
            "no font of this machine has %s: letters like it are drawn as their numbers in Unicode; install a font "
            "that has them, such as Noto's (Debian: fonts-noto-cjk, fonts-noto-core, fonts-symbola)",
            letter,
        )
    _NOTED.append(letter)


@lru_cache(maxsize=4096)
def _has(font: Path, letter: str) -> bool:
    face = _face(font)
    return face is not None and face.get_char_index(ord(letter)) != 0


@lru_cache(maxsize=32)
def _face(font: Path) -> FT2Font | None:
    """``None`` for what cannot be read, and for pictures of letters in one size (colour emoji)."""
    try:
        face = FT2Font(str(font))
    except (OSError, RuntimeError):
        return None
    return face if face.scalable else None


@lru_cache(maxsize=64)
def _load(font: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font), size)


def _draw_number(pen: ImageDraw.ImageDraw, x: float, letter: str, size: int, baseline: int) -> None:
    """A letter's code in a box, two lines of two or three hexadecimal digits, as browsers show it."""
    code = f"{ord(letter):04X}" if ord(letter) < 0x10000 else f"{ord(letter):06X}"
    half, tiny = len(code) // 2, _load(PLAIN, max(5, round((0.44 if len(code) == 4 else 0.36) * size)))
    left, right, top = x + 0.05 * size, x + 1.0 * size, baseline - 0.85 * size
    pen.rectangle((left, top, right, baseline + 0.15 * size), outline=255)
    for number, digits in enumerate((code[:half], code[half:])):
        middle = ((left + right) / 2, top + (0.27 + 0.46 * number) * size)
        pen.text(middle, digits, fill=255, font=tiny, anchor="mm")
