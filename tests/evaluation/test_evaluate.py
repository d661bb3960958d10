"""A tiny random model through every protocol, against separate forward passes and SAM's own resampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image

from aura.data.collate import collate
from aura.data.feature_cache import FeatureCache
from aura.data.processor import Processor
from aura.evaluation import evaluate as evaluation
from aura.evaluation.evaluate import answer_starts, evaluate, evaluate_all
from aura.machine import ranks
from aura.masks import encode_rle
from aura.model import Generation
from aura.types import AmodalObject, Conversation, Sample, Turn

PROTOCOLS = ["teacher_forced", "generated_order", "generated_matched"]


@pytest.fixture
def processor(tiny_tokenizer, tiny_model) -> Processor:
    processor = Processor(tiny_tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4, max_length=400)
    tiny_model.config.seg_token_id = processor.text.seg_token_id
    return processor


def make_sample(folder: Path, image_id: int, height: int, width: int) -> Sample:
    rng = np.random.default_rng(image_id)
    path = folder / f"{image_id}.png"
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    objects = []
    for number in range(3):
        amodal = np.zeros((height, width), bool)
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        amodal[top : top + height // 2, left : left + width // 2] = True
        visible = amodal.copy()
        visible[:, : left + number * 5] = False
        rate = 1 - visible.sum() / amodal.sum()
        id_ = 10 * image_id + number
        objects.append(AmodalObject(id_, "bus", encode_rle(visible), encode_rle(amodal), float(rate)))
    ids = [o.id for o in objects]
    first = Turn("What could I ride?", "The bus [SEG].", (ids[0],))
    second = Turn("And what hides it?", "The tree [SEG] and the bus [SEG].", (ids[1], ids[2]))
    nothing = Turn("What is polite?", "Nothing.", ())
    conversations = (
        Conversation(100 * image_id, (first, second)),
        Conversation(100 * image_id + 1, (nothing,)),
        Conversation(100 * image_id + 2, (second,)),
    )
    return Sample(image_id, path, height, width, tuple(objects), conversations)


@pytest.fixture
def dataset(tmp_path) -> list[Sample]:
    return [make_sample(tmp_path, 1, 40, 60), make_sample(tmp_path, 2, 50, 30), make_sample(tmp_path, 3, 40, 60)]


def slow_masks(logits: torch.Tensor, height: int, width: int) -> np.ndarray:
    """SAM's own way from the decoder's grid to the image, at this test's input size of 64."""
    scale = 64 / max(height, width)
    resized = int(height * scale + 0.5), int(width * scale + 0.5)
    square = F.interpolate(logits[:, None].float(), (64, 64), mode="bilinear", align_corners=False)
    cropped = square[..., : resized[0], : resized[1]]
    return (F.interpolate(cropped, (height, width), mode="bilinear", align_corners=False)[:, 0] > 0).numpy()


def test_teacher_forced_equals_one_forward_pass_per_conversation(tiny_model, processor, dataset) -> None:
    report = evaluate(tiny_model, processor, dataset, "teacher_forced", progress=False)
    figures = report.as_dict()
    assert (figures["num_images"], figures["num_answers"], figures["num_objects"]) == (3, 12, 15)
    found = {(o.record.conversation_id, o.record.turn, o.record.index): o for o in report.objects}
    counts = {(a.conversation_id, a.turn): a.predicted_count for a in report.answers}
    some = 0
    for sample in dataset:
        for conversation in sample.conversations:
            batch = collate([processor(sample, None, [conversation])])
            with torch.no_grad():
                output = tiny_model(batch)
            choices = output.text_logits.argmax(-1) == processor.text.seg_token_id
            expected = sum(counts[conversation.id, turn] for turn in range(len(conversation.turns)))
            assert int(choices.sum()) == expected
            if not len(batch.records):
                continue
            amodal = slow_masks(output.amodal_logits, sample.height, sample.width)
            visible = slow_masks(output.visible_logits, sample.height, sample.width)
            for n, record in enumerate(batch.records):
                score = found.pop((record.conversation_id, record.turn, record.index))
                # Packed and separate passes differ by float rounding: a pixel at a logit of almost 0 may flip.
                assert abs(score.predicted_amodal_area - amodal[n].sum()) <= 2
                assert abs(score.predicted_visible_area - visible[n].sum()) <= 2
                truth = batch.amodal_masks[0][batch.seg_object[n]].numpy()
                assert abs(score.amodal.intersection - (amodal[n] & truth).sum()) <= 2
                assert score.predicted_rate == pytest.approx(float(output.occlusion_rate[n]), abs=1e-5)
                some += score.predicted_amodal_area > 0
    assert not found and some > 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batches_and_the_feature_cache_change_nothing(tiny_model, processor, dataset, protocol, tmp_path) -> None:
    cache = FeatureCache(tmp_path / "cache", "tiny", exact=True)
    options = {"progress": False, "max_new_tokens": 6}
    plain = evaluate(tiny_model, processor, dataset, protocol, **options)
    cold = evaluate(tiny_model, processor, dataset, protocol, cache=cache, **options)
    warm = evaluate(tiny_model, processor, dataset, protocol, cache=cache, batch_size=2, **options)
    assert cache.size().images == 3
    assert plain.as_dict() == cold.as_dict()
    assert [a.predicted_count for a in warm.answers] == [a.predicted_count for a in plain.answers]
    assert warm.as_dict()["amodal"]["ciou"] == pytest.approx(plain.as_dict()["amodal"]["ciou"], abs=1e-3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["visible", "amodal"])
def test_a_model_of_one_kind_of_mask_scores_that_kind_alone(make_model, processor, dataset, kind, protocol) -> None:
    model = make_model(masks=kind, occlusion_condition=False, spatial_occlusion=False)
    model.config.seg_token_id = processor.text.seg_token_id
    report = evaluate(model, processor, dataset, protocol, progress=False, max_new_tokens=6)
    figures, other = report.as_dict(), {"visible": "amodal", "amodal": "visible"}[kind]
    assert figures[kind]["giou_object"] is not None and figures[other]["giou_object"] is None
    assert figures["occlusion_rate_mae"] is None and figures["seg_count_accuracy"] is not None


def test_a_method_of_one_object_an_answer_misses_the_others(tiny_model, processor, dataset, tiny_tokenizer) -> None:
    first = Processor(tiny_tokenizer, **{**processor.settings, "objects_per_answer": "first"})
    figures = {}
    for name, made in (("all", processor), ("first", first)):
        report = evaluate(tiny_model, made, dataset, "teacher_forced", progress=False)
        figures[name] = report.as_dict()
        missed = [o for o in report.objects if o.status == "missed"]
        assert len(report.objects) == 15 and {o.record.index for o in missed} == ({1} if name == "first" else set())
    assert len(missed) == 6, "the second object of each of two answers about each of three images"
    assert all(a.true_count == 2 for a in report.answers if "hides" in a.question)
    alone = [o.amodal.iou for o in report.objects if o.status == "paired"]
    assert figures["first"]["amodal"]["giou_object"] == pytest.approx(sum(alone) / 15)
    assert figures["first"]["num_objects"] == figures["all"]["num_objects"] == 15


def write_the_truth(model, processor, dataset, monkeypatch) -> None:
    """Make ``model`` write the true answers, with the states that teacher forcing gives."""
    answers = {}
    for sample in dataset:
        for c in sample.conversations:
            tokens = processor.text.conversation(c)
            ids, ends = (
                tokens.input_ids,
                [t for t, i in enumerate(tokens.input_ids) if i == processor.text.eos_token_id],
            )
            for start in answer_starts(tokens):
                end = next(e for e in ends if e >= start) + 1
                answers[tuple(ids[:start])] = ids[start:end]

    def generate_answers(prompts, *, clip_features, max_new_tokens):
        results = []
        for prompt in prompts:
            ids = answers[tuple(prompt)]
            hidden = model.mllm(torch.tensor([[*prompt, *ids]]), clip_features=clip_features)[0]
            places = [len(prompt) + t - 1 for t, i in enumerate(ids) if i == processor.text.seg_token_id]
            results.append(Generation(ids, hidden[places], None, False, []))
        return results

    monkeypatch.setattr(model, "generate_answers", generate_answers)


def test_a_model_that_writes_the_truth_scores_as_if_teacher_forced(tiny_model, processor, dataset, monkeypatch) -> None:
    forced = evaluate(tiny_model, processor, dataset, "teacher_forced", progress=False)
    write_the_truth(tiny_model, processor, dataset, monkeypatch)
    written = evaluate(tiny_model, processor, dataset, "generated_order", progress=False)
    assert written.as_dict()["seg_count_accuracy"] == 1
    for a, b in zip(forced.objects, written.objects, strict=True):
        assert a.record == b.record and b.status == "paired"
        assert abs(a.amodal.intersection - b.amodal.intersection) <= 2
        assert abs(a.predicted_visible_area - b.predicted_visible_area) <= 2
    assert [a.predicted_text for a in written.answers] == [a.true_text for a in written.answers]
    matched = evaluate(tiny_model, processor, dataset, "generated_matched", progress=False).as_dict()
    ordered = written.as_dict()
    sums = [f["visible"]["giou_object"] + f["amodal"]["giou_object"] for f in (matched, ordered)]
    assert sums[0] >= sums[1] - 1e-9


def test_every_question_is_asked_after_its_true_history(tiny_model, processor, dataset, monkeypatch) -> None:
    asked = []

    def generate_answers(prompts, *, clip_features, max_new_tokens):
        asked.extend(prompts)
        assert max_new_tokens == 7 and clip_features.shape[0] == 1
        return [Generation([processor.text.eos_token_id], torch.zeros(0, 32), None, False, []) for _ in prompts]

    monkeypatch.setattr(tiny_model, "generate_answers", generate_answers)
    report = evaluate(tiny_model, processor, dataset[:1], "generated_order", progress=False, max_new_tokens=7)
    first, second = dataset[0].conversations[0].turns
    start = processor.text.start_prompt(first.question)
    assert asked[0] == start
    answer = asked[1][len(start) : asked[1].index(processor.text.eos_token_id) + 1]
    assert processor.text.decode(answer) == first.answer
    assert asked[1] == start + answer + processor.text.followup(second.question)
    assert len(asked) == 4
    assert {o.status for o in report.objects} == {"missed"}
    assert report.as_dict()["seg_count_accuracy"] == 0.25


def test_several_protocols_score_as_each_alone_and_answers_are_written_once(
    tiny_model, processor, dataset, monkeypatch
) -> None:
    alone = {protocol: evaluate(tiny_model, processor, dataset, protocol, progress=False) for protocol in PROTOCOLS}
    written, generate = [], tiny_model.generate_answers
    monkeypatch.setattr(tiny_model, "generate_answers", lambda *a, **k: written.append(1) or generate(*a, **k))
    seen = []
    observers = [lambda sample, _: seen.append(sample)]
    together = dict(evaluate_all(tiny_model, processor, dataset, PROTOCOLS, progress=False, observers=observers))
    assert list(together) == PROTOCOLS
    assert {name: r.as_dict() for name, r in together.items()} == {name: r.as_dict() for name, r in alone.items()}
    assert len(written) == len(dataset) == len(seen)


def test_the_model_is_left_as_it_was_and_images_are_reported(tiny_model, processor, dataset) -> None:
    tiny_model.train()
    seen = {}
    evaluate(
        tiny_model, processor, dataset, "teacher_forced", limit=2, progress=False,
        observers=[lambda sample, answers: seen.update({sample.image_id: answers})],
    )  # fmt: skip
    assert tiny_model.training
    assert list(seen) == [1, 2]
    assert seen[1][100, 1].masks[1].visible.shape == (40, 60)
    assert seen[1][101, 0].masks == {}


def test_nothing_to_evaluate_is_an_error(tiny_model, processor, dataset) -> None:
    for samples, limit in (([], None), (dataset, 0)):
        with pytest.raises(ValueError, match="no image with a conversation"):
            evaluate(tiny_model, processor, samples, "teacher_forced", limit=limit, progress=False)


def test_ranks_share_the_images_and_all_get_the_whole_report(tiny_model, processor, dataset, monkeypatch) -> None:
    alone = evaluate(tiny_model, processor, dataset, "teacher_forced", progress=False)
    parts = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(evaluation, "gather", lambda report: parts.append(report) or [report])
    passes = []
    tiny_model.register_forward_hook(lambda *_: passes.append(dist.get_rank()))
    for rank in range(2):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        evaluate(tiny_model, processor, dataset, "teacher_forced", progress=False)
    assert passes == [0, 0, 1, 1], "every rank must take part in every forward pass"
    assert [sorted({a.image_id for a in part.answers}) for part in parts] == [[1, 3], [2]]
    together = evaluation.Report.merge("teacher_forced", reversed(parts))
    assert together == alone and together.as_dict() == alone.as_dict()


def test_reports_travel_between_processes(tiny_model, processor, dataset, tmp_path) -> None:
    report = evaluate(tiny_model, processor, dataset[:1], "teacher_forced", progress=False)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert ranks.gather(report) == [report]
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2])
def test_a_killed_evaluation_goes_on_and_ends_as_if_nothing_had_happened(
    tiny_model, processor, dataset, monkeypatch, tmp_path, world
) -> None:
    """Killed while it scores the second image of the first of ``world`` ranks; one rank goes on."""
    options = {"progress": False, "max_new_tokens": 6}
    whole = dict(evaluate_all(tiny_model, processor, dataset, PROTOCOLS, **options))
    options["unfinished"] = tmp_path / "unfinished"
    seen = []

    def die(sample, _):
        seen.append(sample.image_id)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if world == 2:
            patch.setattr(dist, "is_initialized", lambda: True)
            patch.setattr(dist, "get_world_size", lambda: 2)
            patch.setattr(dist, "get_rank", lambda: 0)
            patch.setattr(evaluation, "from_first", lambda make: make())
        with pytest.raises(KeyboardInterrupt):
            dict(evaluate_all(tiny_model, processor, dataset, ["generated_order"], observers=[die], **options))
    assert seen == [[1, 2], [1, 3]][world - 1]
    (file,) = (tmp_path / "unfinished" / "written").glob("*.jsonl")
    with file.open("a") as torn:
        torn.write('{"image_id": 2, "rec')

    answered, generate = [], tiny_model.generate_answers
    monkeypatch.setattr(tiny_model, "generate_answers", lambda *a, **k: answered.append(1) or generate(*a, **k))
    shown = []
    observers = [lambda sample, answers: shown.append((sample.image_id, len(answers)))]
    again = dict(evaluate_all(tiny_model, processor, dataset, PROTOCOLS, observers=observers, **options))
    assert len(answered) == 1, "only the image without an answer is answered"
    assert again == whole and [again[p].as_dict() for p in PROTOCOLS] == [whole[p].as_dict() for p in PROTOCOLS]
    assert shown == [(1, 4), (2, 4), (3, 4)]
    assert list((tmp_path / "unfinished").iterdir()) == []


def test_answers_of_another_model_or_record_are_not_taken(tiny_model, processor, dataset, tmp_path) -> None:
    def start(**options):
        every = evaluate_all(
            tiny_model, processor, dataset, ["generated_order"], progress=False, unfinished=tmp_path, **options
        )
        return next(every)[1]  # its report is not yet taken

    first = start(max_new_tokens=6)
    assert start(max_new_tokens=6) == first
    with pytest.raises(ValueError, match=r"another evaluation.*\(longest answer: 6 -> 5\); give another --out"):
        start(max_new_tokens=5)
    changed = replace(dataset[0], conversations=dataset[0].conversations[:1])
    dataset[0] = changed
    assert start(max_new_tokens=6).as_dict()["num_answers"] == 10
    with torch.no_grad():
        next(tiny_model.visible_decoder.parameters()).add_(1)
    with pytest.raises(ValueError, match=r"another evaluation.*\(model: "):
        start(max_new_tokens=6)
