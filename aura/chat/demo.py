"""What the chat in the browser does, without the page: answers, overlays with switches, masks to take away."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from PIL import Image

from aura.chat.assistant import Assistant, ChatSession
from aura.chat.download import mask_archive, safe_name
from aura.chat.terminal import draw_reply
from aura.drawing.visualize import asked_text
from aura.files import write_bytes
from aura.types import SEG_TOKEN, Reply, ReplyObject

COLUMNS = ["", "object", "hidden", "visible px", "amodal px"]
SWITCHES = ("both", "visible", "amodal", "hidden")
"""What is drawn of an object; where a question means one kind of mask, ``asked`` draws the stress on that."""
Answer = tuple[str, Image.Image | None, list[list[Any]]]
"""The text and the rows of the objects so far; with the last one the overlay."""


class Demo:
    """What the page does, without the page. One answer at a time: the model is shared by all visitors."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant
        self._turn = threading.Lock()

    def open(self, path: str | Path) -> ChatSession:
        """A conversation about an image file; ValueError if it cannot be read."""
        with self._turn:
            return self.assistant.conversation(path)

    def answer(self, session: ChatSession, question: str) -> Iterator[Answer]:
        """The answer as it is written, ``[SEG]`` marks as the overlay's numbers; ValueError if it cannot be asked."""
        pieces: SimpleQueue[str | ReplyObject | Reply | BaseException] = SimpleQueue()

        def ask() -> None:
            with self._turn:
                try:
                    pieces.put(session.ask(question, pieces.put, pieces.put))
                except BaseException as error:
                    pieces.put(error)

        threading.Thread(target=ask, daemon=True).start()
        text, objects = "", list[ReplyObject]()
        while isinstance(piece := pieces.get(), str | ReplyObject):
            if isinstance(piece, str):
                text += piece
            else:
                objects.append(piece)
            yield numbered(text), None, object_rows(Reply(text, tuple(objects)))
        if isinstance(piece, BaseException):
            raise piece
        assert session.image is not None
        picture = draw(session.image, question, piece)
        yield numbered(piece.text) + (" …" if piece.truncated else ""), picture, object_rows(piece)


def draw(image: Image.Image, question: str, reply: Reply, switches: Sequence[str] = ()) -> Image.Image:
    """The overlay; ``switches`` has one of :data:`SWITCHES` for each object, without it both masks are drawn."""
    if switches:
        objects = tuple(switched(obj, switch) for obj, switch in zip(reply.objects, switches, strict=True))
        reply = replace(reply, objects=objects)
    return Image.open(BytesIO(draw_reply(image, question, reply)))


def switches_of(obj: ReplyObject) -> list[str]:
    """The switches that mean something for an object; the first is its state in a new answer."""
    if obj.visible is None or obj.amodal is None:
        return ["visible" if obj.amodal is None else "amodal", "hidden"]
    return [*SWITCHES] if obj.asked == "both" else ["asked", *SWITCHES]


def switched(obj: ReplyObject, switch: str) -> ReplyObject:
    """An object of which one mask is drawn, or none; its number and its line in the legend stay."""
    if switch == "hidden":
        mask = obj.amodal if obj.visible is None else obj.visible
        assert mask is not None
        return replace(obj, visible=np.zeros_like(mask), amodal=None)
    if switch == "visible":
        return replace(obj, amodal=None)
    if switch == "amodal":
        return replace(obj, visible=None)
    return replace(obj, asked="both") if switch == "both" else obj


def numbered(text: str) -> str:
    """``the bus [SEG]`` -> ``the bus (1)``: the number of the object in the overlay and the table."""
    first, *rest = text.split(SEG_TOKEN)
    return first + "".join(f"({number}){part}" for number, part in enumerate(rest, start=1))


def object_rows(reply: Reply) -> list[list[Any]]:
    """One row per object, in the order of :data:`COLUMNS`; a dash for what the model does not predict.

    Behind the name stands which mask was asked for, if it was one kind alone.
    """
    rows = []
    for number, obj in enumerate(reply.objects, start=1):
        areas = ["–" if mask is None else f"{int(mask.sum()):,}" for mask in (obj.visible, obj.amodal)]
        name = ", ".join(filter(None, (obj.name, asked_text(obj.asked))))
        rows.append([number, name, "–" if obj.occlusion_rate is None else f"{obj.occlusion_rate:.0%}", *areas])
    return rows


def write_masks(folder: str | Path, name: str, image: Image.Image, question: str, reply: Reply) -> Path:
    """An answer's masks as a zip in a new folder below ``folder``, whole or not at all; ``name`` is the picture's."""
    place = Path(tempfile.mkdtemp(dir=folder))
    path = place / f"{safe_name(Path(name).stem, 'image')}_masks.zip"
    write_bytes(path, mask_archive(name, image.size, question, reply))
    return path
