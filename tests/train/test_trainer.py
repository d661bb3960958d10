"""Whole runs of a tiny random AURA on generated squares, on one CPU process."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch

from aura.config import Config, DataSettings, ModelSettings, TrainSettings
from aura.data.mixture import Mixture
from aura.model import AuraModel
from aura.train import trainer as trainer_module
from aura.train.engine import start_process
from aura.train.feed import batches
from aura.train.logs import read_log
from aura.train.trainer import Trainer
from aura.weights.build import build_model
from tests.train.squares import make_samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("images"), 7)


@pytest.fixture(scope="module")
def val_samples(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("val"), 2, first_id=100)


@pytest.fixture
def config(tiny_llava_dir, tiny_sam_dir, tmp_path):
    return Config(
        model=ModelSettings(mllm=tiny_llava_dir, sam=tiny_sam_dir),
        data=DataSettings(conversations_per_image=1, num_workers=0, feature_cache=str(tmp_path / "features")),
        train=TrainSettings(
            output_dir=str(tmp_path / "run"),
            steps=6,
            warmup_steps=1,
            accumulation=2,
            precision="fp32",
            zero_stage=0,
            gradient_checkpointing=False,
            log_every=2,
            validate_every=3,
            checkpoint_every=2,
            tensorboard=False,
        ),
    )


def changed(config, **train):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


def make_trainer(config, samples, val_samples=None):
    process = start_process(config.train)
    torch.manual_seed(config.train.seed)
    model, processor, _ = build_model(config.model, config.data)
    return Trainer(config, model, processor, samples, val_samples, process)


def losses_of(run):
    times = ("seconds", "samples_per_second")
    return [{k: v for k, v in r.items() if k not in times} for r in read_log(Path(run) / "log.jsonl")]


def test_a_run_leaves_everything_behind(config, samples, val_samples):
    config = changed(config, tensorboard=True)
    assert make_trainer(config, samples, val_samples).run() == 0
    run = Path(config.train.output_dir)
    report = json.loads((run / "report.json").read_text())
    records = losses_of(run)
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 4, 6]
    assert [r["step"] for r in records if r["kind"] == "val"] == [3, 6]
    best = max((r for r in records if r["kind"] == "val"), key=lambda r: r["amodal"]["giou_object"])
    assert report["best"] == {
        "step": best["step"],
        "metric": "amodal.giou_object",
        "score": best["amodal"]["giou_object"],
    }
    assert report["steps"] == 6 and report["effective_batch"] == 2
    assert (run / "report.md").is_file() and (run / "config.yaml").is_file()
    assert "Loss terms" in (run / "report.html").read_text()
    for step in (3, 6):
        names = {path.name for path in (run / "validation" / f"step_{step:06d}").iterdir()}
        assert {"report.json", "objects.jsonl", "best.jpg", "worst.jpg"} <= names
    assert list((run / "tensorboard").iterdir())
    exported = AuraModel.from_pretrained(run / "export")
    assert exported.config.lora is not None
    kept = sorted(p.name for p in (run / "checkpoints").glob("step_*"))
    assert kept == sorted({f"step_{best['step']:06d}", "step_000004", "step_000006"})


@pytest.mark.parametrize("several", [False, True], ids=["one source", "several sources"])
def test_interrupted_and_continued_equals_uninterrupted(config, samples, val_samples, tmp_path, monkeypatch, several):
    if several:
        samples, val_samples = (
            Mixture([part, part[:1]], ["squares", "more"], [2, 1]) for part in (samples, val_samples)
        )
    whole = changed(config, output_dir=str(tmp_path / "whole"))
    assert make_trainer(whole, samples, val_samples).run() == 0

    parts = changed(config, output_dir=str(tmp_path / "parts"))
    micro_step = Trainer._micro_step
    told = []

    def interrupted(trainer, batch):
        micro_step(trainer, batch)
        if trainer.engine.steps == 3 and not told:  # between two log lines: the running means continue too
            told.append(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        if trainer.engine.steps == 5:
            raise KeyboardInterrupt  # work after the last checkpoint is lost

    monkeypatch.setattr(Trainer, "_micro_step", interrupted)
    assert make_trainer(parts, samples, val_samples).run() == 128 + signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        make_trainer(parts, samples, val_samples).run()
    monkeypatch.setattr(Trainer, "_micro_step", micro_step)
    assert make_trainer(parts, samples, val_samples).run() == 0

    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")
    if several:
        logged = losses_of(tmp_path / "whole")
        drawn = [record["drawn"] for record in logged if record["kind"] == "train"]
        assert drawn[-1] == {"squares": 8, "more": 4} and all(abs(d["squares"] - 2 * d["more"]) < 3 for d in drawn)
        before = dict.fromkeys(drawn[0], 0)
        for record in (record for record in logged if record["kind"] == "train"):
            # A micro-batch is an image here, so the mean over all is that of the sources by their visits.
            visits = {name: record["drawn"][name] - before[name] for name in before}
            before = record["drawn"]
            assert record["sources"].keys() == {name for name, count in visits.items() if count}
            for term in ("total", "text"):  # an image without any [SEG] has no other
                mean = sum(visits[name] * own[term] for name, own in record["sources"].items()) / sum(visits.values())
                assert mean == pytest.approx(record[term], rel=1e-5)
        assert "Losses of squares" in (tmp_path / "whole" / "report.html").read_text()
        told = next(record["sources"] for record in logged if record["kind"] == "val")
        assert [told[name]["num_objects"] for name in ("squares", "more")] == [6, 3]
        validation = (tmp_path / "whole" / "validation" / "step_000003" / "report.md").read_text()
        assert all(f"| {name} | teacher_forced |" in validation for name in ("squares", "more", "AURA"))
    first, second = (AuraModel.from_pretrained(tmp_path / name / "export") for name in ("whole", "parts"))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_one_batch_can_be_overfitted(config, samples):
    config = changed(config, steps=24, lr=2e-2, overfit_one_batch=True, log_every=12, checkpoint_every=0)
    assert make_trainer(config, samples).run() == 0
    totals = [r["total"] for r in losses_of(config.train.output_dir)]
    assert totals[-1] < 0.6 * totals[0]


def test_loss_that_is_not_finite_names_the_images(config, samples):
    trainer = make_trainer(config, samples[:1])
    with torch.no_grad():
        trainer.model.mllm.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"optimizer step 1.*images \[0\]"):
        trainer.run()


def test_loss_that_does_not_move_is_said(config, samples, capsys):
    make_trainer(changed(config, lr=1e-12, steps=8, log_every=1, overfit_one_batch=True), samples).run()
    assert "WARNING: the loss does not move" in capsys.readouterr().out


def test_unknown_metric_names_the_figures(config, samples, val_samples):
    with pytest.raises(ValueError, match=r"best_metric.*no figure 'amodal\.iou'.*visible"):
        make_trainer(changed(config, best_metric="amodal.iou", validate_every=1), samples, val_samples).run()


def test_other_settings_are_refused_on_resume(config, samples):
    make_trainer(config, samples).run()
    with pytest.raises(ValueError, match=r"train\.lr: 0\.001 -> 0\.1"):
        make_trainer(changed(config, lr=0.1), samples).run()
    with pytest.raises(ValueError, match=r"training records: 7 images"):
        make_trainer(config, samples[:5]).run()
    with pytest.raises(ValueError, match=r"--train.resume auto"):
        make_trainer(changed(config, resume="none"), samples).run()


@pytest.mark.parametrize(("precision", "stage"), [("bf16", 0), ("bf16", 2), ("bf16", 3), ("fp32", 3)])
def test_other_precisions_and_stages_train_and_export(config, samples, val_samples, precision, stage):
    config = changed(config, precision=precision, zero_stage=stage, steps=2, gradient_checkpointing=True)
    assert make_trainer(config, samples, val_samples).run() == 0
    weights = AuraModel.from_pretrained(Path(config.train.output_dir) / "export").state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_auto_recomputes_where_memory_is_short_and_trains_the_same(config, samples, tmp_path, monkeypatch, capsys):
    losses = {}
    for memory, said in ((2**40, "activations: kept"), (2**20, "activations: computed anew")):
        run = str(tmp_path / str(memory))
        monkeypatch.setattr(trainer_module, "memory_of", lambda device, processes, memory=memory: memory)
        trainer = make_trainer(changed(config, gradient_checkpointing="auto", steps=3, output_dir=run), samples)
        assert trainer.run() == 0
        assert said in capsys.readouterr().out
        layers = trainer.model.mllm.language_model.layers
        assert all(layer.gradient_checkpointing is (memory == 2**20) for layer in layers)
        losses[memory] = losses_of(run)
    assert losses[2**20] == losses[2**40]


def test_an_overflow_in_fp16_is_tried_again_with_other_images(config, samples, monkeypatch):
    config = changed(config, precision="fp16", zero_stage=2, log_every=1, validate_every=0)
    process = start_process(changed(config, precision="fp32").train)  # a CPU is refused fp16, for its slowness
    torch.manual_seed(0)
    model, processor, _ = build_model(config.model, config.data, dtype=torch.float16)
    trainer = Trainer(config, model, processor, samples, None, process)
    criterion, seen = trainer.criterion, []

    def third_is_infinite(output, batch):
        losses = criterion(output, batch)
        seen.append(batch.image_ids)
        return dataclasses.replace(losses, total=losses.total * (float("inf") if len(seen) == 3 else 1.0))

    trainer.criterion = third_is_infinite
    assert trainer.run() == 0
    log = read_log(Path(config.train.output_dir) / "log.jsonl")
    assert [r["step"] for r in log if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    skips = [r for r in log if r["kind"] == "skip"]  # the infinite loss, and what the first scale is too high for
    assert skips and all(r["loss_scale"] == 2.0 ** (16 - r["skipped_steps"]) for r in skips)
    assert (log[-1]["loss_scale"], log[-1]["skipped_steps"]) == (skips[-1]["loss_scale"], len(skips))
    stream = batches(samples, processor, config, process, None)
    assert seen == [next(stream).image_ids for _ in range(2 * (6 + len(skips)))]


def test_a_new_projector_is_aligned_once_before_the_first_step(config, samples, val_samples, capsys):
    with pytest.raises(ValueError, match=r"train\.align_steps trains the projector; set model\.train_projector"):
        changed(config, align_steps=2, steps=2)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, train_projector=True))
    config = changed(config, align_steps=2, steps=2)
    assert make_trainer(config, samples).run() == 0
    said = "of the image tokens that show an object are nearest to its word"
    assert said in capsys.readouterr().out
    # The checkpoint holds the aligned projector: it must not be aligned a second time.
    assert make_trainer(config, samples).run() == 0
    assert said not in capsys.readouterr().out
    config = changed(config, output_dir=f"{config.train.output_dir}_validated")
    assert make_trainer(config, samples, val_samples).run() == 0
    assert "% on the validation images: " in capsys.readouterr().out


def test_states_are_rescaled_before_the_first_step_and_not_again(config, samples, capsys):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, rescale_states=True))
    first = make_trainer(changed(config, steps=2), samples)
    assert first.run() == 0
    rescaling = first.model.prompt_encoder.rescaling
    assert not rescaling.is_new
    model = AuraModel.from_pretrained(Path(config.train.output_dir) / "export")
    torch.testing.assert_close(model.prompt_encoder.rescaling.weight, rescaling.weight)
    again = changed(config, steps=2, output_dir=config.train.output_dir + "_2")
    again = dataclasses.replace(again, model=ModelSettings(init_from=str(Path(config.train.output_dir) / "export")))
    capsys.readouterr()
    assert make_trainer(again, samples).run() == 0
    assert "looking at [SEG] states" not in capsys.readouterr().err
