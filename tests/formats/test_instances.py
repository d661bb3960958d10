"""COCO instances files: what they hold, and which objects are whole."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aura.formats.instances import InstanceFile
from aura.masks import decode_rle, encode_rle

SIDE = 100


def square(x: int, y: int, side: int = 20) -> list[list[int]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def written(folder, annotations):
    path = folder / "instances.json"
    records = [
        {"id": n, "image_id": 7, "category_id": 3, "iscrowd": 0, **annotation}
        for n, annotation in enumerate(annotations)
    ]
    image = {"id": 7, "file_name": "a.jpg", "height": SIDE, "width": SIDE, "license": 2}
    categories = [{"id": 3, "name": "cup", "supercategory": "kitchen"}]
    path.write_text(json.dumps({"images": [image], "categories": categories, "annotations": records}))
    return path


@pytest.fixture
def read(tmp_path):
    return lambda *annotations: next(iter(InstanceFile(written(tmp_path, annotations))))


def test_everything_of_a_record_arrives(read):
    image = read({"segmentation": square(10, 20)})
    assert (image.image_id, image.file_name, image.height, image.width, image.info) == (
        7,
        "a.jpg",
        SIDE,
        SIDE,
        {"license": 2},
    )
    (cup,) = image.instances
    assert (cup.category, cup.supercategory, cup.is_crowd, cup.is_whole, cup.area) == (
        "cup",
        "kitchen",
        False,
        True,
        400,
    )
    assert decode_rle(cup.mask)[20:40, 10:30].all()


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        ({"segmentation": square(1, 20)}, "near the left border"),
        ({"segmentation": square(79, 79)}, "near the lower right border"),
        ({"segmentation": [*square(10, 10), *square(60, 60)]}, "of two parts"),
        ({"segmentation": encode_rle(np.eye(SIDE, dtype=bool)), "iscrowd": 1}, "a crowd"),
    ],
)
def test_not_whole_by_itself(read, annotation, why):
    assert not read(annotation).instances[0].is_whole, why


def test_what_touches_another_is_not_whole(read):
    first, second, third = read(
        {"segmentation": square(10, 10)},
        {"segmentation": square(30, 10)},  # side by side with the first: a quarter of the rim
        {"segmentation": square(60, 60)},
    ).instances
    assert [first.is_whole, second.is_whole, third.is_whole] == [False, False, True]


def test_what_has_another_upon_it_is_not_whole(read):
    table, cup = read({"segmentation": square(10, 10, 60)}, {"segmentation": square(30, 30)}).instances
    assert not table.is_whole and not cup.is_whole


def test_a_far_touch_does_not_count(read):
    first, _ = read({"segmentation": square(10, 10)}, {"segmentation": square(34, 10)}).instances
    assert first.is_whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 9}, "annotation 0: category 9 is not in 'categories'"),
        ({"image_id": 8}, "annotation 0: image 8 is not in 'images'"),
        ({"segmentation": None}, "annotation 0: 'segmentation' is missing"),
        ({"segmentation": [[1, 2, 3]]}, "annotation 0: "),
    ],
)
def test_flaws_are_named(tmp_path, change, message):
    path = written(tmp_path, [{"segmentation": square(10, 10), **change}])
    with pytest.raises(ValueError, match=message) as caught:
        list(InstanceFile(path))
    assert str(path) in str(caught.value)


def test_an_image_is_told_by_its_visible_masks_alone(read):
    crowd = {"segmentation": encode_rle(np.eye(SIDE, dtype=bool)), "iscrowd": 1}
    image = read({"segmentation": square(10, 20)}, {"segmentation": square(50, 50, side=1)}, crowd)
    annotated = image.as_annotated({"cup": 3})
    (cup,) = annotated.objects  # one pixel of 10,000 is too little to ask about, a crowd is no object
    assert (cup.id, cup.amodal, cup.occlusion_rate, cup.supercategory) == (0, None, None, "kitchen")
    assert decode_rle(cup.visible).sum() == 400
    assert (annotated.image_info, annotated.category_ids) == ({"license": 2}, {"cup": 3})
    assert image.crowds == {"cup": "kitchen"}
