"""Projects on every layout that is known, by the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from aura.datagen.settings import SourceSettings
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.layouts import LAYOUTS
from tests.datagen.commands import accept_all, store_of
from tests.scripts import test_prepare_cocoa as layouts


@pytest.fixture
def place(tmp_path):
    """``place("KINS 2019", "train")``: its file and pictures; the source that names them."""

    def write(name: str, split: str, **changes) -> dict:
        content = layouts.LAYOUTS[name][0]()
        folder = tmp_path / split
        folder.mkdir()
        for image in content["images"]:
            pixels = np.zeros((layouts.H, layouts.W, 3), np.uint8)
            Image.fromarray(pixels).save(folder / image["file_name"])
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        return {"annotations": str(tmp_path / f"{split}.json"), "images": str(folder), "split": split, **changes}

    return write


def test_the_settings_know_every_layout():
    (names, _) = get_args(get_type_hints(SourceSettings)["layout"])
    assert set(get_args(names)) == set(LAYOUTS)


@pytest.mark.parametrize("name", layouts.LAYOUTS)
@pytest.mark.parametrize("stated", [False, True])
def test_every_layout_becomes_a_release(build, configure, place, tmp_path, capsys, name, stated):
    option = configure(place(name, "train", **({"layout": name} if stated else {})))
    assert build(["init", option]) == 0
    shown = capsys.readouterr().out
    assert f"laid out as in {name}" in shown and "1 train images (1 new)" in shown
    assert build(["generate", option]) == 0
    accept_all(tmp_path)
    assert build(["export", option, "--no-validate"]) == 0
    (sample,) = AmodalReasonSeg.load(tmp_path / "out" / "1" / "train.json")
    cup, table = sample.objects
    assert (cup.category, table.category, table.occluded_by) == ("cup", "table", (cup.id,))
    assert table.occlusion_rate == pytest.approx(layouts.RATE) and len(sample.conversations) > 1
    assert f"train.json` ({name}): all in `train`" in (tmp_path / "out" / "1" / "DATA_CARD.md").read_text()


def test_regions_of_two_cocoa_files_are_numbered_through_and_stuff_is_a_setting(build, configure, place, tmp_path):
    first, second = place("COCOA", "train", with_stuff=True), place("COCOA", "test", id_offset=0)
    content = json.loads(Path(second["annotations"]).read_text())
    for image in content["images"]:
        image["id"] += 100
    content["annotations"][0]["image_id"] += 100
    Path(second["annotations"]).write_text(json.dumps(content))
    assert build(["init", configure(first, second)]) == 0
    with store_of(tmp_path) as store:
        found = {i.image.image_id: [(o.id, o.category) for o in i.image.objects] for i in store.images.all()}
    assert found == {7: [(1, "cup"), (2, "table"), (3, "grass")], 107: [(4, "cup"), (5, "table")]}


def test_sources_that_number_alike_are_moved_apart(build, configure, place, tmp_path, capsys):
    first, second = place("KINS 2019", "train"), place("KINS 2020", "test")
    assert build(["init", configure(first, second)]) == 2
    error = capsys.readouterr().err
    assert "image 7 occurs twice" in error and "id_offset" in error and "train.json" in error and "test.json" in error
    assert not (tmp_path / "project").exists()
    assert build(["init", configure(first, {**second, "id_offset": 1000})]) == 0
    with store_of(tmp_path) as store:
        ids = {i.image.image_id: [(o.id, o.occluded_by) for o in i.image.objects] for i in store.images.all()}
    assert ids == {7: [(1, ()), (2, (1,))], 1007: [(1001, ()), (1002, (1001,))]}
    (tmp_path / "list.txt").write_text("000007.png\n")
    arguments = ["init", f"--project={tmp_path / 'other'}", f"--split.train_list={tmp_path / 'list.txt'}"]
    option = configure(*({**s, "split": None} for s in (first, {**second, "id_offset": 1000})))
    capsys.readouterr()
    assert build([*arguments, option]) == 2
    assert "line 1: '000007.png' may be image 7 or 1007; list the image's id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("KINS 2019", {"layout": "COCOA-cls"}, "annotation 1: is laid out as in KINS 2019, not as in COCOA-cls"),
        ("COCOA-cls", {"layout": "COCOA"}, "annotation 1: is laid out as in COCOA-cls, not as in COCOA"),
        ("COCOA-cls", {"layout": "Cityscapes"}, "Cityscapes"),
        ("COCOA-cls", {"id_offset": -1}, "id_offset must not be negative"),
    ],
)
def test_a_layout_that_does_not_fit_is_one_line(build, configure, place, capsys, name, changes, words):
    assert build(["init", configure(place(name, "train", **changes))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_a_bad_record_of_any_layout_is_named_with_its_file(build, configure, place, capsys):
    source = place("COCOA", "train")
    content = json.loads(Path(source["annotations"]).read_text())
    content["annotations"][0]["regions"][1]["segmentation"] = [1.0, 2.0]
    Path(source["annotations"]).write_text(json.dumps(content))
    assert build(["init", configure(source)]) == 2
    assert "train.json: annotation 41, region 2: segmentation" in capsys.readouterr().err
    for annotation in content["annotations"]:
        annotation.pop("regions")
    Path(source["annotations"]).write_text(json.dumps(content))
    assert build(["init", configure(source)]) == 2
    assert "train.json: no amodal annotations of a known layout" in capsys.readouterr().err
