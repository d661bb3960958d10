"""Scenes with known occlusion: what was there before is the amodal mask, what remains the visible one."""

from __future__ import annotations

import numpy as np
import pytest

from aura.datagen.occlusions.compose import (
    MAX_RATE,
    MIN_VISIBLE,
    Cutout,
    Scene,
    SceneObject,
    compose,
    mirrored,
)

H, W = 120, 160


def disc(y: int, x: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:H, :W]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def photograph(*shapes: tuple[np.ndarray, bool]) -> Scene:
    objects = [SceneObject("cup", "kitchen", mask, mask if whole else None) for mask, whole in shapes]
    return Scene(np.full((H, W, 3), 90, np.uint8), objects)


def red_square(rng: np.random.Generator) -> Cutout:
    side = int(rng.integers(40, 60))
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[..., 0] = 230
    return Cutout("book", "things", pixels, np.ones((side, side), bool), (H, W))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    made = []
    for seed in range(60):
        scene = photograph((disc(50, 50, 25), True), (disc(70, 120, 20), True), (disc(20, 100, 12), False))
        found = compose(scene, red_square, np.random.default_rng(seed))
        if found is not None:
            made.append(found)
    assert len(made) > 50
    return made


def test_amodal_is_what_was_there_before(scenes):
    before = [disc(50, 50, 25), disc(70, 120, 20)]
    for scene in scenes:
        for obj, mask in zip(scene.objects, before, strict=False):
            assert np.array_equal(obj.amodal, mask)
        assert scene.objects[2].amodal is None  # its shape was not known, and still is not


def test_visible_is_what_the_later_ones_leave(scenes):
    for scene in scenes:
        first = len(scene.objects) - scene.num_pasted
        starts = [disc(50, 50, 25), disc(70, 120, 20), disc(20, 100, 12), *(o.amodal for o in scene.objects[first:])]
        for number, (obj, start) in enumerate(zip(scene.objects, starts, strict=True)):
            front = [o.amodal for o in scene.objects[max(first, number + 1) :]]
            left = start & ~np.any(front, axis=0) if front else start
            assert np.array_equal(obj.visible, left)
            assert obj.visible_area == np.count_nonzero(left)


def test_limits_hold_and_rates_cover_the_range(scenes):
    rates = []
    for scene in scenes:
        for obj in scene.objects:
            assert obj.visible_area >= min(MIN_VISIBLE * H * W, obj.whole_area)
            rates.append(1 - obj.visible_area / obj.whole_area)
    assert max(rates) <= MAX_RATE
    hidden = np.histogram([rate for rate in rates if rate > 0], (0, 0.3, 0.6, 0.9))[0]
    assert (hidden > 5).all(), hidden


def test_pixels_change_where_something_was_pasted_and_nowhere_else(scenes):
    for scene in scenes:
        pasted = np.any([o.amodal for o in scene.objects[-scene.num_pasted :]], axis=0)
        assert (scene.pixels[pasted] != 90).any(-1).mean() > 0.95
        rows, columns = np.nonzero((scene.pixels != 90).any(-1))
        near = np.zeros_like(pasted)
        for dy in range(-4, 5):
            for dx in range(-4, 5):
                near |= np.roll(pasted, (dy, dx), (0, 1))
        assert near[rows, columns].all()


def test_a_photograph_without_whole_objects_gets_one_to_cover():
    scene = compose(photograph((disc(20, 100, 12), False)), red_square, np.random.default_rng(1))
    assert scene is not None and scene.num_pasted >= 2
    assert any(o.amodal is not None and o.visible_area < o.whole_area for o in scene.objects)


def test_the_same_randomness_gives_the_same_scene():
    first, second = (
        compose(photograph((disc(50, 50, 25), True)), red_square, np.random.default_rng(5)) for _ in range(2)
    )
    assert first is not None and second is not None and np.array_equal(first.pixels, second.pixels)


def test_nothing_to_lay_over():
    assert compose(photograph((disc(50, 50, 25), True)), lambda rng: None, np.random.default_rng(0)) is None


def test_a_mirror_turns_pixels_and_masks_alike(scenes):
    scene = scenes[0]
    turned = mirrored(scene)
    assert np.array_equal(turned.pixels[:, ::-1], scene.pixels)
    for there, here in zip(turned.objects, scene.objects, strict=True):
        assert np.array_equal(there.visible[:, ::-1], here.visible)
        assert (there.amodal is None) == (here.amodal is None)
