"""Samples of a few squares that hide each other, for runs that take a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from aura.masks import encode_rle
from aura.types import AmodalObject, Conversation, Sample, Turn

SIZE = 48


def make_samples(folder: Path, count: int, first_id: int = 0) -> list[Sample]:
    """Images of a red square behind a blue one; every third image also has a conversation without ``[SEG]``."""
    samples = []
    for number in range(first_id, first_id + count):
        rng = np.random.default_rng(number)
        amodal, front = np.zeros((2, SIZE, SIZE), dtype=bool)
        row, column = rng.integers(0, 20, 2)
        amodal[row : row + 20, column : column + 20] = True
        front[row + 10 : row + 28, column + 8 : column + 28] = True
        pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        pixels[amodal], pixels[front] = (200, 0, 0), (0, 0, 200)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        visible = amodal & ~front
        objects = (
            AmodalObject(1, "red", encode_rle(visible), encode_rle(amodal), 1 - visible.sum() / amodal.sum(), (2,)),
            AmodalObject(2, "blue", encode_rle(front), encode_rle(front), 0.0),
        )
        conversations = [
            Conversation(10 * number, (Turn("What is hidden?", "The red square [SEG].", (1,)),)),
            Conversation(10 * number + 1, (Turn("What hides it?", "A blue one [SEG] hides it [SEG].", (2, 1)),)),
        ]
        if number % 3 == 0:
            conversations = [Conversation(10 * number + 2, (Turn("Is it a bus?", "No."),))]
        samples.append(Sample(number, path, SIZE, SIZE, objects, tuple(conversations)))
    return samples
