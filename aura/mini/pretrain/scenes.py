"""Generated scenes for pretraining: composed once by a few processes, kept compactly, read in shuffled batches.

Legend of shapes: B images, S the backbones' input (192 px, as composed), G the mask grid (64).
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aura.files import write_text
from aura.masks import decode_rle, encode_rle
from aura.mini.benchmark import scene_stream
from aura.mini.pictures import load_backgrounds, load_cutouts
from aura.targets import occlusion_rate

IMAGE_SIZE = 192
PATCH_SIZE = 12
SCENE_SIZE = 192
GRID = 64
CHUNK = 100


@dataclass
class PooledObject:
    """One object of a scene: its category and its masks, bool [H, W] at the scene's own size."""

    category: str
    amodal: np.ndarray
    visible: np.ndarray

    @property
    def occlusion_rate(self) -> float:
        return float(occlusion_rate(self.visible, self.amodal))


def _chunk(job: tuple[str, str, str, int, int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Compose ``CHUNK`` scenes; in a worker process."""
    cutouts_dir, backgrounds_dir, split, seed, start = job
    cutouts, backgrounds = load_cutouts(Path(cutouts_dir)), load_backgrounds(Path(backgrounds_dir))
    stream = scene_stream(cutouts, backgrounds, split=split, seed=seed, size=SCENE_SIZE, start=start)
    images, records = np.zeros((CHUNK, SCENE_SIZE, SCENE_SIZE, 3), np.uint8), []
    for i in range(CHUNK):
        scene = next(stream)
        height, width = scene.image.shape[:2]
        images[i, :height, :width] = scene.image
        objects = [
            {"category": o.category, "amodal": encode_rle(o.amodal), "visible": encode_rle(o.visible)}
            for o in scene.objects
        ]
        records.append({"height": height, "width": width, "objects": objects})
    return images, records


class ScenePool:
    """Scenes of one split, kept in ``folder`` as ``images.npy`` (uint8 [N, 192, 192, 3]) and ``scenes.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        with (folder / "scenes.jsonl").open(encoding="utf-8") as lines:
            self.records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        assert len(self.images) == len(self.records), f"{folder} is incomplete; delete it"

    def __len__(self) -> int:
        return len(self.records)

    @classmethod
    def build(cls, folder: Path, assets: Path, *, split: str, seed: int, count: int, workers: int) -> ScenePool:
        """The pool of ``count`` scenes (a multiple of 100), composed unless ``folder`` holds it already.

        Args:
            folder: Where the pool lies.
            assets: Folder with ``cutouts`` and ``backgrounds``.
            split: Background split and random stream: ``pretrain`` to train, ``val`` to measure only.
            seed: Seed of the stream.
            count: Scenes.
            workers: Processes.
        """
        if (folder / "scenes.jsonl").is_file() and len(pool := cls(folder)) >= count:
            return pool
        folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, count, CHUNK)
        jobs = [(str(assets / "cutouts"), str(assets / "backgrounds"), split, seed, start) for start in starts]
        if workers > 1:
            with multiprocessing.get_context("spawn").Pool(workers) as pool_of_workers:
                chunks = pool_of_workers.map(_chunk, jobs, chunksize=1)
        else:
            chunks = [_chunk(job) for job in jobs]
        np.save(folder / "images.npy", np.concatenate([images for images, _ in chunks]))
        records = [record for _, part in chunks for record in part]
        write_text(folder / "scenes.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        return cls(folder)

    def image(self, index: int, flip: bool = False) -> np.ndarray:
        """uint8 [H, W, 3]."""
        record = self.records[index]
        image = self.images[index, : record["height"], : record["width"]]
        return np.ascontiguousarray(image[:, ::-1] if flip else image)

    def objects(self, index: int, flip: bool = False) -> list[PooledObject]:
        """The objects of a scene, back to front as composed."""
        found = []
        for record in self.records[index]["objects"]:
            amodal, visible = decode_rle(record["amodal"]), decode_rle(record["visible"])
            if flip:
                amodal, visible = amodal[:, ::-1], visible[:, ::-1]
            found.append(PooledObject(record["category"], amodal, visible))
        return found


def padded_grid(mask: np.ndarray, cells: int = GRID) -> np.ndarray:
    """Share of each cell of a grid over SAM's padded square: bool [H, W] -> float32 [cells, cells]."""
    square = np.zeros((SCENE_SIZE, SCENE_SIZE), np.uint8)
    square[: mask.shape[0], : mask.shape[1]] = mask
    return block_mean(square, cells)


def block_mean(mask: np.ndarray, cells: int) -> np.ndarray:
    """Mean over equal blocks, [H, W] -> float32 [cells, cells]; both sides must be multiples of ``cells``."""
    height, width = mask.shape
    assert height % cells == 0 and width % cells == 0, f"{mask.shape} does not divide into {cells} cells"
    return mask.reshape(cells, height // cells, cells, width // cells).mean((1, 3), dtype=np.float32)


def shuffled(count: int, rng: np.random.Generator) -> Iterator[tuple[int, bool]]:
    """Indices below ``count`` in random order, each with a random mirroring, without end."""
    while True:
        for index in rng.permutation(count):
            yield int(index), bool(rng.random() < 0.5)
