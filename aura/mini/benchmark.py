"""The bundled mini benchmark: endless scenes of each split, and its files in COCOA-cls format.

``write_mini`` writes

    OUT/images/{train,val,test}/mini_{split}_{index:06d}.jpg
    OUT/annotations/mini_{split}_cocoa_cls.json          ``file_name`` is relative to OUT/images/{split}
    OUT/mini.json                                        how it was made; written last, so its presence means complete

and nothing after it knows that the images were composed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from aura.files import write_json
from aura.formats.pictures import write_jpeg
from aura.masks import encode_rle, mask_area, mask_to_bbox
from aura.mini.pictures import DEFAULT_ASSETS, split_backgrounds
from aura.mini.scenes import COMPOSER_VERSION, MIN_FILL, Background, Cutout, Scene, SceneObject, compose_scene
from aura.targets import rate_from_areas

SPLITS = ("train", "val", "test", "pretrain")
WRITTEN_SPLITS = SPLITS[:3]

IMAGES_PER_SPLIT = 1_000_000
OBJECTS_PER_IMAGE = 10

Records = tuple[dict[str, Any], list[dict[str, Any]]]
"""An image's entry in ``images`` and its entries in ``annotations``."""
WriteScenes = Callable[[list[tuple[str, int]]], Iterable[Records]]


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The randomness of one scene: scene ``index`` of ``split`` is the same whatever was made before it."""
    return np.random.default_rng(np.random.SeedSequence((seed, SPLITS.index(split), index)))


def scene_stream(
    cutouts: Sequence[Cutout],
    backgrounds: Sequence[Background],
    *,
    split: str = "pretrain",
    seed: int = 0,
    size: int = 192,
    start: int = 0,
) -> Iterator[Scene]:
    """Scenes ``start``, ``start`` + 1, ... of a split without end, over that split's backgrounds."""
    own = split_backgrounds(backgrounds)[split]
    index = start
    while True:
        yield compose_scene(cutouts, own, size=size, rng=scene_rng(seed, split, index))
        index += 1


# --- the files --------------------------------------------------------------------------------------------------------


@dataclass
class MiniSummary:
    """What a split holds: numbers of images and objects, and each object's occlusion rate."""

    split: str
    num_images: int = 0
    occlusion_rates: list[float] = field(default_factory=list)

    @property
    def num_objects(self) -> int:
        return len(self.occlusion_rates)


@dataclass(frozen=True)
class _Recipe:
    """All that a worker process needs to make any scene."""

    out: Path
    cutouts: Sequence[Cutout]
    backgrounds: Mapping[str, Sequence[Background]]
    category_ids: Mapping[str, int]
    size: int
    seed: int


def write_mini(
    out: str | Path,
    cutouts: Sequence[Cutout],
    backgrounds: Sequence[Background],
    *,
    num_images: Mapping[str, int],
    size: int = 192,
    seed: int = 0,
    num_workers: int = 2,
    force: bool = False,
    on_image: Callable[[], object] | None = None,
) -> list[MiniSummary] | None:
    """Write the benchmark below ``out``; the same arguments give the same bytes, whatever ``num_workers`` is.

    Args:
        out: Folder to write to; files of an earlier, other run are replaced.
        cutouts: The objects (:func:`load_cutouts`).
        backgrounds: The photographs (:func:`load_backgrounds`), dealt out so that no two splits share one.
        num_images: Scenes of ``train``, ``val`` and ``test``.
        size: Longest side of the images in pixels, at least 64.
        seed: Every scene's randomness follows from the seed, its split and its number.
        num_workers: Processes; 1 stays in this one.
        force: Write again even though ``out`` is complete.
        on_image: Called after every image, for a progress bar.

    Returns:
        A summary per split, or ``None`` if ``out`` already holds exactly this.

    Raises:
        ValueError: Too few photographs, a cut-out that no scene could show, an unknown split, a size, seed or number
            out of range.
    """
    out = Path(out)
    for split, number in num_images.items():
        if split not in WRITTEN_SPLITS:
            raise ValueError(f"no such split: {split!r}; the splits are {', '.join(WRITTEN_SPLITS)}")
        if not 1 <= number <= IMAGES_PER_SPLIT:
            raise ValueError(f"{split}: {number} images; this must be at least 1 and at most {IMAGES_PER_SPLIT}")
    if size < 64:
        raise ValueError(f"size {size}: objects in scenes below 64 pixels are too small to tell apart")
    if seed < 0:
        raise ValueError(f"seed {seed}: a seed is a whole number from 0")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder to write to")
    if thin := [f"{c.category}/{c.name}" for c in cutouts if c.fill < MIN_FILL]:
        raise ValueError(
            f"{len(thin)} cut-outs, the first {thin[0]}, are too thin to be seen in a scene (opaque on less than "
            f"{MIN_FILL:.1%} of the square around them); leave them out"
        )
    recipe_file = {
        "composer": COMPOSER_VERSION,
        "num_images": dict(num_images),
        "size": size,
        "seed": seed,
        "cutouts": _digest((f"{c.category}/{c.name}", c.rgba) for c in cutouts),
        "backgrounds": _digest((b.name, b.image) for b in backgrounds),
    }
    if not force and _is_complete(out, recipe_file):
        return None
    categories = _categories(cutouts)
    ids = {category["name"]: category["id"] for category in categories}
    recipe = _Recipe(out, cutouts, split_backgrounds(backgrounds), ids, size, seed)
    (out / "mini.json").unlink(missing_ok=True)
    with _mapper(recipe, num_workers) as write_scenes:
        summaries = [
            _write_split(out, split, number, categories, write_scenes, on_image) for split, number in num_images.items()
        ]
    write_json(out / "mini.json", recipe_file, indent=1)
    return summaries


def _write_split(
    out: Path,
    split: str,
    number: int,
    categories: list[dict[str, Any]],
    write_scenes: WriteScenes,
    on_image: Callable[[], object] | None,
) -> MiniSummary:
    """Write the images and the annotation file of one split."""
    folder = out / "images" / split
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, of_image in write_scenes([(split, index) for index in range(number)]):
        images.append(image)
        annotations += of_image
        if on_image:
            on_image()
    kept = {image["file_name"] for image in images}
    for path in folder.glob(f"mini_{split}_*.jpg*"):
        if path.name not in kept:
            path.unlink()
    document = {
        "info": {"description": f"AURA mini benchmark, {split}", "version": "1.0", "year": 2026, "contributor": "AURA"},
        "licenses": [{"id": 1, "name": "See data/mini_assets/ATTRIBUTION.md", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    write_json(annotation_file(out, split), document)
    return MiniSummary(split, len(images), [annotation["occlude_rate"] for annotation in annotations])


def annotation_file(out: Path, split: str) -> Path:
    """Where the annotations of a split lie."""
    return out / "annotations" / f"mini_{split}_cocoa_cls.json"


_recipe: _Recipe | None = None  # a worker process's own, so that the pictures travel to it once


def _start_worker(recipe: _Recipe) -> None:
    global _recipe
    _recipe = recipe
    cv2.setNumThreads(1)


def _work(job: tuple[str, int]) -> Records:
    assert _recipe is not None, "a worker starts with _start_worker"
    return _write_scene(_recipe, *job)


@contextmanager
def _mapper(recipe: _Recipe, num_workers: int) -> Iterator[WriteScenes]:
    """A function that writes the scenes (split, index) of a list and yields their records in the list's order."""
    if num_workers <= 1:
        yield lambda jobs: (_write_scene(recipe, *job) for job in jobs)
        return
    # spawned, not forked: the caller may hold threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(recipe,)) as pool:
        yield lambda jobs: pool.map(_work, jobs, chunksize=16)


def _write_scene(recipe: _Recipe, split: str, index: int) -> Records:
    """Compose one scene, write its image, and return its image and annotation records (COCOA-cls)."""
    scene = compose_scene(
        recipe.cutouts, recipe.backgrounds[split], size=recipe.size, rng=scene_rng(recipe.seed, split, index)
    )
    file_name = f"mini_{split}_{index:06d}.jpg"
    write_jpeg(recipe.out / "images" / split / file_name, scene.image)
    image_id = SPLITS.index(split) * IMAGES_PER_SPLIT + index + 1
    height, width = scene.image.shape[:2]
    image = {
        "license": 1,
        "file_name": file_name,
        "coco_url": "",
        "height": height,
        "width": width,
        "date_captured": "2026-01-01 00:00:00",
        "flickr_url": "",
        "id": image_id,
    }
    annotations = [
        _annotation(scene_object, image_id, image_id * OBJECTS_PER_IMAGE + number, recipe.category_ids)
        for number, scene_object in enumerate(scene.objects)
    ]
    return image, annotations


def _annotation(
    scene_object: SceneObject, image_id: int, annotation_id: int, category_ids: Mapping[str, int]
) -> dict[str, Any]:
    amodal, visible = scene_object.amodal, scene_object.visible
    invisible = amodal & ~visible
    annotation: dict[str, Any] = {
        "segmentation": encode_rle(amodal),
        "area": mask_area(amodal),
        "iscrowd": False,
        "visible_mask": encode_rle(visible),
        "image_id": image_id,
        "bbox": mask_to_bbox(amodal),
        "occlude_rate": rate_from_areas(mask_area(visible), mask_area(amodal)),
        "category_id": category_ids[scene_object.category],
        "id": annotation_id,
    }
    if invisible.any():
        annotation["invisible_mask"] = encode_rle(invisible)
    return annotation


def _categories(cutouts: Sequence[Cutout]) -> list[dict[str, Any]]:
    """COCO ``categories``: the bundled ones' numbers if these are they, else 1, 2, ... by name."""
    bundled_file = DEFAULT_ASSETS / "categories.json"
    bundled = {c["name"]: c for c in json.loads(bundled_file.read_text())} if bundled_file.is_file() else {}
    names = sorted({cutout.category for cutout in cutouts})
    if all(name in bundled for name in names):
        return sorted((bundled[name] for name in names), key=lambda category: int(category["id"]))
    return [
        {"supercategory": bundled.get(name, {}).get("supercategory", "object"), "id": index, "name": name}
        for index, name in enumerate(names, 1)
    ]


def _digest(pictures: Iterable[tuple[str, np.ndarray]]) -> str:
    """A fingerprint of named pictures, to tell whether a folder was made from these."""
    sha = hashlib.sha256()
    for name, pixels in pictures:
        sha.update(f"{name} {pixels.shape}".encode())
        sha.update(np.ascontiguousarray(pixels).tobytes())
    return sha.hexdigest()[:16]


def _is_complete(out: Path, recipe_file: Mapping[str, Any]) -> bool:
    """Whether ``out`` holds all files of this recipe."""
    try:
        if json.loads((out / "mini.json").read_text()) != recipe_file:
            return False
    except (OSError, json.JSONDecodeError):
        return False
    return all(
        annotation_file(out, split).is_file() and len(list((out / "images" / split).glob("*.jpg"))) == number
        for split, number in recipe_file["num_images"].items()
    )
