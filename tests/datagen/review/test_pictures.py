"""Pictures and mask layers of the review page."""

from __future__ import annotations

import io
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.datagen.review.layers import LONGEST, mask_layer
from aura.datagen.review.pictures import for_browser
from aura.drawing.typesetting import PALETTE
from aura.formats.decoding import read_picture
from aura.masks import decode_rle, encode_rle
from aura.types import AmodalObject

from .conftest import BOOK, SHARED_CUP, Project


def test_pictures_come_from_their_folder_and_are_pictures(project: Project, tmp_path: Path):
    browser = project.browser("Ada")
    response = browser.client.get("/images/1/picture")
    assert response.headers["content-type"] == "image/png"
    assert response.content == (tmp_path / "pictures" / "1.png").read_bytes()

    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "pictures" / "2.png").write_text("<script>alert(1)</script>")
    (tmp_path / "pictures" / "3.png").unlink()
    (tmp_path / "pictures" / "3.png").symlink_to(tmp_path / "secret.png")
    for image_id in (2, 3, 4, 10**18):
        assert browser.client.get(f"/images/{image_id}/picture").status_code == 404
    project.store.database.rows("UPDATE images SET file_name = '../secret.png' WHERE image_id = 1")
    fresh = type(project)(project.store, project.tokens, project.people, project.browser).browser("Grace")
    fresh.client.app.state.desk.image.cache_clear()
    assert fresh.client.get("/images/1/picture").status_code == 404
    for address in ("/images/..%2Fsecret/picture", "/images/-1/picture", f"/images/{2**63}/picture"):
        assert browser.client.get(address).status_code in (404, 422)
    for address in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"):
        assert browser.client.get(address).status_code == 404


@pytest.mark.parametrize("name", ["clear.png", "deep.png", "print.jpg", "scan.tiff", "moving.gif", "phone.jpg"])
def test_a_browser_gets_the_pixels_that_a_model_sees(tmp_path: Path, name: str):
    colour = np.tile(np.arange(0, 250, 5, np.uint8), (20, 1))
    plain = Image.fromarray(np.dstack([colour, colour[:, ::-1], colour]))
    made = {
        "clear.png": lambda: Image.fromarray(np.dstack([np.asarray(plain), colour])),
        "deep.png": lambda: Image.fromarray(colour.astype(np.uint16) * 257),
        "print.jpg": lambda: plain.convert("CMYK"),
        "moving.gif": lambda: plain.convert("P"),
    }
    more = [Image.new("RGB", (50, 20), "blue")]
    options = {"save_all": True, "append_images": more} if name in ("moving.gif", "phone.jpg") else {}
    form = {"format": "MPO"} if name == "phone.jpg" else {}
    made.get(name, lambda: plain)().save(tmp_path / name, **form, **options)
    kind, content = for_browser(tmp_path / name)
    assert kind == ("image/jpeg" if name == "phone.jpg" else "image/png")
    shown = Image.open(io.BytesIO(content))
    assert shown.mode == "RGB" and getattr(shown, "n_frames", 1) == (2 if name == "phone.jpg" else 1)
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(read_picture(tmp_path / name)))


def test_layers_show_the_masks_in_the_colours_of_the_text():
    visible, amodal = np.zeros((60, 90), bool), np.zeros((60, 90), bool)
    visible[10:50, 10:40], amodal[10:50, 10:80] = True, True
    obj = AmodalObject(1, "book", encode_rle(visible), encode_rle(amodal), 4 / 7)
    for index in (0, 1, 8):
        colour = PALETTE[index % len(PALETTE)].rgb
        layers = {}
        for kind in ("visible", "amodal"):
            layer = Image.open(io.BytesIO(mask_layer(obj, kind, index)))
            assert layer.mode == "RGBA" and max(layer.size) == LONGEST
            layers[kind] = np.array(layer.resize((900, 600), Image.Resampling.NEAREST))
        seen, whole = layers["visible"], layers["amodal"]
        # Away from outlines and number: [rows, columns] in tenths of a pixel of the mask.
        inside, hidden, outside = (slice(450, 480), slice(150, 200)), (slice(150, 450), slice(450, 750)), np.s_[520:, :]
        assert (seen[inside][..., 3] > 100).all() and (seen[inside][..., :3] == colour).all()
        assert not seen[hidden][..., 3].any() and not whole[inside][..., 3].any()
        assert not seen[outside][..., 3].any() and not whole[outside][..., 3].any()
        lines = (np.abs(whole[hidden][..., :3].astype(int) - colour).sum(-1) < 60).mean()
        assert 0.1 < lines < 0.5, "the invisible part is hatched, not filled"


def test_the_style_sheet_has_the_palette_of_the_other_pictures():
    css = (files("aura.datagen.review") / "static" / "review.css").read_text()
    found = re.findall(r"\.c(\d) \{ background: rgb\((\d+), (\d+), (\d+)\)", css)
    assert [tuple(map(int, colour[1:])) for colour in found] == [colour.rgb for colour in PALETTE]


def test_empty_masks_have_empty_layers():
    none = encode_rle(np.zeros((5, 7), bool))
    for kind in ("visible", "amodal"):
        layer = Image.open(io.BytesIO(mask_layer(AmodalObject(1, "cup", none, none, 0.0), kind, 0)))
        assert not np.array(layer)[..., 3].any()


def test_a_page_numbers_the_objects_of_the_answer_first(project: Project):
    name = project.judges()[0]
    page = project.browser(name).open(f"/pairs/{project.pair(2)}")
    chips = re.findall(r'class="chip (c\d)" data-object="(\d+)"', page)
    assert chips[0] == ("c0", str(10_000 + BOOK)) and ("c1", str(SHARED_CUP)) in chips
    for kind in ("visible", "amodal"):
        assert project.browser(name).client.get(f"/images/1/objects/{SHARED_CUP}/{kind}-1.png").content == mask_layer(
            project.store.images.get(1).image.objects[0], kind, 1
        )
    for address in (f"/images/1/objects/9/{kind}-1.png", f"/images/1/objects/{SHARED_CUP}/{kind}-99999.png"):
        assert project.browser(name).client.get(address).status_code in (404, 422)
    decoded = decode_rle(project.store.images.get(1).image.objects[0].visible)
    assert f'width="{decoded.shape[1]}" height="{decoded.shape[0]}"' in page
