"""Examples for a page: pictures with a question each, from a folder or from a data set's file."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import NamedTuple

from aura.data.photos import open_photo
from aura.files import read_text
from aura.formats.amodal_reason_seg import AmodalReasonSeg

MINI = Path("data/mini/mini_test.json")
"""Where ``make data`` leaves the test split of the mini benchmark."""
MOST = 12
QUESTION = "What is in this picture, and what is hidden?"
"""For a picture without a question of its own."""


class Example(NamedTuple):
    """A picture's file, and what may be asked about it."""

    image: Path
    question: str


def load_examples(source: Path | None) -> list[Example]:
    """At most a dozen examples.

    Args:
        source: A folder of pictures, in which ``NAME.txt`` holds the question about ``NAME.jpg``; or a data set in our
            format, whose first images and questions are taken. Without it the mini benchmark's test split, if ``make
            data`` has made it here, else none.

    Raises:
        ValueError: Nothing there, or an example that cannot be read.
    """
    if source is None:
        source = MINI if MINI.is_file() else None
        if source is None:
            return []
    found = _of_folder(source) if source.is_dir() else _of_data(source)
    for example in found:
        open_photo(example.image)
    return found


def _of_folder(folder: Path) -> list[Example]:
    found: list[Example] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() == ".txt" or not path.is_file():
            continue
        text = path.with_suffix(".txt")
        try:
            question = " ".join(read_text(text).split()) if text.is_file() else ""
        except UnicodeDecodeError as error:
            raise ValueError(f"{text}: is no text in UTF-8; write the question of {path.name} in UTF-8") from error
        found.append(Example(path, question or QUESTION))
        if len(found) == MOST:
            break
    if not found:
        raise ValueError(f"--examples {folder}: there is no picture; put NAME.jpg there, and NAME.txt with a question")
    return found


def _of_data(file: Path) -> list[Example]:
    if not file.is_file():
        raise ValueError(f"--examples {file} does not exist; give a folder of pictures, or a data set's JSON file")
    samples = islice((sample for sample in AmodalReasonSeg.load(file) if sample.conversations), MOST)
    return [Example(sample.image_path, sample.conversations[0].turns[0].question) for sample in samples]
