"""The models and images of the benchmarks: random weights of real sizes, made-up questions.

Legend: Q conversations about an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, SamConfig

from aura.config import ModelSettings
from aura.data.collate import collate
from aura.data.processor import ProcessedSample
from aura.gpucheck import models
from aura.model import AuraConfig
from aura.plan import Workload, describe
from aura.plan.architectures import sam_of
from aura.types import Batch, ImageFeatures

VOCABULARY = 32_003
LORA = {"r": 8, "alpha": 16, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}


def _mini() -> AuraConfig:
    """The mini benchmark's own sizes."""
    settings: ModelSettings = models.mini_config().model
    return describe(settings)[0]


def _small() -> AuraConfig:
    """SAM ViT-B on 1024 pixels beside a language model of 4 layers: SAM is the cost."""
    return _pair(256, 4, sam_of("vit_b"))


def _medium() -> AuraConfig:
    """A thin SAM on 1024 pixels beside a language model of 12 layers: both cost alike."""
    thin = sam_of("vit_b")
    vision: Any = thin.vision_config
    vision.hidden_size, vision.num_attention_heads, vision.mlp_dim = 192, 3, 768
    vision.num_hidden_layers, vision.global_attn_indexes = 8, [3, 7]
    return _pair(768, 12, thin)


def _pair(hidden: int, layers: int, sam: SamConfig) -> AuraConfig:
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=11 * hidden // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
    )
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, patch_size=14
    )
    llava = LlavaConfig(text_config=text, vision_config=vision, vision_feature_layer=-2)
    return AuraConfig(llava_config=llava, sam_config=sam, lora=dict(LORA))


SIZES: dict[str, Callable[[], AuraConfig]] = {"mini": _mini, "small": _small, "medium": _medium}
SIZES["tiny"] = lambda: models.architecture(tiny=True)
"""``tiny`` is for rehearsals and tests."""


def architecture(size: str) -> AuraConfig:
    """Of one of :data:`SIZES`, without chance in its steps."""
    config = SIZES[size]()
    text = config.llava_config.text_config
    config.seg_token_id, config.llava_config.image_token_index = text.vocab_size - 1, text.vocab_size - 2
    config.eos_token_id = models.EOS
    if config.lora is not None:
        config.lora = {**config.lora, "dropout": 0.0}
    return config


def workload(size: str, **changes: Any) -> Workload:
    """One image of COCO's size (mini: of its own), questions of 64 tokens with one object each."""
    usual: dict[str, Any] = {"conversations": 3, "text_tokens": 64, "answer_tokens": 40, "objects": 1}
    if size == "mini":
        usual |= {"height": 192, "width": 192}
    if size == "tiny":
        usual |= {"prompt_tokens": 8, "text_tokens": 14, "answer_tokens": 8, "height": 48, "width": 64}
    return Workload(**{**usual, **changes})


def made_up(config: AuraConfig, work: Workload, seed: int = 0) -> ProcessedSample:
    """One image with its conversations."""
    return models.made_up_sample(config, work, [round(work.objects)] * work.conversations, seed)


def packed(sample: ProcessedSample) -> Batch:
    """All conversations behind one prefix, as AURA trains."""
    return collate([sample])


def separate(sample: ProcessedSample) -> Batch:
    """Each conversation a sequence of its own, [Q, L], as if it were another image; without pixels."""
    parts = [
        dataclasses.replace(sample, conversations=(conversation,), targets=(targets,))
        for conversation, targets in zip(sample.conversations, sample.targets, strict=True)
    ]
    return dataclasses.replace(collate(parts), sam_pixels=None, clip_pixels=None)


def random_features(config: AuraConfig, device: torch.device) -> ImageFeatures:
    """Of one image, of the right shapes."""
    llava, side = config.llava_config, config.sam_config.prompt_encoder_config.image_embedding_size
    clip = (1, config.num_image_tokens * config.image_token_merge**2, llava.vision_config.hidden_size)
    sam = (1, config.sam_config.vision_config.output_channels, side, side)
    return ImageFeatures(torch.randn(sam, device=device), torch.randn(clip, device=device))


def with_features(batch: Batch, features: ImageFeatures) -> Batch:
    """The batch with the one image's features, repeated for each of its rows."""
    rows = len(batch.input_ids)
    return dataclasses.replace(
        batch,
        sam_pixels=None,
        clip_pixels=None,
        sam_embeddings=features.sam_embeddings.expand(rows, -1, -1, -1),
        clip_features=features.clip_features.expand(rows, -1, -1),
    )
