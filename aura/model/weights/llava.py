"""Multimodal language models from outside, as a ``LlavaForConditionalGeneration``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from aura.model.weights.files import PartReport, load_pretrained, read_config

_LLAMA_FIELDS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_act "
    "max_position_embeddings initializer_range rms_norm_eps rope_theta rope_scaling attention_bias mlp_bias "
    "tie_word_embeddings bos_token_id eos_token_id"
).split()
_PROJECTOR = "model.mm_projector."
_NEW_PROJECTOR = "model.multi_modal_projector."


def load_llava(
    folder: str | Path, *, dtype: torch.dtype, allow_random: bool = False
) -> tuple[LlavaForConditionalGeneration, PartReport]:
    """An HF LLaVA folder (``LlavaForConditionalGeneration.save_pretrained`` or a llava-hf download).

    Raises:
        ValueError: The folder holds another kind of model, or a file of it is damaged.
    """
    config = read_config(folder, "model.mllm")
    if config.get("model_type") != "llava" or "text_config" not in config:
        raise ValueError(
            f"model.mllm: {folder}/config.json describes model_type {config.get('model_type')!r} "
            f"({config.get('architectures')}), not a Hugging Face LLaVA (model_type 'llava' with a text_config)"
        )
    return load_pretrained(LlavaForConditionalGeneration, "mllm", folder, "model.mllm", dtype, allow_random)


def llava_from_v1_state(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    vision_tower: CLIPVisionModel,
    dtype: torch.dtype,
) -> tuple[LlavaForConditionalGeneration, tuple[str, ...], tuple[str, ...]]:
    """A LLaVA from an original checkpoint's tensors (external formats 1.3, 1.4 and 2.5), never held twice.

    The single linear projector W, b becomes ``linear_2(linear_1(x))`` with ``linear_1`` = (W, b) and ``linear_2`` = (I,
    0) without an activation between: the same numbers to the last bit. The two-layer projector of LLaVA 1.5 fits as it
    is. The vocabulary is as large as the embedding table, whatever ``config`` says.

    Args:
        config: ``config.json`` of the checkpoint, with Llama's fields at its top level.
        state: Original names to tensors; read one at a time and copied to ``dtype``, so it may be a
            :class:`~aura.model.weights.files.StateFiles`. ``inv_freq`` buffers and ``vision_tower`` are passed over.
        vision_tower: The CLIP tower, which such checkpoints lack; moved to ``dtype`` and used, not copied.
        dtype: Of all weights.

    Returns:
        The model, and under their original names the tensors that ``state`` lacks (random in the model) and those it
        has that are no LLaVA's.

    Raises:
        ValueError: A tensor of another shape than ``config`` implies.
    """
    two_layers = f"{_PROJECTOR}0.weight" in state
    llava = _empty_llava(v1_config(config, state, vision_tower, two_layers=two_layers))
    llava.model.vision_tower = vision_tower.to(dtype)
    wanted = {_v1_name(name, two_layers): name for name, tensor in llava.named_parameters() if tensor.is_meta}
    if not two_layers:
        rows = llava.config.text_config.hidden_size
        _assign(llava, f"{_NEW_PROJECTOR}linear_2.weight", torch.eye(rows, dtype=dtype))
        _assign(llava, f"{_NEW_PROJECTOR}linear_2.bias", torch.zeros(rows, dtype=dtype))
        wanted = {key: name for key, name in wanted.items() if not name.startswith(f"{_NEW_PROJECTOR}linear_2")}
    unexpected = []
    for key in state:
        if key.endswith(".inv_freq") or "vision_tower" in key:
            continue
        if key not in wanted:
            unexpected.append(key)
            continue
        name, tensor = wanted.pop(key), state[key]
        shape = tuple(llava.get_parameter(name).shape)
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{key} is {list(tensor.shape)}, but the model that config.json and the vision tower describe has "
                f"{list(shape)} there; these files do not belong together"
            )
        _assign(llava, name, tensor.to(dtype, copy=True))
    for name in wanted.values():
        _assign(llava, name, _random(llava, name).to(dtype))
    llava.tie_weights()
    return llava, tuple(wanted), tuple(unexpected)


def v1_config(
    config: Mapping[str, Any], state: Mapping[str, Tensor], vision_tower: CLIPVisionModel, *, two_layers: bool = False
) -> LlavaConfig:
    """The Hugging Face description of an original checkpoint; its own ``mm_use_im_start_end`` stays in it."""
    fields = {name: config[name] for name in _LLAMA_FIELDS if config.get(name) is not None}
    embeddings = state.get("model.embed_tokens.weight")
    fields["vocab_size"] = config["vocab_size"] if embeddings is None else len(embeddings)
    vision = vision_tower.config
    return LlavaConfig(
        text_config=LlamaConfig(**fields),
        vision_config=vision,
        projector_hidden_act="gelu" if two_layers else "linear",
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if config.get("mm_vision_select_feature") == "cls_patch" else "default",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        # Any id does: the processor resolves the placeholder by name. 32000 is <im_patch> of a v1-1 vocabulary.
        image_token_index=min(32000, fields["vocab_size"] - 1),
        tie_word_embeddings=fields.get("tie_word_embeddings", False),
        mm_use_im_start_end=bool(config.get("mm_use_im_start_end", False)),
    )


def _v1_name(name: str, two_layers: bool) -> str:
    """The original name of a parameter of ``LlavaForConditionalGeneration``."""
    if name.startswith(_NEW_PROJECTOR):
        numbers = {"linear_1": "0.", "linear_2": "2."} if two_layers else {"linear_1": "", "linear_2": "identity."}
        layer, _, kind = name.removeprefix(_NEW_PROJECTOR).partition(".")
        return f"{_PROJECTOR}{numbers[layer]}{kind}"
    return name.replace("model.language_model.", "model.")


def _empty_llava(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """A model without memory for its weights; what no checkpoint holds (rotary frequencies) is there."""
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    llava.model.language_model.rotary_emb = LlamaRotaryEmbedding(config.text_config)
    return llava


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(tensor))


def _random(llava: LlavaForConditionalGeneration, name: str) -> Tensor:
    """A start for a tensor that no file has: Llama's own (norms at one, biases at zero, small normal weights)."""
    shape = llava.get_parameter(name).shape
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return torch.empty(shape).normal_(std=llava.config.text_config.initializer_range)
