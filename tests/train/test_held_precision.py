"""What a run holds in half precision and what in fp32, and that training and export compute the same."""

from pathlib import Path

import pytest
import torch

from aura.config import DataSettings, LoraSettings, ModelSettings
from aura.data.collate import collate
from aura.model import AuraModel
from aura.model.precision import cast_parameters, hold
from aura.train.checkpoint import export
from aura.train.engine import Engine, TrainSettings, start_process
from aura.weights.build import build_model


class NoProcessor:
    def save_pretrained(self, folder):
        pass


@pytest.fixture
def settings(tiny_llava_dir, tiny_sam_dir):
    return ModelSettings(mllm=tiny_llava_dir, sam=tiny_sam_dir, lora=LoraSettings(r=4, dropout=0.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trained_weights_are_fp32_and_frozen_backbones_half(settings, dtype):
    model, _, _ = build_model(settings, DataSettings(max_length=300), dtype=dtype)
    assert {p.dtype for _, p in model.trainable_parameters()} == {torch.float32}
    frozen = {name: p.dtype for name, p in model.named_parameters() if not p.requires_grad}
    assert {d for name, d in frozen.items() if name.startswith(("mllm.", "image_encoder."))} == {dtype}
    assert {d for name, d in frozen.items() if name.startswith("prompt_encoder.")} == {torch.float32}


@pytest.mark.parametrize("allow_random", [False, True])
def test_rotary_frequencies_are_never_rounded(settings, tiny_llava_dir, allow_random, tmp_path):
    exact = build_model(settings, DataSettings(max_length=300))[0].mllm.language_model.rotary_emb.inv_freq
    if allow_random:
        Path(tiny_llava_dir, "model.safetensors").unlink()
        settings = ModelSettings(**{**vars(settings), "allow_random": True})
    model, _, _ = build_model(settings, DataSettings(max_length=300), dtype=torch.bfloat16)
    held = model.mllm.language_model.rotary_emb.inv_freq
    assert held.dtype == torch.float32 and torch.equal(held, exact)


def test_buffers_are_not_cast():
    module = torch.nn.BatchNorm1d(3)
    cast_parameters(module, torch.bfloat16)
    assert module.weight.dtype == torch.bfloat16 and module.running_mean.dtype == torch.float32


@pytest.mark.parametrize("stage", [0, 2])
def test_the_export_computes_what_the_engine_computes_in_bf16(make_model, make_sample, stage, tmp_path):
    model = make_model()
    hold(model, torch.bfloat16)
    settings = TrainSettings(
        steps=9, warmup_steps=1, accumulation=1, lr=1e-2, precision="bf16", zero_stage=stage, grad_clip=0.0
    )
    engine = Engine(model.train(), settings, start_process(settings))
    batch = collate([make_sample([[30, 9], [40]], seg=2)])
    for _ in range(4):
        output = engine(batch)
        engine.backward(output.text_logits.square().mean() + output.amodal_logits.square().mean() + output.unused)
        engine.step()
    export(engine, NoProcessor(), tmp_path / "export", None, torch.bfloat16)
    used = AuraModel.from_pretrained(tmp_path / "export").eval()
    assert used.mllm.dtype == torch.bfloat16 and used.mllm.half_dtype is None
    features = engine.module.encode_images(batch.sam_pixels, batch.clip_pixels)
    batch.sam_embeddings, batch.clip_features = features.sam_embeddings, features.clip_features
    with torch.no_grad():
        trained, found = engine.module.eval()(batch), used(batch)
    assert trained.text_logits.dtype == torch.bfloat16
    assert [name for name, value in found.items() if value is None] == ["asked_logits", "pointed_logits"]
    for name, value in trained.items():
        assert found[name] is value is None or torch.equal(found[name], value), name
