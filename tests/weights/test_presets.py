"""Every shipped preset with every ablation, at full size on the ``meta`` device, from configs alone.

Sizes are compared with published counts and with sums worked out here from the architectures' widths and depths.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from aura.config import ModelSettings, load_config
from aura.data.collate import collate
from aura.losses import AuraCriterion
from aura.model import AuraModel
from aura.model.aura import PartSize
from aura.weights.build import model_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Llama(NamedTuple):
    """A language model's architecture, with its vocabulary before ``[SEG]``, and the size of CLIP's images."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    vocabulary: int
    pixels: int
    published: int  # parameters with Llama's own 32000 words


class Sam(NamedTuple):
    width: int
    layers: int
    heads: int
    global_layers: list[int]
    published: int  # parameters of the whole SAM, as the paper's Table 5 has them in millions
    encoder: int


# By the folder or file that the configs name (docs/formats.md).
LLAMAS = {
    "llava-7b-v1-1": Llama(4096, 11008, 32, 32, 32003, 224, 6_738_415_616),
    "llava-13b-v1-1": Llama(5120, 13824, 40, 40, 32003, 224, 13_015_864_320),
    "llava-llama-2-13b-chat-lightning-preview": Llama(5120, 13824, 40, 40, 32000, 224, 13_015_864_320),
    "llava-1.5-7b-hf": Llama(4096, 11008, 32, 32, 32064, 336, 6_738_415_616),
}
SAMS = {
    "sam_vit_b_01ec64.pth": Sam(768, 12, 12, [2, 5, 8, 11], 93_735_472, 89_670_912),
    "sam_vit_l_0b3195.pth": Sam(1024, 24, 16, [5, 11, 17, 23], 312_342_832, 308_278_272),
    "sam_vit_h_4b8939.pth": Sam(1280, 32, 16, [7, 15, 23, 31], 641_090_608, 637_026_048),
}
DECODER, PROMPT_ENCODER = 4_058_340, 6_220
CLIP = 303_179_776  # ViT-L/14 at 224 px

PRESETS = ["", "mllm/13b", "mllm/llama2_13b", "mllm/llava15_7b", "sam/vit_b", "sam/vit_l"]
CONDITION, SPATIAL = ("occlusion_condition.",), ("spatial_occlusion.",)
REMOVED = {
    "ablation/baseline": CONDITION + SPATIAL,
    "ablation/only_condition": SPATIAL,
    "ablation/only_spatial": CONDITION,
    "ablation/no_lora": (),
    "baselines/lisa_visible": (*CONDITION, *SPATIAL, "amodal_decoder."),
    "baselines/lisa_amodal": (*CONDITION, *SPATIAL, "visible_decoder."),
}
LOST = {
    "": set(),
    "ablation/baseline": {"occlusion_rate", "spatial"},
    "ablation/only_condition": {"spatial"},
    "ablation/only_spatial": {"occlusion_rate"},
    "ablation/no_lora": set(),
    "baselines/lisa_visible": {"occlusion_rate", "spatial", "amodal_bce", "amodal_dice"},
    "baselines/lisa_amodal": {"occlusion_rate", "spatial", "visible_bce", "visible_dice"},
}


def layers(*names: str) -> list[Path]:
    return [CONFIGS / "aura_7b.yaml", *(CONFIGS / f"{name}.yaml" for name in names if name)]


def settings_of(*names: str) -> ModelSettings:
    return load_config(*layers(*names)).model


def backbones(settings: ModelSettings) -> tuple[Llama, Sam]:
    assert settings.mllm is not None and settings.sam is not None
    return LLAMAS[Path(settings.mllm).name], SAMS[Path(settings.sam).name]


def build(settings: ModelSettings) -> AuraModel:
    llama, sam = backbones(settings)
    llava_config: dict[str, Any] = {
        "text_config": {
            "model_type": "llama", "vocab_size": llama.vocabulary, "hidden_size": llama.hidden,
            "intermediate_size": llama.mlp, "num_hidden_layers": llama.layers, "num_attention_heads": llama.heads,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": llama.pixels, "patch_size": 14, "projection_dim": 768,
        },
    }  # fmt: skip
    vision = {
        "hidden_size": sam.width, "num_hidden_layers": sam.layers, "num_attention_heads": sam.heads,
        "mlp_dim": 4 * sam.width, "global_attn_indexes": sam.global_layers,
    }  # fmt: skip
    with torch.device("meta"):
        return AuraModel(model_config(settings, llava_config, {"vision_config": vision}))


class Facts(NamedTuple):
    sizes: dict[str, int]  # of every parameter
    trainable: set[str]
    parts: dict[str, PartSize]
    num_image_tokens: int


def facts(model: AuraModel) -> Facts:
    sizes = {name.replace(".base_layer", ""): p.numel() for name, p in model.named_parameters()}
    trainable = {name for name, _ in model.trainable_parameters()}
    return Facts(sizes, trainable, model.num_parameters_by_part(), model.config.num_image_tokens)


@cache
def whole(preset: str) -> Facts:
    """Of a preset without ablation."""
    return facts(build(settings_of(preset)))


@pytest.mark.parametrize("preset", PRESETS)
def test_parts_have_the_published_sizes(preset):
    llama, sam = backbones(settings_of(preset))
    size = {name: part.total for name, part in whole(preset).parts.items()}
    words = 2 * (llama.vocabulary - 32000) * llama.hidden  # table and head
    assert size["language_model"] + size["embeddings_and_head"] == llama.published + words
    patches = (llama.pixels // 14) ** 2
    assert whole(preset).num_image_tokens == patches
    assert size["vision_tower"] == CLIP + (patches - 256) * 1024
    # Two layers; v1-1's single one is kept as itself and an identity.
    assert size["projector"] == (1024 + 1) * llama.hidden + (llama.hidden + 1) * llama.hidden
    assert size["image_encoder"] == sam.encoder
    # The published count does not have the random matrix of the positional encoding, 2 x 128.
    assert size["image_encoder"] + size["prompt_encoder"] - 256 + size["visible_decoder"] == sam.published
    assert size["prompt_encoder"] == PROMPT_ENCODER + 256
    assert size["visible_decoder"] == size["amodal_decoder"] == DECODER


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_trained_adds_up(preset):
    llama, _ = backbones(settings_of(preset))
    expected = {
        "embeddings_and_head": 2 * llama.vocabulary * llama.hidden,
        # Two matrices, rank x hidden each, on two square layers of every block.
        "lora": llama.layers * 2 * 2 * 8 * llama.hidden,
        "projection": (llama.hidden + 1) * llama.hidden + (llama.hidden + 1) * 256,
        "visible_decoder": DECODER,
        "amodal_decoder": DECODER,
        "occlusion_condition": 2 * (256 + 1) * 256 + (256 + 1),
        "spatial_occlusion": (2 * 9 + 1) * 16 + (16 * 9 + 1) * 16 + (16 + 1) * 3,
    }
    parts = whole(preset).parts
    assert all(count.trainable in (0, count.total) for count in parts.values())
    assert {part: count.trainable for part, count in parts.items() if count.trainable} == expected
    assert sum(whole(preset).sizes[name] for name in whole(preset).trainable) == sum(expected.values())


def test_the_paper_s_baseline_trains_what_lisa_trains_and_a_second_decoder():
    """292,309,704: counted on LISA's own code with a second decoder, vocabulary 32003."""
    parts = build(settings_of("ablation/baseline")).num_parameters_by_part()
    assert sum(part.trainable for part in parts.values()) == 292_309_704


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("variant", REMOVED)
def test_each_ablation_removes_exactly_its_parameters(preset, variant):
    before, after = whole(preset), facts(build(settings_of(preset, variant)))

    def removed(name: str) -> bool:
        return name.startswith(REMOVED[variant]) if REMOVED[variant] else ".lora_" in name

    assert after.sizes == {name: size for name, size in before.sizes.items() if not removed(name)}
    assert after.trainable == {name for name in before.trainable if not removed(name)}
    assert len(after.sizes) < len(before.sizes)


def test_no_lora_leaves_the_language_model_frozen_but_for_its_words():
    settings = settings_of("ablation/no_lora")
    names = {name for name, _ in build(settings).trainable_parameters() if name.startswith("mllm")}
    assert names == {"mllm.language_model.embed_tokens.weight", "mllm.lm_head.weight"}


@pytest.mark.parametrize("variant", LOST)
def test_each_ablation_removes_exactly_its_losses(variant, tiny_llava_config, tiny_sam_config, make_sample):
    config = load_config(*layers(variant))
    tiny = model_config(config.model, copy.deepcopy(tiny_llava_config), copy.deepcopy(tiny_sam_config))
    tiny.seg_token_id, tiny.eos_token_id = 321, 2
    batch = collate([make_sample([[8], [6]])])
    losses = AuraCriterion(config.loss)(AuraModel(tiny)(batch), batch).as_floats()
    total = losses.pop("total")
    assert {name for name, value in losses.items() if value == 0} == LOST[variant]
    weights = vars(config.loss)
    assert total == pytest.approx(sum(weights[name] * value for name, value in losses.items()))
