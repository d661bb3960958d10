"""The models and batches of a check: AURA-7B with random weights made on the device, the mini model, made-up batches.

Legend: as in :mod:`aura.types`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, SamModel
from transformers.initialization import no_init_weights

from aura.config import Config, ModelSettings, load_config
from aura.data.collate import collate
from aura.data.conversations import TokenizedConversation
from aura.data.images import sam_geometry
from aura.data.processor import ProcessedSample, Processor, SegTarget
from aura.datagen.offline.generator import generate_conversations
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.sources import load_cocoa_cls
from aura.mini.benchmark import annotation_file, write_mini
from aura.mini.pictures import load_backgrounds, load_cutouts
from aura.model import AuraConfig, AuraModel
from aura.model.precision import hold
from aura.plan import Workload, describe
from aura.plan.architectures import tiny_architecture
from aura.types import Batch, Conversation, Sample, SegRecord
from aura.weights.build import build_model

ROOT = Path(__file__).resolve().parents[2]
EOS = 2


# --- AURA-7B ----------------------------------------------------------------------------------------------------------


def architecture(*, tiny: bool) -> AuraConfig:
    """The 7B model with SAM ViT-H, or one of the same kind that a CPU rehearses with."""
    config = tiny_architecture() if tiny else describe(ModelSettings(), mllm="7b", sam="vit_h")[0]
    text = config.llava_config.text_config
    if tiny:
        text.vocab_size, text.intermediate_size = 400, 128  # rows of whole 4-bit blocks
    config.seg_token_id, config.llava_config.image_token_index = text.vocab_size - 1, text.vocab_size - 2
    config.eos_token_id = EOS
    return config


def random_model(config: AuraConfig, dtype: torch.dtype, device: torch.device) -> AuraModel:
    """The whole model made on the device and held as a run holds it (the frozen backbones in ``dtype``).

    Its weights are normal numbers that keep activations of one size.
    """
    text, vision = config.llava_config.text_config, config.llava_config.vision_config
    text.dtype = vision.dtype = dtype
    with no_init_weights(), torch.device(device):
        with default_dtype(dtype):  # in fp32 it would not fit beside itself
            llava: Any = LlavaForConditionalGeneration._from_config(config.llava_config, attn_implementation="sdpa")
        sam: Any = SamModel._from_config(config.sam_config, attn_implementation="sdpa")
        model = AuraModel(config, llava=llava, sam=sam)
    fill(model)
    hold(model, dtype)
    return model


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Norms to 1, biases to 0, all else normal: embeddings and LoRA's B small, others by the width they read."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1 and "norm" in name:
            parameter.fill_(1)
        else:
            small = "embed" in name or ".lora_B" in name
            parameter.normal_(std=0.02 if small or parameter.dim() < 2 else parameter[0].numel() ** -0.5)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def made_up_sample(config: AuraConfig, work: Workload, objects: Sequence[int], seed: int = 0) -> ProcessedSample:
    """One image with random pixels and masks, and a conversation of random tokens for each number of ``objects``.

    The lengths are those of ``work``, so that a packed batch has the length that the plan reckons with.
    """
    dice = torch.Generator().manual_seed(seed)
    text, image = config.llava_config.text_config, config.image_token_id
    vocabulary = text.vocab_size - 20  # the special tokens stand at its ends
    prefix = [1, *_ids(work.prompt_tokens - 1, vocabulary, dice), *[image] * config.num_image_tokens]
    tokenized, targets = [], []
    for number, count in enumerate(objects):
        first = 10 + number  # no two conversations begin alike: the prefix ends where the questions begin
        ids = [first, *_ids(work.text_tokens - 2, vocabulary, dice), EOS]
        answer = work.text_tokens - work.answer_tokens
        places = [answer + 2 + index * (work.answer_tokens - 3) // max(1, count) for index in range(count)]
        for place in places:
            ids[place] = int(config.seg_token_id or 0)
        supervised = [False] * (len(prefix) + answer) + [True] * work.answer_tokens
        seg = [len(prefix) + place for place in places]
        turns = [(0, index) for index in range(count)]
        tokenized.append(TokenizedConversation(number, prefix + ids, supervised, seg, turns))
        records = [SegRecord(seed, number, 0, index, index % 2) for index in range(count)]
        targets.append(tuple(SegTarget(r, row=r.annotation_id, occlusion_rate=0.3) for r in records))
    whole = torch.zeros(2, work.height, work.width, dtype=torch.bool)
    whole[0, work.height // 4 : 3 * work.height // 4, work.width // 8 : work.width // 2] = True
    whole[1, work.height // 2 :, work.width // 3 : 7 * work.width // 8] = True
    side, clip = config.sam_config.vision_config.image_size, config.llava_config.vision_config.image_size
    return ProcessedSample(
        image_id=seed,
        geometry=sam_geometry(work.height, work.width, side),
        conversations=tuple(tokenized),
        targets=tuple(targets),
        visible_masks=torch.stack([whole[0] & ~whole[1], whole[1]]),
        amodal_masks=whole,
        sam_pixels=torch.randn(3, side, side, generator=dice),
        clip_pixels=torch.randn(3, clip, clip, generator=dice),
    )


def _ids(count: int, vocabulary: int, dice: torch.Generator) -> list[int]:
    return torch.randint(100, vocabulary, (count,), generator=dice).tolist()


def made_up_batch(config: AuraConfig, work: Workload, objects: Sequence[int] | None = None) -> Batch:
    """``work.images`` images of :func:`made_up_sample`; each conversation has ``work.objects`` without ``objects``."""
    each = [round(work.objects)] * work.conversations if objects is None else objects
    return collate([made_up_sample(config, work, each, seed) for seed in range(work.images)])


@torch.no_grad()
def with_features(model: AuraModel, batch: Batch) -> Batch:
    """The batch as the feature cache would give it."""
    assert batch.sam_pixels is not None and batch.clip_pixels is not None
    features = model.encode_images(batch.sam_pixels, batch.clip_pixels)
    return dataclasses.replace(
        batch,
        sam_pixels=None,
        clip_pixels=None,
        sam_embeddings=features.sam_embeddings,
        clip_features=features.clip_features,
    )


# --- the mini model ---------------------------------------------------------------------------------------------------


def mini_config(**train: Any) -> Config:
    """``configs/mini.yaml`` with its folders found from anywhere."""
    config = load_config(ROOT / "configs" / "mini.yaml")
    backbones = ROOT / "data" / "mini_assets" / "backbones"
    model = dataclasses.replace(config.model, mllm=str(backbones / "llava"), sam=str(backbones / "sam"))
    data = dataclasses.replace(config.data, feature_cache=None, num_workers=0)
    return dataclasses.replace(config, model=model, data=data, train=dataclasses.replace(config.train, **train))


def mini_model(config: Config, dtype: torch.dtype = torch.float32) -> tuple[AuraModel, Processor]:
    """The mini model as a run starts with it: pretrained backbones, seeded new parts."""
    torch.manual_seed(config.train.seed)
    model, processor, _ = build_model(config.model, config.data, dtype=dtype)
    return model, processor


def mini_samples(folder: Path, count: int, workers: int = 1) -> list[Sample]:
    """The first ``count`` training scenes of the mini benchmark with ten questions each, made in ``folder``."""
    out = folder / f"mini_{count}"
    write_mini(out, load_cutouts(None), load_backgrounds(None), num_images={"train": count}, num_workers=workers)
    images = [image for image in load_cocoa_cls(annotation_file(out, "train")) if image.objects]
    conversations: dict[int, list[Conversation]] = {}
    following = 1
    for image in images:
        conversations[image.image_id] = generate_conversations(image, pairs=10, seed=0, first_id=following)
        following += len(conversations[image.image_id])
    source = out / "mini_train.json"
    return list(AmodalReasonSeg.build(images, conversations, source=source, image_folder="images/train"))
