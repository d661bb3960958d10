"""The text's side of a model before its weights are read: tokenizer, prompt template, and the room an image takes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from transformers import LlavaConfig

from aura.config import DataSettings, ModelSettings
from aura.data.conversations import ConversationTokenizer
from aura.data.processor import Processor
from aura.data.tokenization import complete_v1_tokenizer, load_tokenizer
from aura.model.configuration import AuraConfig
from aura.weights import hub
from aura.weights.files import read_config
from aura.weights.lisa import is_lisa
from aura.weights.pair import PACKAGES, packaged_gguf
from aura.weights.vision_tower import describe_reading


def load_text_side(settings: ModelSettings, data: DataSettings) -> ConversationTokenizer:
    """What :func:`aura.weights.build.build_model` will tokenise conversations with; reads no weights.

    Raises:
        ValueError: A folder is missing, or has no config or no tokenizer.
    """
    settings, _ = hub.here(settings, weights=False)
    start = settings.init_from
    if start is None or is_lisa(start):
        return _of_backbones(settings, data)
    if not Path(start).is_dir():
        raise ValueError(f"model.init_from: {start} does not exist; give the export of an AURA run or LISA's folder")
    return Processor.from_pretrained(start, **text_settings(settings, data)).text


def text_settings(settings: ModelSettings, data: DataSettings) -> dict[str, Any]:
    """What a run decides about texts, whatever model it starts from: arguments of a processor."""
    return {
        "prompt_template": settings.prompt_template,
        "max_length": data.max_length,
        "objects_per_answer": data.objects_per_answer,
    }


def _of_backbones(settings: ModelSettings, data: DataSettings) -> ConversationTokenizer:
    lisa = settings.init_from
    has_own = lisa is not None and (Path(lisa) / "config.json").is_file()
    source = lisa if has_own else settings.mllm
    if source is None:
        raise ValueError("model.mllm is not set; give a folder (or model.init_from an AURA export)")
    setting = "model.init_from" if has_own else "model.mllm"
    file = packaged_gguf(source) if source in PACKAGES and not Path(source).exists() else Path(source)
    config = {} if file.suffix == ".gguf" else read_config(file, setting)
    whole = config.get("model_type") == "llava" and "text_config" in config
    original = not whole and (lisa is not None or (config.get("model_type") != "llama" and file.suffix != ".gguf"))
    marks = bool(config.get("mm_use_im_start_end", lisa is not None))
    tokenizer = load_tokenizer(file, original=original)
    if original:
        with contextlib.suppress(ValueError):  # the weights say which of the two is wrong
            complete_v1_tokenizer(tokenizer, config.get("vocab_size", 0), marks)
    return ConversationTokenizer(
        tokenizer,
        num_image_tokens=_image_tokens(settings, config if whole else None, config),
        use_im_start_end=marks,
        **text_settings(settings, data),
    )


def _image_tokens(settings: ModelSettings, llava: dict[str, Any] | None, original: dict[str, Any]) -> int:
    """Tokens of an image, from the config of the whole LLaVA or of the vision tower."""
    if llava is not None:
        described: Any = LlavaConfig(
            vision_config=llava["vision_config"],
            vision_feature_select_strategy=llava.get("vision_feature_select_strategy", "default"),
        )
    else:
        if settings.vision_tower is None:
            raise ValueError("model.vision_tower is not set; give the folder of openai/clip-vit-large-patch14")
        reading = describe_reading(
            settings.vision_tower,
            image_size=settings.vision_image_size,
            feature_layer=settings.vision_feature_layer,
        )
        strategy: Any = "full" if original.get("mm_vision_select_feature") == "cls_patch" else reading.strategy
        described = LlavaConfig(vision_config=reading.config, vision_feature_select_strategy=strategy)
    merge = settings.image_token_merge
    return AuraConfig(llava_config=described, image_token_merge=merge).num_image_tokens
