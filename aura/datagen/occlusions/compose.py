"""One scene with known occlusion: whole objects of other photographs laid over objects of this one.

What an object looked like before something was laid over it is its amodal mask; what remains is its visible mask. Only
objects that were whole before are covered on purpose. The others keep an unknown shape.

Shapes: H W pixels of the photograph, h w pixels of a cut-out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
BoolMask = NDArray[np.bool_]

COMPOSER_VERSION = 1
"""Goes up when the same randomness gives another scene."""
MAX_RATE = 0.9
"""No object is hidden more than this."""
MIN_VISIBLE = 0.0015
"""Every object keeps this fraction of the image's pixels in view; with less nobody could name it."""
NUM_PASTED = (0.45, 0.35, 0.2)
"""How often one, two or three objects are laid over a photograph."""
RATES = (0.05, MAX_RATE)
"""The occlusion rate that is aimed at, uniformly."""
CLOSE_ENOUGH = 0.06
ACCEPTED = 0.2
"""How far from the wanted rate a place may be: at the first of these the search ends, beyond the second it failed."""
MAX_SIZE = 0.75
"""Longest side of a pasted object, as a fraction of the image's."""
MAX_ENLARGED = 1.6
"""A cut-out is enlarged no further: it would look blurred."""
MIN_INSIDE = 0.6
"""The fraction of a pasted object that lies inside the image."""
MATCHED = (0.3, 0.3, 0.3)
"""How far the mean of a cut-out's L, a and b moves to that of its surroundings."""
RIM = 0.8
"""Standard deviation, in pixels, of the blur at a cut-out's rim."""
TRIES = 8


@dataclass(frozen=True)
class Cutout:
    """A whole object cut from its photograph: ``pixels`` uint8 [h, w, 3] and ``mask`` bool [h, w]."""

    category: str
    supercategory: str
    pixels: UInt8
    mask: BoolMask
    photo: tuple[int, int]
    """(height, width) of its photograph, which tells how large it looked there."""


@dataclass
class SceneObject:
    """An object of a scene. ``amodal`` is ``None`` where its whole shape is not known. Masks are bool [H, W]."""

    category: str
    supercategory: str
    visible: BoolMask
    amodal: BoolMask | None
    whole_area: int = field(init=False)
    visible_area: int = field(init=False)

    def __post_init__(self) -> None:
        self.visible_area = int(np.count_nonzero(self.visible))
        self.whole_area = self.visible_area if self.amodal is None else int(np.count_nonzero(self.amodal))


@dataclass
class Scene:
    """``pixels`` uint8 RGB [H, W, 3] and its objects: those of the photograph, then the pasted ones in their order."""

    pixels: UInt8
    objects: list[SceneObject]
    num_pasted: int = 0


def compose(
    scene: Scene, draw: Callable[[np.random.Generator], Cutout | None], rng: np.random.Generator
) -> Scene | None:
    """Lay one to three objects over whole objects of ``scene``, which is changed in place.

    Where the photograph has no whole object, one is put there first, for the others to cover.

    Args:
        scene: The photograph and its objects.
        draw: Gives a cut-out of another photograph, or ``None`` where it cannot be read.
        rng: All randomness; the same state gives the same scene.

    Returns:
        The scene, or ``None`` if no object could be placed.
    """
    num_covered = 0
    wanted = 1 + int(rng.choice(len(NUM_PASTED), p=NUM_PASTED))
    for _ in range(TRIES * wanted):
        cutout = draw(rng)
        if cutout is None:
            continue
        if targets := _free_targets(scene):
            target = targets[int(rng.integers(len(targets)))]
            num_covered += _lay_over(scene, target, cutout, float(rng.uniform(*RATES)), rng)
        else:  # nothing whole to cover: put something there that the next one can cover
            _lay_free(scene, cutout, rng)
        if num_covered == wanted or scene.num_pasted > wanted + 1:
            break
    return scene if num_covered else None


def _free_targets(scene: Scene) -> list[int]:
    """Objects whose whole shape is known and of which nothing is hidden yet, large enough to be named half hidden."""
    least = 2 * MIN_VISIBLE * scene.pixels[..., 0].size
    return [
        i
        for i, obj in enumerate(scene.objects)
        if obj.amodal is not None and obj.visible_area == obj.whole_area and obj.visible_area >= least
    ]


def _lay_over(scene: Scene, target: int, cutout: Cutout, rate: float, rng: np.random.Generator) -> bool:
    """Put the cut-out where it hides about ``rate`` of object ``target``; False if there is no such place."""
    obj = scene.objects[target]
    scale = _scale(scene, cutout, rate * obj.whole_area, rng)
    if scale is None:
        return False
    pixels, alpha = _rendered(cutout, scale, mirrored=bool(rng.random() < 0.5))
    place = _place(scene, target, alpha >= 0.5, rate, rng)
    if place is not None:
        _put(scene, cutout, pixels, alpha, *place)
    return place is not None


def _lay_free(scene: Scene, cutout: Cutout, rng: np.random.Generator) -> bool:
    """Put the cut-out somewhere in the lower part of the picture, where it breaks no limit."""
    scale = _scale(scene, cutout, 4 * MIN_VISIBLE * scene.pixels[..., 0].size, rng)
    if scale is None:
        return False
    pixels, alpha = _rendered(cutout, scale, mirrored=bool(rng.random() < 0.5))
    mask, (height, width) = alpha >= 0.5, scene.pixels.shape[:2]
    for across, down in rng.uniform(0, 1, (10, 2)):
        x = int(across * max(width - mask.shape[1], 0))
        y = int(height - mask.shape[0] * (1 - 0.2 * down) - 0.25 * down * height)
        if _hidden_after(scene, mask, x, y) is not None:
            _put(scene, cutout, pixels, alpha, x, y)
            return True
    return False


def _put(scene: Scene, cutout: Cutout, pixels: UInt8, alpha: NDArray[np.float32], x: int, y: int) -> None:
    """Paint the cut-out with its corner at x, y, and record it as the front object."""
    _paste(scene, pixels, alpha, x, y)
    mask = alpha >= 0.5
    amodal = np.zeros(scene.pixels.shape[:2], bool)
    here, part = _window(amodal.shape, mask.shape, x, y)
    amodal[here] = mask[part]
    for other in scene.objects:
        if (other.visible & amodal).any():
            other.visible = other.visible & ~amodal
            other.visible_area = int(np.count_nonzero(other.visible))
    scene.objects.append(SceneObject(cutout.category, cutout.supercategory, amodal, amodal))
    scene.num_pasted += 1


def _scale(scene: Scene, cutout: Cutout, hidden: float, rng: np.random.Generator) -> float | None:
    """How much the cut-out is enlarged: as large as it looked in its own photograph, or as ``hidden`` pixels need."""
    height, width = scene.pixels.shape[:2]
    alike = max(height, width) / max(cutout.photo) * float(rng.uniform(0.7, 1.3))
    needed = float(np.sqrt(1.3 * hidden / max(int(np.count_nonzero(cutout.mask)), 1)))
    largest = min(MAX_ENLARGED, MAX_SIZE * max(height, width) / max(cutout.mask.shape))
    return None if needed > largest else min(max(alike, needed), largest)


def _rendered(cutout: Cutout, scale: float, *, mirrored: bool) -> tuple[UInt8, NDArray[np.float32]]:
    """The cut-out at its size: pixels uint8 [h, w, 3] and soft alpha float32 [h, w], with room for the rim."""
    inner = cv2.erode(cutout.mask.astype(np.uint8), np.ones((3, 3), np.uint8))  # its rim shows the old background
    if not inner.any():
        inner = cutout.mask.astype(np.uint8)
    size = (max(2, round(cutout.mask.shape[1] * scale)), max(2, round(cutout.mask.shape[0] * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    pixels = np.asarray(cv2.resize(cutout.pixels, size, interpolation=how), np.uint8)
    alpha = np.asarray(cv2.resize(inner.astype(np.float32), size, interpolation=how), np.float32)
    pad = int(np.ceil(3 * RIM))
    pixels = np.asarray(cv2.copyMakeBorder(pixels, pad, pad, pad, pad, cv2.BORDER_REPLICATE), np.uint8)
    alpha = np.asarray(cv2.copyMakeBorder(alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT), np.float32)
    alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), RIM), np.float32)
    return (pixels[:, ::-1], alpha[:, ::-1]) if mirrored else (pixels, alpha)


def _window(
    shape: tuple[int, ...], patch: tuple[int, ...], x: int, y: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch [h, w] with its corner at x, y meets an image [H, W]: slices of the image, slices of the patch."""
    top, left = max(y, 0), max(x, 0)
    bottom, right = max(min(y + patch[0], shape[0]), top), max(min(x + patch[1], shape[1]), left)
    return np.s_[top:bottom, left:right], np.s_[top - y : bottom - y, left - x : right - x]


def _place(scene: Scene, target: int, mask: BoolMask, rate: float, rng: np.random.Generator) -> tuple[int, int] | None:
    """The corner x, y at which ``mask`` hides about ``rate`` of object ``target``, and no object too much.

    What stands in front stands lower in the picture: the bottom of the pasted object is at that of the target or
    below, where such a place is found; elsewhere any height will do.
    """
    obj = scene.objects[target]
    rows, columns = np.flatnonzero(obj.visible.any(1)), np.flatnonzero(obj.visible.any(0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
    tall = bottom - top + 1
    own = np.flatnonzero(mask.any(1))
    grounded = [int(bottom + share * tall - own[-1]) for share in rng.uniform(0.0, 0.4, 4)]
    floating = [int(v) for v in rng.uniform(top - mask.shape[0] + 1, bottom, 6)]
    across = [int(v) for v in np.linspace(left - mask.shape[1] + 1, right, 15)]
    for heights in (grounded, floating):
        best, least = None, ACCEPTED
        for x, y in ((x, y) for y in heights for x in rng.permutation(across).tolist()):
            lost = _hidden_after(scene, mask, x, y)
            found = lost[target] / obj.whole_area if lost else 0.0  # nothing else hides it yet
            if found and abs(found - rate) < least:
                best, least = (x, y), abs(found - rate)
                if least < CLOSE_ENOUGH:
                    return best
        if best is not None:
            return best
    return None


def _hidden_after(scene: Scene, mask: BoolMask, x: int, y: int) -> list[int] | None:
    """Visible pixels that each object would lose to ``mask`` at x, y; ``None`` where that breaks a limit."""
    here, part = _window(scene.pixels.shape, mask.shape, x, y)
    inside = mask[part]
    if np.count_nonzero(inside) < max(MIN_INSIDE * np.count_nonzero(mask), 1):
        return None
    least = MIN_VISIBLE * scene.pixels[..., 0].size
    lost = [int(np.count_nonzero(obj.visible[here] & inside)) for obj in scene.objects]
    for obj, gone in zip(scene.objects, lost, strict=True):
        left = obj.visible_area - gone
        if gone and (left < min(least, obj.visible_area) or 1 - left / obj.whole_area > MAX_RATE):
            return None
    return lost


def _paste(scene: Scene, pixels: UInt8, alpha: NDArray[np.float32], x: int, y: int) -> None:
    """Blend the cut-out into the scene's pixels, its colours brought nearer to those around it."""
    here, part = _window(scene.pixels.shape, alpha.shape, x, y)
    weight = alpha[part][..., None]
    below = scene.pixels[here].astype(np.float32)
    matched = _matched(pixels[part], below, alpha[part])
    scene.pixels[here] = np.clip(matched * weight + below * (1 - weight) + 0.5, 0, 255).astype(np.uint8)


def _matched(pixels: UInt8, below: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """The pixels with the mean of their L, a and b moved part of the way to that of what lies below."""
    inside = alpha >= 0.5
    if not inside.any():
        return pixels.astype(np.float32)
    own = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    there = cv2.cvtColor(below / 255, cv2.COLOR_RGB2LAB)
    shift = np.array(MATCHED, np.float32) * (there.reshape(-1, 3).mean(0) - own[inside].mean(0))
    return np.asarray(255 * cv2.cvtColor(own + shift, cv2.COLOR_LAB2RGB), np.float32)


def mirrored(scene: Scene) -> Scene:
    """The scene seen in a mirror."""
    objects: Sequence[SceneObject] = scene.objects
    return Scene(
        np.ascontiguousarray(scene.pixels[:, ::-1]),
        [
            SceneObject(
                o.category, o.supercategory, o.visible[:, ::-1], None if o.amodal is None else o.amodal[:, ::-1]
            )
            for o in objects
        ],
        scene.num_pasted,
    )
