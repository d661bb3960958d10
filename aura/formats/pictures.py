"""A picture's file: whether it is there and whole, its size, and how a camera said that it should be turned."""

from __future__ import annotations

import hashlib
import io
import os
import unicodedata
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from aura.files import unfinished
from aura.formats.decoding import decoded, open_picture, open_stream

ORIENTATION = 0x0112
"""The EXIF tag."""
UPRIGHT, LYING = 1, range(5, 9)
"""Values of the tag: as stored; those that swap height and width."""


JPEG_QUALITY = 92
LONGEST_PART, LONGEST_NAME = 255, 2048
"""Bytes of a file's or folder's own name that every file system takes, and of those of a record together."""


class Picture(NamedTuple):
    """What a record says about a picture."""

    image_id: int
    path: Path
    height: int
    width: int


class PictureFacts(NamedTuple):
    """What its file says; ``flaw`` says why it cannot be used, and is empty if it can."""

    height: int = 0
    width: int = 0
    orientation: int = UPRIGHT
    sha256: str = ""
    flaw: str = ""


def name_flaw(name: str) -> str | None:
    """Why a record of a data file must not call its picture so; ``None`` if it may.

    Data comes from others: a name must not lead out of the folder of the pictures, neither by ``..`` nor by starting at
    a root or a drive, as Linux or as Windows writes them. What is linked inside the folder, its owner has linked.
    """
    path = PureWindowsPath(name)  # knows both kinds of slashes
    if path.drive or path.root or ".." in path.parts:
        flaw = "leads out of the picture folder"
    elif "\0" in name:
        flaw = "holds a NUL character"
    else:
        try:
            sizes = [len(os.fsencode(part)) for part in path.parts]
        except UnicodeEncodeError:
            flaw = "is no text that a file can be called"
        else:
            if max(sizes, default=0) <= LONGEST_PART and sum(sizes) + len(sizes) <= LONGEST_NAME:
                return None
            flaw = "is too long for a file system"
    return f"the file name {name!r:.100} {flaw}; use names of files below the picture folder"


def path_below(folder: Path, name: str, context: str = "") -> Path:
    """``folder / name``, to read or to write.

    Args:
        folder: Where the pictures lie.
        name: From a data file.
        context: Prefix of the error, such as ``"data.json: image 17: "``.

    Raises:
        ValueError: The name leads out of the folder, or no file can have it.
    """
    if flaw := name_flaw(name):
        raise ValueError(f"{context}{flaw}")
    return folder / name


def find_picture(folder: Path, name: str, context: str = "") -> Path:
    """The file that a record's ``file_name`` means; arguments and errors as :func:`path_below`.

    That is the name as written, or else as another system writes it: with ``/`` for Windows' backslashes, its accents
    and syllables composed (Linux) or decomposed (macOS). Where none is there, the name as written.
    """
    written = path_below(folder, name, context)
    slashes = name.replace("\\", "/")
    spellings = (name, slashes, unicodedata.normalize("NFC", slashes), unicodedata.normalize("NFD", slashes))
    # A decomposed name is longer, and may be longer than a file's name can be.
    paths = (folder / spelling for spelling in spellings if name_flaw(spelling) is None)
    return next((path for path in paths if path.is_file()), written)


def examine(path: Path) -> PictureFacts:
    """Read a picture to its last byte and decode it; what is wrong is a fact, not an error."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return PictureFacts(flaw="does not exist")
    except OSError as error:
        return PictureFacts(flaw=f"cannot be read ({error.strerror})")
    try:
        with open_stream(io.BytesIO(data), "") as picture:
            width, height = picture.size
            picture.draft(picture.mode, (1, 1))  # a JPEG is read to its end all the same, in two thirds of the time
            decoded(picture, "")
            orientation = picture.getexif().get(ORIENTATION, UPRIGHT)
    except ValueError as error:
        return PictureFacts(flaw=str(error).strip().partition(";")[0])
    turned = orientation if orientation in range(1, 9) else UPRIGHT
    return PictureFacts(height, width, turned, hashlib.sha256(data).hexdigest())


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, from the beginning of its file.

    Raises:
        ValueError: No such file, or no picture.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    with open_picture(path) as picture:
        return picture.height, picture.width


def picture_flaw(picture: Picture, facts: PictureFacts, *, option: str = "--images") -> str | None:
    """Why the record and the file do not go together; ``None`` if they do.

    Args:
        picture: The record.
        facts: The file.
        option: With what the folder of the pictures is given.
    """
    path = picture.path
    if facts.flaw == "does not exist":
        return f"{path} does not exist; give the right folder with {option}"
    if facts.flaw:
        return f"{path} {facts.flaw}; replace the file"
    size, said = (facts.height, facts.width), (picture.height, picture.width)
    if size == said:
        return None
    measured, recorded = (f"{height} x {width}" for height, width in (size, said))
    if facts.orientation not in LYING or size != said[::-1]:
        return f"{path} is {measured} (height x width), the record says {recorded}"
    return (
        f"{path} is {measured} (height x width) and its EXIF orientation ({facts.orientation}) turns it to {recorded}, "
        "as the record has it; masks refer to the stored pixels, so store the picture upright (exiftran -ai FILE)"
    )


def orientation_note(picture: Picture, facts: PictureFacts) -> str | None:
    """A doubt about a picture that fits: turned by half or mirrored, or square, it has its size either way."""
    if facts.orientation == UPRIGHT or (facts.orientation in LYING and facts.height != facts.width):
        return None
    return (
        f"{picture.path} has the EXIF orientation {facts.orientation}, which is not applied: its masks must refer to "
        "the stored pixels"
    )


def write_jpeg(path: Path, pixels: np.ndarray) -> None:
    """Write a composed scene, uint8 RGB [H, W, 3]; the file appears whole.

    It is not flushed to disk by itself, unlike those of :mod:`aura.files`: thousands of scenes would take minutes.
    """
    with unfinished(path) as partial:
        Image.fromarray(pixels).save(partial, "JPEG", quality=JPEG_QUALITY)
