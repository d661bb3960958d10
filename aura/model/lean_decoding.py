"""Decoding steps of one answer on a CPU, without the library's overhead: products with one vector, few operations.

The library's layers take a token as a matrix of one row, for which a matrix product is up to twice as slow as the
product with a vector, and some seventy operations each. Here a layer takes about twenty. The numbers are the same, to
rounding.

Legend: H hidden size, a heads of d channels each, k heads of keys, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from aura.model.key_cache import keeps_all
from aura.model.mllm import Mllm

PLAIN = (
    LlamaModel,
    LlamaDecoderLayer,
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    nn.ModuleList,
    nn.Linear,
    nn.Embedding,
)
"""What a model without adapters or packed weights consists of."""


class LeanSteps:
    """Reads token after token into the cache of one answer.

    Args:
        mllm: For which :func:`can_decode_leanly` holds.
        cache: Of one row.
    """

    def __init__(self, mllm: Mllm, cache: Cache) -> None:
        self.mllm, self.model, self.cache = mllm, mllm.language_model, cache
        config = self.model.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.layers = list(self.model.layers[: config.num_hidden_layers])

    def __call__(self, token: int) -> torch.Tensor:
        """The state [H] after reading ``token``."""
        x = self.mllm.embed(torch.tensor([[token]]))[0, 0]
        places = torch.tensor([[self.cache.get_seq_length()]])
        cosine, sine = (part[0] for part in self.model.rotary_emb(x, places))  # each [1, d]
        for index, layer in enumerate(self.layers):
            attention, mlp = layer.self_attn, layer.mlp
            x = self._attend(attention, _normed(layer.input_layernorm, x), cosine, sine, index, x)
            read = _normed(layer.post_attention_layernorm, x)
            read = mlp.act_fn(_product(mlp.gate_proj, read)) * _product(mlp.up_proj, read)
            x = _product(mlp.down_proj, read, x)
        return _normed(self.model.norm, x)

    def _attend(
        self, attention: Any, read: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, index: int, x: torch.Tensor
    ) -> torch.Tensor:
        """``x`` [H] plus the attention of layer ``index`` from what was ``read`` [H]."""
        query = _product(attention.q_proj, read).view(self.heads, -1)
        key = _product(attention.k_proj, read).view(self.groups, -1)
        value = _product(attention.v_proj, read).view(1, self.groups, 1, -1)
        query, key = _turned(query, cosine, sine), _turned(key, cosine, sine)
        keys, values = self.cache.update(key[None, :, None], value, index)  # [1, k, L, d]
        mixed = F.scaled_dot_product_attention(
            query[None, :, None], keys, values, scale=attention.scaling, enable_gqa=self.heads != self.groups
        )
        return _product(attention.o_proj, mixed.flatten(), x)


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape, norm.weight, norm.variance_epsilon)


def _product(layer: Any, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
    """``layer`` of a vector, plus another one."""
    if layer.bias is not None:
        plus = layer.bias if plus is None else plus + layer.bias
    return torch.mv(layer.weight, x) if plus is None else torch.addmv(plus, layer.weight, x)


def _turned(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Heads [a, d], rotated to their token's place."""
    half = x.shape[1] // 2
    return x * cosine + torch.cat((-x[:, half:], x[:, :half]), dim=1) * sine


def can_decode_leanly(mllm: Mllm, cache: Cache) -> bool:
    """Whether lean steps give what plain ones would: Llama in fp32, whole on the CPU, nothing added to its layers."""
    model = mllm.language_model
    return (
        type(model) is LlamaModel
        and not mllm.training
        and mllm.half_dtype is None
        and keeps_all(cache)
        and model.config._attn_implementation in ("sdpa", "eager")
        and all(_is_plain(module) for module in model.modules())
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether a module may be passed over: its weights are read directly, its ``forward`` and hooks never run."""
    if hasattr(module, "_hf_hook") or module._forward_hooks or module._forward_pre_hooks:
        return False
    if any(hasattr(p, "ds_id") for p in module.parameters(recurse=False)):
        return False
    return type(module) in PLAIN or not list(module.parameters())  # what has no weights is called, as ever
