"""Language models in the layouts of the real ones: every tensor arrives, and the numbers are those of plain parts."""

import copy
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from aura.config import LoraSettings, ModelSettings
from aura.data.preflight import text_fingerprint
from aura.weights import load_llava
from aura.weights.build import build_model
from aura.weights.llava import llava_from_v1_state
from aura.weights.text import load_text_side
from tests.weights.original import DATA, HIDDEN, PIECES, ROWS, V1, VISION, llama, logits_of, write_v1

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


def test_weights_are_put_on_the_device_as_they_are_read(v1):
    device, seen = torch.device("cpu"), []

    class Mapped:
        """A tensor in a mapped file, of which the model may only take a copy on its own device."""

        def __init__(self, tensor):
            self.tensor, self.shape = tensor, tensor.shape

        def __len__(self):
            return len(self.tensor)

        def to(self, **place):
            seen.append(place)
            return self.tensor.to(**place)

    state = {name: Mapped(tensor) for name, tensor in v1.state.items()}
    llava, missing, _ = llava_from_v1_state(v1.config(), state, v1.tower, torch.float16, device)
    assert not missing and len(seen) >= len(list(llava.model.language_model.parameters()))
    assert all(place == {"device": device, "dtype": torch.float16, "copy": True} for place in seen)
