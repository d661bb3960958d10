"""Deltas of original LLaVAs, and the conversion to Hugging Face's formats."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aura.weights import load_llava
from aura.weights.build import build_model
from aura.weights.delta import MergedDelta, is_delta, save_shards
from tests.weights.original import DATA, HIDDEN, PIECES, ROWS, llama, write_v1


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
