"""Metrics against numbers worked by hand, LISA's formula, pycocotools, and a second implementation in plain numpy."""

from __future__ import annotations

import itertools
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from aura.evaluation.metrics import (
    AnswerScore,
    ObjectScore,
    Overlap,
    best_assignment,
    by_occlusion,
    cumulative_iou,
    mean_of_groups,
    overlap,
    pair_by_overlap,
    score_object,
    summarise,
)
from aura.types import MaskPair, SegRecord


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (10, 10)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def record(index: int = 0, *, image: int = 1, conversation: int = 1, turn: int = 0) -> SegRecord:
    return SegRecord(image, conversation, turn, index, 100 + index, "cup")


def random_pair(rng: np.random.Generator, size: tuple[int, int] = (12, 9)) -> MaskPair:
    amodal = rng.random(size) < rng.uniform(0.1, 0.9)
    return MaskPair(amodal & (rng.random(size) < rng.uniform(0.2, 0.8)), amodal)


def test_iou_of_two_overlapping_squares() -> None:
    # Two 4 x 4 squares that share 2 x 4 pixels: 8 / (16 + 16 - 8).
    found = overlap(box(0, 0, 4, 4), box(2, 0, 6, 4))
    assert found == Overlap(8, 24) and found.iou == 1 / 3


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [(0, 0, 1.0), (0, 4, 0.0), (4, 0, 0.0), (4, 4, 1.0)],
)
def test_iou_with_empty_masks(predicted: int, true: int, expected: float) -> None:
    assert overlap(box(0, 0, predicted, 4), box(0, 0, true, 4)).iou == expected


def test_iou_agrees_with_pycocotools() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((17, 23)) < p for p in rng.uniform(0.05, 0.95, 12)]
    rles = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks]
    ours = np.array([[overlap(a, b).iou for b in masks] for a in masks])
    np.testing.assert_array_equal(ours, coco_mask.iou(rles, rles, [0] * len(masks)))


def test_figures_agree_with_lisas_formula() -> None:
    """LISA: per mask I / (U + 1e-5), 1 where the union is empty; gIoU their mean; cIoU sum I / (sum U + 1e-10)."""
    rng = np.random.default_rng(1)
    pairs = [(random_pair(rng), random_pair(rng)) for _ in range(40)]
    empty = MaskPair(box(0, 0, 0, 0, (12, 9)), box(0, 0, 0, 0, (12, 9)))
    pairs += [(empty, empty), (empty, pairs[0][0])]
    scores = [score_object(record(i), true, guess) for i, (true, guess) in enumerate(pairs)]
    ours = summarise(scores, [AnswerScore(1, 1, 0, len(pairs), len(pairs))])
    for kind in ("visible", "amodal"):
        intersection = np.array([(getattr(t, kind) & getattr(p, kind)).sum() for t, p in pairs], float)
        union = np.array([(getattr(t, kind) | getattr(p, kind)).sum() for t, p in pairs], float)
        iou = intersection / (union + 1e-5)
        iou[union == 0] = 1.0
        assert ours[kind]["giou_object"] == pytest.approx(iou.mean(), abs=1e-6)
        assert ours[kind]["ciou"] == pytest.approx(intersection.sum() / (union.sum() + 1e-10), abs=1e-12)


def test_one_object_by_hand() -> None:
    # True: rows 0-7 of column 0-4 (40 pixels), rows 0-3 visible (20). Predicted: amodal rows 0-5 (30), visible rows 2-6
    # (25), of which row 6 (5 pixels) lies outside the predicted amodal mask.
    true = MaskPair(box(0, 0, 4, 5), box(0, 0, 8, 5))
    guess = MaskPair(box(2, 0, 7, 5), box(0, 0, 6, 5), 0.75)
    score = score_object(record(), true, guess, 0)
    assert score.visible == Overlap(10, 35)
    assert score.amodal == Overlap(30, 40)
    assert score.amodal_from_visible == Overlap(25, 40)
    # Predicted amodal minus true visible: rows 4-5 (10). True hidden: rows 4-7 (20).
    assert score.invisible == Overlap(10, 20)
    assert score.visible_outside == 5
    figures = summarise([score], [AnswerScore(1, 1, 0, 1, 1)])
    assert figures["visible_outside_amodal"] == 5 / 25
    assert figures["occlusion_rate_mae"] == 0.25
    assert figures["invisible"] == {"giou_object": 0.5, "ciou": 0.5, "num_objects": 1}


def test_rate_is_read_off_the_masks_where_the_method_gives_none() -> None:
    true = MaskPair(box(0, 0, 4, 5), box(0, 0, 8, 5))
    guess = MaskPair(box(2, 0, 7, 5), box(0, 0, 6, 5))
    assert score_object(record(), true, guess).predicted_rate == pytest.approx(1 - 20 / 30)
    assert score_object(record(), true, None).predicted_rate is None


def test_gIoU_over_objects_answers_and_images() -> None:
    # IoUs: image 1, answer A: 1 and 0; answer B: 1. Image 2, answer C: 0.5.
    full, none, half = box(0, 0, 4, 4), box(9, 9, 9, 9), box(0, 0, 2, 4)
    rows = [(1, 1, full), (1, 1, none), (1, 2, full), (2, 3, half)]
    scores = [
        score_object(record(i, image=image, conversation=conversation), MaskPair(full, full), MaskPair(m, m))
        for i, (image, conversation, m) in enumerate(rows)
    ]
    figures = summarise(scores, [AnswerScore(1, 1, 0, 2, 2), AnswerScore(1, 2, 0, 1, 1), AnswerScore(2, 3, 0, 1, 1)])
    for kind in ("visible", "amodal", "amodal_from_visible"):
        assert figures[kind]["giou_object"] == 2.5 / 4
        assert figures[kind]["giou_answer"] == pytest.approx((0.5 + 1 + 0.5) / 3)
        assert figures[kind]["giou_image"] == pytest.approx((2 / 3 + 0.5) / 2)
        assert figures[kind]["ciou"] == 40 / 64
    assert (figures["num_images"], figures["num_answers"], figures["num_objects"]) == (2, 3, 4)


def test_turns_of_one_conversation_are_separate_answers() -> None:
    assert mean_of_groups([((1, 0), 1.0), ((1, 0), 0.0), ((1, 1), 1.0)]) == 0.75


def test_missed_and_extra_objects_score_zero_and_add_their_area_to_the_union() -> None:
    full = box(0, 0, 4, 4)
    pair = MaskPair(full, full)
    scores = [
        score_object(record(0), pair, pair, 0),
        score_object(record(1), pair, None),
        score_object(replace(record(1), annotation_id=-1), None, MaskPair(box(0, 0, 1, 8), box(0, 0, 1, 8)), 1),
    ]
    assert [s.status for s in scores] == ["paired", "missed", "extra"]
    figures = summarise(scores, [AnswerScore(1, 1, 0, 2, 2)])
    assert figures["amodal"]["giou_object"] == pytest.approx(1 / 3)
    assert figures["amodal"]["ciou"] == 16 / (16 + 16 + 8)
    assert figures["num_objects"] == 2


def test_unpaired_empty_masks_score_zero() -> None:
    empty = MaskPair(box(0, 0, 0, 0), box(0, 0, 0, 0))
    for score in (score_object(record(), empty, None), score_object(record(), None, empty)):
        assert score.visible.iou == score.amodal.iou == 0
        assert cumulative_iou([score.amodal]) == 0
    assert score_object(record(), empty, empty).amodal.iou == 1


def test_invisible_region_leaves_out_unoccluded_objects() -> None:
    full = box(0, 0, 4, 4)
    plain = score_object(record(0), MaskPair(full, full), MaskPair(full, box(0, 0, 10, 10)))
    hidden = score_object(record(1), MaskPair(full, box(0, 0, 8, 4)), MaskPair(full, full))
    figures = summarise([plain, hidden], [AnswerScore(1, 1, 0, 2, 2)])
    assert figures["invisible"] == {"giou_object": 0.0, "ciou": 0.0, "num_objects": 1}
    assert plain.as_dict()["invisible_iou"] is None and hidden.as_dict()["invisible_iou"] == 0


def test_nothing_to_measure_is_none() -> None:
    figures = summarise([], [])
    assert figures["amodal"]["giou_object"] is figures["amodal"]["ciou"] is figures["seg_count_accuracy"] is None
    assert figures["invisible"] == {"giou_object": None, "ciou": None, "num_objects": 0}


@pytest.mark.parametrize(("hidden", "bucket"), [(0, 0), (1, 1), (25, 1), (26, 2), (50, 2), (51, 3), (76, 4), (100, 4)])
def test_occlusion_buckets_include_their_upper_edge(hidden: int, bucket: int) -> None:
    amodal = np.ones((10, 10), bool)
    visible = np.arange(100).reshape(10, 10) >= hidden
    rows = by_occlusion([score_object(record(), MaskPair(visible, amodal), MaskPair(visible, amodal))])
    assert [r["num_objects"] for r in rows] == [int(i == bucket) for i in range(5)]
    assert rows[bucket]["visible_giou"] == rows[bucket]["amodal_giou"] == 1
    assert rows[bucket]["amodal_from_visible_giou"] == (100 - hidden) / 100


def test_pairing_finds_swapped_objects() -> None:
    left, right = box(0, 0, 10, 4), box(0, 6, 10, 10)
    true = [MaskPair(left, left), MaskPair(right, right)]
    assert pair_by_overlap(true, [true[1], true[0]]) == [(0, 1), (1, 0)]


def test_one_pairing_serves_both_kinds_of_mask() -> None:
    a, b = box(0, 0, 5, 10), box(5, 0, 10, 10)
    # The visible masks speak for (0, 0), the larger amodal gain for (0, 1).
    true = [MaskPair(box(0, 0, 1, 4), a), MaskPair(box(9, 0, 10, 4), b)]
    predicted = [MaskPair(box(0, 0, 1, 2), b), MaskPair(box(9, 0, 10, 2), a)]
    assert pair_by_overlap(true, predicted) == [(0, 1), (1, 0)]


def test_assignment_is_optimal_and_breaks_ties_by_order() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        rows, columns = (int(n) for n in rng.integers(1, 5, 2))
        gain = rng.integers(0, 3, (rows, columns)) / 2  # few distinct values: many ties
        options = (
            [list(zip(range(rows), p, strict=True)) for p in itertools.permutations(range(columns), rows)]
            if rows <= columns
            else [sorted(zip(p, range(columns), strict=True)) for p in itertools.permutations(range(rows), columns)]
        )
        totals = [sum(gain[i, j] for i, j in option) for option in options]
        best = [o for o, t in zip(options, totals, strict=True) if t == max(totals)]
        found = best_assignment(gain)
        assert found in best
        assert found == min(best)


def test_assignment_does_not_depend_on_equal_predictions() -> None:
    assert best_assignment(np.zeros((3, 3))) == [(0, 0), (1, 1), (2, 2)]
    assert best_assignment(np.ones((2, 4))) == [(0, 0), (1, 1)]
    assert best_assignment(np.zeros((0, 4))) == []


def random_scores(seed: int) -> tuple[list[ObjectScore], list[AnswerScore]]:
    rng = np.random.default_rng(seed)
    scores, answers = [], []
    for image, conversation in itertools.product(range(6), range(3)):
        count = int(rng.integers(1, 4))
        identity = {"image": image, "conversation": image * 3 + conversation}
        scores += [score_object(record(i, **identity), random_pair(rng), random_pair(rng), i) for i in range(count)]
        answers.append(AnswerScore(image, image * 3 + conversation, 0, count, int(rng.integers(1, 4))))
    return scores, answers


def test_parts_scored_by_several_processes_add_up_exactly() -> None:
    scores, answers = random_scores(5)
    parts = [pickle.loads(pickle.dumps((scores[i::3], answers[i::3]))) for i in range(3)]
    random.Random(0).shuffle(parts)
    merged = [s for part, _ in parts for s in part], [a for _, part in parts for a in part]
    assert summarise(*merged) == summarise(scores, answers)


def test_all_figures_agree_with_an_independent_implementation() -> None:
    rng = np.random.default_rng(7)
    rows = []
    for number in range(30):
        true, guess = random_pair(rng), random_pair(rng)
        image = number // 6
        rows.append((image, number // 2, true, guess._replace(occlusion_rate=float(rng.random()))))
    scores = [score_object(record(n, image=i, conversation=c), t, g) for n, (i, c, t, g) in enumerate(rows)]
    answers = [AnswerScore(c // 3, c, 0, 2, 2) for c in range(15)]
    ours = summarise(scores, answers)

    def table(region) -> dict[str, float]:
        counts = np.array([region(t, g) for _, _, t, g in rows], float)
        iou = counts[:, 0] / counts[:, 1]
        answer = iou.reshape(15, 2).mean(1)
        return {
            "giou_object": iou.mean(),
            "giou_answer": answer.mean(),
            "giou_image": iou.reshape(5, 6).mean(1).mean(),
            "ciou": counts[:, 0].sum() / counts[:, 1].sum(),
        }

    def count(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
        return int(np.logical_and(a, b).sum()), int(np.logical_or(a, b).sum())

    assert ours["visible"] == pytest.approx(table(lambda t, g: count(t.visible, g.visible)), abs=1e-12)
    assert ours["amodal"] == pytest.approx(table(lambda t, g: count(t.amodal, g.amodal)), abs=1e-12)
    assert ours["amodal_from_visible"] == pytest.approx(table(lambda t, g: count(t.amodal, g.visible)), abs=1e-12)
    hidden = table(lambda t, g: count(t.amodal & ~t.visible, g.amodal & ~t.visible))
    assert ours["invisible"]["giou_object"] == pytest.approx(hidden["giou_object"], abs=1e-12)
    assert ours["invisible"]["ciou"] == pytest.approx(hidden["ciou"], abs=1e-12)
    rates = [abs(g.occlusion_rate - (1 - t.visible.sum() / t.amodal.sum())) for _, _, t, g in rows]
    assert ours["occlusion_rate_mae"] == pytest.approx(np.mean(rates), abs=1e-12)
    assert sum(b["num_objects"] for b in ours["by_occlusion"]) == 30


def test_an_object_of_unknown_shape_is_scored_by_its_visible_mask_alone():
    seen, whole = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    seen[:, :2] = True
    record = SegRecord(1, 1, 0, 0, 5, "cup")
    score = score_object(record, MaskPair(seen, None), MaskPair(seen, whole, 0.5), 0)
    assert score.visible == Overlap(8, 8)
    assert score.amodal is score.amodal_from_visible is score.invisible is score.true_rate is None
    assert not score.has_hidden_region
    known = score_object(SegRecord(2, 2, 0, 0, 6, "cup"), MaskPair(seen, whole), MaskPair(seen, seen, 0.0), 0)
    figures = summarise([score, known], [])
    assert figures["num_objects"] == 2
    assert figures["visible"]["giou_object"] == 1.0
    assert figures["amodal"]["giou_object"] == figures["amodal"]["giou_image"] == 0.5  # of the known one
    assert figures["invisible"]["num_objects"] == 1 and figures["occlusion_rate_mae"] == 0.5
    assert sum(row["num_objects"] for row in figures["by_occlusion"]) == 1


def test_pairing_goes_by_what_is_known():
    left, right = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    left[:, :2], right[:, 2:] = True, True
    true = [MaskPair(left, None), MaskPair(right, right)]
    assert pair_by_overlap(true, [MaskPair(right, right), MaskPair(left, left)]) == [(0, 1), (1, 0)]


def test_no_target_accuracies_are_those_of_gres() -> None:
    """Against the confusion matrix of GRES's own evaluation: TP and FN of no-target, TN and FP of targeted answers."""
    # (true [SEG], predicted [SEG], pixels): two of the three without a target are right, and two of the four with one.
    found = [(0, 0, None), (0, 1, 0), (0, 1, 7), (1, 1, 5), (2, 1, 9), (1, 0, None), (1, 2, 0)]
    answers = [AnswerScore(1, n, 0, true, count, predicted_area=area) for n, (true, count, area) in enumerate(found)]
    positive, negative = {"right": 0, "wrong": 0}, {"right": 0, "wrong": 0}
    for true, count, area in found:
        says_nothing = not (count and area)
        if true == 0:
            positive["right" if says_nothing else "wrong"] += 1
        else:
            negative["wrong" if says_nothing else "right"] += 1
    expected = {"num_answers": 3, "n_acc": 2 / 3, "t_acc": 2 / 4}
    assert (positive, negative) == ({"right": 2, "wrong": 1}, {"right": 2, "wrong": 2})
    assert summarise([], answers)["no_target"] == expected
    assert "no_target" not in summarise([], answers[3:])
    assert summarise([], answers[:3])["no_target"]["t_acc"] is None


def test_how_often_the_asked_mask_is_known() -> None:
    full = box(0, 0, 10, 10)
    pairs = [("visible", "visible"), ("visible", "both"), ("amodal", "amodal"), ("both", "both"), ("both", None)]
    scores = [
        score_object(record(i), MaskPair(full, full, asked=true), MaskPair(full, full, asked=guess))  # type: ignore[arg-type]
        for i, (true, guess) in enumerate(pairs)
    ]
    missed = score_object(record(5), MaskPair(full, full, asked="amodal"), None)
    extra = score_object(replace(record(6), annotation_id=-1), None, MaskPair(full, full, asked="amodal"))
    assert summarise([*scores, missed, extra], [])["asked"] == {
        "num_objects": 6,
        "accuracy": 3 / 6,
        "accuracy_visible": 1 / 2,
        "accuracy_amodal": 1 / 2,
        "accuracy_both": 1 / 2,
        "most_common": 2 / 6,
    }
    silent = [score_object(o.record, MaskPair(full, full, asked="amodal"), MaskPair(full, full)) for o in scores]
    assert summarise(silent, [])["asked"]["accuracy"] is None and summarise(silent, [])["asked"]["most_common"] == 1
    assert "asked" not in summarise(scores[3:], []) and "asked" not in summarise([], [])
