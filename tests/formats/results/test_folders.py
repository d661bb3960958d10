"""Folders of masks: pictures and arrays, by name, and every way in which they are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from aura.formats.results.folders import read_mask_folder
from aura.masks import decode_rle

MASK = np.zeros((24, 32), bool)
MASK[4:20, 6:20] = True
OTHER = ~MASK


def test_names_say_what_a_mask_is_of(tmp_path):
    for name in ("c7_t0.png", "c7_t1_mask_2.png", "c7_t1_0.png", "a12.png", "street view.png"):
        Image.fromarray(MASK.astype(np.uint8) * 255).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a mask")
    found = {m.where.rsplit("/", 1)[1]: m for m in read_mask_folder(tmp_path)}
    assert all((decode_rle(m.mask) == MASK).all() for m in found.values())
    assert (found["c7_t0.png"].question, found["c7_t0.png"].place) == ((7, 0), 0)
    assert (found["c7_t1_mask_2.png"].question, found["c7_t1_mask_2.png"].place) == ((7, 1), 2)
    assert (found["c7_t1_0.png"].question, found["c7_t1_0.png"].place) == ((7, 1), 0)
    assert found["a12.png"].annotation == 12 and found["street view.png"].image == "street view"


def test_a_jpeg_of_lisa_is_a_mask_and_its_overlay_is_none(tmp_path):
    Image.fromarray(MASK.astype(np.uint8) * 100).save(tmp_path / "c7_t0_mask_0.jpg", quality=95)
    Image.new("RGB", (32, 24)).save(tmp_path / "c7_t0_masked_img_0.jpg")
    (found,) = read_mask_folder(tmp_path)
    assert found.question == (7, 0) and (decode_rle(found.mask) == MASK).all()


def test_pictures_of_any_two_values_and_equal_channels(tmp_path):
    Image.fromarray(MASK).save(tmp_path / "a1.png")
    Image.fromarray(MASK.astype(np.uint8)).save(tmp_path / "a2.png")
    Image.fromarray(np.repeat(MASK[:, :, None], 3, 2).astype(np.uint8) * 255).save(tmp_path / "a3.png")
    Image.new("L", (32, 24)).save(tmp_path / "a4.jpg")  # nothing predicted
    *full, empty = read_mask_folder(tmp_path)
    assert all((decode_rle(m.mask) == MASK).all() for m in full) and not decode_rle(empty.mask).any()


def test_arrays_hold_several_masks(tmp_path):
    np.savez(tmp_path / "c7_t0.npz", np.stack([MASK, OTHER]))
    np.save(tmp_path / "c8_t0.npy", MASK.astype(np.float32))
    np.savez(tmp_path / "i.npz", masks=np.stack([MASK, OTHER]), annotation_ids=np.array([4, 9]))
    a, b, c, d, e = read_mask_folder(tmp_path)
    assert [(m.question, m.place) for m in (a, b, c)] == [((7, 0), 0), ((7, 0), 1), ((8, 0), 0)]
    assert (d.annotation, e.annotation) == (4, 9) and (decode_rle(e.mask) == OTHER).all()


def test_arrays_of_an_image_may_have_scores_and_categories(tmp_path):
    stack = np.stack([MASK, OTHER])
    np.savez(tmp_path / "street.npz", masks=stack, scores=np.array([0.5, 0.25]), category_ids=np.array([6, 2]))
    assert [(m.image, m.score, m.category) for m in read_mask_folder(tmp_path)] == [
        ("street", 0.5, 6),
        ("street", 0.25, 2),
    ]


def put(folder, name, value):
    if isinstance(value, dict):
        np.savez(folder / name, **value)
    elif isinstance(value, np.ndarray):
        if name.endswith((".npy", ".npz")):
            np.save(folder / name, value)
        else:
            Image.fromarray(value).save(folder / name)
    else:
        (folder / name).write_bytes(value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no masks \(\.png"),
        ({"a1.png": b"no picture"}, r"a1\.png: cannot be read as a picture"),
        ({"a1.npz": b"no archive"}, r"a1\.npz: cannot be read as arrays"),
        ({"a1.npy": np.array([{}], object)}, r"a1\.npy: cannot be read as arrays"),
        ({"a1.png": np.arange(24, dtype=np.uint8).reshape(4, 6)}, r"a1\.png: the mask has more than two values"),
        ({"a1.npy": np.full((4, 6), np.nan)}, "the mask has more than two values"),
        ({"a1.png": np.arange(72, dtype=np.uint8).reshape(4, 6, 3)}, r"a1\.png: is a coloured picture"),
        ({"a1.npy": np.zeros(7)}, r"a1\.npy: its shape is \[7\]"),
        ({"a1.npy": np.zeros((0, 5))}, r"mask 0: the mask's shape is \[0, 5\]"),
        ({"a1.npy": np.full((2, 3), "x")}, "the mask holds <U1"),
        ({"a1.npz": {"masks": MASK, "boxes": MASK}}, r"a1\.npz: has the arrays \['boxes', 'masks'\]"),
        (
            {"i.npz": {"masks": MASK, "scores": np.zeros(2)}},
            r"'scores' is float64 \[2\]; it must hold a number for each",
        ),
        ({"a1.npy": np.stack([MASK, OTHER])}, r"a1\.npy: 2 masks for one annotation"),
        ({"c1_t0_1.npy": np.stack([MASK, OTHER])}, "2 masks for one place of an answer"),
        ({"a1.png": MASK, "a1.npy": MASK}, r"a1\.png: the same annotation is given by .*a1\.npy"),
        ({"c1_t0.png": MASK, "c1_t0_0.png": MASK}, "the same place of an answer is given by"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, files, message):
    for name, value in files.items():
        put(tmp_path, name, value)
    with pytest.raises(ValueError, match=message) as error:
        read_mask_folder(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no: is no folder; give the one with the masks"):
        read_mask_folder(tmp_path / "no")
