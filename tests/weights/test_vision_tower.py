"""DINOv2, SigLIP and CLIP as the tower of a bare language model, at their own size and at another one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from aura.config import LoraSettings, ModelSettings
from aura.data.images import CLIP_MEAN, CLIP_STD, clip_pixels
from aura.data.preflight import text_fingerprint
from aura.plan.architectures import describe
from aura.weights.build import build_model
from aura.weights.text import load_text_side
from aura.weights.vision_tower import describe_reading, load_vision_tower, resize_tower
from tests.weights.original import DATA, llama, logits_of

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "initializer_range": 0.3,
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def dinov2(folder: Path) -> Dinov2Model:
    model = Dinov2Model(Dinov2Config(**SIZES, patch_size=7, mlp_ratio=2)).eval()
    model.save_pretrained(folder)
    # As facebook/dinov2-small has it: sizes for classifying.
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True}
    colours = {"image_mean": IMAGENET[0], "image_std": IMAGENET[1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes | colours))
    return model


def siglip(folder: Path) -> SiglipVisionModel:
    vision = SiglipVisionConfig(**SIZES, patch_size=7, intermediate_size=32)
    text = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 9,
    }
    whole = SiglipModel(SiglipConfig(text_config=text, vision_config=vision.to_dict())).eval()
    whole.save_pretrained(folder)
    return whole.vision_model


def clip(folder: Path) -> CLIPVisionModel:
    model = CLIPVisionModel(CLIPVisionConfig(**SIZES, patch_size=7, intermediate_size=32)).eval()
    model.save_pretrained(folder)
    return model


KINDS = {
    # class tokens, mean, std, resize, whether the library resamples positions only when asked
    dinov2: (1, *IMAGENET, "corner", False),
    siglip: (0, (0.5,) * 3, (0.5,) * 3, "corner", True),
    clip: (1, CLIP_MEAN, CLIP_STD, "crop", True),
}


@pytest.fixture
def settings(tiny_tokenizer, tmp_path, tiny_sam_dir):
    llama(len(tiny_tokenizer)).save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save_pretrained(tmp_path / "llama")
    return ModelSettings(
        mllm=str(tmp_path / "llama"),
        vision_tower=str(tmp_path / "tower"),
        sam=tiny_sam_dir,
        train_projector=True,
        lora=LoraSettings(enabled=False),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, 42])
def test_a_tower_reads_as_in_transformers(kind, size, settings, tmp_path):
    reference = kind(tmp_path / "tower")
    num_class_tokens, mean, std, resize, must_be_asked = KINDS[kind]
    settings = replace(settings, vision_image_size=size, vision_feature_layer=-1)
    aura, processor, report = build_model(settings, DATA)
    tower = next(part for part in report.parts if part.part == "vision tower")
    assert tower.loaded == len(aura.mllm.vision_tower.state_dict())
    assert not tower.missing and not tower.unexpected

    side = size or 28
    pixels = torch.randn(2, 3, side, side)
    asked = {"interpolate_pos_encoding": True} if must_be_asked and size else {}
    with torch.no_grad():
        expected = reference(pixels, output_hidden_states=True, **asked).hidden_states[-1][:, num_class_tokens:]
        found = aura.eval().mllm.encode_images(pixels)
    assert found.shape == (2, (side // 7) ** 2, 24)
    assert torch.allclose(found, expected, atol=1e-5)
    assert processor.text.num_image_tokens == aura.config.num_image_tokens == found.shape[1]
    assert text_fingerprint(load_text_side(settings, DATA)) == text_fingerprint(processor.text)
    planned, _ = describe(settings)
    assert planned.num_image_tokens == found.shape[1]
    assert planned.llava_config.vision_feature_layer == -1

    picture = Image.effect_noise((50, 30), 90).convert("RGB")
    assert torch.equal(processor.image(picture).clip_pixels, clip_pixels(picture, side, mean, std, resize))


def test_an_export_reads_as_the_model_did(settings, tmp_path):
    siglip(tmp_path / "tower")
    settings = replace(settings, vision_image_size=56, image_token_merge=2)
    aura, processor, _ = build_model(settings, DATA)
    assert aura.config.num_image_tokens == 16  # 8 x 8 patches in fours: no class token stands in the way
    aura.save_pretrained(tmp_path / "export")
    processor.save_pretrained(tmp_path / "export")
    again, same, report = build_model(ModelSettings(init_from=str(tmp_path / "export"), train_projector=True), DATA)
    assert not report.parts[0].missing and not report.parts[0].unexpected
    assert same.image_fingerprint() == processor.image_fingerprint()
    pixels = torch.randn(1, 3, 56, 56)
    one, other = (logits_of(m.eval(), processor, [1, 50], pixels, [60, 70]) for m in (aura, again))
    assert torch.equal(one, other)


def test_image_tokens_say_where_they_lie_in_the_code_of_sams_prompts(settings, tmp_path):
    dinov2(tmp_path / "tower")
    aura, processor, report = build_model(replace(settings, image_places=True, image_token_merge=2), DATA)
    assert next(part for part in report.parts if part.part == "places").new == ("mllm.places.linear.weight",)
    places, words = aura.mllm.places, aura.mllm.language_model.get_input_embeddings().weight
    assert places.linear.weight.requires_grad and not places.frequencies.requires_grad
    with torch.no_grad():
        side = aura.prompt_encoder.sam.image_embedding_size[0]
        codes = aura.prompt_encoder.image_positions()[0].flatten(1).T  # [g g, C], SAM's own
        assert torch.allclose(places(side), codes @ places.linear.weight.T, atol=1e-5)
        assert 0.3 < places(side).std() / words.std() < 0.7
        features = aura.mllm.encode_images(torch.randn(1, 3, 28, 28))
        tokens, named = aura.mllm.project(features), places(2)
        aura.mllm.places = None
        assert torch.allclose(tokens - aura.mllm.project(features), named.expand_as(tokens), atol=1e-5)
    aura.mllm.places = places

    aura.save_pretrained(tmp_path / "export")
    processor.save_pretrained(tmp_path / "export")
    again, _, report = build_model(ModelSettings(init_from=str(tmp_path / "export"), train_projector=True), DATA)
    assert not report.parts[0].missing and not report.parts[0].unexpected
    assert torch.equal(again.mllm.project(features), aura.mllm.project(features))


def test_positions_are_resampled_once_and_kept_in_their_dtype(tmp_path):
    dinov2(tmp_path)
    tower, _ = load_vision_tower(tmp_path, dtype=torch.bfloat16)
    assert resize_tower(tower, 28) is tower
    assert tower.embeddings.mask_token is None  # no feature depends on it
    table = resize_tower(tower, 56).embeddings.position_embeddings
    assert table.dtype == torch.bfloat16 and table.shape == (1, 65, 24)
    assert torch.equal(table[:, 0], tower.embeddings.position_embeddings[:, 0])


def test_what_a_tower_cannot_do_is_said_before_loading(settings, tmp_path):
    dinov2(tmp_path / "tower")
    with pytest.raises(ValueError, match=r"vision_image_size is 30, which the patches of .* \(7 px\) do not"):
        describe_reading(tmp_path / "tower", image_size=30)
    with pytest.raises(ValueError, match=r"vision_feature_layer is -5, but the tower in .*tower has 3 layers"):
        describe_reading(tmp_path / "tower", feature_layer=-5)
    (tmp_path / "tower" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"model_type 'vit' .*not CLIP, DINOv2 or SigLIP"):
        build_model(settings, DATA)


def test_a_learnt_projector_keeps_its_tower_as_it_is(settings, tiny_llava_dir):
    for change in ({"vision_image_size": 56}, {"vision_feature_layer": -1}, {"image_places": True}):
        with pytest.raises(ValueError, match=rf"model\.{next(iter(change))} is .*learnt to read its tower as it is"):
            build_model(replace(settings, mllm=tiny_llava_dir, vision_tower=None, **change), DATA)
