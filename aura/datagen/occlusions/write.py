"""A data set of scenes with known occlusion, made from photographs with instance masks.

    OUT/images/{split}/{split}_{number:07d}.jpg
    OUT/{split}.json                              aura.formats.amodal_reason_seg, with questions
    OUT/occlusions.json                           how it was made; written last

Scene number n of a split depends on the seed, the split and n alone, so the same arguments give the same bytes,
whatever the number of processes. Memory does not grow with the number of photographs or scenes.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from aura.datagen.occlusions.compose import COMPOSER_VERSION, Cutout, Scene, SceneObject, compose, mirrored
from aura.datagen.occlusions.stock import SPLITS, Stock, fill_stock, shuffled
from aura.datagen.offline.generator import GENERATOR, VERSION, generate_conversations
from aura.files import write_json, write_parts
from aura.formats.amodal_reason_seg import FORMAT_VERSION, annotation_record, conversation_record, image_record
from aura.formats.instances import MIN_ANNOTATED, InstanceFile, InstanceImage
from aura.formats.pictures import write_jpeg
from aura.formats.sources import AnnotatedImage, with_occluders
from aura.masks import decode_rle, encode_rle
from aura.targets import occlusion_rate
from aura.types import AmodalObject

MADE_FROM = "occlusions.json"
IDS_PER_SPLIT = 10_000_000
"""Image ids of train start at 1, of val at so many, of test at twice as many."""
OBJECTS_PER_IMAGE = 100
"""Annotation ids of an image start at its id times so many; what does not fit is not annotated."""
ATTEMPTS = 4
"""Random states that are tried for a scene before its photograph is passed over."""


@dataclass
class Summary:
    """What a split holds: images, pairs, and each object's occlusion rate (``None`` where its shape is unknown)."""

    split: str
    num_photos: int
    num_images: int = 0
    num_pairs: int = 0
    passed_over: int = 0
    rates: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class _Recipe:
    """All that a process needs to make any scene."""

    stock: Path
    images: Path
    out: Path
    category_ids: Mapping[str, int]
    counts: Mapping[str, tuple[int, int]]
    seed: int
    pairs_per_image: int


Made = dict[str, Any]
"""``image``, ``annotations``, ``conversations`` of one scene as the file holds them; empty if none could be made."""


def make_occlusions(
    annotations: Path,
    images: Path,
    out: Path,
    *,
    num_images: Mapping[str, int],
    choose: Callable[[int], str],
    seed: int = 0,
    pairs_per_image: int = 10,
    num_workers: int = 1,
    note: Mapping[str, Any] | None = None,
    on_photo: Callable[[], object] | None = None,
    on_image: Callable[[], object] | None = None,
) -> list[Summary]:
    """Write the data set below ``out``.

    Args:
        annotations: COCO instances file.
        images: Folder of its pictures.
        out: Folder to write to.
        num_images: Scenes by split; a split with 0 is left out.
        choose: The split of an image id; no photograph, as scene or as donor, is in two.
        seed: Of everything.
        pairs_per_image: Questions and answers about a scene.
        num_workers: Processes.
        note: Kept in ``OUT/occlusions.json``.
        on_photo: Called after each photograph that was read.
        on_image: Called after each scene.

    Raises:
        ValueError: A record or picture is not valid, or a split lacks photographs or whole objects.
    """
    file = InstanceFile(annotations)
    out.mkdir(parents=True, exist_ok=True)
    (out / MADE_FROM).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".stock.") as folder:
        stock = Path(folder) / "stock.sqlite"
        counts = fill_stock(stock, file, choose, on_photo)
        for split, number in num_images.items():
            if number and min(counts[split]) == 0:
                raise ValueError(
                    f"{annotations}: the split {split!r} has {counts[split][0]} photographs with {counts[split][1]} "
                    "whole objects to cut out, and needs at least one of each; give more photographs, or another split"
                )
        ids = {name: number for name, (number, _) in file.categories.items()}
        recipe = _Recipe(stock, images, out, ids, counts, seed, pairs_per_image)
        with _mapper(recipe, num_workers) as make:
            summaries = [
                _write_split(recipe, split, number, file, make, Path(folder), on_image)
                for split, number in num_images.items()
                if number
            ]
    made = {"composer": COMPOSER_VERSION, "seed": seed, "pairs_per_image": pairs_per_image, "images": dict(num_images)}
    write_json(out / MADE_FROM, {**made, **(note or {})}, indent=1)
    return summaries


def _write_split(
    recipe: _Recipe,
    split: str,
    number: int,
    file: InstanceFile,
    make: Callable[[Iterable[tuple[str, int]]], Iterable[Made]],
    folder: Path,
    on_image: Callable[[], object] | None,
) -> Summary:
    """The pictures and the file of one split. Records wait on disk until all scenes are made."""
    (recipe.out / "images" / split).mkdir(parents=True, exist_ok=True)
    summary = Summary(split, recipe.counts[split][0])
    waiting = folder / f"{split}.jsonl"
    with waiting.open("w", encoding="utf-8") as lines:
        scenes = make((split, index) for index in range(number))
        for made in scenes:
            if made:
                lines.write(_json(made) + "\n")
                summary.num_images += 1
                summary.num_pairs += sum(len(c["turns"]) for c in made["conversations"])
                summary.rates += [annotation["occlude_rate"] for annotation in made["annotations"]]
            else:
                summary.passed_over += 1
            if on_image:
                on_image()
    if not summary.num_images:
        raise ValueError(f"{recipe.images}: no object of the split {split!r} could be covered; give more photographs")
    write_parts(recipe.out / f"{split}.json", _document(recipe, split, file, waiting))
    return summary


def _document(recipe: _Recipe, split: str, file: InstanceFile, waiting: Path) -> Iterator[str]:
    """The file of a split, part by part."""
    info = {
        "description": "Photographs with objects of other photographs laid over theirs",
        "version": FORMAT_VERSION,
        "split": split,
        "image_folder": f"images/{split}",
        "generator": {"name": GENERATOR, "version": VERSION, "seed": recipe.seed, "composer": COMPOSER_VERSION},
    }
    licenses = file.licenses if isinstance(file.licenses, list) else []
    categories = [{"id": n, "name": name, "supercategory": above} for name, (n, above) in file.categories.items()]
    yield f'{{"info":{_json(info)},"licenses":{_json(licenses)},"categories":{_json(categories)}'
    for section in ("images", "annotations", "conversations"):
        yield f',"{section}":['
        following = 0
        with waiting.open(encoding="utf-8") as lines:
            for line in lines:
                made = json.loads(line)
                for record in [made["image"]] if section == "images" else made[section]:
                    yield ("," if following else "") + _json(record)
                    following += 1
        yield "]"
    yield "}\n"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


# --- one scene --------------------------------------------------------------------------------------------------------

_recipe: _Recipe | None = None
_stock: Stock | None = None


def _start_worker(recipe: _Recipe) -> None:
    global _recipe, _stock
    _recipe, _stock = recipe, Stock(recipe.stock, recipe.images)
    cv2.setNumThreads(1)


def _work(job: tuple[str, int]) -> Made:
    assert _recipe is not None and _stock is not None, "a worker starts with _start_worker"
    return _make_scene(_recipe, _stock, *job)


@contextmanager
def _mapper(recipe: _Recipe, num_workers: int) -> Iterator[Callable[[Iterable[tuple[str, int]]], Iterable[Made]]]:
    """A function that makes the scenes (split, index) it is given and yields them in their order."""
    if num_workers <= 1:
        stock = Stock(recipe.stock, recipe.images)
        yield lambda jobs: (_make_scene(recipe, stock, *job) for job in jobs)
        return
    # spawned, not forked: the caller may hold threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(recipe,)) as pool:

        def in_order(jobs: Iterable[tuple[str, int]]) -> Iterator[Made]:
            waiting = iter(jobs)
            # A few hundred at a time: all at once, the jobs and results of a million scenes would wait in memory.
            while part := list(islice(waiting, 64 * num_workers)):
                yield from pool.map(_work, part, chunksize=4)

        yield in_order


def _make_scene(recipe: _Recipe, stock: Stock, split: str, index: int) -> Made:
    """Compose scene ``index`` of a split, write its picture, and give its records."""
    num_photos, num_cutouts = recipe.counts[split]
    turn, place = divmod(index, num_photos)
    seed = (recipe.seed, SPLITS.index(split))
    photo = stock.photo(split, int(shuffled(num_photos, (*seed, turn))[place]))
    pixels = stock.pixels(photo)
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng(np.random.SeedSequence((*seed, index, attempt)))
        donors: list[InstanceImage] = []

        def draw(
            rng: np.random.Generator, donors: list[InstanceImage] = donors, own: int = photo.image_id
        ) -> Cutout | None:
            cutout, donor = stock.cutout(split, int(rng.integers(num_cutouts)))
            if donor.image_id == own:
                return None
            donors.append(donor)
            return cutout

        scene = compose(Scene(pixels.copy(), _objects(photo)), draw, rng)
        if scene is None:
            continue
        if rng.random() < 0.5:
            scene = mirrored(scene)
        return _written(recipe, split, index, scene, photo, donors)
    return {}


def _objects(photo: InstanceImage) -> list[SceneObject]:
    """A photograph's objects, without crowds, which are no objects."""
    masks = [(instance, decode_rle(instance.mask)) for instance in photo.instances if not instance.is_crowd]
    return [SceneObject(i.category, i.supercategory, mask, mask if i.is_whole else None) for i, mask in masks]


def _written(
    recipe: _Recipe, split: str, index: int, scene: Scene, photo: InstanceImage, donors: Sequence[InstanceImage]
) -> Made:
    """Write the picture; the records of the scene."""
    file_name = f"{split}_{index:07d}.jpg"
    write_jpeg(recipe.out / "images" / split / file_name, scene.pixels)

    image_id = SPLITS.index(split) * IDS_PER_SPLIT + index + 1
    own: dict[str, Any] = {key: photo.info[key] for key in ("license", "flickr_url", "coco_url") if key in photo.info}
    made_of = {"photograph": photo.file_name, "pasted_from": sorted({donor.file_name for donor in donors})}
    height, width = scene.pixels.shape[:2]
    image = AnnotatedImage(
        image_id,
        file_name,
        height,
        width,
        _annotated(scene, image_id * OBJECTS_PER_IMAGE),
        {**own, **made_of},
        recipe.category_ids,
    )
    first = image_id * OBJECTS_PER_IMAGE
    conversations = generate_conversations(
        image, pairs=recipe.pairs_per_image, seed=recipe.seed, first_id=first, crowds=photo.crowds
    )
    return {
        "image": image_record(image),
        "annotations": [annotation_record(o, image_id, recipe.category_ids[o.category]) for o in image.objects],
        "conversations": [conversation_record(c, image_id) for c in conversations],
    }


def _annotated(scene: Scene, first_id: int) -> tuple[AmodalObject, ...]:
    """The scene's objects as records, but small ones of the photograph; the pasted first where there are too many."""
    least = MIN_ANNOTATED * scene.pixels[..., 0].size
    pasted_from = len(scene.objects) - scene.num_pasted
    chosen = [o for n, o in enumerate(scene.objects) if o.visible_area >= (1 if n >= pasted_from else least)]
    made = []
    for number, obj in enumerate(chosen[-OBJECTS_PER_IMAGE:]):
        amodal = None if obj.amodal is None else encode_rle(obj.amodal)
        rate = None if obj.amodal is None else float(occlusion_rate(obj.visible, obj.amodal))
        visible = encode_rle(obj.visible)
        made.append(
            AmodalObject(first_id + number, obj.category, visible, amodal, rate, supercategory=obj.supercategory)
        )
    return with_occluders(made)
