"""Predictions against samples: every protocol, missing and surplus predictions, and errors that name the record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from aura.evaluation.scoring import PredictedAnswer, Prediction, Scorer, load_predictions, save_predictions, score
from aura.masks import encode_rle
from aura.types import AmodalObject, Conversation, MaskPair, Sample, Turn

SIZE = (20, 30)


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def thing(id_: int, visible: np.ndarray, amodal: np.ndarray) -> AmodalObject:
    rate = 1 - visible.sum() / amodal.sum()
    return AmodalObject(id_, f"thing {id_}", encode_rle(visible), encode_rle(amodal), float(rate))


@pytest.fixture
def dataset() -> list[Sample]:
    """Two images; 4 turns; 5 ``[SEG]`` in all."""
    a = thing(1, box(0, 0, 10, 5), box(0, 0, 10, 10))
    b = thing(2, box(0, 5, 10, 20), box(0, 5, 10, 20))
    c = thing(3, box(5, 5, 15, 15), box(5, 5, 15, 25))
    two = Turn("What could I use?", "The one [SEG] and the other [SEG].", (1, 2))
    one = Turn("And behind it?", "The first [SEG].", (1,))
    none = Turn("Anything to eat?", "No, nothing.", ())
    last = Turn("What else?", "This [SEG] and that [SEG].", (3, 3))
    first = Sample(1, Path("a.jpg"), *SIZE, (a, b), (Conversation(10, (two, one)), Conversation(11, (none,))))
    return [first, Sample(2, Path("b.jpg"), *SIZE, (c,), (Conversation(12, (last,)),))]


def perfect(dataset: list[Sample]) -> list[Prediction]:
    return [
        Prediction(c.id, t, i, objects[id_].visible, objects[id_].amodal)
        for sample in dataset
        for objects in [{o.id: o for o in sample.objects}]
        for c in sample.conversations
        for t, turn in enumerate(c.turns)
        for i, id_ in enumerate(turn.objects)
    ]


@pytest.mark.parametrize("protocol", ["teacher_forced", "generated_order", "generated_matched"])
def test_perfect_predictions_score_one_everywhere(dataset, protocol) -> None:
    predictions = perfect(dataset)
    figures = score(dataset, reversed(predictions), protocol=protocol).as_dict()
    assert figures["protocol"] == protocol
    assert (figures["num_images"], figures["num_answers"], figures["num_objects"]) == (2, 4, 5)
    for region in ("visible", "amodal"):
        assert figures[region] == {"giou_object": 1, "giou_answer": 1, "giou_image": 1, "ciou": 1}
    assert figures["invisible"] == {"giou_object": 1, "ciou": 1, "num_objects": 4}
    assert figures["occlusion_rate_mae"] == 0
    assert figures["seg_count_accuracy"] == 1
    assert figures["visible_outside_amodal"] == 0
    assert figures["amodal_from_visible"]["giou_object"] == pytest.approx((0.5 + 1 + 0.5 + 0.5 + 0.5) / 5)


@pytest.mark.parametrize("protocol", ["teacher_forced", "generated_order", "generated_matched"])
def test_no_predictions_score_zero(dataset, protocol) -> None:
    figures = score(dataset, [], protocol=protocol).as_dict()
    for region in ("visible", "amodal", "amodal_from_visible"):
        assert set(figures[region].values()) == {0.0}
    assert figures["invisible"] == {"giou_object": 0, "ciou": 0, "num_objects": 4}
    assert figures["occlusion_rate_mae"] is None
    assert figures["seg_count_accuracy"] == 0.25  # the answer without objects is right


def test_a_missing_prediction_is_an_empty_mask(dataset) -> None:
    empty = encode_rle(np.zeros(SIZE, bool))
    predictions = perfect(dataset)
    blank = [*predictions[:-1], Prediction(12, 0, 1, empty, empty)]
    left_out, given = (score(dataset, p).as_dict() for p in (predictions[:-1], blank))
    assert left_out["seg_count_accuracy"] == 0.75 and given["seg_count_accuracy"] == 1
    assert {**left_out, "seg_count_accuracy": 1} == given
    assert given["amodal"]["giou_object"] == 0.8


def test_swapped_answers_fail_in_order_and_succeed_matched(dataset) -> None:
    predictions = perfect(dataset)
    first, second = predictions[0], predictions[1]
    swapped = [
        Prediction(10, 0, 0, second.visible, second.amodal),
        Prediction(10, 0, 1, first.visible, first.amodal),
        *predictions[2:],
    ]
    matched = score(dataset, swapped, protocol="generated_matched")
    assert matched.as_dict()["amodal"]["giou_object"] == 1
    assert [(o.record.index, o.predicted_index) for o in matched.objects[:2]] == [(0, 1), (1, 0)]
    in_order = score(dataset, swapped, protocol="generated_order").as_dict()
    # The amodal masks (columns 0-9 and 5-19 of the same rows) share a quarter of their union.
    assert in_order["amodal"]["giou_object"] == pytest.approx((0.25 + 0.25 + 3) / 5)
    assert in_order["visible"]["giou_object"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("protocol", ["generated_order", "generated_matched"])
def test_surplus_predictions_lower_the_score(dataset, protocol) -> None:
    extra = encode_rle(box(15, 20, 20, 30))
    noise = [Prediction(10, 1, 1, extra, extra), Prediction(11, 0, 0, extra, extra)]
    report = score(dataset, [*perfect(dataset), *noise], protocol=protocol)
    figures = report.as_dict()
    assert figures["amodal"]["giou_object"] == pytest.approx(5 / 7)
    union = sum(o.amodal.union for o in report.objects)
    assert figures["amodal"]["ciou"] == pytest.approx((union - 100) / union)
    assert figures["num_objects"] == 5 and figures["seg_count_accuracy"] == 0.5
    extras = [o for o in report.objects if o.status == "extra"]
    assert [(o.record.conversation_id, o.record.turn, o.record.index) for o in extras] == [(10, 1, 1), (11, 0, 0)]
    assert sum(b["num_objects"] for b in figures["by_occlusion"]) == 5


def test_an_own_occlusion_rate_goes_before_the_masks(dataset) -> None:
    rated = [Prediction(p.conversation_id, p.turn, p.index, p.visible, p.amodal, 0.5) for p in perfect(dataset)]
    # True rates: 0.5, 0, 0.5, 0.5, 0.5.
    assert score(dataset, rated).as_dict()["occlusion_rate_mae"] == pytest.approx(0.1)


def test_arrays_and_rle_score_alike(dataset) -> None:
    arrays = [Prediction(10, 0, 0, box(0, 0, 9, 5), box(0, 0, 9, 9))]
    rles = [Prediction(10, 0, 0, encode_rle(arrays[0].visible), encode_rle(arrays[0].amodal))]
    assert score(dataset, arrays).objects == score(dataset, rles).objects


@pytest.mark.parametrize("protocol", ["teacher_forced", "generated_order", "generated_matched"])
@pytest.mark.parametrize("kind", ["visible", "amodal"])
def test_a_method_of_one_kind_of_mask_scores_that_kind_as_if_it_had_both(dataset, protocol, kind) -> None:
    rows = [p for p in perfect(dataset) if p.index == 0]  # the second object of an answer is missed
    shifted = encode_rle(box(1, 1, 11, 9))
    rows[0] = Prediction(10, 0, 0, shifted, shifted)
    alone = [dataclasses.replace(p, **{"amodal" if kind == "visible" else "visible": None}) for p in rows]
    other = "amodal" if kind == "visible" else "visible"
    report = score(dataset, alone, protocol=protocol)
    figures, both = report.as_dict(), score(dataset, rows, protocol=protocol).as_dict()
    region = "amodal_from_visible" if kind == "visible" else "invisible"
    for key in (kind, region, "num_objects", "seg_count_accuracy"):
        assert figures[key] == both[key]
    assert set(figures[other].values()) == {None}
    assert figures["occlusion_rate_mae"] is figures["visible_outside_amodal"] is None
    absent = {f"{other}_giou", "invisible_giou" if kind == "visible" else "amodal_from_visible_giou"}
    for ours, theirs in zip(figures["by_occlusion"], both["by_occlusion"], strict=True):
        assert ours == {**theirs, **dict.fromkeys(absent)}
    row = next(iter(report.object_rows()))
    assert row[f"{other}_iou"] is row[f"{other}_union"] is row[f"predicted_{other}_area"] is None
    assert row[f"{kind}_iou"] is not None


def test_a_method_predicts_the_same_kinds_everywhere(dataset) -> None:
    first, second, *_ = perfect(dataset)
    with pytest.raises(ValueError, match=r"prediction 1 .* only the amodal mask, those before it both masks"):
        score(dataset, [first, dataclasses.replace(second, visible=None)])


def test_scorers_of_disjoint_slices_merge_to_the_same_report(dataset) -> None:
    from aura.evaluation.report import Report

    whole, parts = Scorer("teacher_forced"), [Scorer("teacher_forced"), Scorer("teacher_forced")]
    for number, sample in enumerate(dataset):
        answers = {(10, 0): PredictedAnswer({}, 2)} if number == 0 else {}
        whole.add(sample, answers)
        parts[number % 2].add(sample, answers)
    merged = Report.merge("teacher_forced", [p.report() for p in reversed(parts)])
    assert merged == whole.report() and merged.as_dict() == whole.report().as_dict()


BLANK = encode_rle(np.zeros(SIZE, bool))


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (
            [Prediction(99, 0, 0, BLANK, BLANK)],
            r"prediction 0 \(conversation 99, turn 0, index 0\): .* no conversation 99",
        ),
        ([Prediction(10, 2, 0, BLANK, BLANK)], r"turn 2, index 0\): the conversation has 2 turns"),
        ([Prediction(10, 0, 2, BLANK, BLANK)], r"index 2\): the true answer has 2 \[SEG\]"),
        ([Prediction(10, 0, 0, BLANK, BLANK)] * 2, r"prediction 1 .* already given by prediction 0"),
        (
            [Prediction(10, 0, 0, BLANK, encode_rle(np.zeros((30, 20), bool)))],
            r"index 0\): amodal mask is \[30, 20\] but image 1 is \[20, 30\]",
        ),
        ([Prediction(10, 0, 0, {"size": [20, 30], "counts": "zz"}, BLANK)], r"index 0\): visible mask: .*damaged"),
        ([Prediction(10, 0, 0, {"size": [20, 30], "counts": [7]}, BLANK)], r"index 0\): visible mask: .*add up to 7"),
    ],
)
def test_wrong_predictions_are_named(dataset, predictions, message) -> None:
    with pytest.raises(ValueError, match=message):
        score(dataset, predictions)


def test_the_file_of_a_wrong_prediction_and_the_record_of_a_damaged_truth_are_named(dataset) -> None:
    with pytest.raises(ValueError, match=r"^theirs\.json: prediction 0 \(conversation 99"):
        score(dataset, [Prediction(99, 0, 0, BLANK, BLANK)], source="theirs.json")
    damaged = dataclasses.replace(dataset[1].objects[0], amodal={"size": list(SIZE), "counts": "~~"})
    with pytest.raises(ValueError, match=r"^image 2, annotation 3: .*damaged.*validate_dataset\.py"):
        score([dataclasses.replace(dataset[1], objects=(damaged,))], [])


def test_a_conversation_id_must_be_unique(dataset) -> None:
    with pytest.raises(ValueError, match="conversation id 10 occurs twice"):
        score([dataset[0], dataset[0]], [])


def test_predictions_are_read_from_json(dataset, tmp_path) -> None:
    rows = [
        {"conversation_id": 10, "turn": 0, "index": 1, "visible": BLANK, "amodal": BLANK, "occlusion_rate": 0.25},
        {"conversation_id": 10, "turn": 0, "index": 0, "visible": BLANK, "amodal": BLANK, "score": 0.9},
    ]
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(rows))
    assert load_predictions(path) == [
        Prediction(10, 0, 1, BLANK, BLANK, 0.25),
        Prediction(10, 0, 0, BLANK, BLANK),
    ]


GOOD = {"conversation_id": 10, "turn": 0, "index": 1, "visible": BLANK, "amodal": BLANK}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "not valid JSON"),
        (json.dumps({"predictions": []}), "must hold a JSON list of predictions, not dict"),
        (json.dumps([3]), "prediction 0 must be an object"),
        (
            json.dumps([GOOD, {**GOOD, "amodal": None}]),
            r"prediction 1 \(conversation 10, turn 0, index 1\): amodal must be",
        ),
        (
            json.dumps([{k: v for k, v in GOOD.items() if k not in ("visible", "amodal", "turn")}]),
            "prediction 0: turn, visible or amodal missing",
        ),
        (
            json.dumps([GOOD, {k: v for k, v in GOOD.items() if k != "visible"}]),
            r"prediction 1 \(conversation 10, turn 0, index 1\) has only the amodal mask, those before it both masks",
        ),
        (json.dumps([{**GOOD, "turn": "0"}]), "turn must be an integer, got '0'"),
        (json.dumps([{**GOOD, "turn": True}]), "turn must be an integer, got True"),
        (json.dumps([{**GOOD, "occlusion_rate": 40}]), r"occlusion_rate must be a number in \[0, 1\], got 40"),
        ('[{"conversation_id": 10, "turn": 0, "index": 1, "visible": 1, "amodal": 2}]', "visible must be COCO RLE"),
    ],
)
def test_wrong_prediction_files_are_explained(content, message, tmp_path) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_predictions(path)
    assert "predictions.json" in str(error.value)


def test_a_missing_prediction_file_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"absent\.json: No such file"):
        load_predictions(tmp_path / "absent.json")


@pytest.mark.parametrize("protocol", ["teacher_forced", "generated_order", "generated_matched"])
def test_ignored_pixels_count_in_no_intersection_and_no_union(protocol) -> None:
    """LISA's rule, by hand: columns 0 to 4 are ignored, the truth has columns 3 to 12, the prediction 2 to 9."""
    ignore, truth, guess = box(0, 0, 20, 5), box(0, 3, 10, 13), box(0, 2, 10, 10)
    obj = AmodalObject(1, "target", encode_rle(truth), None, None)
    conversation = Conversation(1, (Turn("Which?", "This [SEG].", (1,)),))
    sample = Sample(1, Path("a.jpg"), *SIZE, (obj,), (conversation,), encode_rle(ignore))
    scorer = Scorer(protocol, "visible")
    scorer.add(sample, {(1, 0): PredictedAnswer({0: MaskPair(guess, None)}, 1)})
    (scored,) = scorer.objects
    assert (scored.visible.intersection, scored.visible.union) == (10 * 5, 10 * 8)  # columns 5 to 9; 5 to 12
    assert (scored.true_visible_area, scored.predicted_visible_area) == (80, 50)
    figures = scorer.report().as_dict()
    assert figures["visible"]["giou_object"] == figures["visible"]["ciou"] == 50 / 80


def test_a_truth_that_is_ignored_as_a_whole_is_an_empty_one() -> None:
    """LISA counts an empty union as IoU 1."""
    truth = box(0, 0, 5, 5)
    obj = AmodalObject(1, "target", encode_rle(truth), None, None)
    sample = Sample(
        1, Path("a"), *SIZE, (obj,), (Conversation(1, (Turn("?", "[SEG]", (1,)),)),), encode_rle(box(0, 0, 9, 9))
    )
    scorer = Scorer("teacher_forced", "visible")
    scorer.add(sample, {(1, 0): PredictedAnswer({0: MaskPair(truth, None)}, 1)})
    assert scorer.report().as_dict()["visible"]["giou_object"] == 1


def test_a_damaged_ignore_mask_is_named() -> None:
    damaged = {"size": list(SIZE), "counts": "0"}
    sample = Sample(4, Path("a"), *SIZE, (), (Conversation(1, (Turn("?", "No."),)),), damaged)
    with pytest.raises(ValueError, match="image 4: the 'ignore' mask: the runs"):
        Scorer("teacher_forced").add(sample, {})


def test_an_answer_that_marks_nothing_where_nothing_is(dataset) -> None:
    there = perfect(dataset)
    empty, full = (encode_rle(mask) for mask in (box(0, 0, 0, 0), box(0, 0, 1, 1)))

    def accuracies(predictions: list[Prediction]) -> tuple[float, float]:
        found = score(dataset, predictions, protocol="generated_matched").as_dict()["no_target"]
        assert found["num_answers"] == 1
        return found["n_acc"], found["t_acc"]

    assert accuracies(there) == (1, 1)
    assert accuracies([]) == (1, 0)
    assert accuracies([*there, Prediction(11, 0, 0, full, full)]) == (0, 1)
    assert accuracies([*there, Prediction(11, 0, 0, empty, empty)]) == (1, 1)
    nothing = [dataclasses.replace(p, visible=empty, amodal=empty) if p.conversation_id == 12 else p for p in there]
    assert accuracies(nothing) == (1, pytest.approx(2 / 3))
    assert "no_target" not in score(dataset[1:], [p for p in there if p.conversation_id == 12]).as_dict()


@pytest.mark.parametrize("protocol", ["teacher_forced", "generated_order", "generated_matched"])
def test_the_asked_mask_is_held_against_what_a_prediction_says(dataset, protocol, tmp_path) -> None:
    first, second = dataset
    two, one = first.conversations[0].turns
    asking = dataclasses.replace(
        first.conversations[0], turns=(dataclasses.replace(two, asked=("visible", "amodal")), one)
    )
    dataset = [dataclasses.replace(first, conversations=(asking, *first.conversations[1:])), second]
    kinds = ("visible", "amodal", "both", "both", "amodal")
    said = [dataclasses.replace(p, asked=kind) for p, kind in zip(perfect(dataset), kinds, strict=True)]  # type: ignore[arg-type]
    save_predictions(tmp_path / "said.json", said)
    read = load_predictions(tmp_path / "said.json")
    assert [p.asked for p in read] == list(kinds)
    figures = score(dataset, read, protocol=protocol).as_dict()["asked"]
    assert (figures["num_objects"], figures["accuracy"], figures["accuracy_both"]) == (5, 4 / 5, 2 / 3)
    assert score(dataset, perfect(dataset), protocol=protocol).as_dict()["asked"]["accuracy"] is None
    (tmp_path / "wrong.json").write_text((tmp_path / "said.json").read_text().replace('"visible"}', '"seen"}'))
    with pytest.raises(ValueError, match=r"wrong.json: prediction 0 .*asked must be one of visible, amodal, both"):
        load_predictions(tmp_path / "wrong.json")
