"""Our answers as GranD-f, read by the rules of GLaMM's own reader."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from aura.data.answers import object_names
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.exports.gcg import caption_of, export_gcg


def glamm_items(base, split="train") -> dict[str, dict]:
    """What GLaMM's ``GranDfDataset`` makes of the files (mbzuai-oryx/groundingLMM at b848f391), by picture."""
    folder = {"train": "train"}.get(split, "val_test")
    items = {}
    annotations = base / "GranDf" / "annotations" / folder / f"GranDf_HA_GCG_{split}.json"
    for entry in json.loads(annotations.read_text()):
        width, height = Image.open(base / "GranDf" / "GranDf_HA_images" / folder / entry["file_name"]).size
        caption = entry["caption"].strip('"').strip()
        spans, masks = [], []
        for grounding in entry["groundings"].values():
            spans.append(grounding["token_positives"])
            mask = np.zeros((height, width), np.uint8)
            for rle in grounding["rle_masks"]:
                mask += coco_mask.decode(rle).astype(np.uint8).squeeze()
            masks.append(mask)
        order = sorted(range(len(spans)), key=lambda i: spans[i][0])
        tagged = caption
        for start, end in sorted(spans, key=lambda span: span[0], reverse=True):
            tagged = f"{tagged[:start]}<p> {tagged[start:end]} </p> [SEG]{tagged[end:]}"
        items[entry["file_name"]] = {"answer": tagged, "masks": [masks[i] for i in order], "entry": entry}
    return items


@pytest.mark.parametrize("kind", ["visible", "amodal"])
def test_glamm_reads_every_answer_with_a_mask_a_seg(dataset, masks, tmp_path, kind):
    account = export_gcg(dataset, tmp_path / "glamm", kind=kind, split="train", names=object_names)
    items, truth = glamm_items(tmp_path / "glamm"), masks(kind)
    assert account.written == len(items) == (4 if kind == "visible" else 3)
    item = items["c3_t0.jpg"]
    assert item["answer"] == "You could ride the <p> bus </p> [SEG], which a <p> tree </p> [SEG] hides."
    assert all((mask == truth[number]).all() for mask, number in zip(item["masks"], (7, 8), strict=True))
    assert item["entry"]["question"].startswith("What could I ride") and item["entry"]["source_image_id"] == 4
    assert [g["annotation_id"] for g in item["entry"]["groundings"].values()] == [7, 8]
    # Neither [SEG] has a phrase of its own: the category comes before it.
    assert items["c3_t1.jpg"]["answer"] == "<p> tree </p> [SEG] is."
    twice = items["c8_t0.jpg"]
    assert twice["answer"] == "The <p> buses </p> [SEG] and <p> bus </p> [SEG]."
    assert all(mask.max() == 1 and (mask == truth[11]).all() for mask in twice["masks"])


@pytest.mark.parametrize(
    ("answer", "categories", "text", "phrases"),
    [
        ("A cup [SEG] and a cup [SEG].", ["cup", "cup"], "A cup and a cup.", ["cup", "cup"]),
        ('"The red bus [SEG]"', ["bus"], "The red bus", ["red bus"]),
        ("[SEG] [SEG]", ["cat", "dog"], "cat dog", ["cat", "dog"]),
        ("  Take the cup (blue) [SEG] now. ", ["cup"], "Take the cup (blue) now.", ["cup"]),
    ],
)
def test_captions_and_their_spans(answer, categories, text, phrases):
    caption = caption_of(answer, object_names(answer), categories)
    assert caption.text == text and [text[start:end] for start, end in caption.spans] == phrases
    assert all(a[1] <= b[0] for a, b in zip(caption.spans, caption.spans[1:], strict=False))


def test_equal_phrases_keep_labels_of_their_own(dataset, tmp_path):
    document = json.loads((tmp_path / "data.json").read_text())
    document["conversations"][0]["turns"][0]["answer"] = "A thing [SEG], a thing [SEG]."
    (tmp_path / "twice.json").write_text(json.dumps(document))
    again = AmodalReasonSeg.load(tmp_path / "twice.json")
    export_gcg(again, tmp_path / "glamm", kind="visible", split="val", names=object_names)
    entry = glamm_items(tmp_path / "glamm", "val")["c3_t0.jpg"]["entry"]
    assert list(entry["groundings"]) == ["thing", "thing (2)"]


def test_a_split_appears_whole_and_replaces_nothing(dataset, tmp_path):
    export_gcg(dataset, tmp_path / "glamm", kind="visible", split="train", names=object_names)
    with pytest.raises(ValueError, match="train is there already"):
        export_gcg(dataset, tmp_path / "glamm", kind="amodal", split="train", names=object_names)
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(ValueError, match="does not exist"):
        export_gcg(dataset, tmp_path / "glamm", kind="visible", split="test", names=object_names)
    assert not (tmp_path / "glamm" / "GranDf" / "annotations" / "val_test" / "GranDf_HA_GCG_test.json").exists()
    assert not (tmp_path / "glamm" / "GranDf" / "GranDf_HA_images" / "val_test").exists()
