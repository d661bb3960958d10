"""Pictures' files: whole or cut off, and turned by a camera."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.formats.pictures import Picture, examine, find_picture, orientation_note, picture_flaw


def photo(path: Path, height: int = 24, width: int = 32, orientation: int | None = None) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def flaw(path: Path, height: int, width: int) -> str | None:
    return picture_flaw(Picture(1, path, height, width), examine(path))


@pytest.mark.parametrize("name", ["whole.jpg", "whole.png"])
def test_a_whole_picture_fits_its_record(tmp_path, name):
    path = photo(tmp_path / name)
    facts = examine(path)
    assert (facts.height, facts.width, facts.orientation, facts.flaw) == (24, 32, 1, "") and len(facts.sha256) == 64
    assert flaw(path, 24, 32) is None and orientation_note(Picture(1, path, 24, 32), facts) is None
    assert flaw(path, 32, 24) == f"{path} is 24 x 32 (height x width), the record says 32 x 24"


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png"])
def test_a_picture_that_is_cut_off_is_found_though_its_header_is_there(tmp_path, name):
    path = photo(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-300])
    with Image.open(path) as header:
        assert header.size == (32, 24)
    assert "cannot be decoded" in flaw(path, 24, 32)


def test_what_is_no_picture_or_not_there(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    assert "cannot be decoded (no kind of picture that is known)" in flaw(tmp_path / "text.jpg", 1, 1)
    assert "does not exist; give the right folder with --images" in flaw(tmp_path / "none.jpg", 1, 1)
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    assert "floating-point" in flaw(tmp_path / "float.tiff", 4, 4)


def test_a_picture_labelled_upright_and_stored_lying(tmp_path):
    path = photo(tmp_path / "phone.jpg", orientation=6)
    assert "EXIF orientation (6) turns it to 32 x 24" in flaw(path, 32, 24)
    assert flaw(path, 24, 32) is None
    assert orientation_note(Picture(1, path, 24, 32), examine(path)) is None, "labelled as it is stored"


@pytest.mark.parametrize(("side", "orientation"), [(24, 6), (32, 3)])
def test_where_the_size_cannot_tell_there_is_a_note(tmp_path, side, orientation):
    path = photo(tmp_path / "phone.jpg", 24, side, orientation=orientation)
    picture = Picture(1, path, 24, side)
    assert picture_flaw(picture, examine(path)) is None
    assert f"EXIF orientation {orientation}" in orientation_note(picture, examine(path))


@pytest.mark.parametrize("spelt", ["컵과 책.jpg", "train/Käse.png"])
def test_names_of_other_systems_find_their_file(tmp_path, spelt):
    (tmp_path / "train").mkdir()
    for kept in ("NFC", "NFD"):
        path = tmp_path / unicodedata.normalize(kept, spelt)
        path.write_bytes(b"")
        for asked in ("NFC", "NFD"):
            name = unicodedata.normalize(asked, spelt).replace("/", "\\")
            assert find_picture(tmp_path, name).samefile(path)
        path.unlink()
    assert find_picture(tmp_path, "none\\there.jpg") == tmp_path / "none\\there.jpg"


def test_a_name_with_a_backslash_that_is_there_is_taken_as_it_is(tmp_path):
    (tmp_path / "a\\b.jpg").write_bytes(b"")
    assert find_picture(tmp_path, "a\\b.jpg") == tmp_path / "a\\b.jpg"
