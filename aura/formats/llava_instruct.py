"""LLaVA-Instruct: conversations about pictures in words alone, without masks.

The file is a list::

    {"id": "000000033471", "image": "000000033471.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat ...?"}, {"from": "gpt", "value": "The ..."}, ...]}

``llava_instruct_150k.json`` and its parts (conversation, detail, reasoning) have pictures of COCO's ``train2017``;
``llava_v1_5_mix665k.json`` has folders in ``image``, and records without a picture. The mark ``<image>`` stands where
the picture comes in, at the beginning or end of a question; here the picture comes first always, so it is taken off. A
first turn of ``gpt`` has no question and is left out, as LISA does.

Sources: haotian-liu/LLaVA ``docs/Data.md``, ``llava/train/train.py`` at c121f043; dvlab-research/LISA
``utils/vqa_dataset.py`` at 3cb2d430.
"""

from __future__ import annotations

import json
import sqlite3
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aura.formats.pictures import find_picture, picture_size
from aura.formats.questions import AskedImage, number_of
from aura.formats.reading import Flaws, RecordReader
from aura.formats.sources import AnnotatedImage
from aura.formats.streaming import items
from aura.types import IMAGE_TOKEN, SEG_TOKEN, Turn

ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


class LlavaFile:
    """The pictures of a file, in the order of their first record, each with all dialogues about it.

    Records wait in a temporary database on disk, so that the file may be of any size. ``num_without_picture`` counts
    the records that are about no picture; they are left out.

    Args:
        path: The file.
        images: Folder of the pictures, which are opened to learn their size.
        flaws: What becomes of bad records.

    Raises:
        ValueError: The file is missing or no such file, or a record is not valid.
    """

    def __init__(self, path: str | Path, images: str | Path, *, flaws: Flaws | None = None) -> None:
        self.path, self.images, self.flaws = Path(path), Path(images), flaws or Flaws()
        self.num_without_picture = 0
        self._reader = RecordReader(self.path)
        self._database = sqlite3.connect("", isolation_level=None)
        weakref.finalize(self, self._database.close)
        self._database.execute("CREATE TABLE talks (place INTEGER PRIMARY KEY, image TEXT, turns TEXT)")
        self._database.execute("BEGIN")
        for position, record in items(self.path):
            with self.flaws.leaving_out():
                self._keep(position, record)
        self._database.execute("CREATE INDEX by_image ON talks (image, place)")

    def __len__(self) -> int:
        """Pictures."""
        return int(self._database.execute("SELECT count(DISTINCT image) FROM talks").fetchone()[0])

    def __iter__(self) -> Iterator[AskedImage]:
        names = self._database.execute("SELECT image, min(place) FROM talks GROUP BY image ORDER BY min(place)")
        for name, first in names:
            made = None
            with self.flaws.leaving_out():
                path = find_picture(self.images, name)
                try:
                    height, width = picture_size(path)
                except ValueError as error:
                    raise self._reader.error(f"item {first}", f"{error}; give the pictures' folder") from error
                image = AnnotatedImage(number_of(name), name, height, width, ())
                found = self._database.execute("SELECT turns FROM talks WHERE image = ? ORDER BY place", [name])
                dialogues = tuple(tuple(Turn(*turn) for turn in json.loads(text)) for (text,) in found)
                made = AskedImage(image, dialogues=dialogues)
            if made is not None:
                yield made

    def _keep(self, position: int, record: Any) -> None:
        where = f"item {position}"
        if not isinstance(record, dict):
            raise self._reader.error(where, f"expected an object, got a {type(record).__name__}")
        where = f"item {position} (id {record['id']})" if "id" in record else where
        if record.get("image") is None:
            self.num_without_picture += 1
            return
        name = self._reader.file_name(record, "image", where)
        turns = json.dumps([(turn.question, turn.answer) for turn in self._turns(record, where)])
        self._database.execute("INSERT INTO talks VALUES (?, ?, ?)", [position, name, turns])

    def _turns(self, record: Mapping[str, Any], where: str) -> list[Turn]:
        said = record.get("conversations")
        if not isinstance(said, list) or not all(isinstance(line, dict) for line in said):
            raise self._reader.error(where, "'conversations' must be a list of {from, value}")
        lines = []
        for number, line in enumerate(said):
            at = f"{where}, line {number}"
            role, text = ROLES.get(str(line.get("from"))), self._reader.text(line, "value", at)
            if role is None:
                raise self._reader.error(at, f"'from' must be human or gpt, it is {line.get('from')!r}")
            if SEG_TOKEN in text:
                raise self._reader.error(at, f"it holds {SEG_TOKEN}, but there are no masks; take it out")
            lines.append((role, text.replace(IMAGE_TOKEN, "").strip()))
        lines = lines[1:] if lines and lines[0][0] == "gpt" else lines
        roles = [role for role, _ in lines]
        if not roles or roles != ["human", "gpt"] * (len(roles) // 2):
            raise self._reader.error(
                where, f"questions and answers must take turns and end with an answer, they are {', '.join(roles)}"
            )
        if empty := [n for n, (_, text) in enumerate(lines) if not text]:
            raise self._reader.error(where, f"turn {empty[0] // 2} has nothing but {IMAGE_TOKEN}; leave it out")
        texts = [text for _, text in lines]
        return [Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True)]
