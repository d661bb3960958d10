"""The addresses of pictures and of their masks; only what the store knows can be asked for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter
from fastapi import Path as PathParameter
from fastapi.responses import Response

from aura.datagen.review.layers import mask_layer
from aura.datagen.review.member import Id, Reading, not_found
from aura.formats.decoding import open_picture, read_picture

MAX_NUMBER = 10_000
"""Objects of a picture that can have a number."""
PICTURE_TYPES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
}
"""Kinds of files that a browser shows, if they are plain: neither transparent nor deep nor animated."""
PLAIN_MODES = ("1", "L", "P", "RGB")

router = APIRouter()


@router.get("/images/{image_id}/picture")
def picture(member: Reading, image_id: Id) -> Response:
    """The picture of an image of the project; never another file, whatever the annotation file calls it."""
    try:
        stored = member.desk.image(image_id)
    except (KeyError, ValueError):  # no such image, or its name leads out of the folder
        return not_found(member, "There is no such picture in this project.")
    folders = [source.images for source in member.desk.store.images.sources]
    path = stored.picture.resolve()
    # Stricter than for those who own the machine: what is linked from elsewhere is not shown to others.
    inside = any(path.is_relative_to(Path(folder).resolve()) for folder in folders)
    try:
        if not inside:
            raise OSError("outside of the picture folders")
        kind, content = for_browser(path)
    except (OSError, ValueError):
        return not_found(member, "The picture's file is missing or no picture.")
    return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})


def for_browser(path: Path) -> tuple[str, bytes]:
    """Media type and content of a picture: the file itself, or else a PNG of the pixels that a model sees.

    Raises:
        ValueError: As :func:`aura.formats.decoding.read_picture`.
    """
    with open_picture(path) as opened:
        kind = PICTURE_TYPES.get(opened.format or "", "")
        # The second picture in a telephone's file (MPO) is its own matter; browsers show the first.
        moves = opened.format != "MPO" and getattr(opened, "is_animated", False)
        plain = opened.mode in PLAIN_MODES and not opened.has_transparency_data and not moves
    if kind and plain:
        return kind, path.read_bytes()
    buffer = io.BytesIO()
    read_picture(path).save(buffer, "PNG")
    return "image/png", buffer.getvalue()


@router.get("/images/{image_id}/objects/{object_id}/{kind}-{index}.png")
def layer(
    member: Reading,
    image_id: Id,
    object_id: Id,
    kind: Literal["visible", "amodal"],
    index: Annotated[int, PathParameter(ge=0, lt=MAX_NUMBER)],
) -> Response:
    """A mask of an object as a transparent layer in the colour of ``index``."""
    try:
        objects = member.desk.image(image_id).image.objects
        found = next(obj for obj in objects if obj.id == object_id)
    except (KeyError, StopIteration):
        return not_found(member, "There is no such object in this project.")
    content = mask_layer(found, kind, index)
    return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})
