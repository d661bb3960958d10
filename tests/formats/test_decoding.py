"""One way in for pictures: every mode and kind, and what cannot be read."""

from __future__ import annotations

import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.formats import decoding
from aura.formats.decoding import as_rgb, open_picture, read_picture, to_8_bits
from aura.formats.pictures import examine


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 5, columns * 5, rows + columns], -1).astype(np.uint8)


def claim_size(path: Path, width: int, height: int) -> Path:
    """A PNG file whose header says so; nothing after the header fits it."""
    Image.new("1", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 256, 65535], [0, 1, 255]),
        ([0, 25600, 4096], [0, 100, 16]),
        ([], []),
    ],
)
@pytest.mark.parametrize("kind", [np.int32, np.uint16, np.dtype(">u2")])
def test_integers_up_to_255_are_taken_as_they_are_and_deeper_ones_divided(values, expected, kind):
    np.testing.assert_array_equal(to_8_bits(np.array(values, kind)), expected)


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_of_no_known_range_are_refused(tmp_path, value):
    Image.fromarray(np.array([[0, value]], np.int32)).save(tmp_path / "depth.tiff")
    with pytest.raises(ValueError, match=r"image 3: .*depth.tiff holds numbers from .*8 bits"):
        read_picture(tmp_path / "depth.tiff", "image 3: ")


def test_32_bit_files_with_values_of_8_bits_are_not_black(tmp_path):
    values = gradient()[..., 1].astype(np.int32)
    Image.fromarray(values).save(tmp_path / "labels.tiff")
    with Image.open(tmp_path / "labels.tiff") as picture:
        assert picture.mode == "I"
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / "labels.tiff"))[..., 0], values)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_every_mode_becomes_rgb(mode):
    source = Image.fromarray(gradient())
    grey = source.convert("L")
    made = {"La": lambda: grey.convert("LA").convert("La"), "LA": lambda: grey.convert("LA")}
    made |= {
        "PA": lambda: Image.new("L", (30, 20), 99).convert("PA"),
        "RGBa": lambda: source.convert("RGBA").convert(mode),
    }
    picture = as_rgb(made.get(mode, lambda: source.convert(mode))())
    assert (picture.mode, picture.size) == ("RGB", (30, 20))
    assert 0 < np.asarray(picture).mean() < 255


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:])
    red, green, blue = np.asarray(read_picture(tmp_path / f"moving.{suffix}"))[3, 3].tolist()
    assert red > 240 and green < 15 and blue < 15


def test_transparent_pixels_are_white_and_orientation_is_left_alone_unless_asked_for(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = np.dstack([gradient(), np.full((20, 30), 255, np.uint8)])
    rgba[:10, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "cut.png", exif=exif)
    stored = np.asarray(read_picture(tmp_path / "cut.png"))
    assert (stored[:10] == 255).all()
    np.testing.assert_array_equal(stored[10:], gradient()[10:])
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / "cut.png", upright=True)), np.rot90(stored, -1))


def heic(path: Path) -> Path:
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    return path


def broken(path: Path) -> Path:
    Image.fromarray(gradient(90, 90)).save(path)
    path.write_bytes(path.read_bytes()[:700])
    return path


def text(path: Path, content: bytes = b"no picture") -> Path:
    path.write_bytes(content)
    return path


BAD = {
    "phone.heic": (heic, "HEIC picture.*pip install pillow-heif.*save it as PNG or JPEG"),
    "cut.jpg": (broken, "damaged.*use an intact copy"),
    "notes.png": (text, "no kind of picture that is known"),
    "empty.png": (lambda path: text(path, b""), "the file is empty"),
    "program.eps": (
        lambda path: text(path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "no kind of picture",
    ),
    "giant.png": (lambda path: claim_size(path, 11_000, 10_000), "11000 x 10000 pixels; make it smaller than 100 mega"),
    "bomb.png": (lambda path: claim_size(path, 60_000, 60_000), "too large; make it smaller than 100 megapixels"),
    "strip.png": (lambda path: claim_size(path, 2000, 3), "a strip of 2000 x 3 pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named_with_a_remedy(tmp_path, name, monkeypatch):
    monkeypatch.setattr(decoding, "find_spec", lambda name: None)
    decoding._formats.cache_clear()
    make, message = BAD[name]
    path = make(tmp_path / name)
    with pytest.raises(ValueError, match=f"image 3: .*{name} .*{message}"):
        read_picture(path, "image 3: ")
    assert examine(path).flaw


def test_what_is_not_there_and_folders(tmp_path):
    with pytest.raises(ValueError, match=r"image 3: the image .*gone.png does not exist"):
        open_picture(tmp_path / "gone.png", "image 3: ")
    with pytest.raises(ValueError, match="is not an image file"):
        open_picture(tmp_path)


def test_heic_is_read_where_pillow_heif_is_installed(monkeypatch):
    asked = []
    module = types.ModuleType("pillow_heif")
    module.register_heif_opener = lambda: asked.append(True)
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    monkeypatch.setattr(decoding, "find_spec", lambda name: name)
    decoding._formats.cache_clear()
    assert "PNG" in decoding._formats() and "EPS" not in decoding._formats() and asked
    decoding._formats.cache_clear()
