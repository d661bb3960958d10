"""LISA checkpoints in the layout of the real ones: every tensor arrives, merged and unmerged give the same model."""

import copy
import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

from aura.config import DataSettings, LoraSettings, ModelSettings
from aura.data.preflight import text_fingerprint
from aura.model import AuraModel
from aura.weights.build import build_model
from aura.weights.text import load_text_side
from tests.weights.random_lisa import PREFIX, Parts, write_shards, write_tokenizer

DATA = DataSettings(max_length=300)


@pytest.fixture
def size(sentencepiece_model):
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model).vocab_size()


@pytest.fixture
def parts(tiny_sam_config, tiny_llava_config, size):
    """LISA on LLaVA v1-1."""
    return Parts(tiny_sam_config, copy.deepcopy(tiny_llava_config.vision_config), size + 3, size + 4)


@pytest.fixture
def tower(parts, tmp_path):
    """A whole CLIP, text side and all."""
    text = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=parts.clip.config.to_dict(), projection_dim=16)
    whole = CLIPModel(config)
    own = {name.removeprefix("vision_model."): value for name, value in parts.clip.state_dict().items()}
    flat = getattr(whole.vision_model, "vision_model", whole.vision_model)
    flat.load_state_dict(own)
    whole.save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


@pytest.fixture
def merged(parts, sentencepiece_model, tmp_path):
    """The folder that LISA's merge script writes."""
    folder = tmp_path / "LISA-tiny"
    write_tokenizer(folder, sentencepiece_model, "<im_patch>", "<im_start>", "<im_end>", "[SEG]")
    (folder / "config.json").write_text(json.dumps(parts.lisa_config()))
    write_shards(folder, parts.merged)
    return folder


@pytest.fixture
def base(parts, sentencepiece_model, tmp_path):
    """The LLaVA folder LISA started from; only its config and tokenizer are wanted."""
    folder = tmp_path / "LLaVA-tiny-v1-1"
    write_tokenizer(folder, sentencepiece_model, "<im_patch>", "<im_start>", "<im_end>")
    (folder / "config.json").write_text(json.dumps(parts.v1_config(parts.base_rows, mm_use_im_start_end=True)))
    return folder


@pytest.fixture
def settings(merged, tower):
    return ModelSettings(init_from=str(merged), vision_tower=tower, lora=LoraSettings(enabled=False))


@pytest.fixture
def training(parts, base, settings, tmp_path):
    """Settings for the unmerged state, in the one file of older ``zero_to_fp32.py``."""
    torch.save(parts.training, tmp_path / "pytorch_model.bin")
    return replace(settings, init_from=str(tmp_path / "pytorch_model.bin"), mllm=str(base))


def assert_equal_states(ours, theirs, tolerance=0.0):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() <= tolerance, name


def test_every_tensor_of_a_merged_folder_arrives(settings, parts, size):
    model, processor, report = build_model(settings, DATA)
    assert text_fingerprint(load_text_side(settings, DATA)) == text_fingerprint(processor.text)
    llama, mllm = parts.llama, model.mllm
    ours, theirs = dict(mllm.language_model.state_dict()), dict(llama.model.state_dict())
    ours["lm_head"], theirs["lm_head"] = mllm.lm_head.weight, llama.lm_head.weight
    for name in ("embed_tokens.weight", "lm_head"):
        assert len(ours[name]) == parts.rows + 1
        ours[name] = ours[name][: parts.rows]
    assert_equal_states(ours, theirs)
    assert torch.equal(mllm.projector.linear_1.weight, parts.projector.weight)
    assert torch.equal(mllm.projector.linear_1.bias, parts.projector.bias)
    features = torch.randn(3, 24)
    assert torch.equal(mllm.projector(features), parts.projector(features))
    assert_equal_states(mllm.vision_tower.state_dict(), parts.clip.state_dict())
    assert_equal_states(model.image_encoder.state_dict(), parts.sam.vision_encoder.state_dict())
    assert_equal_states(model.prompt_encoder.sam.state_dict(), parts.sam.prompt_encoder.state_dict())
    for decoder in (model.visible_decoder, model.amodal_decoder):
        assert_equal_states(decoder.state_dict(), parts.sam.mask_decoder.state_dict())
    assert_equal_states(model.prompt_encoder.projection.state_dict(), parts.text_hidden_fcs.state_dict())

    ids = processor.text.tokenizer.convert_tokens_to_ids(["<im_patch>", "<im_start>", "<im_end>", "[SEG]", "<image>"])
    assert ids == [size, size + 1, size + 2, size + 3, size + 4] and processor.text.use_im_start_end
    assert model.config.seg_token_id == size + 3 and model.config.image_token_id == size + 4

    rows = {part.part: part for part in report.parts}
    assert not any(part.missing or part.unexpected for part in report.parts)
    assert rows["mllm"].new == (f"embed_tokens[{size + 4}]", f"lm_head[{size + 4}]")
    from_file = [part for part in report.parts if str(settings.init_from) in part.source]
    assert sum(part.loaded for part in from_file) == len(parts.merged)
    assert rows["vision tower"].loaded == len(parts.clip.state_dict()) and rows["projection"].loaded == 4
    assert rows["occlusion_condition"].new and rows["spatial_occlusion"].new


def test_safetensors_shards_and_single_files_give_the_same(settings, parts, merged):
    expected = build_model(settings, DATA)[0].mllm.state_dict()
    for file in merged.glob("pytorch_model*"):
        file.unlink()
    write_shards(merged, parts.merged, "safetensors")
    assert_equal_states(build_model(settings, DATA)[0].mllm.state_dict(), expected)
    for file in merged.glob("model*"):
        file.unlink()
    torch.save(parts.merged, merged / "pytorch_model.bin")
    assert_equal_states(build_model(settings, DATA)[0].mllm.state_dict(), expected)


@pytest.mark.parametrize("layout", ["file", "old peft", "sharded folder"])
def test_a_training_state_equals_its_merged_folder(settings, training, parts, tmp_path, layout):
    if layout == "old peft":
        old = {name.replace(".base_layer.", "."): value for name, value in parts.training.items()}
        assert old.keys() != parts.training.keys()
        torch.save(old, training.init_from)
    if layout == "sharded folder":
        (tmp_path / "state").mkdir()
        write_shards(tmp_path / "state", parts.training)
        training = replace(training, init_from=str(tmp_path / "state"))
    expected, processor, _ = build_model(settings, DATA)
    model, own, report = build_model(training, DATA)
    assert text_fingerprint(load_text_side(training, DATA)) == text_fingerprint(own.text)
    fresh = ("occlusion_condition.", "spatial_occlusion.")
    ours, theirs = (
        {name: value for name, value in m.state_dict().items() if not name.startswith(fresh)} for m in (model, expected)
    )
    assert_equal_states(ours, theirs, 1e-6)
    assert own.text.tokenizer.get_vocab() == processor.text.tokenizer.get_vocab()
    assert model.config.seg_token_id == expected.config.seg_token_id
    rows = {part.part: part.loaded for part in report.parts if str(training.init_from) in part.source}
    assert rows["LISA's lora (merged)"] == 8 and rows["LISA's vision tower (equal)"] == len(parts.clip.state_dict())
    assert sum(rows.values()) == len(parts.training) - 1  # rotary frequencies are computed
    # The adapters were no small change: merging is what made the two equal.
    name = "model.layers.1.self_attn.v_proj"
    assert (parts.training[f"{PREFIX}{name}.base_layer.weight"] - parts.merged[f"{name}.weight"]).abs().max() > 0.1


def test_lisas_projection_reads_its_states_as_they_are(settings):
    with pytest.raises(ValueError, match=r"model\.rescale_states is for a new projection; LISA's learnt"):
        build_model(replace(settings, rescale_states=True), DATA)


@torch.no_grad()
def test_masks_and_logits_are_those_of_lisa(settings, parts):
    """Against LISA put together by hand: Llama on spliced embeddings, the state before ``[SEG]``, SAM's decoder."""
    model, processor, _ = build_model(settings, DATA)
    model.eval()
    clip_pixels, sam_pixels = torch.randn(1, 3, 28, 28), torch.randn(1, 3, 64, 64)
    start, end, seg, image = processor.text.tokenizer.convert_tokens_to_ids(
        ["<im_start>", "<im_end>", "[SEG]", "<image>"]
    )
    before, after = [1, 20, start], [end, 30, 31, 40, seg, 41, seg, 2]
    ids = torch.tensor([before + [image] * 4 + after])

    embed = parts.llama.model.embed_tokens
    clip = parts.clip(clip_pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    spliced = torch.cat([embed(torch.tensor([before])), parts.projector(clip), embed(torch.tensor([after]))], dim=1)
    output = parts.llama(inputs_embeds=spliced, output_hidden_states=True)
    hidden = output.hidden_states[-1]
    positions = (ids[0] == seg).nonzero()[:, 0]
    prompts = parts.text_hidden_fcs(hidden[0, positions - 1])
    embedding = parts.sam.vision_encoder(sam_pixels).last_hidden_state
    _, dense = parts.sam.prompt_encoder(None, None, None, None)
    masks, _ = parts.sam.mask_decoder(
        image_embeddings=embedding, image_positional_embeddings=parts.sam.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=prompts[None, :, None], dense_prompt_embeddings=dense, multimask_output=False,
    )  # fmt: skip

    features = model.encode_images(sam_pixels, clip_pixels)
    states = model.mllm(ids, clip_features=features.clip_features)
    assert output.logits.abs().max() > 1
    assert (model.mllm.lm_head(states)[..., : parts.rows] - output.logits).abs().max() < 1e-4
    ours = model.decode_masks(states[0, positions - 1], features.sam_embeddings, torch.zeros(2, dtype=torch.long))
    assert masks.abs().max() > 0.1
    for predicted in (ours.visible_logits, ours.amodal_logits):
        assert (predicted - masks[0, :, 0]).abs().max() < 1e-4 * max(1, masks.abs().max())


def test_lisa_on_llama_2_has_its_own_token_order(
    tiny_sam_config, tiny_llava_config, sentencepiece_model, size, tmp_path
):
    """Its base has no image tokens, so ``[SEG]`` comes first."""
    parts = Parts(tiny_sam_config, copy.deepcopy(tiny_llava_config.vision_config), size, size + 3)
    parts.clip.save_pretrained(tmp_path / "clip")
    write_tokenizer(tmp_path / "base", sentencepiece_model)
    config = parts.v1_config(size, rms_norm_eps=1e-5)
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    torch.save(parts.training, tmp_path / "pytorch_model.bin")
    settings = ModelSettings(
        init_from=str(tmp_path / "pytorch_model.bin"), mllm=str(tmp_path / "base"), vision_tower=str(tmp_path / "clip")
    )
    model, processor, _ = build_model(settings, DATA)
    ids = processor.text.tokenizer.convert_tokens_to_ids(["[SEG]", "<im_start>", "<im_end>", "<image>"])
    assert ids == [size, size + 1, size + 2, size + 3] and processor.text.use_im_start_end
    assert torch.equal(model.mllm.lm_head.weight[size], parts.merged["lm_head.weight"][size])
    assert model.config.lora["r"] == 8 and not any(p.any() for n, p in model.named_parameters() if "lora_B" in n)
    assert model.mllm.language_model.config.rms_norm_eps == 1e-5


def test_settings_that_do_not_fit_are_refused(settings, training, parts, merged, base, tmp_path, tiny_llava_dir):
    def refuses(match, given, **changes):
        with pytest.raises(ValueError, match=match):
            build_model(replace(given, **changes), DATA)

    refuses(r"model\.vision_tower is not set; LISA", settings, vision_tower=None)
    refuses(r"model\.vision_tower: .*'llava'.*, not CLIP", settings, vision_tower=tiny_llava_dir)
    refuses(r"model\.mllm is not set; .*training state", training, mllm=None)
    refuses(r"model\.mllm: .* is a Hugging Face LLaVA", training, mllm=tiny_llava_dir)
    refuses(r"model\.init_from: .*is not a folder", settings, init_from=str(tmp_path / "absent"))
    refuses(r"'llava', not 'aura'; give the export of an AURA run or a LISA", settings, init_from=str(base))

    other = copy.deepcopy(parts.clip)
    with torch.no_grad():
        next(other.parameters()).add_(0.5)
    other.save_pretrained(tmp_path / "other clip")
    refuses(r"model\.vision_tower: .* differs from the copy in .*pytorch_model\.bin", training,
            vision_tower=str(tmp_path / "other clip"))  # fmt: skip

    (merged / "added_tokens.json").write_text(json.dumps({"<im_patch>": parts.rows - 4, "[SEG]": parts.rows - 3}))
    (base / "added_tokens.json").write_text("{}")
    config = json.loads((base / "config.json").read_text()) | {"vocab_size": parts.rows - 4}
    (base / "config.json").write_text(json.dumps(config))
    refuses(rf"has {parts.rows} token embeddings, but the tokenizer of .* {parts.rows - 1} with LISA's own", training)


def test_damaged_checkpoints_are_refused(settings, training, parts, merged, tmp_path):
    def refuses(match, given=training, drop=(), **changed):
        state = {name: value for name, value in parts.training.items() if name not in drop} | changed
        torch.save(state, training.init_from)
        with pytest.raises(ValueError, match=match) as caught:
            build_model(given, DATA)
        assert "\n" not in str(caught.value)

    layer = f"{PREFIX}model.layers.0.self_attn.q_proj"
    refuses(
        r"only a part of the adapter of model\.layers\.0\.self_attn\.q_proj", drop=[f"{layer}.lora_B.default.weight"]
    )
    refuses(r"only a part of the adapter", drop=[f"{layer}.base_layer.weight"])
    refuses(
        r"adapter of .* has shapes \[4, 32\] and \[32, 3\]", **{f"{layer}.lora_B.default.weight": torch.ones(32, 3)}
    )
    refuses(r"mixes names with and without", **{"lm_head.weight": torch.ones(1)})
    sam = f"{PREFIX}model.visual_model."
    refuses(r"model\.visual_model\.\*.* SAM .*1 missing: image_encoder\.neck\.3\.bias",
            drop=[f"{sam}image_encoder.neck.3.bias"])  # fmt: skip
    fcs = f"{PREFIX}model.text_hidden_fcs.0."
    refuses(r"model\.text_hidden_fcs\.0\.\* is .*expected", drop=[f"{fcs}2.bias"])
    refuses(r"not a LISA checkpoint, it has no model\.text_hidden_fcs", drop=[n for n in parts.training if fcs in n])
    refuses(r"mllm: 1 tensors are not in .*model\.norm\.weight", drop=[f"{PREFIX}model.norm.weight"])
    refuses(r"model\.norm\.weight is \[3\]", **{f"{PREFIX}model.norm.weight": torch.ones(3)})
    Path(training.init_from).write_bytes(Path(training.init_from).read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"model\.init_from: .*pytorch_model\.bin is truncated or damaged"):
        build_model(training, DATA)

    (merged / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ValueError, match=r"lacks pytorch_model-00002-of-00002\.bin, which its index names"):
        build_model(settings, DATA)
    (merged / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.init_from: .*index\.json is not an index of weights"):
        build_model(settings, DATA)
    (merged / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(ValueError, match=r"index\.json is missing"):
        build_model(settings, DATA)


def test_an_unknown_tensor_is_in_the_report(training, parts):
    torch.save(parts.training | {f"{PREFIX}model.extra.weight": torch.ones(2)}, training.init_from)
    _, _, report = build_model(training, DATA)
    assert report.parts[0].unexpected == ("model.extra.weight",)
    assert report.parts[0].loaded == len(parts.llama.state_dict()) + 2


# --- the conversion ---------------------------------------------------------------------------------------------------


@pytest.fixture
def convert():
    """``main`` of ``scripts/convert_weights.py``."""
    return runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "convert_weights.py"))["main"]


def test_the_conversion_of_lisa_is_the_model_that_it_would_start(convert, settings, training, tmp_path, capsys):
    """Merged folder and training state: bit for bit what ``model.init_from`` makes of either without conversion."""
    out = {name: tmp_path / name for name in ("from-merged", "from-training", "half")}
    tower, fp32 = ["--vision-tower", settings.vision_tower], ["--dtype", "fp32"]
    assert convert(["--source", settings.init_from, *tower, *fp32, "--out", str(out["from-merged"])]) == 0
    assert "an AURA that starts from LISA; use it as model.init_from" in capsys.readouterr().out
    unmerged = ["--source", training.init_from, "--mllm", training.mllm, *tower]
    assert convert([*unmerged, *fp32, "--out", str(out["from-training"])]) == 0
    assert convert(["--source", settings.init_from, *tower, "--out", str(out["half"])]) == 0
    states = {}
    for name, direct in (("from-merged", settings), ("from-training", training)):
        model, processor, report = build_model(replace(settings, init_from=str(out[name]), vision_tower=None), DATA)
        wanted, theirs, _ = build_model(direct, DATA)
        # E_OC and E_SO start fresh; the folder holds what they started from.
        fresh = ("occlusion_condition.", "spatial_occlusion.")
        states[name] = {k: v for k, v in model.state_dict().items() if not k.startswith(fresh)}
        assert_equal_states(states[name], {k: v for k, v in wanted.state_dict().items() if not k.startswith(fresh)})
        assert not report.parts[0].missing and not report.parts[0].unexpected
        assert processor.text.tokenizer.get_vocab() == theirs.text.tokenizer.get_vocab()
        assert processor.text.seg_token_id == theirs.text.seg_token_id == model.config.seg_token_id
    assert_equal_states(states["from-merged"], states["from-training"], tolerance=1e-5)

    half = dict(AuraModel.from_pretrained(str(out["half"])).named_parameters())
    assert half["mllm.lm_head.weight"].dtype == torch.float16
    assert {value.dtype for name, value in half.items() if "decoder." in name} == {torch.float32}


def test_a_conversion_of_lisa_that_lacks_a_part_leaves_nothing_behind(convert, settings, training, tmp_path, capsys):
    out = tmp_path / "out"
    assert convert(["--source", settings.init_from, "--out", str(out)]) == 2
    assert "LISA-tiny) has no CLIP of its own: give the folder" in capsys.readouterr().err
    tower = ["--vision-tower", settings.vision_tower]
    assert convert(["--source", training.init_from, *tower, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "pytorch_model.bin" in error and "model.mllm" in error and error.count("\n") == 1
    assert not out.exists()
