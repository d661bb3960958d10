"""The Assistant in every precision, quantised, and spread over devices: SAM and the heads always compute in fp32."""

import importlib.util

import numpy as np
import pytest
import torch

from aura.chat.assistant import Assistant
from aura.config import DataSettings, LoraSettings, ModelSettings
from aura.model.quantize import quantized_linears
from aura.weights.build import build_model

IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
QUESTION = "What could I ride?"


@pytest.fixture
def tiny_llava_config(tiny_llava_config):
    """Wide enough for 4-bit blocks of 64 weights."""
    text = tiny_llava_config.text_config
    text.hidden_size, text.intermediate_size, text.head_dim = 64, 128, 16
    return tiny_llava_config


@pytest.fixture
def export(tiny_llava_dir, tiny_sam_dir, tmp_path):
    settings = ModelSettings(mllm=tiny_llava_dir, sam=tiny_sam_dir, lora=LoraSettings(r=4, dropout=0.0))
    model, processor, _ = build_model(settings, DataSettings(max_length=300))
    model.save_pretrained(str(tmp_path / "export"))
    processor.save_pretrained(str(tmp_path / "export"))
    return tmp_path / "export"


def masks_of(assistant, states=2):
    """The masks for states that are the same in every precision, through the Assistant's own model."""
    model = assistant.model
    hidden = torch.linspace(-1, 1, states * 64).reshape(states, 64)
    inputs = assistant.processor.image(IMAGE)
    features = model.encode_images(inputs.sam_pixels[None].to(model.device), inputs.clip_pixels[None].to(model.device))
    with torch.no_grad():
        return model.decode_masks(hidden, features.sam_embeddings, torch.zeros(states, dtype=torch.long))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_language_model_takes_the_dtype_and_the_masks_stay_the_same(export, dtype):
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assistant = Assistant.from_pretrained(export, "cpu", dtype, max_new_tokens=5)
    model = assistant.model
    base = {p.dtype for name, p in model.mllm.named_parameters() if ".lora_" not in name}
    assert base == {wanted}
    others = [p for name, p in model.named_parameters() if not name.startswith("mllm.")]
    assert others and {p.dtype for p in others} == {torch.float32}
    chat = assistant.conversation(IMAGE)
    for _ in range(2):
        reply = chat.ask(QUESTION)
        assert reply.truncated and isinstance(reply.text, str)
    full = masks_of(Assistant.from_pretrained(export, "cpu", "fp32"))
    assert torch.equal(masks_of(assistant).visible_logits, full.visible_logits)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_assistant_answers_and_draws_in_fp32(export, kind):
    assistant = Assistant.from_pretrained(export, "cpu", "bf16", quantize=kind, max_new_tokens=5)
    assert len(list(quantized_linears(assistant.model))) == 2 * 7
    assert assistant.ask(IMAGE, QUESTION).truncated
    full = masks_of(Assistant.from_pretrained(export, "cpu", "fp32"))
    assert torch.equal(masks_of(assistant).amodal_logits, full.amodal_logits)


def test_layers_of_the_language_model_may_lie_on_the_disk(export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = Assistant.from_pretrained(export, "cpu", max_new_tokens=5)
    names = [name for name, _ in plain.model.named_children() if name != "mllm"]
    spread = {
        **dict.fromkeys([*names, "mllm.vision_tower", "mllm.projector", "mllm.lm_head"], "cpu"),
        **dict.fromkeys([f"mllm.language_model.{name}" for name in ("embed_tokens", "norm", "rotary_emb")], "cpu"),
        "mllm.language_model.layers.0": "cpu",
        "mllm.language_model.layers.1": "disk",
    }
    assistant = Assistant.from_pretrained(export, device_map=spread, max_new_tokens=5)
    assert any(p.is_meta for p in assistant.model.mllm.language_model.layers[1].parameters())
    assert assistant.ask(IMAGE, QUESTION).text == plain.ask(IMAGE, QUESTION).text
    with pytest.raises(ValueError, match="visible_decoder outside the GPUs"):
        Assistant.from_pretrained(export, device_map={**spread, "visible_decoder": "disk"})


def test_a_map_of_one_device_is_that_device(export):
    assistant = Assistant.from_pretrained(export, device_map={"": "cpu"}, max_new_tokens=5)
    assert (
        assistant.ask(IMAGE, QUESTION).text
        == Assistant.from_pretrained(export, "cpu", max_new_tokens=5).ask(IMAGE, QUESTION).text
    )
    with pytest.raises(ValueError, match="not both"):
        Assistant.from_pretrained(export, "cpu", device_map="auto")
    with pytest.raises(ValueError, match="none, int8 or int4"):
        Assistant.from_pretrained(export, "cpu", quantize="int3")


def test_without_bitsandbytes_the_assistant_says_what_to_install(export, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        Assistant.from_pretrained(export, "cpu", quantize="int4")
