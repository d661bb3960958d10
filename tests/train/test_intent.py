"""From questions that mean one kind of mask to a model that tells which: trained, exported, evaluated, asked."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from aura.chat.assistant import Assistant, reply_record
from aura.config import Config, DataSettings, LoraSettings, LossSettings, ModelSettings, TrainSettings
from aura.evaluation.evaluate import evaluate_all
from aura.train.engine import start_process
from aura.train.logs import read_log
from aura.train.trainer import LOSS_NAMES, Trainer
from aura.types import Conversation, Sample, Turn
from aura.weights.build import build_model
from tests.train.squares import make_samples

QUESTIONS = {
    "visible": "What is hidden? Show only the visible part.",
    "amodal": "What is hidden? Mark the whole shape.",
    "both": "What is hidden?",
}


def asking(sample: Sample) -> Sample:
    """The sample with one conversation for each kind, and one of two objects that mean different kinds."""
    turns = [Turn(question, "The red [SEG].", (1,), (kind,)) for kind, question in QUESTIONS.items()]
    turns.append(
        Turn("All of it, and of the other what I see?", "The red [SEG], blue [SEG].", (1, 2), ("amodal", "visible"))
    )
    conversations = tuple(Conversation(10 * sample.image_id + n, (turn,)) for n, turn in enumerate(turns))
    return dataclasses.replace(sample, conversations=conversations)


@pytest.fixture
def config(tiny_llava_dir, tiny_sam_dir, tmp_path) -> Config:
    return Config(
        model=ModelSettings(
            mllm=tiny_llava_dir, sam=tiny_sam_dir, intent=True, lora=LoraSettings(r=8, alpha=16, dropout=0.0)
        ),
        data=DataSettings(conversations_per_image=None, num_workers=0, feature_cache=None),
        loss=LossSettings(mask_resolution="decoder"),
        train=TrainSettings(
            **{"output_dir": str(tmp_path / "run"), "steps": 20, "warmup_steps": 1, "log_every": 10, "lr": 2e-2},
            **{"micro_batch_size": 1, "accumulation": 1, "validate_every": 0, "checkpoint_every": 0},
            **{"precision": "fp32", "zero_stage": 0, "gradient_checkpointing": False, "tensorboard": False},
        ),
    )


def test_the_head_learns_which_mask_is_meant(config, tmp_path):
    samples = [asking(sample) for sample in make_samples(tmp_path, 1, first_id=1)]
    process = start_process(config.train)
    model, processor, report = build_model(config.model, config.data)
    assert [part.new for part in report.parts if part.part == "intent"] == [
        ("intent.linear.weight", "intent.linear.bias")
    ]
    assert Trainer(config, model, processor, samples, None, process).run() == 0
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert all({*LOSS_NAMES, "intent"} <= record.keys() for record in log)
    assert log[-1]["intent"] < 0.5 * log[0]["intent"]
    assert "intent" in json.loads((tmp_path / "run" / "report.json").read_text())["losses"]

    assistant = Assistant.from_pretrained(tmp_path / "run")
    protocols = ("teacher_forced", "generated_order", "generated_matched")
    reports = evaluate_all(
        assistant.model,
        assistant.processor,
        samples,
        protocols,
        max_new_tokens=12,
        progress=False,
        unfinished=tmp_path / "unfinished",
    )
    for protocol, found in reports:
        figures = found.as_dict()["asked"]
        assert figures["num_objects"] == 5 and figures["most_common"] == pytest.approx(2 / 5), protocol
        assert [figures[f"accuracy{kind}"] for kind in ("", "_visible", "_amodal", "_both")] == [1, 1, 1, 1], protocol
        assert {(row["asked"], row["predicted_asked"]) for row in found.object_rows()} == {(k, k) for k in QUESTIONS}
    for kind, question in QUESTIONS.items():
        reply = assistant.ask(samples[0].image_path, question)
        assert [o.asked for o in reply.objects] == [kind]
        assert reply_record(reply)["objects"][0]["asked"] == kind


def test_without_the_setting_all_is_as_if_there_were_none(config):
    torch.manual_seed(3)
    plain, _, _ = build_model(dataclasses.replace(config.model, intent=False), config.data)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    model, _, _ = build_model(config.model, config.data)
    assert plain.intent is None and torch.equal(torch.rand(1), drawn)
    own = {"intent.linear.weight", "intent.linear.bias"}
    assert model.state_dict().keys() - plain.state_dict().keys() == own
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())


def test_an_export_without_the_head_gets_a_new_one(config, tmp_path):
    plain, processor, _ = build_model(dataclasses.replace(config.model, intent=False), config.data)
    plain.save_pretrained(tmp_path / "export")
    processor.save_pretrained(tmp_path / "export")
    written = tmp_path / "export" / "config.json"
    stored = json.loads(written.read_text())
    stored.pop("intent", None)  # as it was written before there was such a setting
    written.write_text(json.dumps(stored))
    again, _, _ = build_model(ModelSettings(init_from=str(tmp_path / "export"), lora=config.model.lora), config.data)
    assert again.intent is None
    settings = dataclasses.replace(config.model, mllm=None, sam=None, init_from=str(tmp_path / "export"))
    model, _, report = build_model(settings, config.data)
    assert report.parts[0].new == ("intent.linear.bias", "intent.linear.weight") and not report.parts[0].missing
    assert not model.intent.linear.weight.any() and model.intent.linear.weight.requires_grad
