"""The mini benchmark: exact truth, a full range of occlusion, the same bytes again, files that pycocotools reads."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from aura.masks import decode_rle
from aura.mini.benchmark import scene_rng, scene_stream, write_mini
from aura.mini.pictures import DEFAULT_ASSETS, load_backgrounds, load_cutouts, split_backgrounds
from aura.mini.scenes import MAX_OCCLUSION, MIN_VISIBLE_AREA, Background, Cutout, Scene, compose_scene

NUM_IMAGES = {"train": 5, "val": 3, "test": 3}


@pytest.fixture(scope="module")
def cutouts() -> list[Cutout]:
    return load_cutouts()


@pytest.fixture(scope="module")
def backgrounds() -> list[Background]:
    return load_backgrounds()


@pytest.fixture(scope="module")
def scenes(cutouts: list[Cutout], backgrounds: list[Background]) -> list[Scene]:
    return list(itertools.islice(scene_stream(cutouts, backgrounds, seed=0, size=192), 120))


@pytest.fixture(scope="module")
def mini(cutouts: list[Cutout], backgrounds: list[Background], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mini")
    write_mini(out, cutouts, backgrounds, num_images=NUM_IMAGES, size=96, num_workers=1)
    return out


# --- scenes -----------------------------------------------------------------------------------------------------------


def test_visible_is_amodal_minus_everything_in_front(scenes: list[Scene]) -> None:
    for scene in scenes:
        in_front = np.zeros(scene.image.shape[:2], bool)
        for scene_object in reversed(scene.objects):
            assert scene_object.amodal.dtype == scene_object.visible.dtype == bool
            np.testing.assert_array_equal(scene_object.visible, scene_object.amodal & ~in_front)
            in_front |= scene_object.amodal


def test_sizes_limits_and_numbers(scenes: list[Scene]) -> None:
    assert {scene.image.shape for scene in scenes} == {(192, 192, 3), (144, 192, 3), (192, 144, 3)}
    assert {len(scene.objects) for scene in scenes} == {3, 4, 5, 6}
    for scene in scenes:
        assert scene.image.dtype == np.uint8
        assert all(o.visible.sum() >= int(MIN_VISIBLE_AREA * 192**2) for o in scene.objects)
        assert max(Counter(o.category for o in scene.objects).values()) <= 2
    distinct = np.mean([len({o.category for o in scene.objects}) == len(scene.objects) for scene in scenes])
    assert distinct >= 0.85


def test_occlusion_covers_the_whole_range(scenes: list[Scene]) -> None:
    rates = np.array([o.occlusion_rate for scene in scenes for o in scene.objects])
    assert 0.35 < np.mean(rates == 0) < 0.55
    assert rates.max() <= MAX_OCCLUSION
    shares = np.histogram(rates[rates > 0], np.arange(0, 0.91, 0.1))[0] / len(rates)
    assert shares.min() > 0.02 and shares.max() < 0.15
    cut = [
        m[0].any() or m[-1].any() or m[:, 0].any() or m[:, -1].any()
        for s in scenes
        for m in (o.amodal for o in s.objects)
    ]
    assert 0.1 < np.mean(cut) < 0.5, "some objects are cut by the border, most are not"


def test_a_scene_depends_on_seed_split_and_number_only(cutouts: list[Cutout], backgrounds: list[Background]) -> None:
    def at(start: int, **kwargs: int | str) -> Scene:
        return next(scene_stream(cutouts, backgrounds, start=start, size=96, **kwargs))  # type: ignore[arg-type]

    second = list(itertools.islice(scene_stream(cutouts, backgrounds, size=96), 2))[1]
    assert at(1).image.tobytes() == second.image.tobytes()
    others = [at(0), at(1, seed=1), at(1, split="train"), at(1, split="val")]
    assert all(other.image.tobytes() != second.image.tobytes() for other in others)


def test_one_category_is_enough(cutouts: list[Cutout], backgrounds: list[Background]) -> None:
    scene = compose_scene(cutouts[:1], backgrounds[:1], size=96, rng=scene_rng(0, "train", 0))
    assert 1 <= len(scene.objects) <= 2
    with pytest.raises(ValueError, match="at least one"):
        compose_scene([], backgrounds, size=96, rng=scene_rng(0, "train", 0))


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_bundled_pictures_are_whole(cutouts: list[Cutout], backgrounds: list[Background]) -> None:
    categories = json.loads((DEFAULT_ASSETS / "categories.json").read_text())
    assert {c.category for c in cutouts} == {c["name"] for c in categories}
    assert [c["id"] for c in categories] == list(range(1, len(categories) + 1))
    assert 40 <= len(categories) <= 60
    attribution = (DEFAULT_ASSETS / "ATTRIBUTION.md").read_text()
    for background in backgrounds:
        named = background.name if "__" not in background.name else "panorama-*__"
        assert named in attribution, f"{background.name} lacks an attribution"
    bundled = [path for folder in ("cutouts", "backgrounds") for path in (DEFAULT_ASSETS / folder).rglob("*.*")]
    assert sum(path.stat().st_size for path in bundled) < 4_000_000


def test_splits_share_no_photograph(backgrounds: list[Background]) -> None:
    splits = split_backgrounds(backgrounds)
    photos = {split: {b.photo for b in splits[split]} for split in ("train", "val", "test")}
    assert not photos["train"] & photos["val"] | photos["train"] & photos["test"] | photos["val"] & photos["test"]
    assert sum(map(len, photos.values())) == len({b.photo for b in backgrounds})
    assert splits["pretrain"] == splits["train"]
    assert split_backgrounds(backgrounds[::-1])["val"] == splits["val"][::-1]
    with pytest.raises(ValueError, match="at least 3"):
        split_backgrounds(backgrounds[:2])


def own_pictures(folder: Path) -> tuple[Path, Path]:
    """Cut-outs as ``category/name.png`` and ``name.png``, and three photographs."""
    disc = np.zeros((40, 60, 4), np.uint8)
    disc[5:35, 10:50] = (200, 30, 30, 255)
    for path in ("garden_gnome/one.png", "garden_gnome/two.png", "lamp.png"):
        (folder / "things" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(disc).save(folder / "things" / path)
    (folder / "photos").mkdir()
    for i in range(3):
        Image.new("RGB", (50 + i, 30), (i, 90, 90)).save(folder / "photos" / f"{i}.png")
    return folder / "things", folder / "photos"


def test_own_pictures(tmp_path: Path) -> None:
    things, photos = own_pictures(tmp_path)
    for path in [*things.rglob("*.png"), *photos.iterdir()]:  # as macOS leaves them on other systems
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    loaded = load_cutouts(things)
    assert [(c.category, c.name) for c in loaded] == [
        ("garden gnome", "one"),
        ("garden gnome", "two"),
        ("lamp", "lamp"),
    ]
    assert loaded[0].rgba.shape == (30, 40, 4), "cropped to what is opaque"
    write_mini(tmp_path / "out", loaded, load_backgrounds(photos), num_images={"test": 2}, size=64, num_workers=1)
    document = json.loads((tmp_path / "out/annotations/mini_test_cocoa_cls.json").read_text())
    assert [(c["id"], c["name"], c["supercategory"]) for c in document["categories"]] == [
        (1, "garden gnome", "object"),
        (2, "lamp", "object"),
    ]


def _empty(folder: Path) -> None:
    folder.mkdir()


def _without_alpha(folder: Path) -> None:
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / "a.png")


def _opaque(folder: Path) -> None:
    folder.mkdir()
    Image.new("RGBA", (9, 9), (0, 0, 0, 255)).save(folder / "a.png")


def _transparent(folder: Path) -> None:
    folder.mkdir()
    Image.new("RGBA", (9, 9)).save(folder / "a.png")


def _broken(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG no picture")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: None, "no such folder of cut-outs"),
        (_empty, "category/name.png"),
        (_without_alpha, r"a\.png: this picture has no alpha"),
        (_opaque, r"a\.png: opaque everywhere"),
        (_transparent, r"a\.png: nothing in this picture"),
        (_broken, r"a\.png cannot be decoded"),
    ],
)
def test_unusable_cutouts_are_named(tmp_path: Path, make: Callable[[Path], None], problem: str) -> None:
    make(tmp_path / "things")
    with pytest.raises(ValueError, match=problem):
        load_cutouts(tmp_path / "things")


# --- files ------------------------------------------------------------------------------------------------------------


def test_pycocotools_reads_it_and_every_annotation_agrees_with_its_masks(mini: Path) -> None:
    seen_images: set[int] = set()
    seen_annotations: set[int] = set()
    for split, number in NUM_IMAGES.items():
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(mini / f"annotations/mini_{split}_cocoa_cls.json")
        assert len(coco.imgs) == number
        assert not seen_images & coco.imgs.keys() and not seen_annotations & coco.anns.keys()
        seen_images |= coco.imgs.keys()
        seen_annotations |= coco.anns.keys()
        for image in coco.imgs.values():
            with Image.open(mini / "images" / split / image["file_name"]) as picture:
                assert picture.format == "JPEG" and picture.size == (image["width"], image["height"])
            assert coco.getAnnIds(imgIds=[image["id"]])
        for annotation in coco.anns.values():
            amodal = coco.annToMask(annotation).astype(bool)
            visible = decode_rle(annotation["visible_mask"])
            assert not (visible & ~amodal).any()
            hidden = amodal & ~visible
            assert annotation["area"] == amodal.sum()
            assert annotation["occlude_rate"] == hidden.sum() / amodal.sum()
            assert ("invisible_mask" in annotation) == hidden.any()
            if hidden.any():
                np.testing.assert_array_equal(decode_rle(annotation["invisible_mask"]), hidden)
            x, y, width, height = (int(v) for v in annotation["bbox"])
            assert amodal[y : y + height, x : x + width].sum() == amodal.sum()
            assert annotation["category_id"] in coco.cats and annotation["iscrowd"] is False


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_arguments_same_bytes_in_any_number_of_processes(
    mini: Path, cutouts: list[Cutout], backgrounds: list[Background], tmp_path: Path
) -> None:
    write_mini(tmp_path, cutouts, backgrounds, num_images=NUM_IMAGES, size=96, num_workers=2)
    assert files_of(tmp_path) == files_of(mini)


def test_a_complete_folder_is_left_alone_and_an_incomplete_or_other_one_made_again(
    cutouts: list[Cutout], backgrounds: list[Background], tmp_path: Path
) -> None:
    def write(**changes: object) -> bool:
        arguments: dict[str, object] = {"num_images": {"val": 3}, "size": 64, "num_workers": 1} | changes
        return write_mini(tmp_path, cutouts, backgrounds, **arguments) is not None  # type: ignore[arg-type]

    assert write() and not write()
    first = files_of(tmp_path)
    assert write(force=True) and files_of(tmp_path) == first
    (tmp_path / "images/val/mini_val_000001.jpg").unlink()
    assert write() and files_of(tmp_path) == first
    assert write(seed=1) and files_of(tmp_path).keys() == first.keys()
    assert write(num_images={"val": 2})
    assert len(list((tmp_path / "images/val").iterdir())) == 2, "images of the earlier run are gone"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"size": 32}, "size 32"),
        ({"seed": -1}, "seed -1"),
        ({"num_images": {"val": 0}}, "val: 0"),
        ({"num_images": {"pretrain": 1}}, "pretrain"),
    ],
)
def test_arguments_out_of_range(
    cutouts: list[Cutout], backgrounds: list[Background], tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    arguments: dict[str, object] = {"num_images": {"val": 1}, "size": 64} | changes
    with pytest.raises(ValueError, match=problem):
        write_mini(tmp_path, cutouts, backgrounds, **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_cutout_that_no_scene_could_show_is_named(backgrounds: list[Background], tmp_path: Path) -> None:
    needle = np.zeros((2, 300, 4), np.uint8)
    needle[1] = 255
    with pytest.raises(ValueError, match="1 cut-outs, the first needle/a, are too thin"):
        write_mini(tmp_path, [Cutout("needle", "a", needle)], backgrounds, num_images={"val": 1}, size=64)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        write_mini(tmp_path / "file", [Cutout("box", "a", needle[1:])], backgrounds, num_images={"val": 1}, size=64)


def test_the_script_tells_what_it_made_and_when_there_is_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("make_mini", Path(__file__).parents[2] / "scripts/make_mini.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    things, photos = own_pictures(tmp_path)
    numbers = ["--num-images", "3", "--num-val", "1", "--num-test", "1", "--size", "64", "--workers", "1"]
    arguments = ["--cutouts", str(things), "--backgrounds", str(photos), "--out", str(tmp_path / "out"), *numbers]
    assert script.main(arguments) == 0
    assert "2 categories, 3 cut-outs, 3 background pictures" in capsys.readouterr().out
    assert script.main(arguments) == 0
    assert "complete already" in capsys.readouterr().out
    assert script.main([*arguments, "--cutouts", str(tmp_path / "nowhere")]) == 2
    assert "no such folder of cut-outs" in capsys.readouterr().err
