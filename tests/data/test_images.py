import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from aura.data.images import (
    CLIP_MEAN,
    CLIP_STD,
    SAM_MEAN,
    SAM_STD,
    clip_pixels,
    clip_preprocessing,
    load_image,
    sam_geometry,
    sam_pixels,
)


def noise(height, width):
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (64, 64), (97, 331), (1, 9)])
@pytest.mark.parametrize("size", [28, 49])
def test_clip_crop_equals_transformers(shape, size):
    reference = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    expected = reference(noise(*shape), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(clip_pixels(noise(*shape), size), expected, atol=1e-5, rtol=0)


def test_squash_shows_the_ends_of_a_long_image_and_crop_does_not():
    array = np.zeros((20, 100, 3), dtype=np.uint8)
    array[:, :10] = 255
    image = Image.fromarray(array)
    assert clip_pixels(image, 28, resize="crop").max() < 0
    assert clip_pixels(image, 28, resize="squash")[:, :, 0].min() > 1
    padded = clip_pixels(image, 28, resize="pad")
    assert padded[:, 14, 0].min() > 1
    assert (padded[:, :11] == 0).all() and (padded[:, 17:] == 0).all()
    corner = clip_pixels(image, 28, resize="corner")
    assert torch.equal(corner[:, :6], padded[:, 11:17]) and (corner[:, 6:] == 0).all()  # where SAM has it


def test_mean_and_std_are_used():
    white = Image.new("RGB", (8, 8), (255, 0, 51))
    pixels = clip_pixels(white, 8, mean=(0.5, 0.5, 0.1), std=(0.25, 0.5, 0.1))
    torch.testing.assert_close(pixels[:, 3, 3], torch.tensor([2.0, -1.0, 1.0]))


def test_an_unknown_resize_is_an_error():
    with pytest.raises(ValueError, match=r"crop, pad, squash.*'stretch'"):
        clip_pixels(noise(4, 4), 8, resize="stretch")


@pytest.mark.parametrize(
    ("shape", "resized"),
    [((480, 640), (768, 1024)), ((427, 640), (683, 1024)), ((333, 500), (682, 1024)), ((5, 9999), (1, 1024))],
)
def test_sam_geometry_rounds_as_segment_anything(shape, resized):
    geometry = sam_geometry(*shape, 1024)
    assert (geometry.original, geometry.resized, geometry.padded) == (shape, resized, 1024)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (200, 100)])
def test_sam_pixels_are_normalised_and_then_padded_with_zero(shape):
    image = noise(*shape)
    pixels, geometry = sam_pixels(image, 64)
    height, width = geometry.resized
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float64)
    expected = (resized - SAM_MEAN) / SAM_STD
    np.testing.assert_allclose(pixels[:, :height, :width].permute(1, 2, 0), expected, atol=1e-5)
    assert pixels.shape == (3, 64, 64) and pixels.dtype == torch.float32
    assert (pixels[:, height:] == 0).all() and (pixels[:, :, width:] == 0).all()
    assert max(height, width) == 64


def test_images_of_every_mode_become_rgb(tmp_path):
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        path = tmp_path / f"{mode}.tiff"
        noise(6, 8).convert(mode).save(path)
        assert load_image(path).mode == "RGB"
    assert load_image(np.zeros((6, 8), dtype=np.uint8)).size == (8, 6)


def test_deep_and_transparent_images_keep_what_is_seen_of_them(tmp_path):
    values = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "deep.png"))[..., 0], values >> 8)
    Image.new("RGBA", (8, 6), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(load_image(tmp_path / "clear.png")) == 255).all()
    Image.new("F", (8, 6)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"image 3: .*float\.tiff .*floating-point"):
        load_image(tmp_path / "float.tiff", "image 3: ")


def test_orientation_in_exif_is_left_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(6, 8).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (8, 6)


def test_missing_and_damaged_files_and_odd_arrays_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"image 3: .*gone.png does not exist"):
        load_image(tmp_path / "gone.png", "image 3: ")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"image 3: .*text.png cannot be decoded"):
        load_image(tmp_path / "text.png", "image 3: ")
    noise(50, 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut.png cannot be decoded"):
        load_image(tmp_path / "cut.png")
    with pytest.raises(ValueError, match=r"float64 \[4, 4, 3\]"):
        load_image(np.zeros((4, 4, 3)))


def test_preprocessing_is_read_from_the_model_folder(tmp_path):
    assert clip_preprocessing(tmp_path) == {}
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(tmp_path)
    assert clip_preprocessing(tmp_path) == {
        "clip_image_size": 56,
        "clip_mean": CLIP_MEAN,
        "clip_std": CLIP_STD,
        "clip_resize": "crop",
    }
    config = tmp_path / "preprocessor_config.json"
    config.write_text(json.dumps({"size": {"height": 96, "width": 96}, "do_center_crop": False}))
    assert clip_preprocessing(tmp_path) == {"clip_image_size": 96, "clip_resize": "squash"}
    config.write_text(json.dumps({"size": 96, "clip_resize": "pad"}))
    assert clip_preprocessing(tmp_path) == {"clip_image_size": 96, "clip_resize": "pad"}
    config.write_text(json.dumps({"size": {"shortest_edge": 256}, "crop_size": 224}))
    with pytest.raises(ValueError, match=r"preprocessor_config.json.*256.*224"):
        clip_preprocessing(tmp_path)
