"""A small project: images with two objects each, and a recipe."""

from __future__ import annotations

import hashlib
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from aura.datagen.records import GenerationResult, PairDraft, PairProblem
from aura.datagen.store.images import ImageEntry, Source
from aura.datagen.store.jobs import Job, Recipe
from aura.datagen.store.store import Store
from aura.formats.sources import AnnotatedImage, with_occluders
from aura.masks import encode_rle
from aura.types import AmodalObject
from tests.datagen.commands import SCRIPT

SIZE = (24, 32)


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def annotated(image_id: int) -> AnnotatedImage:
    """A cup, and a table that it hides a part of; annotation ids are 10 and 11 times the image's."""
    cup, table = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    cup[4:14, 2:12], table[8:22, 6:30] = True, True
    seen = table & ~cup
    objects = (
        AmodalObject(100 * image_id, "cup", encode_rle(cup), encode_rle(cup), 0.0, supercategory="kitchen"),
        AmodalObject(
            100 * image_id + 1,
            "dining table",
            encode_rle(seen),
            encode_rle(table),
            float(1 - seen.sum() / table.sum()),
            supercategory="furniture",
        ),
    )
    return AnnotatedImage(
        image_id,
        f"{image_id}.png",
        *SIZE,
        with_occluders(objects),
        image_info={"license": 1},
        category_ids={"cup": 47, "dining table": 67},
    )


def picture_bytes(folder: Path, image_id: int) -> bytes:
    """Write the picture of an image, and return its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{image_id}.png"
    pixels = np.random.default_rng(image_id).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


@pytest.fixture
def recipe() -> Recipe:
    return Recipe("fake", "model-1", "1", 3)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_store(tmp_path: Path, clock: Clock) -> Callable[..., Store]:
    """``make_store(4)``: a project with the images 1 to 4, every third in ``test``; its time is ``clock``'s."""

    def make(number: int = 3, name: str = "project.sqlite") -> Store:
        store = Store.create(tmp_path / name, sources=[Source("annotations.json", str(tmp_path / "pictures"))])
        store.database.clock = clock
        store.images.add(
            ImageEntry(
                annotated(i),
                "test" if i % 3 == 0 else "train",
                0,
                hashlib.sha256(picture_bytes(tmp_path / "pictures", i)).hexdigest(),
            )
            for i in range(1, number + 1)
        )
        store.database.set_meta("complete", True)
        return store

    return make


@pytest.fixture
def result_of() -> Callable[..., GenerationResult]:
    """``result_of(job)``: pairs for a job; the second follows the first, the others stand alone."""

    def make(job: Job, number: int | None = None, cost: float = 0.5, mark: str = "") -> GenerationResult:
        cup, table = (o.id for o in job.image.objects)
        drafts = [
            PairDraft("What could hold my tea" + mark + "?", "The cup [SEG] could.", (cup,)),
            PairDraft("And what could I put it on" + mark + "?", "On the dining table [SEG].", (table,), 0),
            PairDraft(
                "What is in front of what" + mark + "?", "The cup [SEG], then the dining table [SEG].", (cup, table)
            ),
        ]
        pairs = tuple(drafts[: job.pairs if number is None else number])
        return GenerationResult(job.image.image_id, pairs, "fake", "model-1", "1", 100, 20, cost, "raw " + mark)

    return make


@pytest.fixture
def in_review(make_store, recipe, result_of) -> Callable[..., Store]:
    """``in_review(2)``: a project whose images all have three pairs that wait for review."""

    def make(number: int = 1, name: str = "project.sqlite") -> Store:
        store = make_store(number, name)
        for job in store.jobs.claim(recipe, limit=number):
            assert store.answers.take(job, result_of(job))
        return store

    return make


@pytest.fixture
def found_in() -> Callable[[Sequence[int]], list[tuple[PairProblem, ...]]]:
    """``found_in([0, 2])``: problems as the checks give them, of three pairs, where the named ones have one."""
    problem = PairProblem("names_target", "the question names the cup", "Do not name it.")
    return lambda bad: [(problem,) if n in bad else () for n in range(3)]


@pytest.fixture(scope="module")
def build():
    """``main`` of ``scripts/build_dataset.py``."""
    return runpy.run_path(str(SCRIPT))["main"]


@pytest.fixture
def configure(tmp_path):
    """Writes a configuration; returns the option that names it."""

    def make(*sources: dict, **changes) -> str:
        settings = {
            "project": str(tmp_path / "project"),
            "sources": list(sources),
            "generator": {"kind": "offline", "pairs_per_image": 4},
            "export": {"out": str(tmp_path / "out"), "version": "1"},
            **changes,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        return f"--config={tmp_path / 'config.yaml'}"

    return make
