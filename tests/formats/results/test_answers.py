"""GLaMM's, Sa2VA's and PSALM's files: what is read, and every way in which they are wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from aura.formats.results.answers import read_glamm, read_psalm, read_sa2va
from aura.formats.results.readers import READERS
from aura.masks import decode_rle, encode_rle

MASK = np.eye(4, 5, dtype=bool)
RLE = encode_rle(MASK)


def write(path: Path, value) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def answer(**changes) -> dict:
    return {"image_id": "c7_t0", "caption": "A bus.", "phrases": ["A bus"], "pred_masks": [RLE, RLE], **changes}


@pytest.mark.parametrize("read", [read_glamm, read_sa2va])
def test_an_answer_a_file(tmp_path, read):
    write(tmp_path / "out" / "c7_t0.json", answer())
    write(tmp_path / "out" / "sa_1.json", {"sa_1": answer(image_id="sa_1", pred_masks=[RLE])})
    write(tmp_path / "out" / "sa_2.json", answer(image_id="sa_2", pred_masks=[]))
    a, b, c = read(tmp_path / "out")
    assert [(m.question, m.place) for m in (a, b)] == [((7, 0), 0), ((7, 0), 1)]
    assert c.image == "sa_1" and c.category is None and (decode_rle(c.mask) == MASK).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected a JSON object"),
        ({"image_id": "c7_t0"}, r"c7_t0\.json: the answer: pred_masks missing; GLaMM's infer\.py writes both"),
        (answer(pred_masks="S1"), "'pred_masks' must be a list of RLEs, got a str"),
        (
            answer(pred_masks=[RLE, "S1"]),
            r"mask 1: expected an RLE with 'size' \[height, width\] and 'counts', got 'S1'",
        ),
        (answer(pred_masks=[{"size": [4, 5], "counts": "S1"}]), "mask 0: .*add up to"),
        (answer(pred_masks=[]), "holds no mask"),
    ],
)
def test_what_is_wrong_with_an_answer_is_named(tmp_path, value, message):
    write(tmp_path / "out" / "c7_t0.json", value)
    with pytest.raises(ValueError, match=message) as error:
        read_glamm(tmp_path / "out")
    assert str(tmp_path / "out") in str(error.value)


def test_an_answer_twice_and_no_answers_are_named(tmp_path):
    with pytest.raises(ValueError, match="out: is no folder; give the one with the JSON files"):
        read_glamm(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out: has no JSON file"):
        read_glamm(tmp_path / "out")
    for name in ("c7_t0.json", "copy.json"):
        write(tmp_path / "out" / name, answer())
    with pytest.raises(ValueError, match=r"copy\.json: mask 0: the same place of an answer is given by .*c7_t0\.json"):
        read_glamm(tmp_path / "out")


def test_sa2va_results_of_nested_lists_and_rles(tmp_path):
    records = [
        {"img_id": 5, "image_path": "x/c7_t0.jpg", "prediction_masks": [[MASK[None].tolist(), MASK[None].tolist()]]},
        {"img_id": 5, "image_path": "x/c7_t1.jpg", "prediction_masks": [None]},
        {"img_id": 5, "image_path": "x/5.jpg", "prediction_masks": [[RLE]]},
    ]
    a, b, c = read_sa2va(write(tmp_path / "results.json", records))
    assert [(m.question, m.place) for m in (a, b)] == [((7, 0), 0), ((7, 0), 1)]
    assert c.image == "x/5.jpg" and all((decode_rle(m.mask) == MASK).all() for m in (a, b, c))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, r"expected a JSON list of records, got a object; Sa2VA's r2s_eval\.py"),
        ([], "holds no mask"),
        ([4], "result 0: expected an object"),
        ([{"img_id": 5}], r"result 0: image_path, prediction_masks missing; Sa2VA's r2s_eval\.py writes both"),
        ([{"image_path": "5.jpg", "prediction_masks": RLE}], "result 0: 'prediction_masks' must be a list"),
        (
            [{"image_path": "5.jpg", "prediction_masks": [[[[[1, 0], [1]]]]]}],
            "mask 0: its rows have different lengths",
        ),
        ([{"image_path": "5.jpg", "prediction_masks": [[[1, 0]]]}], r"result 0, mask 0: its shape is \[2\]"),
        ([{"image_path": "5.jpg", "prediction_masks": [[[[0.3, 0.7]]]]}], "the mask has more than two values"),
    ],
)
def test_what_is_wrong_with_sa2va_results_is_named(tmp_path, value, message):
    with pytest.raises(ValueError, match=message) as error:
        read_sa2va(write(tmp_path / "results.json", value))
    assert "results.json" in str(error.value)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_psalm_pickles_of_the_referring_task(tmp_path, protocol):
    rows = [{"pred": MASK, "gt": MASK, "name": "/data/c7_t0.jpg"}, {"pred": MASK.astype(np.uint8), "name": "a/b.jpg"}]
    (tmp_path / "pred_ours.pkl").write_bytes(pickle.dumps(rows, protocol=protocol))
    first, second = read_psalm(tmp_path / "pred_ours.pkl")
    assert first.question == (7, 0) and second.image == "a/b.jpg"
    assert (decode_rle(first.mask) == MASK).all() and (decode_rle(second.mask) == MASK).all()


def test_psalm_results_of_the_instance_task(tmp_path):
    result = {"image_id": 3, "category_id": 6, "segmentation": RLE, "score": 0.5}
    (found,) = read_psalm(write(tmp_path / "coco_instances_results.json", [result]))
    assert (found.image, found.category) == (3, 6)


class Harmful:
    def __reduce__(self):
        return print, ("this file runs code",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps([Harmful()]), "is refused, since it names builtins.print"),
        (b"", "is not a pickle"),
        (pickle.dumps({}), "expected a list of predictions, got dict"),
        (pickle.dumps([{"pred": MASK}]), "result 0: 'pred' and 'name' are needed"),
        (pickle.dumps([{"pred": MASK, "name": "c1_t0.jpg"}] * 2), "result 1: the same place of an answer"),
        (pickle.dumps([{"pred": None, "name": "c1_t0.jpg"}]), r"result 0: its shape is \[\]"),
    ],
)
def test_what_is_wrong_with_a_pickle_is_named_and_its_code_never_runs(tmp_path, capsys, data, message):
    (tmp_path / "pred.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_psalm(tmp_path / "pred.pkl")
    assert "pred.pkl" in str(error.value) and "runs code" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no\.pkl: cannot be read"):
        read_psalm(tmp_path / "no.pkl")


def test_methods_that_save_nothing_are_read_as_folders_or_as_coco_results(tmp_path):
    result = {"annotation_id": 3, "segmentation": RLE}
    np.save(write(tmp_path / "out" / "results.json", [result]).with_name("a3.npy"), MASK)
    for name in ("c2f_seg", "sd_amodal"):
        for path in (tmp_path / "out", tmp_path / "out" / "results.json"):
            assert [m.annotation for m in READERS[name](path)] == [3]
