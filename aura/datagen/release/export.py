"""The release: reviewed pairs as AmodalReasonSeg files, a data card, and a folder for Hugging Face ``datasets``.

    OUT/VERSION/train.json, test.json       aura.formats.amodal_reason_seg, with the provenance of every turn
    OUT/VERSION/images/{train,test}/...     the pictures (``pictures: copy``)
    OUT/VERSION/huggingface/                README.md and data/{split}-*.parquet, pictures inside
    OUT/VERSION/DATA_CARD.md
    OUT/VERSION/release.json                name, version, and the digest of every other file

The folder appears whole or not at all. The same store and settings give the same bytes. Images are read from the store
a few at a time, once for every part of a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aura.datagen.release.card import data_card
from aura.datagen.release.figures import SplitFigures
from aura.datagen.release.parquet import write_parquet
from aura.datagen.release.selection import ReleasedImage, Selection
from aura.datagen.settings import SPLITS, ExportSettings
from aura.datagen.store.store import Store
from aura.files import write_json, write_parts, write_text
from aura.formats.amodal_reason_seg import FORMAT_VERSION, annotation_record, conversation_record, image_record
from aura.formats.checks import problems
from aura.formats.pictures import path_below
from aura.formats.reading import read_json_object

MANIFEST = "release.json"

Told = Callable[[str, int, int | None], None]
"""Called with (what is being done, images done, images in all)."""


@dataclass(frozen=True)
class Release:
    """A written version: statistics per split, and what was ``left_out`` for which reason."""

    folder: Path
    figures: dict[str, dict[str, Any]]
    left_out: dict[str, int]
    unchanged: bool = False


def export_release(
    store: Store,
    settings: ExportSettings,
    *,
    notes: Sequence[str] = (),
    validate: bool = True,
    progress: Told = lambda what, done, total: None,
) -> Release:
    """Write version ``settings.version``, or find that exactly this is there already.

    Raises:
        ValueError: The version exists with other content, nothing is ready, a picture changed since ``init``, or a
            written file breaks an invariant of the format (``validate``).
    """
    final = Path(settings.out) / settings.version
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{settings.version}.", suffix=".tmp"))
    try:
        release = _Writer(store, settings, temporary, final, notes, progress).write(validate)
        if final.exists():
            _check_equal(final, temporary)
            return Release(final, release.figures, release.left_out, unchanged=True)
        temporary.chmod(0o755)
        temporary.rename(final)
        return release
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_equal(final: Path, temporary: Path) -> None:
    """The digests of all files stand in the manifests."""
    try:
        same = (final / MANIFEST).read_bytes() == (temporary / MANIFEST).read_bytes()
    except OSError:
        same = False
    if not same:
        raise ValueError(
            f"{final}: exists with other content, and a version is never overwritten; raise export.version, or move "
            "the folder away"
        )


@dataclass
class _Writer:
    """Writes one release into ``folder``, which will then be moved to ``final``."""

    store: Store
    settings: ExportSettings
    folder: Path
    final: Path
    notes: Sequence[str]
    progress: Told
    figures: dict[str, SplitFigures] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    origins: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def write(self, validate: bool) -> Release:
        self.selection = Selection(self.store, self.settings)
        # One snapshot, so that what is reviewed meanwhile is in all of the files or in none.
        with self.store.database.snapshot():
            self.categories = self._categories()
            for split in SPLITS:
                self._split(split)
            if not any(figures.images for figures in self.figures.values()):
                raise ValueError(
                    f"{self.store.path}: no pair is ready to be released; review some, or set export.include=all"
                )
            self._card()
        if validate:
            self._validate()
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        manifest = {
            "name": self.settings.name,
            "version": self.settings.version,
            "format": FORMAT_VERSION,
            "files": {path.relative_to(self.folder).as_posix(): _sha256(path) for path in files},
        }
        write_json(self.folder / MANIFEST, manifest, indent=1)
        figures = {split: counted.as_dict() for split, counted in self.figures.items()}
        return Release(self.final, figures, dict(self.left_out))

    def _split(self, split: str) -> None:
        figures = self.figures[split] = SplitFigures()
        for released in self.selection.images(split, self.left_out):
            figures.add(released.stored.image, released.conversations)
            for conversation in released.conversations:
                for turn in conversation.provenance["turns"]:
                    self.origins[turn["generator"], turn["model"], turn["prompt_version"]] += 1
            self._picture(released, split)
            self.progress(f"{split}: pictures", figures.images, None)
        if not figures.images:
            return
        write_parts(self.folder / f"{split}.json", self._document(split))
        if self.settings.parquet:
            images = self.selection.images(split)
            write_parquet(self.folder / "huggingface" / "data", split, figures.images, images)

    def _categories(self) -> dict[str, tuple[int, str]]:
        """Name -> (number, supercategory), over the whole project: the sources' numbers, then the next free ones."""
        numbers: dict[str, int] = {}
        names: dict[str, str] = {}
        for stored in self.store.images.all():
            numbers.update(stored.image.category_ids)
            names.update({o.category: o.supercategory for o in stored.image.objects})
        following = max(numbers.values(), default=0) + 1
        unnumbered = sorted(names.keys() - numbers.keys())
        numbers.update({name: following + index for index, name in enumerate(unnumbered)})
        return {name: (number, names.get(name, "")) for name, number in sorted(numbers.items(), key=lambda n: n[1])}

    def _picture(self, released: ReleasedImage, split: str) -> None:
        stored = released.stored
        if not stored.picture.is_file() or _sha256(stored.picture) != stored.picture_sha256:
            raise ValueError(
                f"{stored.picture}: missing, or changed since the project was made; the masks belong to the old "
                "picture, so put that back"
            )
        if self.settings.pictures == "copy":
            where = f"{self.store.database.path}: image {stored.image.image_id}: "
            target = path_below(self.folder / "images" / split, stored.image.file_name, where)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(stored.picture, target)

    def _image_folder(self, split: str) -> str:
        """Where the pictures lie, as seen from the JSON file."""
        if self.settings.pictures == "copy":
            return f"images/{split}"
        used = self.store.database.rows("SELECT DISTINCT source FROM images WHERE split = ?", [split])
        folders = {self.store.images.sources[row["source"]].images for row in used}
        if len(folders) > 1:
            raise ValueError(f"the split {split!r} has pictures in several folders; set export.pictures=copy")
        return Path(os.path.relpath(folders.pop(), self.final)).as_posix()

    def _document(self, split: str) -> Iterator[str]:
        """The JSON file of a split, part by part."""
        info = {
            "description": self.settings.description or self.settings.name,
            "version": FORMAT_VERSION,
            "name": self.settings.name,
            "release": self.settings.version,
            "split": split,
            "image_folder": self._image_folder(split),
        }
        categories = [
            {"id": number, "name": name, "supercategory": above} for name, (number, above) in self.categories.items()
        ]
        yield f'{{"info":{_json(info)},"licenses":{_json(self.store.database.meta("licenses", []))}'
        yield f',"categories":{_json(categories)}'
        sections: dict[str, Callable[[ReleasedImage], Iterable[dict[str, Any]]]] = {
            "images": lambda r: [image_record(r.stored.image)],
            "annotations": lambda r: [
                annotation_record(o, r.stored.image.image_id, self.categories[o.category][0])
                for o in r.stored.image.objects
            ],
            "conversations": lambda r: [conversation_record(c, r.stored.image.image_id) for c in r.conversations],
        }
        for name, records in sections.items():
            yield f',"{name}":['
            separator = ""
            for done, released in enumerate(self.selection.images(split), start=1):
                for record in records(released):
                    yield separator + _json(record)
                    separator = ","
                self.progress(f"{split}: {name}", done, self.figures[split].images)
            yield "]"
        yield "}\n"

    def _card(self) -> None:
        figures = {split: counted.as_dict() for split, counted in self.figures.items() if counted.images}
        text = data_card(
            self.settings,
            figures,
            self.store.status(),
            self.store.reviews.agreement(),
            left_out=self.left_out,
            origins=[(*origin, number) for origin, number in sorted(self.origins.items())],
            project=self.store.settings,
            names=self.selection.names,
            notes=self.notes,
        )
        write_text(self.folder / "DATA_CARD.md", text)
        if self.settings.parquet:
            files = "".join(f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in figures)
            head = f"---\npretty_name: {_json(self.settings.name)}\nconfigs:\n- config_name: default\n  data_files:\n"
            write_text(self.folder / "huggingface" / "README.md", f"{head}{files}---\n\n{text}")

    def _validate(self) -> None:
        for split, figures in self.figures.items():
            if not figures.images:
                continue
            path = self.folder / f"{split}.json"
            images = self.folder / "images" / split if self.settings.pictures == "copy" else None
            found = problems(
                read_json_object(path),
                images=images,
                progress=lambda done, total, split=split: self.progress(f"{split}: checks", done, total),  # type: ignore[misc]
            )
            if found:
                raise ValueError(
                    f"{split}: {len(found)} records break the format's rules, such as {found[0]}; nothing was exported"
                )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
