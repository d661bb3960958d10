"""Tiny random LLaVA, SAM and tokenizer, shared by the tests; built in well under a second."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SamConfig,
    SamModel,
)

from aura.data.conversations import TokenizedConversation
from aura.data.processor import ProcessedSample, SegTarget
from aura.model import AuraConfig, AuraModel
from aura.types import ImageGeometry, SegRecord

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
CORPUS = [
    "A chat between a curious human and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "USER: What could I ride here, and what hides it? ASSISTANT: You could ride the bus, which the tree hides.",
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the real hub, nor do processes that it starts."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a byte-level BPE tokenizer with bos, eos, unk, pad and ``<image>``, and without ``[SEG]``."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_tokenizer(tiny_tokenizer_dir: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tiny_tokenizer_dir)


@pytest.fixture
def tiny_llava_config() -> LlavaConfig:
    """Two layers, vocabulary 322 (321 is free for ``[SEG]``), CLIP 28 px with 14 px patches: 4 image tokens."""
    text = LlamaConfig(
        vocab_size=322,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        initializer_range=0.3,
    )
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=16,
    )
    return LlavaConfig(text_config=text, vision_config=vision, image_token_index=4, image_seq_length=4)


@pytest.fixture
def tiny_sam_config() -> SamConfig:
    """64 px input, 8 px patches: 8 x 8 grid of 32 channels, masks 32 x 32."""
    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "window_size": 3,
            "global_attn_indexes": [1],
            "num_pos_feats": 16,
            "mlp_dim": 32,
            "initializer_range": 0.1,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 8, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 32},
    )
    config.vision_config.scale = 1.0
    return config


@pytest.fixture
def tiny_config(tiny_llava_config: LlavaConfig, tiny_sam_config: SamConfig) -> AuraConfig:
    return AuraConfig(
        llava_config=copy.deepcopy(tiny_llava_config),
        sam_config=copy.deepcopy(tiny_sam_config),
        seg_token_id=321,
        eos_token_id=2,
        lora=LORA,
    )


@pytest.fixture
def make_model(tiny_config: AuraConfig) -> Callable[..., AuraModel]:
    """``make_model(seg_state="at")``: a random AURA; what training starts from zero (LoRA's B, ...) is random too."""

    def make(**changes: Any) -> AuraModel:
        config = copy.deepcopy(tiny_config)
        for name, value in changes.items():
            assert hasattr(config, name), name
            setattr(config, name, value)
        model = AuraModel(config).eval()
        with torch.no_grad():
            for _, parameter in model.trainable_parameters():
                if not parameter.any():
                    parameter.normal_(std=0.1)
        return model

    return make


@pytest.fixture
def tiny_model(make_model: Callable[..., AuraModel]) -> AuraModel:
    return make_model()


@pytest.fixture
def make_sample() -> Callable[..., ProcessedSample]:
    """``make_sample([[20, 4], [5]], seg=2)``: an image with random pixels and one conversation per list.

    Each number is the length of a turn's answer, before it 5 tokens of question; each answer holds ``seg`` ``[SEG]``.
    """

    def make(conversations: list[list[int]], *, image_id: int = 0, seg: int = 1) -> ProcessedSample:
        prefix = [1, 10, 11, 4, 4, 4, 4, 12]
        generator = torch.Generator().manual_seed(image_id)
        tokenized, targets = [], []
        for number, answers in enumerate(conversations):
            ids, supervised, seg_positions, seg_turns = list(prefix), [False] * len(prefix), [], []
            for turn, length in enumerate(answers):
                ids += torch.randint(20, 320, (5,), generator=generator).tolist()
                answer = torch.randint(20, 320, (length,), generator=generator).tolist()
                places = [length * (k + 1) // (seg + 1) for k in range(seg)]
                for index, place in enumerate(places):
                    answer[place] = 321
                    seg_positions.append(len(ids) + place)
                    seg_turns.append((turn, index))
                supervised += [False] * 5 + [True] * (length + 1)
                ids += [*answer, 2]
            tokenized.append(TokenizedConversation(100 * image_id + number, ids, supervised, seg_positions, seg_turns))
            targets.append(
                tuple(
                    SegTarget(
                        SegRecord(image_id, number, *at, annotation_id=k % 2), row=k % 2, occlusion_rate=0.3 * (k % 2)
                    )
                    for k, at in enumerate(seg_turns)
                )
            )
        amodal = torch.zeros(2, 40, 60, dtype=torch.bool)
        amodal[0, 5:25, 5:30], amodal[1, 10:35, 20:55] = True, True
        visible = amodal.clone()
        visible[1, :, 20:30] = False
        return ProcessedSample(
            image_id=image_id,
            geometry=ImageGeometry((40, 60), (43, 64), 64),
            conversations=tuple(tokenized),
            targets=tuple(targets),
            visible_masks=visible,
            amodal_masks=amodal,
            sam_pixels=torch.randn(3, 64, 64, generator=generator),
            clip_pixels=torch.randn(3, 28, 28, generator=generator),
        )

    return make


@pytest.fixture
def tiny_llava_dir(tiny_llava_config, tiny_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An HF LLaVA folder with its tokenizer, as pretraining leaves one."""
    folder = str(tmp_path_factory.mktemp("llava"))
    tiny_llava_config.text_config.vocab_size = len(tiny_tokenizer)
    LlavaForConditionalGeneration(tiny_llava_config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_sam_dir(tiny_sam_config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An HF ``SamModel`` folder."""
    folder = str(tmp_path_factory.mktemp("sam"))
    SamModel(tiny_sam_config).save_pretrained(folder)
    return folder
