"""Names of pictures in data files lead to files below their folder, whoever reads them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from aura.formats import decoding
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.category_sets import CategorySet
from aura.formats.checks import problems, shared_images
from aura.formats.exports.common import check_picture
from aura.formats.layouts import LAYOUTS
from aura.formats.llava_instruct import LlavaFile
from aura.formats.pictures import find_picture, name_flaw, path_below
from aura.formats.reading import RecordReader, read_json
from aura.formats.refer import ReferFolder
from aura.formats.results.folders import read_mask_folder
from aura.formats.samples import samples_of
from aura.formats.sources import AnnotationFile
from aura.types import Sample
from tests.formats.asked import H, W, instances, llava, picture, refer, written

OUT = ["../secret.jpg", "a/../../secret.jpg", "..", "..\\secret.jpg", "a\\..\\..\\secret.jpg"]
ABSOLUTE = [
    "/etc/passwd",
    "//host/share/a.jpg",
    "C:\\a.jpg",
    "c:a.jpg",
    "C:/a.jpg",
    "\\\\host\\share\\a.jpg",
    "\\a.jpg",
]
NO_NAMES = {
    "a\0.jpg": "holds a NUL character",
    "x" * 256: "is too long",
    "d/" * 1500: "is too long",
    "\ud800.jpg": "is no text",
}
BELOW = ["a.jpg", "train/a.jpg", "train\\a.jpg", "..a.jpg", "a..jpg", "...", ".hidden/a.jpg", "컵과 책.jpg", "컵" * 80]


@pytest.mark.parametrize("name", OUT + ABSOLUTE)
def test_names_that_lead_out(tmp_path, name):
    picture(tmp_path / "secret.jpg")
    assert "leads out of the picture folder; use names of files below" in (name_flaw(name) or "")
    for find in (find_picture, path_below):
        with pytest.raises(ValueError, match=r"data\.json: image 7: the file name .* leads out"):
            find(tmp_path / "images", name, "data.json: image 7: ")


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_no_file_has(tmp_path, name):
    assert NO_NAMES[name] in (name_flaw(name) or "")
    with pytest.raises(ValueError, match="the file name"):
        find_picture(tmp_path, name)


@pytest.mark.parametrize("name", BELOW)
def test_names_below_the_folder(tmp_path, name):
    assert name_flaw(name) is None
    assert find_picture(tmp_path, name) == tmp_path / name


def test_links_are_followed_where_their_owner_made_them(tmp_path):
    real = picture(tmp_path / "disk" / "a.jpg")
    (tmp_path / "images").symlink_to(tmp_path / "disk")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "b.jpg").symlink_to(real)
    (tmp_path / "linked" / "train").symlink_to(tmp_path / "disk")
    assert find_picture(tmp_path / "images", "a.jpg").samefile(real)
    assert find_picture(tmp_path / "linked", "b.jpg").samefile(real)
    assert find_picture(tmp_path / "linked", "train/a.jpg").samefile(real)


# --- the readers ------------------------------------------------------------------------------------------------------


def record(name: str) -> dict:
    return {"id": 7, "file_name": name, "height": H, "width": W}


def ours(name: str) -> dict:
    return {
        "info": {},
        "licenses": [],
        "categories": [],
        "images": [record(name)],
        "annotations": [],
        "conversations": [],
    }


def rows(root, name):
    return list(AmodalReasonSeg.load(written(root / "data.json", ours(name)), root))


def parsed(root, name):
    path = written(root / "data.json", ours(name))
    return samples_of(read_json(path), RecordReader(path), root)


def amodal(layout):
    def read(root, name):
        path = written(root / "data.json", ours(name))
        return list(AnnotationFile(path, LAYOUTS[layout], strict=True))

    return read


def coco(root, name):
    content = instances()
    content["images"][0]["file_name"] = name
    return list(CategorySet(written(root / "data.json", content)))


def lvis(root, name):
    content = instances()
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = f"http://images.example/{name}"
    return list(CategorySet(written(root / "data.json", content)))


def refcoco(root, name):
    refer(root)
    content = instances()
    content["images"][0]["file_name"] = name
    written(root / "instances.json", content)
    return list(ReferFolder(root, "unc", "train"))


def instruct(root, name):
    said = llava()
    said[0]["image"] = name
    return list(LlavaFile(written(root / "data.json", said), root))


READERS = {
    "ours, as rows": rows,
    "ours, parsed": parsed,
    **{layout: amodal(layout) for layout in LAYOUTS},
    "COCO": coco,
    "LVIS": lvis,
    "RefCOCO": refcoco,
    "LLaVA-Instruct": instruct,
}


@pytest.mark.parametrize("name", ["../secret.jpg", "/secret.jpg", "..\\secret.jpg", "a\0b.jpg"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_file_record_and_remedy(tmp_path, reader, name):
    if reader == "LVIS" and name == "/secret.jpg":
        name = "c:/secret.jpg"  # an address has its own slashes
    picture(tmp_path / "secret.jpg")
    root = tmp_path / "images"
    root.mkdir()
    with pytest.raises(ValueError) as error:
        READERS[reader](root, name)
    where = "item 0 (id 000000033471)" if reader == "LLaVA-Instruct" else "image 7"
    assert f".json: {where}: the file name " in str(error.value)
    assert "use names of files below the picture folder" in str(error.value)


def test_the_checks_report_it_and_touch_nothing(tmp_path):
    picture(tmp_path / "secret.jpg", (1, 1))
    (tmp_path / "images").mkdir()
    for folder in (None, tmp_path / "images"):
        found = [str(problem) for problem in problems(ours("../secret.jpg"), images=folder)]
        assert len(found) == 1 and found[0].startswith("image 7: the file name '../secret.jpg' leads out")
    folders = (tmp_path / "images", tmp_path / "images")
    assert shared_images(ours("../secret.jpg"), ours("../secret.jpg"), folders) == []


# --- one way in -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bomb(tmp_path, monkeypatch):
    """A picture beyond the limit, which is lowered; Pillow's own limit would raise another error."""
    monkeypatch.setattr(decoding, "MAX_MEGAPIXELS", 0.0001)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    folder = tmp_path / "bombs"
    folder.mkdir()
    Image.fromarray(np.zeros((H, W), np.uint8)).save(folder / "a1.png")
    return folder / "a1.png"


def test_an_export_refuses_a_bomb_in_a_sentence(bomb):
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match=r"image 7: .*a1\.png is too large; make it smaller"),
    ):
        warnings.simplefilter("error")
        check_picture(Sample(7, bomb, H, W, (), ()))


def test_a_mask_that_is_a_bomb_is_refused_in_a_sentence(bomb):
    with pytest.raises(ValueError, match=r"a1\.png: cannot be read as a picture \(is too large\)"):
        read_mask_folder(bomb.parent)
