"""Scenes with exact amodal truth: cut-outs with alpha, laid over a photograph from back to front.

An object's amodal mask is where its alpha is over one half, inside the image; its visible mask is the amodal mask minus
everything in front of it. Occluders are *placed*, so that occlusion rates cover the whole range from 0 to 0.9.

Shapes: H W pixels of the scene, h w pixels of a cut-out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from aura.targets import occlusion_rate, rate_from_areas

COMPOSER_VERSION = 2
"""Goes up when the same randomness gives another scene, so that folders made before are made again."""

ASPECTS = ((1, 1), (4, 3), (3, 4))
NUM_OBJECTS = (3, 6)
OBJECT_SIDE = (0.26, 0.62)  # longest side of an object, as a fraction of the scene's mean side
OCCLUDER_SHARE = 0.55  # of the objects are put over one that nothing hides yet
MAX_ROTATION = 20.0  # degrees
MAX_OCCLUSION = 0.9
MIN_INSIDE = 0.6  # fraction of an object that lies inside the image
MIN_VISIBLE_AREA = 160 / 192**2  # fraction of size x size; with less a person could not name the object
MIN_FILL = MIN_VISIBLE_AREA / (0.75 * OBJECT_SIDE[1] ** 2)  # a cut-out with less never reaches that area
NOT_MIRRORED = frozenset({"clock"})

UInt8 = NDArray[np.uint8]
BoolMask = NDArray[np.bool_]


@dataclass(frozen=True)
class Cutout:
    """A whole object with alpha: ``rgba`` uint8 [h, w, 4]."""

    category: str
    name: str
    rgba: UInt8

    @cached_property
    def pyramid(self) -> tuple[UInt8, ...]:
        """The picture with premultiplied alpha at full, half, quarter, ... size, so that shrinking does not alias."""
        alpha = self.rgba[..., 3:].astype(np.float32) / 255
        level = np.concatenate([self.rgba[..., :3] * alpha + 0.5, self.rgba[..., 3:]], axis=-1).astype(np.uint8)
        levels = [level]
        while min(level.shape[:2]) >= 16:
            half = (max(1, level.shape[1] // 2), max(1, level.shape[0] // 2))
            level = cv2.resize(level, half, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
            levels.append(level)
        return tuple(levels)

    @cached_property
    def fill(self) -> float:
        """Opaque fraction of the square over the longest side."""
        return float(np.count_nonzero(self.rgba[..., 3] >= 128) / max(self.rgba.shape[:2]) ** 2)


@dataclass(frozen=True)
class Background:
    """A photograph, ``image`` uint8 [h, w, 3]. Pictures cut from one photograph share ``photo`` and so their split."""

    name: str
    photo: str
    image: UInt8


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene; both masks are bool [H, W], the visible one lies within the amodal one."""

    category: str
    amodal: BoolMask
    visible: BoolMask

    @property
    def occlusion_rate(self) -> float:
        """Hidden fraction of the amodal area, in [0, 1]."""
        return float(occlusion_rate(self.visible, self.amodal))


@dataclass(frozen=True)
class Scene:
    """An ``image`` uint8 RGB [H, W, 3] and its objects from back to front; ``background`` is the photograph's name."""

    image: UInt8
    objects: tuple[SceneObject, ...]
    background: str


@dataclass
class _Canvas:
    """A scene in the making: ``pixels`` float32 [H, W, 3], ``front`` [H, W] the number of the front object or 0."""

    pixels: NDArray[np.float32]
    front: NDArray[np.uint8]
    amodal: list[BoolMask]
    amodal_area: list[int]
    visible_area: list[int]
    min_visible: float

    def window(self, shape: tuple[int, int], x: int, y: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where a patch [h, w] with its corner at x, y meets the image: slices of the image, slices of the patch."""
        height, width = self.front.shape
        top, left = max(y, 0), max(x, 0)
        bottom, right = max(min(y + shape[0], height), top), max(min(x + shape[1], width), left)
        return np.s_[top:bottom, left:right], np.s_[top - y : bottom - y, left - x : right - x]

    def rates_after(self, mask: BoolMask, x: int, y: int) -> list[float] | None:
        """Occlusion rates of the objects so far if ``mask`` were put at x, y; ``None`` if that breaks a limit."""
        here, part = self.window(mask.shape, x, y)
        inside = mask[part]
        area = np.count_nonzero(inside)
        if area < max(MIN_INSIDE * np.count_nonzero(mask), self.min_visible):
            return None
        lost = np.bincount(self.front[here][inside], minlength=len(self.amodal) + 1)
        rates = []
        for index, (whole, seen) in enumerate(zip(self.amodal_area, self.visible_area, strict=True), 1):
            left = seen - int(lost[index])
            rate = rate_from_areas(left, whole)
            if lost[index] and (rate > MAX_OCCLUSION or left < self.min_visible):
                return None
            rates.append(rate)
        return rates

    def blend(self, colour: NDArray[np.float32] | float, alpha: NDArray[np.float32], x: int, y: int) -> None:
        """Lay a premultiplied colour [h, w, 3] with alpha [h, w, 1] over the pixels."""
        here, part = self.window(alpha.shape[:2], x, y)
        self.pixels[here] *= 1 - alpha[part]
        if not isinstance(colour, float):
            self.pixels[here] += colour[part]

    def add(self, mask: BoolMask, x: int, y: int) -> None:
        """Record ``mask`` [h, w] at x, y as the new front object."""
        here, part = self.window(mask.shape, x, y)
        inside = mask[part]
        lost = np.bincount(self.front[here][inside], minlength=len(self.amodal) + 1)
        self.visible_area = [seen - int(gone) for seen, gone in zip(self.visible_area, lost[1:], strict=True)]
        amodal = np.zeros(self.front.shape, bool)
        amodal[here] = inside
        self.amodal.append(amodal)
        self.front[here][inside] = len(self.amodal)
        self.amodal_area.append(int(np.count_nonzero(inside)))
        self.visible_area.append(self.amodal_area[-1])


def compose_scene(
    cutouts: Sequence[Cutout], backgrounds: Sequence[Background], *, size: int, rng: np.random.Generator
) -> Scene:
    """Compose one scene. All randomness comes from ``rng``: the same state gives the same scene.

    Args:
        cutouts: What to place; at most two objects of one category come into a scene, seldom more than one.
        backgrounds: Photographs to choose from.
        size: Longest side of the scene in pixels; the aspect ratio is 1:1, 4:3 or 3:4.
        rng: The source of randomness.
    """
    if not cutouts or not backgrounds:
        raise ValueError("a scene needs at least one cut-out and one background")
    across, down = ASPECTS[rng.integers(len(ASPECTS))]
    width, height = size * across // max(across, down), size * down // max(across, down)
    background = backgrounds[int(rng.integers(len(backgrounds)))]
    canvas = _Canvas(
        pixels=_background_crop(background.image, height, width, rng),
        front=np.zeros((height, width), np.uint8),
        amodal=[],
        amodal_area=[],
        visible_area=[],
        min_visible=MIN_VISIBLE_AREA * size * size,
    )
    with_shadows = rng.random() < 0.5
    chosen = _choose(cutouts, rng)
    categories = [cutout.category for cutout in chosen if _place(canvas, cutout, len(chosen), with_shadows, rng)]
    objects = tuple(
        SceneObject(category, amodal, canvas.front == index)
        for index, (category, amodal) in enumerate(zip(categories, canvas.amodal, strict=True), 1)
    )
    return Scene(np.clip(canvas.pixels + 0.5, 0, 255).astype(np.uint8), objects, background.name)


def _background_crop(image: UInt8, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random window of the photograph with the scene's aspect ratio, scaled to [height, width, 3], float32."""
    full_height, full_width = image.shape[:2]
    zoom = rng.uniform(0.65, 1.0) * min(full_height / height, full_width / width)
    crop_height, crop_width = max(1, int(zoom * height)), max(1, int(zoom * width))
    top = rng.integers(full_height - crop_height + 1)
    left = rng.integers(full_width - crop_width + 1)
    crop = image[top : top + crop_height, left : left + crop_width]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    interpolation = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=interpolation)
    pixels: NDArray[np.float32] = np.minimum(scaled.astype(np.float32) * np.float32(rng.uniform(0.75, 1.15)), 255)
    return pixels


def _choose(cutouts: Sequence[Cutout], rng: np.random.Generator) -> list[Cutout]:
    """3 to 6 cut-outs from back to front; in one scene of ten two of them share a category."""
    by_category: dict[str, list[Cutout]] = {}
    for cutout in cutouts:
        by_category.setdefault(cutout.category, []).append(cutout)
    names = list(by_category)
    wanted = int(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1))
    picked = [names[i] for i in rng.permutation(len(names))[:wanted]]
    missing = min(wanted - len(picked), len(picked))
    if missing:
        picked += picked[:missing]
    elif rng.random() < 0.1:
        picked[-1] = picked[0]
        picked = [picked[i] for i in rng.permutation(len(picked))]
    return [by_category[name][rng.integers(len(by_category[name]))] for name in picked]


def _place(canvas: _Canvas, cutout: Cutout, num_objects: int, with_shadows: bool, rng: np.random.Generator) -> bool:
    """Put a cut-out in front of everything so far, half the time over a chosen object; False if no place was found."""
    side = float(np.sqrt(canvas.front.size))
    largest = OBJECT_SIDE[1] - 0.03 * (num_objects - NUM_OBJECTS[0])
    for _ in range(6):
        longest = rng.uniform(OBJECT_SIDE[0], largest) * side
        unhidden = [i for i, (a, v) in enumerate(zip(canvas.amodal_area, canvas.visible_area, strict=True)) if a == v]
        target, rate = -1, 0.0
        if unhidden and rng.random() < OCCLUDER_SHARE:
            target, rate = unhidden[rng.integers(len(unhidden))], rng.uniform(0.03, MAX_OCCLUSION)
            # an occluder must be large enough to hide that much
            needed = np.sqrt(1.25 * rate * canvas.amodal_area[target] / max(cutout.fill, 0.05))
            longest = min(max(longest, needed), OBJECT_SIDE[1] * side)
        patch = _render(cutout, longest, rng)
        mask = patch[..., 3] >= 128
        if target >= 0:
            spot = _spot_over(canvas, mask, target, rate, rng)
        else:
            spot = _free_spot(canvas, mask, rng)
        if spot is None:
            continue
        _paint(canvas, patch, *spot, with_shadows, rng)
        canvas.add(mask, *spot)
        return True
    return False


def _render(cutout: Cutout, longest: float, rng: np.random.Generator) -> UInt8:
    """The cut-out mirrored, rotated and scaled (longest side ``longest`` before rotation), premultiplied: [h, w, 4]."""
    mirrored = cutout.category not in NOT_MIRRORED and rng.random() < 0.5
    angle = np.deg2rad(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    level = cutout.pyramid[0]
    for smaller in cutout.pyramid[1:]:
        if max(smaller.shape[:2]) < longest:
            break
        level = smaller
    height, width = level.shape[:2]
    scale = longest / max(height, width)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    out_width = int(np.ceil(abs(cos) * width + abs(sin) * height)) + 2
    out_height = int(np.ceil(abs(sin) * width + abs(cos) * height)) + 2
    matrix = np.array([[-cos if mirrored else cos, sin, 0.0], [sin if mirrored else -sin, cos, 0.0]])
    matrix[:, 2] = np.array([out_width, out_height]) / 2 - matrix[:, :2] @ np.array([width, height]) / 2
    return cv2.warpAffine(level, matrix, (out_width, out_height), flags=cv2.INTER_LINEAR).astype(np.uint8, copy=False)


def _spot_over(
    canvas: _Canvas, mask: BoolMask, target: int, rate: float, rng: np.random.Generator
) -> tuple[int, int] | None:
    """The corner x, y at which ``mask`` hides about ``rate`` of object ``target``, sliding in from a few directions."""
    rows, columns = np.nonzero(canvas.amodal[target])
    centre = np.array([columns.mean(), rows.mean()])
    extent = 0.5 * np.array([np.ptp(columns) + mask.shape[1], np.ptp(rows) + mask.shape[0]])
    corner = np.array([mask.shape[1], mask.shape[0]]) / 2
    best, best_error = None, 0.25
    for direction in rng.uniform(0, 2 * np.pi, 5):
        step = extent * np.array([np.cos(direction), np.sin(direction)])
        for distance in np.linspace(0.0, 1.0, 13):
            x, y = (int(v) for v in np.round(centre + distance * step - corner))
            rates = canvas.rates_after(mask, x, y)
            if rates is None or rates[target] == 0:
                continue
            error = abs(rates[target] - rate)
            if error < best_error:
                best, best_error = (x, y), error
        if best_error < 0.05:
            break
    return best


def _free_spot(canvas: _Canvas, mask: BoolMask, rng: np.random.Generator) -> tuple[int, int] | None:
    """A corner x, y at which ``mask`` hides nothing new, or else as little as can be found; one in four may be cut."""
    height, width = canvas.front.shape
    cut = 0.35 if rng.random() < 0.25 else 0.0
    best, least = None, canvas.front.size + 1
    for across, down in rng.uniform(-cut, 1 + cut, (24, 2)):
        x, y = int(across * (width - mask.shape[1])), int(down * (height - mask.shape[0]))
        rates = canvas.rates_after(mask, x, y)
        if rates is None:
            continue
        here, part = canvas.window(mask.shape, x, y)
        hidden = int(np.count_nonzero(canvas.front[here][mask[part]]))
        if hidden < least:
            best, least = (x, y), hidden
        if hidden == 0:
            break
    return best


def _paint(canvas: _Canvas, patch: UInt8, x: int, y: int, with_shadow: bool, rng: np.random.Generator) -> None:
    """Lay the patch over the pixels with a slight change of colour, over its own soft shadow if wanted."""
    alpha: NDArray[np.float32] = patch[..., 3:].astype(np.float32) / np.float32(255)
    colour = patch[..., :3].astype(np.float32) * rng.uniform(0.85, 1.1, 3).astype(np.float32)
    colour = np.minimum(colour, 255 * alpha)  # premultiplied colours never exceed their alpha
    if with_shadow:
        blur = max(1.0, 0.03 * max(alpha.shape))
        margin = int(3 * blur)
        padded = cv2.copyMakeBorder(alpha, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
        shadow: NDArray[np.float32] = np.float32(0.4) * cv2.GaussianBlur(padded, (0, 0), blur)[..., None].astype(
            np.float32
        )
        offset = int(np.ceil(blur))
        canvas.blend(0.0, shadow, x - margin + offset, y - margin + offset)
    canvas.blend(colour, alpha, x, y)
