"""Maps of classes: values to names in each set's own layout, and every flaw by file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from aura.formats.label_maps import LabelMaps, read_classes
from aura.masks import decode_rle
from tests.formats.asked import H, W, picture, written

ADE = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t11664\t1172\t1\twall\n2\t0.10\t6046\t612\t1\tbuilding, edifice\n"
STUFF = "0: unlabeled\n1: person\n2: bicycle\n3: wall-brick\n"
MAPILLARY = {"labels": [{"name": "animal--bird", "readable": "Bird"}, {"name": "void", "readable": "Unlabeled"}]}


def label_map(tmp_path, values, name="000000000009", mode=None):
    grid = np.zeros((H, W), np.uint8)
    grid[:, : W // 2], grid[:, W // 2 :] = values
    (tmp_path / "maps").mkdir(exist_ok=True)
    drawn = Image.fromarray(grid)
    if mode == "P":
        drawn = drawn.copy()
        drawn.putpalette([i % 256 for i in range(768)])
    drawn.save(tmp_path / "maps" / f"{name}.png")
    picture(tmp_path / "photos" / f"{name}.jpg")
    return tmp_path / "maps", tmp_path / "photos"


def classes(tmp_path, layout):
    if layout == "mapillary":
        return written(tmp_path / "config_v2.0.json", MAPILLARY)
    path = tmp_path / ("objectInfo150.txt" if layout == "ade20k" else "labels.txt")
    path.write_text(ADE if layout == "ade20k" else STUFF)
    return path


@pytest.mark.parametrize(
    ("layout", "values", "names"),
    [
        ("ade20k", (0, 2), ["building"]),
        ("ade20k", (1, 2), ["wall", "building"]),
        ("cocostuff", (0, 255), ["person"]),
        ("cocostuff", (2, 1), ["bicycle"]),
        ("mapillary", (0, 1), ["bird"]),
    ],
)
def test_values_are_classes(tmp_path, layout, values, names):
    folders = label_map(tmp_path, values, mode="P" if layout == "mapillary" else None)
    (asked,) = LabelMaps(*folders, classes(tmp_path, layout), layout)
    assert [o.category for o in asked.image.objects] == names
    assert [(q.text, q.objects) for q in asked.questions] == [
        (f"the {o.category}", (o.id,)) for o in asked.image.objects
    ]
    assert (asked.image.file_name, asked.image.height, asked.image.width) == ("000000000009.jpg", H, W)
    assert all(decode_rle(o.visible).sum() == H * W // 2 and o.amodal is None for o in asked.image.objects)


def test_names_of_ade20k_may_be_a_list(tmp_path):
    assert read_classes(written(tmp_path / "names.json", ["wall", "sky; air"]), "ade20k") == {1: "wall", 2: "sky"}


def test_a_map_without_a_class_is_left_out(tmp_path):
    assert list(LabelMaps(*label_map(tmp_path, (0, 0)), classes(tmp_path, "ade20k"), "ade20k")) == []


def test_flaws_are_told(tmp_path):
    maps, photos = label_map(tmp_path, (1, 7))
    names = classes(tmp_path, "ade20k")
    with pytest.raises(ValueError, match=r"000000000009\.png: has the value 7, which is no class of .*objectInfo150"):
        list(LabelMaps(maps, photos, names, "ade20k"))
    picture(photos / "000000000009.jpg", (H, W + 1))
    with pytest.raises(ValueError, match=r"png: the map is \(24, 32\) but its picture .* is \(24, 33\)"):
        list(LabelMaps(maps, photos, names, "ade20k"))
    (photos / "000000000009.jpg").unlink()
    with pytest.raises(ValueError, match=r"png: its picture .* does not exist; give the pictures' folder"):
        list(LabelMaps(maps, photos, names, "ade20k"))
    Image.new("RGB", (W, H)).save(maps / "000000000009.png")
    with pytest.raises(ValueError, match=r"png: a label map has one number a pixel, this picture has 3 colours"):
        list(LabelMaps(maps, photos, names, "ade20k"))
    (maps / "000000000009.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"png: cannot be decoded .*; unpack it again"):
        list(LabelMaps(maps, photos, names, "ade20k"))
    with pytest.raises(ValueError, match=r"photos: no NAME\.png there"):
        LabelMaps(photos, photos, names, "ade20k")


def test_wrong_files_of_classes_are_told(tmp_path):
    wrong = written(tmp_path / "names.json", {"a": 1})
    with pytest.raises(ValueError, match=r"names\.json: expected a list of names"):
        read_classes(wrong, "ade20k")
    with pytest.raises(ValueError, match="expected Mapillary's config with a list 'labels'"):
        read_classes(wrong, "mapillary")
    with pytest.raises(ValueError, match=r"no line is a class of cocostuff; give its labels\.txt"):
        read_classes(wrong, "cocostuff")
    with pytest.raises(ValueError, match="'labels' item 0: 'readable' must be a text"):
        read_classes(written(tmp_path / "c.json", {"labels": [{}]}), "mapillary")
    with pytest.raises(ValueError, match="cannot be read"):
        read_classes(tmp_path / "none.txt", "ade20k")
    assert json.loads((tmp_path / "c.json").read_text()) == {"labels": [{}]}
