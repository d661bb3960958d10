"""The command line from annotations to a release, and what it says when something is wrong."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from aura.datagen.project import init_project, recipe_of
from aura.datagen.settings import ProjectSettings, settings_from, settings_parser
from aura.datagen.splits import divide
from aura.datagen.staging import Staging
from aura.datagen.store.store import Store
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.masks import encode_rle

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "build_dataset.py"
SIZE = (24, 32)


@pytest.fixture(scope="module")
def build():
    return runpy.run_path(str(SCRIPT))["main"]


def settings_of(*arguments: str) -> ProjectSettings:
    """The settings that a command gets from these options."""
    parser = settings_parser("test", "")
    return settings_from(parser, parser.parse_args(list(arguments)))


def write_source(folder: Path, name: str, first: int, number: int) -> dict[str, str]:
    """A COCOA-cls file about ``number`` pictures, each with a cup before a table; the last has no objects."""
    (folder / name).mkdir(parents=True)
    cup, table = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    cup[4:14, 2:12], table[8:22, 6:30] = True, True
    content = {
        "licenses": [{"id": 1, "name": "free"}],
        "categories": [{"id": i, "name": n, "supercategory": ""} for i, n in ((47, "cup"), (67, "dining table"))],
        "images": [],
        "annotations": [],
    }
    for image in range(first, first + number):
        pixels = np.random.default_rng(image).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{image}.png")
        content["images"].append({"id": image, "file_name": f"{image}.png", "height": SIZE[0], "width": SIZE[1]})
        if image == first + number - 1:
            continue
        for n, (amodal, seen) in enumerate(((cup, cup), (table, table & ~cup))):
            content["annotations"].append(
                {
                    "id": 10 * image + n,
                    "image_id": image,
                    "category_id": (47, 67)[n],
                    "segmentation": encode_rle(amodal),
                    "visible_mask": encode_rle(seen),
                }
            )
    (folder / f"{name}.json").write_text(json.dumps(content))
    return {"annotations": str(folder / f"{name}.json"), "images": str(folder / name)}


@pytest.fixture
def config(tmp_path):
    """Writes a configuration with 5 images for ``train`` and 3 for ``test``; returns the option that names it."""
    train = write_source(tmp_path, "first", 1, 6) | {"split": "train"}
    test = write_source(tmp_path, "second", 11, 4) | {"split": "test"}

    def make(**changes) -> str:
        settings = {
            "project": str(tmp_path / "project"),
            "sources": [train, test],
            "generator": {"kind": "offline", "pairs_per_image": 4},
            "export": {"out": str(tmp_path / "out"), "version": "1"},
            **changes,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        return f"--config={tmp_path / 'config.yaml'}"

    return make


def open_store(tmp_path) -> Store:
    return Store.open(tmp_path / "project" / "project.sqlite")


def status(build, capsys, option) -> dict:
    capsys.readouterr()
    assert build(["status", option, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_from_annotations_to_a_release(build, config, tmp_path, capsys):
    option = config()
    assert build(["init", option]) == 0
    shown = capsys.readouterr().out
    assert "5 train, 3 test images (8 new)" in shown and "2 images without objects" in shown
    assert build(["init", option]) == 0 and "(0 new)" in capsys.readouterr().out
    assert build(["generate", option, "--limit=3"]) == 0
    figures = status(build, capsys, option)
    assert figures["images"] == {"pending": 5, "generated": 3, "failed": 0} and figures["pairs"]["in_review"] > 0
    assert build(["generate", option]) == 0
    figures = status(build, capsys, option)
    assert figures["images"]["generated"] == 8 and figures["cost"] == 0
    assert build(["check", option]) == 0 and "0 pairs have other problems" in capsys.readouterr().out
    assert build(["export", option]) == 2 and "no pair is ready to be released" in capsys.readouterr().err
    with open_store(tmp_path) as store:
        for name in ("Ann", "Bo"):
            store.annotators.add(name)
        for annotator in store.annotators.all():
            while queue := store.queues.of(annotator, 1):
                [item] = queue
                store.reviews.submit(annotator, item.pair_id, "accept", version=1)
    assert build(["status", option]) == 0
    shown = capsys.readouterr().out
    assert "accepted" in shown and "Ann" in shown and "judged alike" in shown
    assert build(["export", option]) == 0
    assert "train: 5 images" in capsys.readouterr().out
    train = AmodalReasonSeg.load(tmp_path / "out" / "1" / "train.json")
    assert len(train) == 5 and train.document["licenses"] == [{"id": 1, "name": "free"}]
    assert build(["export", option]) == 0 and "up to date" in capsys.readouterr().out


def test_a_run_that_is_killed_goes_on_where_it_was(config, tmp_path):
    settings = settings_of(config())
    init_project(settings)
    path = tmp_path / "project" / "project.sqlite"
    slow = (
        "import asyncio, os, signal, runpy, sys\n"
        "from aura.datagen.generators import OfflineGenerator\n"
        "plain, done = OfflineGenerator.generate, []\n"
        "async def generate(self, request):\n"
        "    if len(done) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    done.append(1)\n"
        "    return await plain(self, request)\n"
        "OfflineGenerator.generate = generate\n"
        f"sys.argv = ['build', 'generate', '--config={tmp_path / 'config.yaml'}']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    assert subprocess.run([sys.executable, "-c", slow], cwd=ROOT).returncode == -signal.SIGKILL
    with Store.open(path) as store:
        before = {i: store.pairs.of(i) for i in (1, 2, 3)}
        assert all(before.values()) and store.status().images["generated"] == 3
    subprocess.run([sys.executable, str(SCRIPT), "generate", f"--config={tmp_path / 'config.yaml'}"], check=True)
    with Store.open(path) as store:
        assert store.status().images["generated"] == 8 and store.status().in_doubt == 1
        assert {i: store.pairs.of(i) for i in (1, 2, 3)} == before


def test_ctrl_c_finishes_what_is_under_way(config, tmp_path):
    init_project(settings_of(config()))
    slow = (
        "import asyncio, runpy, sys, pathlib\n"
        "from aura.datagen.generators import OfflineGenerator\n"
        "plain = OfflineGenerator.generate\n"
        "async def generate(self, request):\n"
        f"    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "    await asyncio.sleep(0.5)\n"
        "    return await plain(self, request)\n"
        "OfflineGenerator.generate = generate\n"
        f"sys.argv = ['build', 'generate', '--config={tmp_path / 'config.yaml'}']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and "stopped: interrupted; run generate again" in out
    with open_store(tmp_path) as store:
        figures = store.status()
        assert figures.images["generated"] == 1 and figures.in_progress == figures.in_doubt == 0


def test_an_api_run_without_a_key_or_with_a_dry_run_sends_nothing(build, config, tmp_path, capsys, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    prices = {"gpt-4o": {"input": 1.0, "output": 2.0}}
    option = config(generator={"kind": "openai", "pairs_per_image": 4, "api": {"prices": prices}})
    assert build(["init", option]) == 0
    capsys.readouterr()
    assert build(["generate", option, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("[system]") == 3 and "8 requests" in shown and "nothing was sent" in shown
    assert build(["generate", option]) == 2 and "OPENAI_API_KEY" in capsys.readouterr().err
    assert build(["generate", option, "--max-cost=0"]) == 2
    assert status(build, capsys, option)["calls"] == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "no such command: fly"),
        (["status"], "no project: give --config"),
        (["init", "--project=x"], "no sources"),
        (["status", "--config=none.yaml"], "none.yaml"),
        (["status", "CONFIG", "--generator.sed=1"], "generator.sed"),
        (["status", "CONFIG", "--generator.kind=oracle"], "oracle"),
        (["status", "CONFIG", "--export.version=a/b"], "usable as a folder's name"),
        (["generate", "CONFIG", "--limit=0"], "--limit must be positive"),
        (["generate", "CONFIG"], "no such project"),
        (["generate", "CONFIG", "--generator.kind=openai", "--generator.api.modle=x"], "no such project"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(build, config, capsys, arguments, words):
    option = config()
    assert build([option if a == "CONFIG" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_init_names_what_is_wrong_with_the_data(build, config, tmp_path, capsys):
    option = config()
    (tmp_path / "first" / "2.png").rename(tmp_path / "2.png")
    assert build(["init", option]) == 2
    assert "1 of 8 pictures are not there" in capsys.readouterr().err
    assert not (tmp_path / "project").exists()
    (tmp_path / "2.png").rename(tmp_path / "first" / "2.png")
    source = tmp_path / "second.json"
    good = source.read_text()
    for change, words in (
        (lambda d: d["images"][0].update(file_name="../first/1.png"), "leads out of the picture folder"),
        (lambda d: d["annotations"][0].update(id=10), "annotation 10 occurs twice"),
        (
            lambda d: d["categories"][0].update(name="dining table", id=47) or d["categories"][1].update(name="cup"),
            "has the number",
        ),
        (lambda d: d["licenses"][0].update(name="other"), "license 1 is another one"),
    ):
        content = json.loads(good)
        change(content)
        source.write_text(json.dumps(content))
        assert build(["init", option]) == 2
        assert words in capsys.readouterr().err
    source.write_text(good)
    assert build(["init", option]) == 0
    assert build(["init", option, "--split.take_train=2"]) == 2
    assert "start a new project for another choice" in capsys.readouterr().err


def test_splits_by_list_by_source_and_by_seed(config, tmp_path):
    option = config()
    path = option.removeprefix("--config=")

    def split(*overrides):
        settings = settings_of(option, *overrides)
        staging = Staging(settings.sources)
        return divide(settings, staging.ids(), staging.find)

    assert split().split_of == {**dict.fromkeys(range(1, 6), "train"), **dict.fromkeys(range(11, 14), "test")}
    two = split("--split.take_train=2", "--split.seed=1")
    assert sorted(two.split_of.values()) == ["test"] * 3 + ["train"] * 2 and two.not_taken == 3
    assert two == split("--split.take_train=2", "--split.seed=1")
    assert len({frozenset(split("--split.take_train=2", f"--split.seed={s}").split_of) for s in range(8)}) > 1
    (tmp_path / "list.txt").write_text("# chosen\n2\n4.png\n")
    listed = split(f"--split.train_list={tmp_path / 'list.txt'}")
    assert sorted(listed.split_of) == [2, 4, 11, 12, 13] and listed.not_listed == 3
    for words, overrides in (
        ("by its source", [f"--split.test_list={tmp_path / 'list.txt'}"]),
        ("take_train is 9", ["--split.take_train=9"]),
        ("cannot be read", ["--split.train_list=none.txt"]),
    ):
        with pytest.raises(ValueError, match=words):
            split(*overrides)
    (tmp_path / "list.txt").write_text("99\n")
    with pytest.raises(ValueError, match="line 1: no image with objects is called '99'"):
        split(f"--split.train_list={tmp_path / 'list.txt'}")
    content = yaml.safe_load(Path(path).read_text())
    for source in content["sources"]:
        source["split"] = None
    Path(path).write_text(yaml.safe_dump(content))
    drawn = split("--split.test_fraction=0.25")
    assert sorted(drawn.split_of.values()) == ["test"] * 2 + ["train"] * 6
    with pytest.raises(ValueError, match="both lists"):
        (tmp_path / "list.txt").write_text("2\n")
        split(*(f"--split.{name}_list={tmp_path / 'list.txt'}" for name in ("train", "test")))


@pytest.mark.parametrize("name", [p.name for p in sorted((ROOT / "configs" / "datagen").glob("*.yaml"))])
def test_shipped_configurations(name, monkeypatch):
    option = f"--config={ROOT / 'configs' / 'datagen' / name}"
    settings = settings_of(option)
    assert settings.generator.pairs_per_image == 10 and settings.review.reviewers == 2
    assert [s.split for s in settings.sources] == ["train", "test"]
    recipe = recipe_of(settings)
    if name == "amodal_reason_seg.yaml":
        assert (recipe.generator, recipe.model) == ("openai", "gpt-4o") and settings.notes
        text = (ROOT / "configs" / "datagen" / name).read_text()
        assert "take_train: 2018" in text and "take_test: 1125" in text
        both = settings_of(option, "--split.take_train=2018", "--split.take_test=1125")
        assert both.split.take_test == 1125
    else:
        assert recipe.generator == "offline"
