import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, SamModel

from aura.config import DataSettings, LoraSettings, ModelSettings
from aura.data.preflight import text_fingerprint
from aura.model import AuraModel
from aura.weights.build import add_tokens, build_model
from aura.weights.text import load_text_side

DATA = DataSettings(max_length=300)
LORA = LoraSettings(r=4, dropout=0.0)


@pytest.fixture
def settings(tiny_llava_dir, tiny_sam_dir) -> ModelSettings:
    return ModelSettings(mllm=tiny_llava_dir, sam=tiny_sam_dir, lora=LORA)


def change(settings, **changes):
    from dataclasses import replace

    return replace(settings, **changes)


def test_every_pretrained_weight_arrives(settings):
    model, processor, report = build_model(settings, DATA)
    llava = LlavaForConditionalGeneration.from_pretrained(settings.mllm)
    sam = SamModel.from_pretrained(settings.sam)
    pairs = [
        (model.mllm.vision_tower, llava.model.vision_tower),
        (model.mllm.projector, llava.model.multi_modal_projector),
        (model.image_encoder, sam.vision_encoder),
        (model.prompt_encoder.sam, sam.prompt_encoder),
        (model.visible_decoder, sam.mask_decoder),
        (model.amodal_decoder, sam.mask_decoder),
    ]
    for ours, theirs in pairs:
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    base = {n.replace(".base_layer", ""): p for n, p in model.mllm.language_model.state_dict().items()}
    for name, value in llava.model.language_model.state_dict().items():
        assert torch.equal(base[name][: len(value)], value), name
    assert torch.equal(model.mllm.lm_head.weight[: len(llava.lm_head.weight)], llava.lm_head.weight)

    seg = processor.text.seg_token_id
    assert seg == llava.config.text_config.vocab_size == model.config.seg_token_id
    assert torch.allclose(model.mllm.lm_head.weight[seg], llava.lm_head.weight.mean(0), atol=1e-6)
    assert model.config.image_token_id == processor.text.image_token_id and processor.text.num_image_tokens == 4
    assert model.config.eos_token_id == processor.text.tokenizer.eos_token_id and processor.text.max_length == 300
    assert model.visible_decoder.iou_token.weight is not model.amodal_decoder.iou_token.weight
    assert not any(p.any() for n, p in model.named_parameters() if "lora_B" in n)

    parts = {part.part: part for part in report.parts}
    assert not any(part.missing or part.unexpected for part in report.parts)
    assert parts["mllm"].new == (f"embed_tokens[{seg}]", f"lm_head[{seg}]")
    assert parts["mllm"].loaded > 20 and parts["mask decoders"].loaded == len(sam.mask_decoder.state_dict())
    assert {"lora", "projection", "occlusion_condition", "spatial_occlusion"} <= parts.keys()
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report)
    assert "mask decoders" in console.export_text()


def test_the_built_model_answers_and_survives_an_export(settings, tmp_path):
    model, processor, _ = build_model(settings, DATA)
    prompt = torch.tensor([processor.text.start_prompt("What could I ride?")])
    features = torch.randn(1, 4, 24)
    answer = model.eval().generate_answer(prompt, clip_features=features, max_new_tokens=5)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert text_fingerprint(load_text_side(settings, DATA)) == text_fingerprint(processor.text)
    exported = change(settings, mllm=None, sam=None, init_from=str(tmp_path))
    again, processor, report = build_model(exported, DATA)
    assert text_fingerprint(load_text_side(exported, DATA)) == text_fingerprint(processor.text)
    assert again.eval().generate_answer(prompt, clip_features=features, max_new_tokens=5).token_ids == answer.token_ids
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    assert model.mllm.language_model.config._attn_implementation == "sdpa"
    assert report.parts[0].loaded == len(expected) and not report.parts[0].missing
    assert [n for n, _ in again.trainable_parameters()] == [n for n, _ in model.trainable_parameters()]


def test_an_export_can_change_its_modules(settings, tmp_path):
    model, processor, _ = build_model(change(settings, spatial_occlusion=False, occlusion_condition=False), DATA)
    with torch.no_grad():
        for parameter in model.mllm.lora_parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    start = change(settings, mllm=None, sam=None, init_from=str(tmp_path), lora=LoraSettings(r=2, dropout=0.0))
    grown, _, report = build_model(start, DATA)
    assert grown.spatial_occlusion is not None and grown.config.lora["r"] == 2
    assert not grown.occlusion_condition.linear_out.weight.any() and not grown.spatial_occlusion.conv_out.weight.any()
    assert len(report.parts[0].new) == 12 and not report.parts[0].missing
    model.merge_lora()
    name = "layers.0.self_attn.q_proj"
    merged = grown.mllm.language_model.get_submodule(name).base_layer.weight
    assert torch.equal(merged, model.mllm.language_model.get_submodule(name).weight)

    without, _, _ = build_model(change(start, lora=LoraSettings(enabled=False)), DATA)
    assert without.config.lora is None and not without.mllm.lora_parameters()


def test_an_export_keeps_the_forms_of_its_modules(settings, tmp_path):
    film = change(settings, condition_form="film", spatial_occlusion=False)
    model, processor, _ = build_model(film, DATA)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    start = change(film, mllm=None, sam=None, init_from=str(tmp_path))
    again, _, _ = build_model(start, DATA)
    assert again.config.condition_form == "film" and again.occlusion_condition.form == "film"
    with pytest.raises(ValueError, match=r"has the condition_form film, and model\.condition_form is residual"):
        build_model(change(start, condition_form="residual"), DATA)
    # What it has not, it can be given in any form; a new factor starts as 0, whatever lay in memory.
    fresh, _, _ = build_model(change(start, spatial_occlusion=True, spatial_form="features"), DATA)
    assert fresh.spatial_occlusion.conv_image is not None and fresh.config.spatial_form == "features"
    without = change(settings, occlusion_condition=False)
    model, processor, _ = build_model(without, DATA)
    model.save_pretrained(tmp_path / "without")
    processor.save_pretrained(tmp_path / "without")
    start = change(settings, mllm=None, sam=None, init_from=str(tmp_path / "without"), condition_form="scaled")
    assert not build_model(start, DATA)[0].occlusion_condition.scale.weight.any()


def test_missing_weights_are_refused(settings):
    path = Path(settings.sam) / "model.safetensors"
    weights = load_file(path)
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"mask decoders: 1 tensors are not in .*iou_token"):
        build_model(settings, DATA)
    _, _, report = build_model(change(settings, allow_random=True), DATA)
    assert {p.part: len(p.missing) for p in report.parts}["mask decoders"] == 1


def test_configs_without_weights_need_allow_random(settings):
    for folder in (settings.mllm, settings.sam):
        (Path(folder) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        build_model(settings, DATA)
    model, _, report = build_model(change(settings, allow_random=True), DATA)
    assert isinstance(model, AuraModel) and report.parts[0].loaded == 0 and report.parts[0].missing


def test_user_errors_name_file_and_setting(settings, tmp_path):
    def refuses(match, **changes):
        with pytest.raises(ValueError, match=match):
            build_model(change(settings, **changes), DATA)

    refuses(r"model\.sam is not set", sam=None)
    refuses(r"model\.mllm: /nowhere is not a folder", mllm="/nowhere")
    refuses(r"model\.sam: .*config\.json is missing", sam=str(tmp_path))
    refuses(r"model\.sam: .*model_type 'llava'", sam=settings.mllm)
    refuses(r"model\.mllm: .*model_type 'sam'", mllm=settings.sam)
    refuses(r"model\.init_from: .*model_type 'sam', not 'aura'", init_from=settings.sam)
    path = Path(settings.sam) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuses(r"model\.sam: .*model\.safetensors is truncated or damaged")
    index = Path(settings.mllm) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))
    refuses(r"lacks model-00002-of-00002\.safetensors")
    (Path(settings.mllm) / "config.json").write_text("{")
    refuses(r"config\.json is not valid JSON")


def test_half_precision_weights_are_read_as_asked(settings, tmp_path):
    LlavaForConditionalGeneration.from_pretrained(settings.mllm, dtype=torch.float16).save_pretrained(settings.mllm)
    model, _, _ = build_model(settings, DATA)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_padded_vocabulary_is_kept(tiny_llava_config):
    llava = LlavaForConditionalGeneration(tiny_llava_config)
    old = llava.lm_head.weight.detach().clone()
    assert add_tokens(llava, 310, 309) == ("embed_tokens[309]", "lm_head[309]")
    assert llava.lm_head.weight.shape == old.shape
    rest = torch.cat([old[:309], old[310:]])
    assert torch.allclose(llava.lm_head.weight[309], rest.mean(0), atol=1e-6)
    assert torch.equal(llava.lm_head.weight[310:], old[310:])


def test_a_device_changes_where_weights_lie_and_nothing_else(settings):
    torch.manual_seed(0)
    plain, _, _ = build_model(settings, DATA)
    torch.manual_seed(0)
    placed, _, _ = build_model(settings, DATA, "cpu")
    for name, value in plain.state_dict().items():
        assert torch.equal(value, placed.state_dict()[name]), name
