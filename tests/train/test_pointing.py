"""A model whose [SEG] states point at image tokens: trained, exported, evaluated, asked."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from aura.chat.assistant import Assistant
from aura.config import Config, DataSettings, LoraSettings, LossSettings, ModelSettings, TrainSettings
from aura.evaluation.evaluate import evaluate_all
from aura.train.engine import start_process
from aura.train.logs import read_log
from aura.train.trainer import Trainer
from aura.weights.build import build_model
from tests.train.squares import make_samples


@pytest.fixture
def model(tiny_llava_dir, tiny_sam_dir) -> ModelSettings:
    return ModelSettings(
        mllm=tiny_llava_dir, sam=tiny_sam_dir, pointing=True, lora=LoraSettings(r=8, alpha=16, dropout=0.0)
    )


def test_tokens_must_lie_where_sam_has_them(model):
    with pytest.raises(ValueError, match=r"model\.pointing: .*clip_resize 'corner'"):
        build_model(model, DataSettings())


def test_states_learn_to_point(model, tmp_path):
    folder = Path(shutil.copytree(model.mllm, tmp_path / "llava"))
    written = folder / "preprocessor_config.json"
    written.write_text(json.dumps({"clip_resize": "corner"}))
    model = dataclasses.replace(model, mllm=str(folder))
    config = Config(
        model=model,
        data=DataSettings(conversations_per_image=None, num_workers=0, feature_cache=None),
        loss=LossSettings(mask_resolution="decoder"),
        train=TrainSettings(
            **{"output_dir": str(tmp_path / "run"), "steps": 12, "warmup_steps": 1, "log_every": 4, "lr": 1e-2},
            **{"micro_batch_size": 1, "accumulation": 1, "validate_every": 0, "checkpoint_every": 0},
            **{"precision": "fp32", "zero_stage": 0, "gradient_checkpointing": False, "tensorboard": False},
        ),
    )
    samples = make_samples(tmp_path, 1, first_id=1)
    process = start_process(config.train)
    built, processor, report = build_model(config.model, config.data)
    assert [len(part.new) for part in report.parts if part.part == "pointer"] == [3]
    assert Trainer(config, built, processor, samples, None, process).run() == 0
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert log[-1]["pointing"] < log[0]["pointing"]
    assistant = Assistant.from_pretrained(tmp_path / "run")
    protocols = ("teacher_forced", "generated_order")
    options = {"max_new_tokens": 12, "progress": False, "unfinished": tmp_path / "unfinished"}
    for _, found in evaluate_all(assistant.model, assistant.processor, samples, protocols, **options):
        assert found.as_dict()["num_objects"] > 0
    assert assistant.ask(samples[0].image_path, "Which one?").text
