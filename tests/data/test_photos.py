from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from aura.data.photos import open_photo


def gradient(height=20, width=30):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 5, columns * 5, rows + columns], -1).astype(np.uint8)


def test_a_phone_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held a quarter turn to the left
    Image.fromarray(gradient()).save(tmp_path / "phone.png", exif=exif)
    opened = open_photo(tmp_path / "phone.png")
    assert opened.size == (20, 30)
    np.testing.assert_array_equal(np.asarray(opened), np.rot90(gradient(), -1))
    np.testing.assert_array_equal(np.asarray(open_photo(Image.open(tmp_path / "phone.png"))), np.asarray(opened))


def test_16_bit_grey_keeps_its_shades(tmp_path):
    values = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    for opened in (open_photo(tmp_path / "deep.png"), open_photo(values), open_photo(Image.fromarray(values))):
        np.testing.assert_array_equal(np.asarray(opened)[..., 1], values >> 8)


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.dstack([gradient(), np.full((20, 30), 255, np.uint8)])
    rgba[:10, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "cut.png")
    Image.fromarray(rgba).convert("P").save(tmp_path / "palette.gif", transparency=0)
    opened = np.asarray(open_photo(tmp_path / "cut.png"))
    assert (opened[:10] == 255).all()
    np.testing.assert_array_equal(opened[10:], gradient()[10:])
    np.testing.assert_array_equal(np.asarray(open_photo(rgba)), opened)
    assert open_photo(tmp_path / "palette.gif").mode == "RGB"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "RGBX", "I"])
def test_every_mode_becomes_rgb(mode):
    source = Image.new("L", (30, 20), 99) if mode == "PA" else Image.fromarray(gradient())
    opened = open_photo(source.convert("L").convert(mode) if mode in ("I", "PA", "LA") else source.convert(mode))
    assert (opened.mode, opened.size) == ("RGB", (30, 20))


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(open_photo(tmp_path / "moving.gif"))[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("array", [gradient(), gradient()[..., 0], gradient()[..., :1]])
def test_arrays(array):
    assert open_photo(array).size == (30, 20)


@pytest.mark.parametrize(
    "array", [gradient() / 255.0, gradient().transpose(2, 0, 1), np.zeros((0, 5, 3), np.uint8), np.zeros(7, np.uint8)]
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ValueError, match="uint8 or uint16"):
        open_photo(array)


def test_a_damaged_file_is_named(tmp_path):
    whole = tmp_path / "whole.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.png").write_text("not an image")
    for name, message in {
        "cut.jpg": "damaged",
        "empty.jpg": "the file is empty",
        "notes.png": "no kind of picture that is known",
        "gone.png": "does not exist",
        ".": "is not an image file",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            open_photo(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


def test_floating_point_images_are_refused_with_the_file(tmp_path):
    Image.fromarray(np.zeros((5, 5), np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(ValueError, match=r"depth.tiff.*8 bits"):
        open_photo(tmp_path / "depth.tiff")


def claim_size(path, width, height):
    """A PNG file whose header says so; nothing after the header fits it."""
    Image.new("1", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return path


def test_giants_and_strips_are_refused_before_they_are_decoded(tmp_path):
    with pytest.raises(ValueError, match=r"giant.png has 11000 x 10000 pixels; make it smaller than 100"):
        open_photo(claim_size(tmp_path / "giant.png", 11_000, 10_000))
    with pytest.raises(ValueError, match=r"bomb.png is too large"):
        open_photo(claim_size(tmp_path / "bomb.png", 20_000, 20_000))
    with pytest.raises(ValueError, match="strip of 2000 x 3"):
        open_photo(Image.new("RGB", (2000, 3)))
