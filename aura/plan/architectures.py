"""The architecture that settings name, without its weights: from config files where they are, else from names."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, SamConfig

from aura.config import LoraSettings, ModelSettings
from aura.model.configuration import AuraConfig
from aura.model.tiny_vit import SIZES, mobile_sam_config
from aura.weights import hub, read_config
from aura.weights.llava import v1_config
from aura.weights.sam import VARIANTS
from aura.weights.vision_tower import Reading, describe_reading

LLAMA_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
LLAMA_13B: dict[str, Any] = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
CLIP_L: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}

# Rows are those of the released embedding table plus what AURA's tokenizer adds: [SEG], <im_start> and <im_end> where
# they are missing, and the placeholder <image> (docs/formats.md, "Tokenizer"). LLaVA 1.5 has spare rows.
MLLMS: dict[str, dict[str, Any]] = {
    "7b": {**LLAMA_7B, "vocab_size": 32005, "max_position_embeddings": 2048},
    "13b": {**LLAMA_13B, "vocab_size": 32005, "max_position_embeddings": 2048},
    "llama2_13b": {**LLAMA_13B, "vocab_size": 32004, "max_position_embeddings": 4096},
    "llava15_7b": {**LLAMA_7B, "vocab_size": 32064, "max_position_embeddings": 4096},
    "llava15_13b": {**LLAMA_13B, "vocab_size": 32064, "max_position_embeddings": 4096},
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49154,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
"""Known language models; those of LLaVA 1.5 see 336 px. SmolLM2-135M comes without a tower, with a new projector."""

SAMS = {variant.name.lower().replace("-", "_"): width for width, variant in sorted(VARIANTS.items())}
SAMS["mobile_sam"] = SIZES["widths"][-1]
"""``vit_b``, ``vit_l``, ``vit_h`` and ``mobile_sam``, with the width of their encoders."""


def describe(settings: ModelSettings, mllm: str | None = None, sam: str | None = None) -> tuple[AuraConfig, list[str]]:
    """The architecture, and for each part a line that says where its sizes come from.

    Args:
        settings: Folders that exist are read, and of names on the hub the config; other names are recognised.
        mllm: A name in :data:`MLLMS` instead of ``settings.mllm``.
        sam: A name in :data:`SAMS` instead of ``settings.sam``.

    Raises:
        ValueError: A part that is neither there nor known by its name.
    """
    settings = _looked_up(settings, mllm, sam)
    given = mllm is None and sam is None
    if settings.init_from is not None and given and (Path(settings.init_from) / "config.json").is_file():
        config = AuraConfig.from_pretrained(settings.init_from)
        sources = [f"all sizes: {settings.init_from}/config.json"]
    else:
        llava_config, llava_source = _llava(settings, mllm)
        sam_config, sam_source = _sam(settings, sam)
        config = AuraConfig(
            llava_config=llava_config,
            sam_config=sam_config,
            image_token_merge=settings.image_token_merge,
            image_places=settings.image_places,
            rescale_states=settings.rescale_states,
        )
        sources = [f"language model: {llava_source}", f"SAM: {sam_source}"]
    lora = settings.lora
    config.seg_state, config.train_embeddings = settings.seg_state, settings.train_embeddings
    config.occlusion_condition, config.spatial_occlusion = settings.occlusion_condition, settings.spatial_occlusion
    config.condition_form, config.spatial_form = settings.condition_form, settings.spatial_form
    config.masks, config.intent, config.pointing = settings.masks, settings.intent, settings.pointing
    config.lora = None
    if lora.enabled:
        config.lora = {"r": lora.r, "alpha": lora.alpha, "dropout": lora.dropout, "targets": list(lora.targets)}
    return config, [hub.short(source) for source in sources]


def _looked_up(settings: ModelSettings, mllm: str | None, sam: str | None) -> ModelSettings:
    """The settings with folders of the cache in the place of names on the hub, but for those that it does not give.

    Raises:
        ValueError: The hub does not give one whose name tells nothing.
    """
    asked = {"init_from": mllm or sam, "mllm": mllm, "vision_tower": None, "sam": sam}
    folders: dict[str, Any] = {}
    for field in (field for field, known in asked.items() if known is None):
        source = getattr(settings, field)
        if source is not None:
            try:
                folders[field] = hub.local_folder(source, f"model.{field}", weights=False)
            except ValueError:
                telling = (
                    _recognise_sam(source) if field == "sam" else field == "vision_tower" or _recognise_llava(source)
                )
                if not telling:
                    raise
    return dataclasses.replace(settings, **folders)


def _llava(settings: ModelSettings, known: str | None) -> tuple[LlavaConfig, str]:
    folder = settings.mllm or settings.init_from
    if known is None and folder is not None and (Path(folder) / "config.json").is_file():
        stored = read_config(folder, "model.mllm")
        source = f"{folder}/config.json"
        if stored.get("model_type") == "llava" and "text_config" in stored:
            return LlavaConfig.from_pretrained(folder), source
        if "hidden_size" in stored and "num_hidden_layers" in stored:  # LLaVA v1 and LISA: Llama's fields at the top
            tower = _tower(settings, settings.vision_tower or str(stored.get("mm_vision_tower", "")))
            paired = stored.get("model_type") == "llama"
            config = v1_config(stored, {}, SimpleNamespace(config=tower.config), two_layers=paired)  # type: ignore[arg-type]
            if paired:
                config.vision_feature_layer, config.vision_feature_select_strategy = tower.feature_layer, tower.strategy
            return config, source
        raise ValueError(f"model.mllm: {source} describes neither a LLaVA nor a Llama; give --mllm {'|'.join(MLLMS)}")
    name = known or _recognise_llava(folder)
    if name not in MLLMS:
        raise ValueError(
            f"model.mllm: {folder!r} is not here and its name tells no size; give --mllm {'|'.join(MLLMS)}"
        )
    newer = name.startswith("llava15")
    tower = Reading(CLIPVisionConfig(**CLIP_L, image_size=336), -2, "default")
    if not newer:
        tower = _tower(settings, settings.vision_tower)
    config = LlavaConfig(
        text_config=LlamaConfig(**MLLMS[name]),
        vision_config=tower.config,
        # The single linear layer of v1 is followed by an identity (docs/formats.md).
        projector_hidden_act="gelu" if newer or name == "smollm2" else "linear",
        tie_word_embeddings=MLLMS[name].get("tie_word_embeddings", False),
        image_token_index=32000,
        vision_feature_layer=tower.feature_layer,
        vision_feature_select_strategy=tower.strategy,
    )
    return config, f"{name}, {'asked for' if known else f'by the name {folder}'}"


def _recognise_llava(folder: str | None) -> str:
    name = Path(folder or "").name.lower().replace("_", "-")
    if "smollm2" in name:
        return "smollm2"
    size = re.search(r"(?<!\d)(7|13)b", name)
    if size is None:
        return ""
    if re.search(r"1\.5|llava15|v15", name):
        return f"llava15_{size[0]}"
    return "llama2_13b" if re.search(r"llama-?2", name) and size[0] == "13b" else size[0]


def _tower(settings: ModelSettings, folder: str | None) -> Reading:
    if folder is not None and (Path(folder) / "config.json").is_file():
        size, layer = settings.vision_image_size, settings.vision_feature_layer
        return describe_reading(folder, image_size=size, feature_layer=layer)
    return Reading(CLIPVisionConfig(**CLIP_L, image_size=336 if "336" in (folder or "") else 224), -2, "default")


def _sam(settings: ModelSettings, known: str | None) -> tuple[SamConfig, str]:
    path = settings.sam
    if known is None and path is not None and (Path(path) / "config.json").is_file():
        config: SamConfig = SamConfig.from_pretrained(path)
        return config, f"{path}/config.json"
    name = known or _recognise_sam(path)
    if name not in SAMS:
        raise ValueError(f"model.sam: {path!r} is not here and its name tells no variant; give --sam {'|'.join(SAMS)}")
    return sam_of(name), f"{name}, {'asked for' if known else f'by the name {path}'}"


def sam_of(name: str) -> SamConfig:
    """The released SAM ``vit_b``, ``vit_l`` or ``vit_h``, or ``mobile_sam``."""
    if name == "mobile_sam":
        return mobile_sam_config()
    width = SAMS[name]
    _, depth, heads, global_layers = VARIANTS[width]
    return SamConfig(
        vision_config={
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "global_attn_indexes": list(global_layers),
            "mlp_dim": 4 * width,
        },
        mask_decoder_config={"layer_norm_eps": 1e-5},
    )


def _recognise_sam(path: str | None) -> str:
    if re.search(r"mobile[-_]?sam", Path(path or "").name.lower()):
        return "mobile_sam"
    found = re.search(r"vit[-_]?(base|large|huge|b|l|h)(?![a-z])", Path(path or "").name.lower())
    return f"vit_{found[1][0]}" if found else ""


def tiny_architecture() -> AuraConfig:
    """The same kind of model at a size that a test can afford, with a vocabulary of one token to be widened."""
    text = LlamaConfig(vocab_size=1, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    sam = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": 3, "mlp_dim": 64}
    sam |= {"image_size": 64, "patch_size": 8, "output_channels": 64, "num_pos_feats": 32}
    lora = LoraSettings()
    return AuraConfig(
        llava_config=LlavaConfig(text_config=text, vision_config=vision, vision_feature_layer=-2),
        sam_config=SamConfig(
            vision_config={**sam, "global_attn_indexes": [1]},
            prompt_encoder_config={"hidden_size": 64, "image_size": 64, "patch_size": 8},
            mask_decoder_config={"hidden_size": 64, "mlp_dim": 64, "iou_head_hidden_dim": 64},
        ),
        lora={"r": lora.r, "alpha": lora.alpha, "dropout": lora.dropout, "targets": list(lora.targets)},
    )
