"""8- and 4-bit language models: what is quantised, what is not, and that they train, save and answer."""

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from aura.config import DataSettings, LoraSettings, ModelSettings
from aura.data.collate import collate
from aura.model import AuraModel
from aura.model.quantize import (
    KEPT,
    check_quantization,
    quantization_config,
    quantize_linears,
    quantized_linears,
    unpacked,
)
from aura.weights.build import build_model

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
DATA = DataSettings(max_length=300)
KINDS = ["int8", "int4"]


@pytest.fixture
def tiny_llava_config(tiny_llava_config):
    """Wide enough for blocks of 64 weights."""
    text = tiny_llava_config.text_config
    text.hidden_size, text.intermediate_size, text.head_dim = 64, 128, 16
    return tiny_llava_config


@pytest.fixture
def settings(tiny_llava_dir, tiny_sam_dir) -> ModelSettings:
    return ModelSettings(mllm=tiny_llava_dir, sam=tiny_sam_dir, lora=LoraSettings(r=4, dropout=0.0))


def linears_of_the_decoder(model):
    return {
        name.replace(".base_layer", "")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name and "language_model" in name and ".lora_" not in name
    }


def batch_for(model, make_sample):
    batch = collate([make_sample([[9], [7]], seg=2)])
    rows = model.config.llava_config.text_config.vocab_size
    batch.input_ids.clamp_(max=rows - 1)
    batch.target_ids.clamp_(max=rows - 1)
    return batch


def shake(model):
    with torch.no_grad():
        for parameter in model.mllm.lora_parameters():
            parameter.normal_(std=0.1)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_decoder_s_linear_layers_are_quantised(settings, kind):
    plain, _, _ = build_model(settings, DATA)
    model, _, _ = build_model(replace(settings, quantize=kind), DATA)
    done = {name.replace(".base_layer", "") for name, _ in quantized_linears(model)}
    assert done == linears_of_the_decoder(plain) and len(done) == 2 * 7
    for name, parameter in model.named_parameters():
        packed = parameter.dtype in (torch.uint8, torch.int8)
        assert packed == (name.replace(".base_layer", "").removesuffix(".weight") in done), name
    trainable = {name for name, _ in model.trainable_parameters()}
    assert trainable == {name for name, _ in plain.trainable_parameters()}
    assert all(p.dtype == torch.float32 for _, p in model.trainable_parameters())


@needs_bitsandbytes
@pytest.mark.parametrize(("kind", "error"), [("int8", 0.01), ("int4", 0.11)])
def test_the_packed_weights_stand_for_the_given_ones(settings, kind, error):
    plain, _, _ = build_model(settings, DATA)
    model, _, _ = build_model(replace(settings, quantize=kind), DATA)
    given = plain.state_dict()
    numbers = unpacked(model, torch.float32)
    assert numbers and model.state_dict().keys() == given.keys()
    for name, values in numbers.items():
        difference = (values - given[name]).norm() / given[name].norm()
        assert 0 < difference < error, name


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_computes_with_those_numbers(settings, kind, make_sample):
    model, _, _ = build_model(replace(settings, quantize=kind), DATA)
    shake(model)
    twin, _, _ = build_model(settings, DATA)
    twin.load_state_dict({**model.state_dict(), **unpacked(model, torch.float32)})
    batch = batch_for(model, make_sample)
    with torch.no_grad():
        found, wanted = model.eval()(batch), twin.eval()(batch)
    scale = wanted.text_logits.abs().max()
    # LLM.int8() rounds the inputs as well; NF4 layers compute with exactly these weights.
    assert (found.text_logits - wanted.text_logits).abs().max() < (0.1 if kind == "int8" else 1e-3) * scale
    assert torch.isfinite(found.visible_logits).all()
    after = unpacked(model, torch.float32)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in after.items())


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_heads_learn_and_the_packed_weights_do_not(settings, kind, make_sample):
    model, _, _ = build_model(replace(settings, quantize=kind), DATA)
    model.gradient_checkpointing_enable()
    model.train()
    batch = batch_for(model, make_sample)
    optimizer = torch.optim.AdamW([p for _, p in model.trainable_parameters()], lr=1e-2)
    before, losses = unpacked(model, torch.float32), []
    for _ in range(6):
        output = model(batch)
        loss = nn.functional.cross_entropy(output.text_logits, batch.target_ids) + output.unused
        loss.backward()
        assert all(p.grad is not None for p in model.mllm.lora_parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    after = unpacked(model, torch.float32)
    assert all(torch.equal(after[name], before[name]) for name in before)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_quantised_while_it_loads_equals_one_quantised_afterwards(settings, kind, make_sample, tmp_path):
    model, processor, _ = build_model(settings, DATA)
    shake(model)
    model.save_pretrained(str(tmp_path))
    processor.save_pretrained(str(tmp_path))
    # With the adapters that the export has: they survive the change of the layers under them.
    later, _, _ = build_model(replace(settings, mllm=None, sam=None, init_from=str(tmp_path), quantize=kind), DATA)
    config = quantization_config(kind, torch.float32)
    loading = AuraModel.from_pretrained(tmp_path, quantization_config=config, device_map={"": "cpu"})
    assert {name for name, _ in quantized_linears(loading)} == {name for name, _ in quantized_linears(later)}
    assert loading.image_encoder.dtype == loading.visible_decoder.iou_token.weight.dtype == torch.float32
    batch = batch_for(model, make_sample)
    with torch.no_grad():
        one, other = loading.train()(batch), later.train()(batch)
    for name in ("text_logits", "visible_logits", "amodal_logits", "occlusion_rate", "spatial_logits"):
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-4), name


@needs_bitsandbytes
def test_layers_that_the_cpu_s_4_bit_kernel_gets_wrong_are_refused():
    layer = nn.ModuleDict({"down_proj": nn.Linear(96, 8, bias=False)})
    decoder = nn.Module()
    decoder.layers = nn.ModuleList([layer])
    with pytest.raises(ValueError, match=r"int4.*layers.0.down_proj has 96; int8 works"):
        quantize_linears(decoder, "int4", torch.float32, torch.device("cpu"))


def test_what_is_kept_names_parts_of_the_model(tiny_model):
    names = [name for name, _ in tiny_model.named_modules()]
    for kept in KEPT[:-1]:
        assert kept in names
    for kind in KINDS:
        config = quantization_config(kind, torch.bfloat16)
        assert config.llm_int8_skip_modules == list(KEPT)
        assert (config.load_in_8bit, config.load_in_4bit) == (kind == "int8", kind == "int4")
    assert config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_compute_dtype == torch.bfloat16
    assert quantization_config("none", torch.float32) is None


def test_without_bitsandbytes_it_says_what_to_install_before_loading(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs bitsandbytes.*pip install bitsandbytes"):
        build_model(ModelSettings(mllm="nowhere", sam="nowhere", quantize="int4"), DATA)
    assert check_quantization("none").type in ("cpu", "cuda")


def test_a_bitsandbytes_that_does_not_load_or_know_the_device_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # importing it fails
    with pytest.raises(ValueError, match="does not load here"):
        check_quantization("int8", "cpu")
    fake = type(sys)("bitsandbytes")
    fake.supported_torch_devices, fake.__version__ = {"cuda"}, "0.0"
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    with pytest.raises(ValueError, match="does not support cpu"):
        check_quantization("int8", "cpu")
    with pytest.raises(ValueError, match="none, int8 or int4"):
        check_quantization("int2")
