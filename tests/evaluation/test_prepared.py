"""Data of the field, from its own files to a loss and a report: no objects, visible masks alone, pixels to ignore."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from aura.config import LossSettings
from aura.data.collate import collate
from aura.data.dataset import AuraDataset
from aura.data.findings import Findings
from aura.data.preflight import inspect
from aura.data.processor import Processor
from aura.evaluation.evaluate import evaluate
from aura.evaluation.scoring import PredictedAnswer, Scorer
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.losses import AuraCriterion
from aura.masks import decode_rle, encode_rle
from aura.types import AmodalObject, Conversation, MaskPair, Sample, Turn
from tests.formats.asked import grefer, grefs, llava, picture, reason_seg, written

PREPARE = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "prepare_data.py"))["main"]
PROTOCOLS = ["teacher_forced", "generated_order", "generated_matched"]


@pytest.fixture
def processor(tiny_tokenizer, tiny_model) -> Processor:
    processor = Processor(tiny_tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4, max_length=600)
    tiny_model.config.seg_token_id = processor.text.seg_token_id
    return processor


@pytest.fixture
def prepare(tmp_path):
    def prepare(*arguments: object, purpose: str = "training") -> AmodalReasonSeg:
        out = tmp_path / f"{arguments[0]}.json"
        assert PREPARE([*map(str, arguments), "--out", str(out), "--for", purpose]) == 0
        return AmodalReasonSeg.load(out)

    return prepare


@pytest.fixture
def talks(prepare, tmp_path) -> AmodalReasonSeg:
    """LLaVA-Instruct: not one object."""
    for name in ("000000033471.jpg", "000000052846.jpg"):
        picture(tmp_path / "photos" / name)
    path = written(tmp_path / "talks.json", llava())
    return prepare("llava", "--annotations", path, "--images", tmp_path / "photos")


@pytest.fixture
def expressions(prepare, tmp_path) -> AmodalReasonSeg:
    """gRefCOCO: several objects, none, and one; only their visible masks are known."""
    root = grefer(tmp_path / "grefcoco")
    return prepare("refer", "--data", root, "--by", "unc", "--split", "val", "--images", root / "train2014")


def losses_of(model, processor, samples):
    batch = collate([processor(sample) for sample in samples])
    losses = AuraCriterion(LossSettings())(model(batch), batch)
    losses.total.backward()
    return batch, losses


def test_answers_without_objects_are_sound_and_trained(tiny_model, processor, talks, tmp_path):
    assert inspect(talks, processor.text, Findings(None), quiet=True).bad == []
    assert len(AuraDataset(talks, processor)) == 2
    batch, losses = losses_of(tiny_model.train(), processor, talks)
    assert batch.seg_counts == (0, 0) and batch.visible_masks[0].shape == (0, 24, 32)
    found = losses.as_floats()
    assert found["text"] > 0 and torch.isfinite(losses.total)
    assert all(found[name] == 0 for name in found if name not in ("text", "total"))
    adapters = {name: p.grad for name, p in tiny_model.named_parameters() if "lora_" in name}
    assert adapters and any(grad is not None and grad.any() for grad in adapters.values())


def test_images_with_and_without_objects_share_a_batch(tiny_model, processor, talks, expressions):
    batch, losses = losses_of(tiny_model.train(), processor, [talks[0], expressions[0], talks[1]])
    assert batch.seg_counts == (0, 3, 0) and not batch.shape_known.any()
    found = losses.as_floats()
    assert found["visible_bce"] > 0 and found["visible_dice"] > 0 and torch.isfinite(losses.total)
    assert all(found[name] == 0 for name in ("amodal_bce", "amodal_dice", "occlusion_rate", "spatial"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_without_objects_are_evaluated(tiny_model, processor, talks, expressions, protocol):
    options = {"progress": False, "max_new_tokens": 4}
    report = evaluate(tiny_model, processor, talks, protocol, **options)
    figures = report.as_dict()
    assert report.tables()[0].rows[0][0] == report.name
    assert (figures["num_images"], figures["num_answers"], figures["num_objects"]) == (2, 4, 0)
    assert figures["seg_count_accuracy"] is not None
    assert (figures["no_target"]["num_answers"], figures["no_target"]["t_acc"]) == (4, None)
    mixed = evaluate(tiny_model, processor, expressions, protocol, **options).as_dict()
    assert (mixed["num_answers"], mixed["num_objects"]) == (3, 3)
    assert mixed["no_target"]["num_answers"] == 1 and mixed["no_target"]["t_acc"] is not None
    assert mixed["visible"]["giou_object"] is not None and mixed["by_occlusion"][0]["num_objects"] == 0


@pytest.mark.parametrize("purpose", ["training", "evaluation"])
def test_expressions_that_fit_nothing_stay(tiny_model, processor, prepare, tmp_path, purpose):
    """Also where nothing else is asked about an image: it is trained on, and it is evaluated."""
    root = grefer(tmp_path / "grefcoco", grefs()[1:2])
    options = ("--data", root, "--by", "unc", "--split", "val", "--images", root / "train2014")
    (sample,) = expressions = prepare("refer", *options, purpose=purpose)
    assert sample.objects == () and [turn.objects for talk in sample.conversations for turn in talk.turns] == [()]
    assert len(AuraDataset(expressions, processor)) == 1
    batch, losses = losses_of(tiny_model.train(), processor, expressions)
    assert batch.seg_counts == (0,) and losses.as_floats()["text"] > 0
    report = evaluate(tiny_model, processor, expressions, "teacher_forced", progress=False)
    assert report.as_dict()["no_target"]["num_answers"] == 1


def test_a_reasonseg_split_is_evaluated(tiny_model, processor, prepare, tmp_path):
    root = reason_seg(tmp_path / "ReasonSeg")
    val = prepare("reasonseg", "--data", root, "--split", "val", purpose="evaluation")
    assert inspect(val, processor.text, Findings(None), quiet=True).bad == []
    figures = evaluate(tiny_model, processor, val, "teacher_forced", progress=False).as_dict()
    assert (figures["num_images"], figures["num_answers"], figures["num_objects"]) == (2, 2, 2)


def lisa_figures(pairs) -> tuple[float, float]:
    """gIoU and cIoU as LISA's ``validate`` has them: of label maps with 0, 1 and, to be ignored, 255."""
    intersections, unions, ious = 0, 0, []
    for predicted, label in pairs:
        counted = label != 255
        output, target = predicted[counted] == 1, label[counted] == 1
        intersection, union = int((output & target).sum()), int((output | target).sum())
        ious.append(intersection / union if union else 1.0)
        intersections, unions = intersections + intersection, unions + union
    return sum(ious) / len(ious), intersections / unions


def test_figures_are_lisas_on_random_maps():
    rng = np.random.default_rng(0)
    scorer, pairs = Scorer("teacher_forced"), []
    for number in range(12):
        label = rng.choice([0, 1, 255], (17, 23), p=[0.5, 0.3, 0.2])
        label[label == 1] *= number != 5  # once there is no target
        guess = rng.random((17, 23)) < (0.4 if number != 5 else 0)
        target = AmodalObject(number, "target", encode_rle(label == 1), None, None)
        talk = Conversation(number, (Turn("Which?", "[SEG].", (number,)),))
        sample = Sample(number, Path("x"), 17, 23, (target,), (talk,), encode_rle(label == 255))
        scorer.add(sample, {(number, 0): PredictedAnswer({0: MaskPair(guess, guess)}, 1)})
        assert decode_rle(sample.ignore).sum() == (label == 255).sum()
        pairs.append((guess.astype(int), label))
    figures = scorer.report().as_dict()["visible"]
    assert (figures["giou_object"], figures["ciou"]) == pytest.approx(lisa_figures(pairs), abs=1e-12)
