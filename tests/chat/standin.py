"""A stand-in for the model behind the page: two objects in any picture, with markup in what it says."""

from __future__ import annotations

import numpy as np
from PIL import Image

from aura.chat.demo import Demo
from aura.data.photos import open_photo
from aura.types import Reply, ReplyObject

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"


class Session:
    """Answers at once, in four pieces."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.turns: list[tuple[str, Reply]] = []

    def ask(self, question, on_text, on_object):
        if not question.strip():
            raise ValueError(f"the question is empty {EVIL}")
        for piece in ("Take **the** ", "bus ", "[SEG]", f" or {EVIL} [SEG]."):
            on_text(piece)
        for obj in reply_about(self.image).objects:
            on_object(obj)
        self.turns.append((question, reply_about(self.image)))
        return self.turns[-1][1]


class Assistant:
    """Remembers the pictures that it was shown."""

    def __init__(self) -> None:
        self.seen: list[Image.Image] = []

    def conversation(self, path):
        self.seen.append(open_photo(path))
        return Session(self.seen[-1])


def reply_about(image: Image.Image) -> Reply:
    """A bus in the middle, and something before its lower right part."""
    front, bus = np.zeros((image.height, image.width), bool), np.zeros((image.height, image.width), bool)
    bus[image.height // 4 : 3 * image.height // 4, image.width // 4 : 3 * image.width // 4] = True
    front[image.height // 2 :, image.width // 2 :] = True
    objects = (ReplyObject("bus", bus & ~front, bus, 0.2), ReplyObject(EVIL, front, front, 0.0))
    return Reply(f"Take **the** bus [SEG] or {EVIL} [SEG].", objects)


def demo() -> Demo:
    return Demo(Assistant())  # type: ignore[arg-type]
