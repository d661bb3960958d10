"""Annotation files of other projects."""

import json
from pathlib import Path

import numpy as np
import pytest

from aura.formats.occlusion import hidden_pixels, occluders
from aura.formats.sources import AnnotationFile, load_cocoa_cls
from aura.masks import decode_rle, encode_rle
from aura.mini.scenes import Scene, SceneObject
from aura.types import AmodalObject
from tests.scenes import annotated_image_from_scene

SHARED = Path(__file__).parents[3] / "shared" / "data"
H, W = 20, 30


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[y0:y1, x0:x1] = True
    return mask


CUP, TABLE = box(2, 2, 12, 12), box(8, 4, 28, 14)
TABLE_SEEN = TABLE & ~CUP


@pytest.fixture
def content() -> dict:
    """A cup in front of a table, as COCOA-cls stores it."""
    return {
        "info": {},
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": H, "width": W, "license": 3},
            {"id": 8, "file_name": "b.jpg", "height": H, "width": W},
        ],
        "categories": [
            {"id": 47, "name": "cup", "supercategory": "kitchen"},
            {"id": 67, "name": "dining table", "supercategory": "furniture"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 47, "segmentation": encode_rle(CUP), "occlude_rate": 0.0},
            {
                "id": 2,
                "image_id": 7,
                "category_id": 67,
                "segmentation": encode_rle(TABLE),
                "visible_mask": encode_rle(TABLE_SEEN),
                "invisible_mask": encode_rle(TABLE & CUP),
                "occlude_rate": 0.16,
            },
        ],
    }


@pytest.fixture
def load(tmp_path, content):
    def write_and_load():
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return load_cocoa_cls(path)

    return write_and_load


def test_records_come_with_masks_rates_and_occluders(load):
    first, second = load()
    assert (first.image_id, first.file_name, first.height, first.width) == (7, "a.jpg", H, W)
    assert first.image_info == {"license": 3}
    assert first.category_ids == {"cup": 47, "dining table": 67}
    cup, table = first.objects
    assert (cup.id, cup.category, cup.supercategory, cup.occlusion_rate, cup.occluded_by) == (
        1,
        "cup",
        "kitchen",
        0.0,
        (),
    )
    assert (decode_rle(cup.visible) == CUP).all()
    assert (decode_rle(table.amodal) == TABLE).all() and (decode_rle(table.visible) == TABLE_SEEN).all()
    assert table.occlusion_rate == pytest.approx(32 / 200)
    assert table.occluded_by == (1,)
    assert second.objects == ()


@pytest.mark.parametrize("nested", [True, False])
def test_polygons_and_one_flat_polygon(load, content, nested):
    polygon = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]
    content["annotations"][0]["segmentation"] = [polygon] if nested else polygon
    assert (decode_rle(load()[0].objects[0].amodal) == CUP).mean() > 0.95


def test_plain_run_lengths(load, content):
    runs = [2 * H + 2] + [10, H - 10] * 9 + [10]
    content["annotations"][0]["segmentation"] = {"size": [H, W], "counts": [*runs, H * W - sum(runs)]}
    assert (decode_rle(load()[0].objects[0].amodal) == CUP).all()


def test_without_a_visible_mask_the_invisible_one_counts(load, content):
    del content["annotations"][1]["visible_mask"]
    assert (decode_rle(load()[0].objects[1].visible) == TABLE_SEEN).all()


def test_a_few_stray_visible_pixels_are_cut_off(load, content):
    stray = TABLE_SEEN.copy()
    stray[19, 29] = True
    content["annotations"][1]["visible_mask"] = encode_rle(stray)
    table = load()[0].objects[1]
    assert (decode_rle(table.visible) == TABLE_SEEN).all()
    assert table.occlusion_rate == pytest.approx(0.16)


def test_objects_without_a_visible_pixel_are_left_out(load, content):
    content["annotations"][1]["visible_mask"] = encode_rle(box(0, 0, 0, 0))
    del content["annotations"][1]["invisible_mask"]
    assert [o.id for o in load()[0].objects] == [1]


BROKEN = {
    "visible outside": (
        lambda c: c["annotations"][1].update(visible_mask=encode_rle(box(0, 0, 30, 20))),
        "annotation 2: 400 of 600 visible pixels lie outside the amodal mask; correct",
    ),
    "invisible wrong": (
        lambda c: c["annotations"][1].update(invisible_mask=encode_rle(box(20, 4, 28, 14))),
        "annotation 2: 'invisible_mask' is not amodal minus visible",
    ),
    "wrong size": (
        lambda c: c["annotations"][0]["segmentation"].update(size=[W, H]),
        "annotation 1: segmentation: the RLE's size is [30, 20] but the image's is [20, 30]",
    ),
    "damaged": (
        lambda c: c["annotations"][0]["segmentation"].update(counts=encode_rle(CUP)["counts"][:-2]),
        "annotation 1: segmentation: ",
    ),
    "short polygon": (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "annotation 1: segmentation"),
    "polygon of text": (lambda c: c["annotations"][0].update(segmentation=[["a"] * 6]), "annotation 1: segmentation"),
    "no mask": (lambda c: c["annotations"][0].pop("segmentation"), "annotation 1: 'segmentation'"),
    "unknown image": (lambda c: c["annotations"][0].update(image_id=9), "annotation 1: image 9 is not in 'images'"),
    "unknown category": (lambda c: c["annotations"][0].update(category_id=9), "annotation 1: category 9 is not in"),
    "no category": (lambda c: c["annotations"][0].pop("category_id"), "annotation 1: 'category_id' must be"),
    "twice": (lambda c: c["annotations"][1].update(id=1), "annotation 1: the id occurs twice"),
    "image twice": (lambda c: c["images"][1].update(id=7), "image 7: the id occurs twice"),
    "no height": (lambda c: c["images"][0].pop("height"), "image 7: 'height' must be a whole number of at least 1"),
    "no list": (lambda c: c.pop("annotations"), "'annotations': expected a list, but it is missing"),
    "not records": (lambda c: c.update(images=[3]), "'images' item 0: expected an object"),
    "no name": (lambda c: c["categories"][0].update(name=None), "category 47: 'name' must be a text"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_every_flaw_is_one_error_that_names_file_and_record(load, content, case):
    damage, expected = BROKEN[case]
    damage(content)
    with pytest.raises(ValueError) as error:
        load()
    assert "annotations.json: " in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"), [("{", "is not JSON"), ("[]", "expected a JSON object"), (None, "cannot be read")]
)
def test_files_that_are_no_annotation_files(tmp_path, text, expected):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"x\.json: {expected}"):
        load_cocoa_cls(path)


def test_hidden_pixels_are_counted_as_on_decoded_masks():
    rng = np.random.default_rng(0)
    objects, seen = [], []
    for number in range(6):
        x, y = rng.integers(0, 15, 2)
        amodal = box(x, y, x + 12, y + 9)
        visible = amodal & ~np.any(seen, axis=0) if seen else amodal
        seen.append(amodal)
        objects.append(AmodalObject(number, "cup", encode_rle(visible), encode_rle(amodal), 0.0))
    counts = hidden_pixels(objects)
    for b, front in enumerate(objects):
        for a, back in enumerate(objects):
            hidden = decode_rle(back.amodal) & ~decode_rle(back.visible)
            assert counts[b, a] == (0 if a == b else (decode_rle(front.visible) & hidden).sum())
    assert counts.sum() > 0


def test_what_two_labels_share_is_not_hidden():
    laptop, screen = box(0, 0, 10, 10), box(0, 0, 10, 6)
    masks = [(laptop, laptop), (screen, screen), (box(5, 0, 15, 10) & ~laptop, box(5, 0, 15, 10))]
    objects = [AmodalObject(i, "tv", encode_rle(v), encode_rle(a), 0.0) for i, (v, a) in enumerate(masks)]
    assert hidden_pixels(objects).tolist() == [[0, 0, 50], [0, 0, 30], [0, 0, 0]]


def test_small_overlaps_occlude_nothing_and_the_main_occluder_comes_first():
    amodal = box(0, 0, 20, 20)
    parts = [box(0, 0, 20, 1), box(0, 5, 20, 9), box(0, 15, 7, 16)]
    hidden = parts[0] | parts[1] | parts[2]
    objects = [AmodalObject(9, "bed", encode_rle(amodal & ~hidden), encode_rle(amodal), 0.0)]
    objects += [AmodalObject(i, "cat", encode_rle(p), encode_rle(p), 0.0) for i, p in enumerate(parts)]
    assert occluders(objects)[0] == (1, 0)
    assert occluders([]) == []


def test_scenes_become_annotated_images():
    objects = (SceneObject("table", TABLE, TABLE_SEEN), SceneObject("cup", CUP, CUP))
    image = annotated_image_from_scene(Scene(np.zeros((H, W, 3), np.uint8), objects, "x"), 3, first_id=30)
    assert (image.image_id, image.height, image.width) == (3, H, W)
    assert [(o.id, o.category, o.occluded_by) for o in image.objects] == [(30, "table", (31,)), (31, "cup", ())]
    assert image.objects[0].amodal == encode_rle(TABLE) and image.objects[0].visible == encode_rle(TABLE_SEEN)
    assert image.objects[0].occlusion_rate == pytest.approx(0.16)


def things(*masks):
    return [AmodalObject(i, "x", encode_rle(v), encode_rle(a), 0.0) for i, (v, a) in enumerate(masks, start=1)]


def test_a_depth_order_decides_where_it_is_given():
    """A card on a book on a newspaper: the card hides where book and newspaper overlap."""
    card, book, paper = box(4, 4, 12, 12), box(4, 4, 13, 12), box(0, 0, 14, 14)
    objects = things((card, card), (book & ~card, book), (paper & ~book, paper))
    assert occluders(objects) == [(), (1,), (1, 2)]
    assert occluders(objects, [(1, 2), (1, 3), (2, 3)]) == [(), (1,), (2, 1)]  # the book covers more than shows of it
    assert occluders(objects, [(2, 1), (9, 1)]) == [(), (), (1, 2)]


def test_the_order_alone_makes_no_occluder():
    objects = things((box(0, 0, 10, 10), box(0, 0, 10, 10)), (box(10, 0, 20, 10), box(10, 0, 20, 10)))
    assert occluders(objects, [(1, 2)]) == [(), ()]


def cocoa_file(tmp_path, regions, constraint):
    image = {"id": 1, "file_name": "a.jpg", "height": H, "width": W}
    records = [{"id": 5, "image_id": 1, "regions": regions, "depth_constraint": constraint, "author": "a", "size": 2}]
    records.append({**records[0], "id": 6, "author": "b"})
    (tmp_path / "c.json").write_text(json.dumps({"images": [image], "annotations": records}))
    return AnnotationFile(tmp_path / "c.json")


def test_cocoa_regions_order_and_annotators(tmp_path):
    flat = [0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0]
    regions = [
        {"segmentation": flat, "name": " a  cup ", "order": 2},
        {"segmentation": flat, "name": None, "order": 1, "visible_mask": encode_rle(box(0, 0, 10, 2))},
        {"segmentation": flat[:4], "name": "cup", "order": 3},
        "nonsense",
    ]
    source = cocoa_file(tmp_path, regions, "2-1, 1-2,2-9,x")
    (image,) = source
    assert [(o.id, o.category) for o in image.objects] == [(1, "a cup"), (2, "object")]
    assert image.objects[1].occluded_by == (1,)  # the order contradicts itself, the masks decide
    assert not source.has_depth_order
    assert [p.record for p in source.problems] == ["annotation 5, region 4", "annotation 5, region 3"]
    assert "three x, y pairs" in source.problems[1].message
    notes = [str(note) for note in source.notes]
    assert notes[0].startswith("annotation 5: 'depth_constraint' says '2-9'") and "'x'" in notes[1]
    assert "each in front of the other" in notes[2]
    assert notes[3] == "annotation 6: image 1 has another annotator's regions already; these are not used"
    assert len(notes) == 4
    behind = {**regions[1], "order": 2}
    front = {**regions[0], "order": 1}
    for first, second, expected in ((behind, front, [(2,), ()]), (front, behind, [(), (1,)])):
        source = cocoa_file(tmp_path, [first, second], "1-2")  # positions in the order, not in the list
        (image,) = source
        assert source.has_depth_order and [o.occluded_by for o in image.objects] == expected


def test_a_rate_without_a_hidden_mask_is_a_flaw(load, content):
    content["annotations"][0]["occlude_rate"] = 0.4
    with pytest.raises(ValueError, match=r"annotation 1: 'occlude_rate' is 0\.4 but there is no visible or invisible"):
        load()


def test_crowds_and_empty_masks_are_told_of(tmp_path, content):
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1].update(visible_mask=encode_rle(box(0, 0, 0, 0)), invisible_mask=encode_rle(TABLE))
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    source = AnnotationFile(path)
    assert [image.objects for image in source] == [(), ()]
    assert [str(note) for note in source.notes] == [
        "annotation 1: left out: a crowd has no amodal mask",
        "annotation 2: left out: its visible mask is empty, there is nothing to point at",
    ]
    assert source.problems == []


@pytest.mark.parametrize("root", [{}, {"annotations": [{"segmentation": [], "bbox": []}]}, {"annotations": 3}])
def test_files_without_amodal_masks_are_refused(tmp_path, root):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(root))
    with pytest.raises(ValueError, match="no amodal annotations of a known layout"):
        AnnotationFile(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
def test_real_files():
    occluded = load_cocoa_cls(SHARED / "cocoa_cls_val_occluded_30.json")
    assert (len(occluded), sum(len(i.objects) for i in occluded)) == (337, 543)
    content = json.loads((SHARED / "cocoa_cls_val_occluded_30.json").read_text())
    stored = {a["id"]: a["occlude_rate"] for a in content["annotations"]}
    assert all(abs(stored[o.id] - o.occlusion_rate) < 1e-6 for i in occluded for o in i.objects)
    assert any(o.occluded_by for i in occluded for o in i.objects)
    (single,) = load_cocoa_cls(SHARED / "cocoa_cls_sample" / "COCO_amodal_val2014_with_classes.json")
    assert len(single.objects) == 4 and single.file_name == "COCO_val2014_000000328805.jpg"


def test_a_null_amodal_mask_beside_a_visible_one_is_an_unknown_shape(tmp_path):
    visible = encode_rle(np.eye(H, W, dtype=bool))
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": None, "visible_mask": visible}
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": H, "width": W}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [annotation],
    }
    path = tmp_path / "cocoa.json"
    path.write_text(json.dumps(document))
    (image,) = load_cocoa_cls(path)
    (cup,) = image.objects
    assert (cup.amodal, cup.occlusion_rate, cup.visible) == (None, None, visible)
    for change, told in (({"visible_mask": None}, "'visible_mask' must be there"), ({"occlude_rate": 0.5}, "null too")):
        path.write_text(json.dumps({**document, "annotations": [{**annotation, **change}]}))
        with pytest.raises(ValueError, match=told):
            load_cocoa_cls(path)
