"""``scripts/prepare_cocoa.py`` on files in the exact layouts of their projects, and on the real ones."""

import copy
import json
import runpy
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.checks import problems
from aura.masks import decode_rle, encode_rle

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "prepare_cocoa.py"))
MAIN = SCRIPT["main"]
SHARED = Path(__file__).parents[3] / "shared" / "data"
H, W = 24, 32


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def outline(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    """The polygon that COCO rasterises to :func:`rectangle`."""
    return [float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]


FRONT, BACK = (2, 2, 12, 12), (8, 4, 28, 20)
CUP, TABLE = rectangle(*FRONT), rectangle(*BACK)
SEEN, HIDDEN = TABLE & ~CUP, TABLE & CUP
RATE = HIDDEN.sum() / TABLE.sum()


def coco_like(names: tuple[str, str], ids: tuple[int, int] = (47, 67)) -> dict:
    return {
        "info": {"description": "made for a test"},
        "licenses": [{"id": 3, "name": "none", "url": ""}],
        "images": [
            {"id": 7, "file_name": names[0], "height": H, "width": W, "license": 3, "date_captured": "2013-11-15"},
            {"id": 9, "file_name": names[1], "height": H, "width": W, "license": 3, "date_captured": "2013-11-15"},
        ],
        "categories": [{"id": i, "name": n, "supercategory": "s"} for i, n in zip(ids, ("cup", "table"), strict=True)],
        "annotations": [],
    }


def cocoa_cls(names=("COCO_train2014_000000000007.jpg", "COCO_train2014_000000000009.jpg"), ids=(47, 67)) -> dict:
    content = coco_like(names, ids)
    common = {"image_id": 7, "iscrowd": False}
    content["annotations"] = [
        {**common, "id": 1, "category_id": ids[0], "segmentation": encode_rle(CUP), "visible_mask": encode_rle(CUP)}
        | {"area": 100, "bbox": [2.0, 2.0, 10.0, 10.0], "occlude_rate": 0.0},
        {**common, "id": 2, "category_id": ids[1], "segmentation": encode_rle(TABLE), "visible_mask": encode_rle(SEEN)}
        | {"invisible_mask": encode_rle(HIDDEN), "area": 320, "bbox": [8.0, 4.0, 20.0, 16.0], "occlude_rate": RATE},
    ]
    return content


def d2sa() -> dict:
    return cocoa_cls(names=("D2S_000007.jpg", "D2S_000009.jpg"), ids=(1, 60))


def cocoa() -> dict:
    content = coco_like(("COCO_val2014_000000000007.jpg", "COCO_val2014_000000000009.jpg"))
    del content["categories"]
    regions = [
        {"segmentation": outline(*FRONT), "name": "cup", "area": 100.0, "isStuff": 0, "occlude_rate": 0.0, "order": 1},
        {"segmentation": outline(*BACK), "name": " table ", "area": 320.0, "isStuff": 0, "order": 2}
        | {"occlude_rate": RATE, "visible_mask": encode_rle(SEEN), "invisible_mask": encode_rle(HIDDEN)},
        {"segmentation": outline(0, 0, W, H), "name": "grass", "area": H * W, "isStuff": 1, "order": 3}
        | {"occlude_rate": float((CUP | TABLE).sum() / (H * W))}
        | {"visible_mask": encode_rle(~(CUP | TABLE)), "invisible_mask": encode_rle(CUP | TABLE)},
    ]
    common = {"author": "ann", "url": "http://x", "size": 3, "image_id": 7, "depth_constraint": "1-2,1-3,2-3"}
    content["annotations"] = [{**common, "id": 41, "regions": regions}]
    return content


def kins_2019() -> dict:
    content = coco_like(("000007.png", "000009.png"), ids=(2, 4))
    common = {"image_id": 7, "iscrowd": 0}
    content["annotations"] = [
        {**common, "id": 1, "category_id": 2, "segmentation": [outline(*FRONT)], "bbox": [2, 2, 10, 10]}
        | {"area": 100, "inmodal_seg": encode_rle(CUP), "inmodal_bbox": [2, 2, 10, 10]},
        {**common, "id": 2, "category_id": 4, "segmentation": [outline(*BACK)], "bbox": [8, 4, 20, 16]}
        | {"area": 320, "inmodal_seg": encode_rle(SEEN), "inmodal_bbox": [8, 4, 20, 16]},
    ]
    return content


def kins_2020() -> dict:
    content = kins_2019()
    seen = [[12.0, 4.0, 28.0, 4.0, 28.0, 20.0, 8.0, 20.0, 8.0, 12.0, 12.0, 12.0]]
    for annotation, visible in zip(content["annotations"], ([outline(*FRONT)], seen), strict=True):
        annotation |= {"a_segm": annotation.pop("segmentation"), "i_segm": visible, "oco_id": 1, "ico_id": 1}
        annotation |= {"a_bbox": annotation.pop("bbox"), "i_bbox": annotation.pop("inmodal_bbox")}
        del annotation["inmodal_seg"]
    return content


LAYOUTS = {
    "COCOA-cls": (cocoa_cls, "COCO_amodal_train2014_with_classes", "train2014"),
    "COCOA": (cocoa, "COCO_amodal_val2014", "val2014"),
    "D2SA": (d2sa, "D2S_amodal_training_rot0", "images"),
    "KINS 2019": (kins_2019, "instances_train", "training/image_2"),
    "KINS 2020": (kins_2020, "update_train_2020", "training/image_2"),
}


@pytest.fixture
def place(tmp_path):
    """``place(content, stem, folder)``: an annotation file and its pictures as they are unpacked."""

    def write(content, stem="COCO_amodal_train2014_with_classes", folder="train2014"):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        pictures = tmp_path / "pictures" / folder
        pictures.mkdir(parents=True, exist_ok=True)
        for image in content["images"]:
            Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(pictures / image["file_name"])
        (tmp_path / "annotations" / f"{stem}.json").write_text(json.dumps(content))

    return write


@pytest.fixture
def prepare(tmp_path):
    def call(*more):
        given = ["--annotations", str(tmp_path / "annotations"), "--out", str(tmp_path / "out"), *more]
        return MAIN([*given, *(() if "--no-images" in more else ("--images", str(tmp_path / "pictures")))])

    return call


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_the_same_data_set(tmp_path, place, prepare, capsys, name):
    make, stem, folder = LAYOUTS[name]
    place(make(), stem, folder)
    assert prepare() == 0
    assert f"{stem}.json: {name}, 2 images" in capsys.readouterr().out
    path = tmp_path / "out" / f"{stem}.json"
    document = json.loads(path.read_text())
    (sample,) = AmodalReasonSeg.load(path)
    assert sample.image_path.resolve() == (tmp_path / "pictures" / folder / make()["images"][0]["file_name"]).resolve()
    cup, table = sample.objects
    assert [(o.category, o.occluded_by) for o in sample.objects] == [("cup", ()), ("table", (cup.id,))]
    assert (decode_rle(cup.amodal) == CUP).all() and (decode_rle(cup.visible) == CUP).all()
    assert (decode_rle(table.amodal) == TABLE).all() and (decode_rle(table.visible) == SEEN).all()
    assert table.occlusion_rate == pytest.approx(RATE, abs=1e-12)
    assert document["conversations"] == []
    assert document["images"][0]["date_captured"] == "2013-11-15" and document["licenses"][0]["id"] == 3
    assert problems(document, images=tmp_path / "pictures" / folder) == []
    assert (tmp_path / "out" / f"{stem}.problems.txt").exists() == (name == "COCOA")  # which tells of the stuff


def test_stuff_is_told_of_or_kept(tmp_path, place, prepare, capsys):
    place(cocoa(), "COCO_amodal_val2014", "val2014")
    assert prepare() == 0
    assert "annotation 41, region 3: it is stuff ('grass')" in capsys.readouterr().out
    assert prepare("--with-stuff", "--force") == 0
    (sample,) = AmodalReasonSeg.load(tmp_path / "out" / "COCO_amodal_val2014.json")
    grass = sample.objects[2]
    assert grass.category == "grass" and set(grass.occluded_by) == {1, 2}
    assert (
        json.loads((tmp_path / "out" / "COCO_amodal_val2014.json").read_text())["info"]["occluded_by"] == "depth order"
    )


def test_same_input_same_bytes_and_what_is_there_stays(tmp_path, place, prepare, capsys):
    place(cocoa_cls())
    assert prepare("--questions") == 0
    out = tmp_path / "out" / "COCO_amodal_train2014_with_classes.json"
    first, pairs = out.read_bytes(), AmodalReasonSeg.load(out).statistics()["pairs"]
    assert pairs >= 8 and f"{pairs} question-answer pairs" in capsys.readouterr().out
    assert prepare("--questions") == 0
    assert "is there already" in capsys.readouterr().out and out.read_bytes() == first
    assert prepare("--questions", "--force") == 0 and out.read_bytes() == first
    assert prepare("--questions", "--seed", "1") == 2
    assert "was made from something else; --force" in capsys.readouterr().err
    assert out.read_bytes() == first
    assert prepare("--questions", "--seed", "1", "--force") == 0 and out.read_bytes() != first


def damaged() -> dict:
    """Eight flawed records among two sound ones."""
    content = cocoa_cls()
    cup, table = content["annotations"]

    def other(number, base, **changes):
        content["annotations"].append({**copy.deepcopy(base), "id": number, **changes})

    other(3, cup, segmentation={"size": [W, H], "counts": encode_rle(CUP.T)["counts"]})
    other(4, table, visible_mask=encode_rle(~TABLE))
    other(5, table, invisible_mask=encode_rle(SEEN))
    other(6, cup, segmentation={"size": [H, W], "counts": encode_rle(CUP)["counts"][:-2]})
    other(7, cup, image_id=8)
    other(8, cup, category_id=1)
    other(1, cup)
    content["annotations"].append({"image_id": 7})
    return content


BAD = [
    "annotation 3: segmentation: the RLE's size is [32, 24] but the image's is [24, 32]",
    "annotation 4: 448 of 448 visible pixels lie outside the amodal mask",
    "annotation 5: 'invisible_mask' is not amodal minus visible",
    "annotation 6: segmentation: ",
    "annotation 7: image 8 is not in 'images'",
    "annotation 8: category 1 is not in 'categories'",
    "annotation 1: the id occurs twice",
    "'annotations' item 9: 'id' must be a whole number",
]


def test_bad_records_stop_a_file_and_are_all_listed(tmp_path, place, prepare, capsys):
    place(damaged())
    place(d2sa(), "D2S_amodal_validation", "images")
    assert prepare() == 1
    printed = capsys.readouterr().out
    report = (tmp_path / "out" / "COCO_amodal_train2014_with_classes.problems.txt").read_text()
    for line in BAD:
        assert f"bad record: {line}" in printed and f"bad record: {line}" in report
    assert "8 bad records, 0 notes" in printed and report.count("\n") == 8
    assert not (tmp_path / "out" / "COCO_amodal_train2014_with_classes.json").exists()
    assert (tmp_path / "out" / "D2S_amodal_validation.json").exists()


def test_bad_records_can_be_left_out(tmp_path, place, prepare):
    place(damaged())
    assert prepare("--on-error", "skip-with-report") == 0
    out = tmp_path / "out" / "COCO_amodal_train2014_with_classes.json"
    (sample,) = AmodalReasonSeg.load(out)
    assert [o.id for o in sample.objects] == [1, 2]
    assert json.loads(out.read_text())["info"]["left_out"] == {"bad_records": 8, "images_without_objects": 1}
    assert (tmp_path / "out" / "COCO_amodal_train2014_with_classes.problems.txt").is_file()


def test_pictures_that_a_camera_turned_are_told(tmp_path, place, prepare, capsys):
    content = cocoa_cls()
    place(content)
    folder = tmp_path / "pictures" / "train2014"
    exif = Image.Exif()
    first, second = (image["file_name"] for image in content["images"][:2])
    exif[0x0112] = 6
    Image.fromarray(np.zeros((W, H, 3), np.uint8)).save(folder / first, exif=exif)
    exif[0x0112] = 3
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(folder / second, exif=exif)
    assert prepare() == 1
    printed = capsys.readouterr().out
    assert "bad record: " in printed and "EXIF orientation (6) turns it to 24 x 32" in printed
    assert "note: " in printed and "EXIF orientation 3, which is not applied" in printed


def test_pictures_must_be_there_decode_and_fit(tmp_path, place, prepare, capsys):
    content = cocoa_cls()
    content["images"] += [{"id": n, "file_name": f"{n}.jpg", "height": H, "width": W} for n in (11, 13)]
    for number in (9, 11, 13):
        content["annotations"].append({**content["annotations"][0], "id": 100 + number, "image_id": number})
    place(content)
    folder = tmp_path / "pictures" / "train2014"
    (folder / content["images"][1]["file_name"]).unlink()
    (folder / "11.jpg").write_bytes((folder / "11.jpg").read_bytes()[:200])
    Image.fromarray(np.zeros((W, H, 3), np.uint8)).save(folder / "13.jpg")
    assert prepare() == 1
    printed = capsys.readouterr().out
    assert "image 9: " in printed and "does not exist" in printed
    assert "image 11: " in printed and "cannot be decoded" in printed
    assert (
        "image 13: " in printed and "is 32 x 24 (height x width), the record says 24 x 32; 1 objects with it" in printed
    )
    assert prepare("--on-error", "skip-with-report") == 0
    assert [s.image_id for s in AmodalReasonSeg.load(tmp_path / "out" / "COCO_amodal_train2014_with_classes.json")] == [
        7
    ]


def test_figures_that_the_masks_deny_are_noted_and_computed_anew(tmp_path, place, prepare, capsys):
    content = cocoa_cls()
    content["annotations"][1].update(occlude_rate=0.5, area=999, bbox=[0, 0, 5, 5])
    place(content)
    assert prepare() == 0
    printed = capsys.readouterr().out
    assert "0 bad records, 3 notes" in printed
    assert f"note: annotation 2: 'occlude_rate' was 0.5 instead of {RATE:.4f}; computed from the masks" in printed
    assert "'area' was 999 instead of 320" in printed and "'bbox' was [0, 0, 5, 5]" in printed
    record = json.loads((tmp_path / "out" / "COCO_amodal_train2014_with_classes.json").read_text())["annotations"][1]
    assert record["area"] == 320 and record["bbox"] == [8.0, 4.0, 20.0, 16.0]
    assert record["occlude_rate"] == pytest.approx(RATE)


def test_pictures_are_found_by_their_split(tmp_path, place, prepare, capsys):
    place(kins_2019(), "instances_train", "training/image_2")
    place(kins_2019(), "instances_val", "testing/image_2")
    assert prepare() == 0
    for stem, folder in (("instances_train", "training"), ("instances_val", "testing")):
        (sample,) = AmodalReasonSeg.load(tmp_path / "out" / f"{stem}.json")
        assert f"pictures/{folder}/" in sample.image_path.resolve().as_posix()
    assert "WARNING: instances_val.json shares 1 images with instances_train.json" in capsys.readouterr().out
    (tmp_path / "annotations" / "instances_val.json").rename(tmp_path / "annotations" / "mine.json")
    assert prepare() == 2
    assert "could be those in" in capsys.readouterr().err


def test_what_another_system_leaves_in_a_folder_and_how_it_spells_names(tmp_path, place, prepare, capsys):
    content = cocoa_cls()
    content["images"][0]["file_name"] = unicodedata.normalize("NFD", "컵과 책.jpg")
    place(content)
    content["images"][0]["file_name"] = "컵과 책.jpg"
    (tmp_path / "annotations" / "COCO_amodal_train2014_with_classes.json").write_text(json.dumps(content))
    (tmp_path / "annotations" / "._train.json").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (tmp_path / "annotations" / "results.json").write_text('[{"image_id": 1, "score": 0.5}]')
    assert prepare() == 0
    output = capsys.readouterr().out
    assert "results.json: passed over, it holds no amodal annotations" in output and "._train" not in output
    assert "its file is spelt" in output
    (sample,) = AmodalReasonSeg.load(tmp_path / "out" / "COCO_amodal_train2014_with_classes.json")
    assert sample.image_path.is_file()


def test_what_cannot_be_read_is_one_line(tmp_path, place, prepare, capsys):
    (tmp_path / "annotations").mkdir()
    assert prepare() == 2
    assert "no annotation file of COCOA-cls" in capsys.readouterr().err
    place(cocoa_cls(), folder="elsewhere/deep/down")
    (tmp_path / "annotations" / "captions.json").write_text('{"annotations": [{"caption": "a"}]}')
    assert prepare() == 2
    output = capsys.readouterr()
    assert "captions.json: passed over" in output.out and "none of the pictures of" in output.err
    assert prepare("--no-images") == 0
    (tmp_path / "annotations" / "broken.json").write_text("{")
    assert prepare("--no-images", "--force") == 2
    assert "is not JSON" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cocoa_cls_sample/COCO_amodal_val2014_with_classes.json", (1, 4)),
        ("cocoa_cls_val_occluded_30.json", (337, 543)),
    ],
)
def test_real_annotations_to_the_pixel(tmp_path, name, counts):
    """Against the file's own figures, and against masks that numpy combines and pycocotools decodes."""
    pictures = SHARED / "cocoa_cls_sample"
    images = ["--images", str(pictures)] if counts[0] == 1 else ["--no-images"]
    assert MAIN(["--annotations", str(SHARED / name), *images, "--out", str(tmp_path)]) == 0
    path = tmp_path / Path(name).name
    assert not path.with_suffix(".problems.txt").exists()
    made, source = COCO(str(path)), COCO(str(SHARED / name))
    assert (len(made.imgs), len(made.anns)) == counts
    assert made.anns.keys() == source.anns.keys()
    for number, annotation in made.anns.items():
        original = source.anns[number]
        amodal, visible = (source.annToMask({**original, "segmentation": original[key]}).astype(bool) for key in
                           ("segmentation", "visible_mask"))  # fmt: skip
        assert (made.annToMask(annotation) == amodal).all()
        assert (mask_util.decode(annotation["visible_mask"]) == visible).all()
        assert annotation["area"] == original["area"] == amodal.sum()
        rows, columns = np.flatnonzero(amodal.any(1)), np.flatnonzero(amodal.any(0))
        left, top = int(columns[0]), int(rows[0])
        assert annotation["bbox"] == [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
        # Four of the real boxes begin one row too low.
        assert np.abs(np.subtract(annotation["bbox"], original["bbox"])).max() <= 1
        assert annotation["occlude_rate"] == pytest.approx(original["occlude_rate"], abs=1e-8)
        assert annotation["occlude_rate"] == pytest.approx((amodal & ~visible).sum() / amodal.sum(), abs=1e-12)
        if "invisible_mask" in original:
            assert (
                mask_util.decode(annotation["invisible_mask"]) == mask_util.decode(original["invisible_mask"])
            ).all()
        hidden, occluders = amodal & ~visible, set()
        for other in source.imgToAnns[original["image_id"]]:
            covered = (hidden & mask_util.decode(other["visible_mask"]).astype(bool)).sum()
            if other["id"] != number and covered >= max(4, 0.02 * amodal.sum()):
                occluders.add(other["id"])
        assert set(annotation["occluded_by"]) == occluders
    assert {c["id"]: c["name"] for c in made.dataset["categories"]}.items() <= {
        c["id"]: c["name"] for c in source.dataset["categories"]
    }.items()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
def test_real_image(tmp_path):
    folder = SHARED / "cocoa_cls_sample"
    assert MAIN(["--annotations", str(folder), "--images", str(folder), "--out", str(tmp_path), "--questions"]) == 0
    (sample,) = AmodalReasonSeg.load(tmp_path / "COCO_amodal_val2014_with_classes.json")
    assert sample.image_path.resolve() == (folder / "val2014" / "COCO_val2014_000000328805.jpg").resolve()
    areas = {o.id: int(mask_util.area(o.amodal)) for o in sample.objects}
    assert areas == {714414: 826, 717369: 602, 1095012: 21833, 1610209: 4692}
    toilet = sample.objects[2]
    assert toilet.category == "toilet" and int(mask_util.area(toilet.visible)) == 14336
    assert toilet.occlusion_rate == pytest.approx(0.34337928823340813, abs=1e-12) and toilet.occluded_by == ()
    assert sum(len(c.turns) for c in sample.conversations) == 10
