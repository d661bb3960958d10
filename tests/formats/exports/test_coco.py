"""Our objects as COCO instances and as COCOA-cls, read by pycocotools and by our own reader."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.exports.coco import export_amodal, export_instances
from aura.formats.layouts import COCOA_CLS
from aura.formats.sources import AnnotationFile
from aura.masks import decode_rle, encode_rle


@pytest.mark.parametrize("kind", ["visible", "amodal"])
def test_pycocotools_reads_the_same_objects(dataset, masks, tmp_path, kind, capsys):
    account = export_instances(dataset, tmp_path / "out" / "coco.json", kind=kind)
    coco, truth = COCO(str(tmp_path / "out" / "coco.json")), masks(kind)
    assert account.written == len(truth) and coco.anns.keys() == truth.keys()
    names = {o.id: o.category for sample in dataset for o in sample.objects}
    for number, annotation in coco.anns.items():
        mask = coco.annToMask(annotation).astype(bool)
        assert (mask == truth[number]).all() and annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width - 1, y + height - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
        assert coco.cats[annotation["category_id"]]["name"] == names[number]
    assert coco.cats.keys() == {2, 6, 90} and coco.cats[6]["supercategory"] == "vehicle"
    assert coco.imgs[4] == {"id": 4, "file_name": "street/a.jpg", "height": 24, "width": 32, "license": 2}
    info = coco.dataset["info"]
    assert (tmp_path / "out" / info["image_folder"] / "b.jpg").is_file() and coco.dataset["licenses"] == [{"id": 2}]
    assert account.left_out == ({} if kind == "visible" else {"an object's whole shape is not known": 1})


def test_the_truth_as_results_has_an_average_precision_of_one(dataset, tmp_path, capsys):
    export_instances(dataset, tmp_path / "coco.json", kind="amodal")
    coco = COCO(str(tmp_path / "coco.json"))
    keys = ("image_id", "category_id", "segmentation")
    results = coco.loadRes([{**{key: a[key] for key in keys}, "score": 1.0} for a in coco.dataset["annotations"]])
    evaluation = COCOeval(coco, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == 1


def test_cocoa_cls_comes_back_as_the_same_objects(dataset, tmp_path, capsys):
    account = export_amodal(dataset, tmp_path / "cocoa.json")
    read = AnnotationFile(tmp_path / "cocoa.json", strict=True)
    assert read.layout == COCOA_CLS and account.written == 3 and not read.notes
    images = {image.image_id: image for image in read}
    for sample in dataset:
        image = images[sample.image_id]
        known = [o for o in sample.objects if o.amodal is not None]
        assert (image.height, image.width) == (sample.height, sample.width)
        for found, expected in zip(image.objects, known, strict=True):
            assert (found.id, found.category, found.visible, found.amodal) == (
                expected.id,
                expected.category,
                expected.visible,
                expected.amodal,
            )
            assert found.occlusion_rate == pytest.approx(expected.occlusion_rate)
    annotation = COCO(str(tmp_path / "cocoa.json")).anns[7]
    hidden = annotation["invisible_mask"]
    assert hidden == encode_rle(decode_rle(annotation["segmentation"]) & ~decode_rle(annotation["visible_mask"]))
    assert "invisible_mask" not in COCO(str(tmp_path / "cocoa.json")).anns[8]


def test_bare_records_get_what_cocoa_cls_has(dataset, tmp_path):
    document = json.loads((tmp_path / "data.json").read_text())
    for annotation in document["annotations"]:
        for key in ("area", "bbox", "visible_bbox", "iscrowd", "invisible_mask"):
            annotation.pop(key, None)
    del document["licenses"], document["info"]
    (tmp_path / "bare.json").write_text(json.dumps(document))
    export_amodal(dataset, tmp_path / "full.json")
    export_amodal(AmodalReasonSeg.load(tmp_path / "bare.json"), tmp_path / "again.json")
    ours, theirs = (json.loads((tmp_path / name).read_text()) for name in ("full.json", "again.json"))
    assert ours["annotations"] == theirs["annotations"] and theirs["licenses"] == []


def test_lists_without_records_and_in_any_order(dataset, tmp_path):
    document = {"conversations": [], "annotations": [], "images": [], "info": {}, "categories": []}
    (tmp_path / "none.json").write_text(json.dumps(document))
    export_instances(AmodalReasonSeg.load(tmp_path / "none.json"), tmp_path / "out.json", kind="visible")
    assert json.loads((tmp_path / "out.json").read_text())["images"] == []


def test_errors_leave_no_file(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"COCO is one file; give --out a name that ends with \.json"):
        export_amodal(dataset, tmp_path / "folder")
    with pytest.raises(ValueError, match=r"data\.json is there already"):
        export_amodal(dataset, tmp_path / "data.json")
    document = json.loads((tmp_path / "data.json").read_text())
    document["annotations"][1]["segmentation"] = encode_rle(np.zeros((24, 32), bool))
    (tmp_path / "empty.json").write_text(json.dumps(document))
    damaged = AmodalReasonSeg.load(tmp_path / "empty.json")
    for export in (export_amodal, lambda *args: export_instances(*args, kind="amodal")):
        with pytest.raises(ValueError, match=r"empty\.json: annotation 8: its amodal mask is empty; drop the object"):
            export(damaged, tmp_path / "out.json")
    assert not list(tmp_path.glob("*out.json*"))
