"""Images with offline questions, and what their masks say about them."""

import re
from functools import cache
from itertools import islice

import numpy as np

from aura.datagen.facts.knowledge import PURPOSES
from aura.datagen.offline.generator import generate_conversations
from aura.formats.sources import AnnotatedImage
from aura.masks import decode_rle
from aura.mini.benchmark import scene_stream
from aura.mini.pictures import load_backgrounds, load_cutouts
from aura.mini.scenes import Scene, SceneObject
from aura.types import Turn
from tests.scenes import annotated_image_from_scene

SIDE = 96
CATEGORIES = sorted({c for p in PURPOSES for c in p.categories} | {"gizmo"})
MARK = re.compile(r"\bthe ((?:(?!\bthe )[^\[,])+) \[SEG\]", re.IGNORECASE)


def blobs(seed: int, categories=CATEGORIES, count: int | None = None) -> Scene:
    """Ellipses in a heap, front to back."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    taken, objects = np.zeros((SIDE, SIDE), bool), []
    for _ in range(count or int(rng.integers(1, 9))):
        x, y = rng.uniform(8, SIDE - 8, 2)
        radius = rng.uniform(8, 24)
        amodal = (columns - x) ** 2 + rng.uniform(0.6, 1.6) * (rows - y) ** 2 < radius**2
        visible = amodal & ~taken
        if visible.sum() >= 0.1 * amodal.sum():
            objects.append(SceneObject(str(rng.choice(categories)), amodal, visible))
        taken |= amodal
    return Scene(np.zeros((SIDE, SIDE, 3), np.uint8), tuple(objects), "none")


@cache
def corpus() -> tuple[tuple[AnnotatedImage, tuple[Turn, ...]], ...]:
    """Images with their turns: heaps of blobs, few categories so that some occur twice, and real scenes."""
    few = ("banana", "bus", "horse", "chair", "scissors", "gizmo")
    scenes = [blobs(i) for i in range(130)] + [blobs(1000 + i, few) for i in range(50)]
    scenes += islice(scene_stream(load_cutouts(), load_backgrounds(), split="pretrain", seed=3), 8)
    images = [annotated_image_from_scene(scene, number, first_id=50) for number, scene in enumerate(scenes)]
    return tuple((image, tuple(t for c in generate_conversations(image, seed=1) for t in c.turns)) for image in images)


class Truth:
    """What the decoded masks say, computed apart from the generator's own code."""

    def __init__(self, image: AnnotatedImage) -> None:
        self.category = {o.id: o.category for o in image.objects}
        self.visible = {o.id: decode_rle(o.visible) for o in image.objects}
        self.amodal = {o.id: decode_rle(o.amodal) for o in image.objects}
        self.rate = {i: 1 - self.visible[i].sum() / self.amodal[i].sum() for i in self.visible}
        self.x = {i: self.centre(mask, 0) for i, mask in self.visible.items()}
        self.y = {i: self.centre(mask, 1) for i, mask in self.visible.items()}

    @staticmethod
    def centre(mask: np.ndarray, axis: int) -> float:
        filled = np.flatnonzero(mask.any(axis=axis))
        return (filled[0] + filled[-1] + 1) / 2 / mask.shape[1 - axis]

    def hidden_pixels(self, front: int, back: int) -> int:
        return 0 if front == back else int((self.visible[front] & self.amodal[back] & ~self.visible[back]).sum())

    def hides(self, front: int, back: int) -> bool:
        pixels = self.hidden_pixels(front, back)
        return pixels >= 4 and pixels >= 0.02 * self.amodal[back].sum()

    def plain_to_see(self, pairs: list[tuple[int, int]]) -> bool:
        """No (front, back) of ``pairs`` hides a little, so that one may doubt whether it counts."""
        return not any(0.01 <= self.hidden_pixels(a, b) / self.amodal[b].sum() < 0.1 for a, b in pairs)

    def in_front_of(self, back: int) -> set[int]:
        assert self.plain_to_see([(i, back) for i in self.visible])
        return {i for i in self.visible if self.hides(i, back)}

    def behind(self, front: int) -> set[int]:
        assert self.plain_to_see([(front, i) for i in self.visible])
        return {i for i in self.visible if self.hides(front, i)}

    def only(self, category: str) -> int:
        found = [i for i, c in self.category.items() if c == category]
        assert len(found) == 1, f"{category} is not unique here"
        return found[0]


@cache
def each_turn() -> list[tuple[Truth, Turn]]:
    truths = [(Truth(image), turns) for image, turns in corpus()]
    return [(truth, turn) for truth, turns in truths for turn in turns]
