"""The addresses of pictures and of their masks; only what the store knows can be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter
from fastapi import Path as PathParameter
from fastapi.responses import Response
from PIL import Image

from aura.datagen.review.layers import mask_layer
from aura.datagen.review.member import Id, Reading, not_found

MAX_NUMBER = 10_000
"""Objects of a picture that can have a number."""
PICTURE_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}

router = APIRouter()


@router.get("/images/{image_id}/picture")
def picture(member: Reading, image_id: Id) -> Response:
    """The picture of an image of the project; never another file, whatever the annotation file calls it."""
    try:
        stored = member.desk.image(image_id)
    except KeyError:
        return not_found(member, "There is no such picture in this project.")
    folders = [source.images for source in member.desk.store.images.sources]
    path = stored.picture.resolve()
    inside = any(path.is_relative_to(Path(folder).resolve()) for folder in folders)
    try:
        if not inside:
            raise OSError("outside of the picture folders")
        with Image.open(path) as opened:
            kind = PICTURE_TYPES[opened.format or ""]
        content = path.read_bytes()
    except (OSError, KeyError, SyntaxError, ValueError, Image.DecompressionBombError):
        return not_found(member, "The picture's file is missing or no picture.")
    return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})


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
