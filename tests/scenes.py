"""Composed scenes as annotated images, without files between."""

from __future__ import annotations

import numpy as np

from aura.formats.sources import AnnotatedImage, with_occluders
from aura.masks import encode_rle
from aura.mini.scenes import Scene
from aura.targets import occlusion_rate
from aura.types import AmodalObject


def annotated_image_from_scene(scene: Scene, image_id: int, *, first_id: int = 1) -> AnnotatedImage:
    """A composed scene as if it had been read from a file; its objects are numbered from ``first_id``."""
    height, width = scene.image.shape[:2]
    objects = [
        AmodalObject(
            number,
            thing.category,
            encode_rle(thing.visible),
            encode_rle(thing.amodal),
            float(occlusion_rate(np.asarray(thing.visible), np.asarray(thing.amodal))),
        )
        for number, thing in enumerate(scene.objects, first_id)
    ]
    return AnnotatedImage(image_id, f"{image_id:06d}.jpg", height, width, with_occluders(objects))
