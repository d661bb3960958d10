"""Masks as transparent PNG layers over the picture: the visible area filled, the invisible area hatched."""

from __future__ import annotations

import io
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from aura.drawing.typesetting import colour_of, draw_chip
from aura.drawing.visualize import WHITE, Pixels
from aura.masks import BoolMask, decode_rle
from aura.types import AmodalObject

LONGEST = 1024
"""Longer side of a layer in pixels, whatever the picture's size: outlines are as wide in small pictures as in large."""
MARGIN = 8
HATCH_PERIOD, HATCH_WIDTH, DASH, LINE = 12.0, 3.0, 14, 3

Kind = Literal["visible", "amodal"]


class _Layer:
    """An RGBA layer in the making; colours in [0, 255], ``alpha`` [h, w] in [0, 1]."""

    def __init__(self, height: int, width: int) -> None:
        self.rgb: Pixels = np.zeros((height, width, 3), np.float32)
        self.alpha: Pixels = np.zeros((height, width), np.float32)

    def put(self, colour: Pixels, alpha: Pixels) -> None:
        """``colour`` over what is there ("over" of Porter and Duff, 1984)."""
        below = self.alpha * (1 - alpha)
        total = alpha + below
        share = np.divide(alpha, total, out=np.zeros_like(alpha), where=total > 0)
        self.rgb += share[..., None] * (colour - self.rgb)
        self.alpha = total

    def stroke(self, colour: Pixels, line: Pixels) -> None:
        """A line with a white halo, which keeps it apart from any picture."""
        self.put(WHITE, np.minimum(0.75, 1.3 * cv2.GaussianBlur(line, (0, 0), 1.6)).astype(np.float32))
        self.put(colour, line)

    def image(self) -> Image.Image:
        rgba = np.dstack([self.rgb, 255 * self.alpha])
        return Image.fromarray(rgba.round().clip(0, 255).astype(np.uint8), "RGBA")


def mask_layer(obj: AmodalObject, kind: Kind, index: int) -> bytes:
    """One mask of an object as a PNG with the picture's shape.

    ``visible``: the visible area filled and outlined, with the object's number (``index`` + 1). ``amodal``: the amodal
    outline dashed, its invisible part hatched; neighbouring indices lean to different sides.
    """
    visible = decode_rle(obj.visible)
    amodal = visible if obj.amodal is None else decode_rle(obj.amodal)
    height, width = amodal.shape
    factor = LONGEST / max(height, width)
    shape = (max(1, round(height * factor)), max(1, round(width * factor)))
    canvas = Image.new("RGBA", (shape[1], shape[0]))
    mask = visible if kind == "visible" else amodal | visible
    if mask.any():
        colour = np.array(colour_of(index).rgb, np.float32)
        soft = _resized(mask, shape, factor)
        top, left, bottom, right = _window(soft)
        window = (slice(top, bottom), slice(left, right))
        layer = _Layer(bottom - top, right - left)
        if kind == "visible":
            layer.put(colour, 0.45 * soft[window])
            layer.stroke(colour, _outline(soft[window], dashed=False))
        else:
            hidden = _resized(amodal & ~visible, shape, factor)[window] if (amodal & ~visible).any() else None
            if hidden is not None:
                layer.put(WHITE, 0.35 * hidden)
                layer.put(colour, 0.95 * hidden * _hatching(window, index))
            layer.stroke(colour, _outline(soft[window], dashed=True))
        canvas.paste(layer.image(), (left, top))
    if kind == "visible" and visible.any():
        _number(canvas, visible, index, factor)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _resized(mask: BoolMask, shape: tuple[int, int], factor: float) -> Pixels:
    """The mask at the layer's size, in [0, 1] with a smooth border."""
    method = cv2.INTER_LINEAR if factor >= 1 else cv2.INTER_AREA
    soft = cv2.resize(mask.astype(np.float32), (shape[1], shape[0]), interpolation=method)
    if factor > 1:
        soft = cv2.GaussianBlur(soft, (0, 0), 0.45 * factor)
        soft = np.clip((soft - 0.5) * 2 * factor + 0.5, 0, 1)
    return soft.astype(np.float32)


def _window(soft: Pixels) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) around what is not empty, with a margin."""
    rows, columns = np.flatnonzero(soft.any(1)), np.flatnonzero(soft.any(0))
    if not len(rows):
        return 0, 0, 1, 1
    height, width = soft.shape
    return (
        max(0, int(rows[0]) - MARGIN),
        max(0, int(columns[0]) - MARGIN),
        min(height, int(rows[-1]) + MARGIN + 1),
        min(width, int(columns[-1]) + MARGIN + 1),
    )


def _hatching(window: tuple[slice, slice], index: int) -> Pixels:
    """Parallel lines in [0, 1], placed by the whole layer, so that neighbours' lines fit together."""
    rows = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None]
    columns = np.arange(window[1].start, window[1].stop, dtype=np.float32)
    across = (columns + (rows if index % 2 == 0 else -rows)) / np.float32(np.sqrt(2))
    distance = np.abs(across % HATCH_PERIOD - HATCH_PERIOD / 2)
    lines: Pixels = np.clip(HATCH_WIDTH / 2 - distance + 0.5, 0, 1).astype(np.float32)
    return lines


def _outline(soft: Pixels, *, dashed: bool) -> Pixels:
    canvas: NDArray[Any] = np.zeros(soft.shape, np.uint8)
    found, _ = cv2.findContours((soft > 0.5).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for contour in found:
        points = contour[:, 0, :]
        if not dashed:
            cv2.polylines(canvas, [points], True, 255, LINE, cv2.LINE_AA)
            continue
        closed = np.concatenate([points, points[:1]])
        for start in range(0, len(points), 2 * DASH):
            cv2.polylines(canvas, [closed[start : start + DASH + 1]], False, 255, LINE, cv2.LINE_AA)
    return canvas.astype(np.float32) / np.float32(255)


def _number(canvas: Image.Image, visible: BoolMask, index: int, factor: float) -> None:
    """The object's number on the widest part of its visible area."""
    size = 22
    inside = cv2.distanceTransform(np.pad(visible.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    x = min(max((float(column) + 0.5) * factor, size), canvas.width - size)
    y = min(max((float(row) + 0.5) * factor, size), canvas.height - size)
    draw_chip(ImageDraw.Draw(canvas), (x, y), index, size)
