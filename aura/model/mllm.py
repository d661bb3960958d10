"""The multimodal language model, :class:`Mllm`: LLaVA's parts, called one by one, and its LoRA adapters.

Legend: B images (packed sequences), L tokens, T image features, C channels of CLIP, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, LlavaForConditionalGeneration

from aura.model.key_cache import growing_cache
from aura.model.quantize import Quantization, quantize_linears


class Places(nn.Module):
    """Where an image token lies, in the code of SAM's point prompts, as a linear function of it.

    What an image token says of its place, attention carries to ``[SEG]``; and SAM's decoder knows this code.

    Args:
        frequencies: SAM's ``positional_embedding``, [2, C / 2].
        hidden_size: H.
    """

    def __init__(self, frequencies: torch.Tensor, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies.detach().clone())
        self.linear = nn.Linear(2 * frequencies.shape[1], hidden_size, bias=False)

    def forward(self, side: int) -> torch.Tensor:
        """[T, H] for the centres of ``side`` x ``side`` cells, row by row."""
        assert isinstance(self.frequencies, torch.Tensor)
        centres = (torch.arange(side, device=self.frequencies.device) + 0.5) / side
        points = torch.stack([centres.repeat(side), centres.repeat_interleave(side)], dim=1)  # [T, (x, y)]
        angles = 2 * math.pi * (2 * points - 1) @ self.frequencies.float()
        return self.linear(torch.cat([angles.sin(), angles.cos()], dim=1).to(self.linear.weight.dtype))

    @torch.no_grad()
    def match_scale(self, words: torch.Tensor) -> None:
        """Start at half the size of ``words``, the language model's embeddings [V, H]."""
        # Of sine and cosine together, each pair of entries has length 1.
        nn.init.normal_(
            self.linear.weight, std=0.5 * words.float().std().item() / self.linear.in_features**0.5 * 2**0.5
        )


class Mllm(nn.Module):
    """CLIP tower, projector, Llama decoder and head of a LLaVA model, called one by one.

    Taking LLaVA apart gives what its own ``forward`` cannot: attention over packed branches, logits at chosen positions
    only, and image features that come from a cache.

    ``half_dtype`` is the half precision in which :func:`aura.model.precision.hold` holds the frozen weights beside
    trained ones in fp32, or ``None``. ``autocast`` multiplies the matrices of an fp32 model in bf16.

    Args:
        llava: The model whose parts are used. They are shared, not copied.
        lora: ``{"r", "alpha", "dropout", "targets"}`` or ``None``.
        image_token_merge: As in :class:`~aura.model.configuration.AuraConfig`; see :func:`widen_projector`.
    """

    def __init__(
        self, llava: LlavaForConditionalGeneration, lora: dict[str, Any] | None = None, image_token_merge: int = 1
    ) -> None:
        super().__init__()
        self.image_token_merge = image_token_merge
        self.autocast = False
        self.half_dtype: torch.dtype | None = None
        self.config: Any = llava.config
        self.vision_tower = llava.model.vision_tower
        self.projector = llava.model.multi_modal_projector
        self.places: Places | None = None
        self.language_model: Any = llava.model.language_model
        self.lm_head = llava.lm_head
        self._one_token: list[RemovableHandle] = []
        if lora is not None:
            self.add_lora(lora)

    def encode_images(self, clip_pixels: torch.Tensor) -> torch.Tensor:
        """CLIP features [B, T, C] of pixels [B, 3, P, P], at LLaVA's layer, without CLS where LLaVA drops it."""
        pixels = clip_pixels.to(self.vision_tower.dtype)
        states = self.vision_tower(pixels, output_hidden_states=True).hidden_states
        layers = self.config.vision_feature_layer
        chosen = [states[i] for i in ([layers] if isinstance(layers, int) else layers)]
        if self.config.vision_feature_select_strategy == "default":
            chosen = [state[:, 1:] for state in chosen]
        return torch.cat(chosen, dim=-1)

    def project(self, clip_features: torch.Tensor) -> torch.Tensor:
        """Image tokens [B, T / m / m, H] of features [B, T, C]; m x m neighbours stand side by side in one token."""
        weight = self.projector.linear_1.weight
        features, merge = clip_features.to(weight.device, weight.dtype), self.image_token_merge
        if merge > 1:
            side = math.isqrt(features.shape[1]) // merge
            squares = features.unflatten(1, (side, merge, side, merge)).transpose(2, 3)  # [B, side, side, m, m, C]
            features = squares.flatten(1, 2).flatten(2)
        tokens = self.projector(features)
        return tokens if self.places is None else tokens + self.places(math.isqrt(tokens.shape[1]))

    def embed(self, input_ids: torch.Tensor, clip_features: torch.Tensor | None = None) -> torch.Tensor:
        """Input embeddings [B, L, H] of ids [B, L], with projected features [B, T, C] at the image placeholders.

        Raises:
            ValueError: A sequence does not have exactly one placeholder per image feature.
        """
        embeddings = self.language_model.embed_tokens(input_ids)
        if self.half_dtype is not None:
            embeddings = embeddings.to(self.half_dtype)
        if clip_features is None:
            return embeddings
        placeholders = input_ids == self.config.image_token_index
        if not (self.training and placeholders.is_cuda):  # reading them makes the GPU wait: the trainer has checked
            self.check_placeholders(input_ids, clip_features.shape[1] // self.image_token_merge**2)
        if self.half_dtype is None:
            features = self.project(clip_features)
        else:
            with self.products(embeddings.device):
                features = self.project(clip_features)
        return embeddings.masked_scatter(placeholders.unsqueeze(-1).to(embeddings.device), features.to(embeddings))

    def check_placeholders(self, input_ids: torch.Tensor, tokens: int) -> None:
        """ValueError unless each sequence of ids [B, L] has ``tokens`` image placeholders."""
        counts = (input_ids == self.config.image_token_index).sum(1).tolist()
        if any(count != tokens for count in counts):
            raise ValueError(
                f"the sequences have {counts} image placeholders (id {self.config.image_token_index}) but every image "
                f"has {tokens} features; the processor and the model disagree on the image size or the "
                "placeholder"
            )

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        clip_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last norm, [B, L, H].

        Args:
            input_ids: int64 [B, L].
            clip_features: [B, T, C] where the ids hold image placeholders.
            attention_mask: Additive float [B, 1, L, keys]; causal without.
            position_ids: int64 [B, L]; they count on from the cache without.
            past_key_values: A cache to read and extend.
        """
        assert self.language_model.config._attn_implementation is not None, "no attention kernel: masks are ignored"
        embeddings = self.embed(input_ids, clip_features)
        with self.products(embeddings.device):
            output = self.language_model(
                inputs_embeds=embeddings,
                attention_mask=None if attention_mask is None else attention_mask.to(embeddings.dtype),
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=past_key_values is not None,
            )
        # Spread over several devices, the last layer is elsewhere than the ids.
        return output.last_hidden_state.to(input_ids.device)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of states [..., H], [..., V]."""
        with self.products(hidden.device):
            return self.lm_head(hidden)

    def products(self, device: torch.device) -> torch.autocast:
        """How matrices are multiplied: in ``half_dtype`` where the model is held so, whatever the trained weights are.

        An fp32 model multiplies in bf16 where ``autocast`` is set, in training alone; all else stays fp32.
        """
        enabled = self.half_dtype is not None or (self.autocast and self.training)
        return torch.autocast(device.type, self.half_dtype or torch.bfloat16, enabled=enabled)

    @property
    def dtype(self) -> torch.dtype:
        """Of the states, also where the linear layers are quantised."""
        return self.half_dtype or next(self.language_model.embed_tokens.parameters()).dtype

    def new_cache(self) -> Cache:
        return growing_cache(self.config.text_config)

    def add_lora(self, lora: dict[str, Any]) -> None:
        """Put adapters into the language model; they start as a zero update.

        Raises:
            ValueError: A target names no linear layer of the decoder.
        """
        # Full names: the bare suffix q_proj would also match CLIP's and SAM's layers in a wider search.
        linears = [name for name, module in self.language_model.named_modules() if isinstance(module, nn.Linear)]
        known = {name.rpartition(".")[2] for name in linears}
        if unknown := set(lora["targets"]) - known:
            raise ValueError(
                f"model.lora.targets names {sorted(unknown)}, which the language model does not have; "
                f"it has {sorted(known)}"
            )
        targets = [name for name in linears if name.rpartition(".")[2] in lora["targets"]]
        config = LoraConfig(
            r=lora["r"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=targets, bias="none"
        )
        inject_adapter_in_model(config, self.language_model)

    def merge_lora(self) -> None:
        """Add the adapters into the layers they adapt, and remove them."""
        for module in self.language_model.modules():
            if isinstance(module, LoraLayer):
                module.merge()
        self._remove_lora()

    def _remove_lora(self) -> None:
        for name, module in list(self.language_model.named_modules()):
            if isinstance(module, LoraLayer):
                self.language_model.set_submodule(name, module.get_base_layer())
        if hasattr(self.language_model, "peft_config"):
            del self.language_model.peft_config

    def quantize(
        self, kind: Quantization, lora: dict[str, Any] | None, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Hold the language model's linear layers in 8 or 4 bits on ``device``; adapters stay as they are (QLoRA).

        Args:
            kind: ``int8`` or ``int4``.
            lora: The settings of the adapters that are there, or ``None``.
            dtype: In which 4-bit layers compute.
            device: Checked by :func:`aura.model.quantize.check_quantization`.
        """
        state = self.language_model.state_dict()
        adapters = {name: value for name, value in state.items() if ".lora_" in name}
        del state
        self._remove_lora()
        quantize_linears(self.language_model, kind, dtype, device)
        if lora is not None:
            self.add_lora(lora)  # of the kind that fits the new layers
            unfit = self.language_model.load_state_dict(adapters, strict=False).unexpected_keys
            assert not unfit, unfit

    def learn_one_token(self, token: int | None) -> None:
        """Let the embeddings and the head learn in the row of ``token`` alone; ``None``: in every row again."""

        def keep(gradient: torch.Tensor) -> torch.Tensor:
            kept = torch.zeros_like(gradient)
            kept[token] = gradient[token]
            return kept

        for handle in self._one_token:
            handle.remove()
        tables = set() if token is None else {self.language_model.embed_tokens.weight, self.lm_head.weight}
        self._one_token = [table.register_hook(keep) for table in tables]

    def lora_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.language_model.named_parameters() if ".lora_" in name]


def widen_projector(llava: LlavaForConditionalGeneration, image_token_merge: int) -> None:
    """Give LLaVA's projector a new first layer that reads the features of m x m neighbouring patches as one token."""
    if image_token_merge > 1:
        projector: Any = llava.model.multi_modal_projector
        first = projector.linear_1
        width = first.in_features * image_token_merge**2
        projector.linear_1 = nn.Linear(width, first.out_features, bias=first.bias is not None)


def packed_attention_mask(segment_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [B, 1, L, L] of a packed batch: 0 where a token may look, the dtype's minimum elsewhere.

    A token sees itself and the earlier tokens of the shared prefix (segment 0) and of its own branch. Padding (-1) sees
    padding alone, so that no row is empty. A float mask is right under every attention implementation. A bool mask is
    silently wrong under the eager one.
    """
    length = segment_ids.shape[1]
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    allowed = causal & ((key == query) | ((key == 0) & (query >= 0)))
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segment_ids.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min).unsqueeze(1)
