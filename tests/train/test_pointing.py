"""A model whose [SEG] states point at image tokens: trained, exported, evaluated, asked."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

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


@pytest.fixture
def corner(model, tmp_path) -> ModelSettings:
    folder = Path(shutil.copytree(model.mllm, tmp_path / "llava"))
    written = folder / "preprocessor_config.json"
    written.write_text(json.dumps({"clip_resize": "corner"}))
    return dataclasses.replace(model, mllm=str(folder))


def settings(model: ModelSettings, folder: Path, loss: LossSettings, steps: int = 12) -> Config:
    return Config(
        model=model,
        data=DataSettings(conversations_per_image=None, num_workers=0, feature_cache=None),
        loss=loss,
        train=TrainSettings(
            **{"output_dir": str(folder), "steps": steps, "warmup_steps": 1, "log_every": 4, "lr": 1e-2},
            **{"micro_batch_size": 1, "accumulation": 1, "validate_every": 0, "checkpoint_every": 0},
            **{"precision": "fp32", "zero_stage": 0, "gradient_checkpointing": False, "tensorboard": False},
        ),
    )


def train(config: Config, samples, val=None):
    process = start_process(config.train)
    built, processor, report = build_model(config.model, config.data)
    assert Trainer(config, built, processor, samples, val, process).run() == 0
    return built, report


def test_states_learn_to_point(corner, tmp_path):
    config = settings(corner, tmp_path / "run", LossSettings(mask_resolution="decoder"))
    samples = make_samples(tmp_path, 1, first_id=1)
    built, report = train(config, samples)
    assert [len(part.new) for part in report.parts if part.part == "pointer"] == [3]
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert max(line["pointing"] for line in log) < math.log(built.config.num_image_tokens)  # chance, as a new one is
    assistant = Assistant.from_pretrained(tmp_path / "run")
    protocols = ("teacher_forced", "generated_order")
    options = {"max_new_tokens": 12, "progress": False, "unfinished": tmp_path / "unfinished"}
    for _, found in evaluate_all(assistant.model, assistant.processor, samples, protocols, **options):
        assert found.as_dict()["num_objects"] > 0
    assert assistant.ask(samples[0].image_path, "Which one?").text


WORDS = LossSettings(
    **dict.fromkeys(("visible_bce", "visible_dice", "amodal_bce", "amodal_dice", "occlusion_rate", "spatial"), 0.0),
    pointing=0.0,
)


def test_words_first_then_masks(corner, tmp_path, capsys):
    samples = make_samples(tmp_path, 2, first_id=1)
    model = dataclasses.replace(corner, rescale_states=True, train_embeddings="seg")
    start = build_model(model, DataSettings())[0].state_dict()
    words, _ = train(settings(model, tmp_path / "words", WORDS), samples)
    assert "point at their object" not in capsys.readouterr().out
    log = read_log(tmp_path / "words" / "log.jsonl")
    assert log[-1]["text"] < log[0]["text"] and all(line["visible_dice"] == line["spatial"] == 0 for line in log)
    parts = ("prompt_encoder.", "visible_decoder.", "amodal_decoder.", "occlusion_condition.", "spatial_occlusion.")
    assert not words.prompt_encoder.pointer.query.weight.any()
    end = words.state_dict()
    decoder = [name for name in start if name.startswith("amodal_decoder.")]
    assert decoder and all(torch.equal(start[name], end[name]) for name in decoder)
    for table in ("mllm.language_model.embed_tokens.weight", "mllm.lm_head.weight"):
        learnt = (start[table] != end[table]).any(1).nonzero().tolist()
        assert learnt == [[words.config.seg_token_id]]
    then = dataclasses.replace(
        model,
        mllm=None,
        sam=None,
        init_from=str(tmp_path / "words" / "export"),
        lora=LoraSettings(enabled=False),
        train_embeddings=False,
    )
    config = settings(then, tmp_path / "masks", LossSettings(mask_resolution="decoder"), steps=4)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, validate_every=4))
    masks, _ = train(config, samples, samples)
    told = capsys.readouterr().out
    assert "of the [SEG] states point at their object" in told and "on the validation images" in told
    assert all(name.startswith(parts) for name, _ in masks.trainable_parameters())
    assert not masks.prompt_encoder.rescaling.is_new and not masks.prompt_encoder.pointer.is_new
    log = read_log(tmp_path / "masks" / "log.jsonl")
    assert log[0]["visible_dice"] > 0


def test_weight_decay_would_shrink_the_other_words():
    with pytest.raises(ValueError, match=r"train_embeddings is seg, but train\.weight_decay"):
        Config(model=ModelSettings(train_embeddings="seg"), train=TrainSettings(weight_decay=0.1))


def test_best_by_masks_that_nobody_trains():
    with pytest.raises(ValueError, match=r"loss asks for text alone.*train\.validate_every to 0"):
        Config(loss=WORDS)
    assert not Config(loss=WORDS, train=TrainSettings(validate_every=0)).asks_for_objects
    assert Config(loss=WORDS, model=ModelSettings(intent=True)).asks_for_objects
