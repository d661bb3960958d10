"""The whole network, :class:`AuraModel`: LLaVA writes an answer, and SAM draws the masks of its ``[SEG]`` tokens.

Legend: B images, L packed tokens, M supervised tokens, N ``[SEG]`` objects of the whole batch, T image features,
V vocabulary, H hidden size, C SAM's channels, g side of SAM's embedding grid, h w the mask decoder's output grid.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedModel, SamModel

from aura.features import weights_fingerprint
from aura.machine.chunks import in_chunks
from aura.model import folded_decoder, segmentation
from aura.model.configuration import AuraConfig
from aura.model.generation import AnswerWriter
from aura.model.intent import IntentHead
from aura.model.mllm import Mllm, Places, packed_attention_mask, widen_projector
from aura.model.occlusion import IMAGE_SIDES, OcclusionConditionEncoder, SpatialOcclusionEncoder, ZeroScale
from aura.model.segmentation import Canvas, PromptEncoder
from aura.model.tiled_attention import attend_in_tiles
from aura.model.tiny_vit import build_sam
from aura.types import AuraOutput, Batch, ImageFeatures, MaskOutput

OBJECTS_AT_ONCE = 8
"""Of SAM's size, whose masks are decoded together: both decoders and E_SO keep about 0.15 GB an object for training."""


class PartSize(NamedTuple):
    """Parameters of one part."""

    total: int
    trainable: int


class AuraModel(AnswerWriter, PreTrainedModel):
    """The network of the paper (sections 3.2 and 3.3). It sees no targets and computes no losses.

    Args:
        config: What to build.
        llava: The LLaVA whose parts are used. Without, one is built from ``config`` with random weights.
        sam: The SAM whose parts are used. Without, likewise. Every mask decoder starts as a copy of its decoder.
    """

    config_class = AuraConfig
    base_model_prefix = "aura"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _tied_weights_keys = {"mllm.lm_head.weight": "mllm.language_model.embed_tokens.weight"}  # noqa: RUF012
    _no_split_modules = [  # noqa: RUF012
        "LlamaDecoderLayer",
        "CLIPEncoderLayer",
        "SamVisionLayer",
        "TinyVitEncoder",
        "PromptEncoder",
        "SamMaskDecoder",
        "OcclusionConditionEncoder",
        "SpatialOcclusionEncoder",
        "IntentHead",
    ]
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    # Blank masks are what half-precision or quantised mask decoding is known for.
    _keep_in_fp32_modules_strict = [  # noqa: RUF012 (the plain list is for fp16 only)
        "image_encoder",
        "prompt_encoder",
        "visible_decoder",
        "amodal_decoder",
        "occlusion_condition",
        "spatial_occlusion",
        "intent",
    ]

    def __init__(
        self,
        config: AuraConfig,
        llava: LlavaForConditionalGeneration | None = None,
        sam: SamModel | None = None,
    ) -> None:
        super().__init__(config)
        # Ready parts share their configs with ours. Putting those into an AuraConfig wiped their choice of attention,
        # and the language model would silently attend without any mask.
        self.config._attn_implementation = self.config._attn_implementation
        # The library hands its dtype to the first level of configs. CLIP and the language model are on the second; they
        # would come in the dtype they were saved with.
        for part_config in (config.llava_config.text_config, config.llava_config.vision_config):
            part_config.dtype = torch.get_default_dtype()
        if llava is None:
            llava = LlavaForConditionalGeneration(config.llava_config)
            widen_projector(llava, config.image_token_merge)
        sam = build_sam(config.sam_config) if sam is None else sam
        self.mllm = Mllm(llava, config.lora, config.image_token_merge)
        self.image_encoder = sam.vision_encoder
        attend_in_tiles(self.image_encoder)
        hidden_size = config.llava_config.text_config.hidden_size
        self.prompt_encoder = PromptEncoder(
            hidden_size, sam.prompt_encoder, config.rescale_states, pointing=config.pointing
        )
        if config.image_places:
            self.mllm.places = Places(sam.prompt_encoder.shared_embedding.positional_embedding, hidden_size)
        self.visible_decoder = sam.mask_decoder if config.masks != "amodal" else None
        self.amodal_decoder = copy.deepcopy(sam.mask_decoder) if config.masks != "visible" else None
        channels = config.prompt_hidden_size
        self.occlusion_condition = None
        if config.occlusion_condition:
            self.occlusion_condition = OcclusionConditionEncoder(channels, config.condition_form)
        self.spatial_occlusion = None
        if config.spatial_occlusion:
            self.spatial_occlusion = SpatialOcclusionEncoder(form=config.spatial_form, image_channels=channels)
        self.intent = IntentHead(hidden_size) if config.intent else None
        part: Any
        for part in self.modules():
            # Every part comes initialised, by its own class or from a file. The library must not do it again.
            tensors = itertools.chain(part.parameters(), part.buffers())
            part._is_hf_initialized = not any(tensor.is_meta for tensor in tensors)
        self.post_init()
        self.freeze()

    def _init_weights(self, module: nn.Module) -> None:
        # The library calls this for what a checkpoint lacks. Its small normal values would replace a layer's own start.
        if isinstance(module, nn.Linear | nn.Conv2d | ZeroScale):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    # --- forward ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, sam_pixels: torch.Tensor, clip_pixels: torch.Tensor) -> ImageFeatures:
        """Frozen features of SAM pixels [B, 3, S, S] and CLIP pixels [B, 3, P, P]; worth caching."""
        return ImageFeatures(self.encode_sam(sam_pixels), self.mllm.encode_images(clip_pixels))

    @torch.no_grad()
    def encode_sam(self, sam_pixels: torch.Tensor) -> torch.Tensor:
        """The half of :meth:`encode_images` that only masks need: [B, C, g, g]."""
        return self.image_encoder(sam_pixels.to(self.image_encoder.dtype)).last_hidden_state

    def forward(self, batch: Batch) -> AuraOutput:
        """Text logits at the supervised positions and masks for every ``[SEG]`` of the batch.

        Every trainable parameter takes part in the backward pass of ``output.unused`` plus the other outputs, whatever
        the batch holds. So ranks never wait for each other's gradients.
        """
        sam_embeddings = batch.sam_embeddings
        if sam_embeddings is None:
            assert batch.sam_pixels is not None, "a batch has pixels or features"
            sam_embeddings = self.encode_sam(batch.sam_pixels)
        hidden, states, clip_features = self.read(batch)
        text_logits = self.mllm.logits(hidden[batch.target_index])  # [M, V]
        masks, unused = self._decode(states, self._blank_canvas(sam_embeddings, clip_features), batch.seg_image)
        return AuraOutput(masks, text_logits=text_logits, unused=unused)

    def read(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The language model's states of a batch [B * L, H], those of the ``[SEG]`` [N, H], and CLIP's features."""
        clip_features = batch.clip_features
        if clip_features is None:
            assert batch.clip_pixels is not None, "a batch has pixels or features"
            clip_features = self.mllm.encode_images(batch.clip_pixels)  # frozen
        hidden = self.mllm(
            batch.input_ids,
            clip_features=clip_features,
            attention_mask=packed_attention_mask(batch.segment_ids, self.mllm.dtype),
            position_ids=batch.position_ids,
        ).flatten(0, 1)
        return hidden, hidden[batch.seg_index - int(self.config.seg_state == "before")], clip_features

    def decode_masks(
        self,
        seg_hidden: torch.Tensor,
        sam_embeddings: torch.Tensor | Canvas,
        seg_image: torch.Tensor,
        clip_features: torch.Tensor | None = None,
    ) -> MaskOutput:
        """Masks and occlusion of N ``[SEG]`` states, in one call for all images.

        Args:
            seg_hidden: [N, H].
            sam_embeddings: [B, C, g, g], or what :meth:`canvas` makes of them; then without E_SO's map, which the
                losses alone read.
            seg_image: int64 [N], the image of each state.
            clip_features: [B, T, C], which ``config.pointing`` needs where no canvas holds its tokens.
        """
        if isinstance(sam_embeddings, Canvas):
            return self._decode(seg_hidden, sam_embeddings, seg_image, spatial=False)[0]
        return self._decode(seg_hidden, self._blank_canvas(sam_embeddings, clip_features), seg_image)[0]

    @torch.no_grad()
    def canvas(self, sam_embeddings: torch.Tensor, clip_features: torch.Tensor | None = None) -> Canvas:
        """What all masks of these images share; worth keeping where several answers point at one image.

        Args:
            sam_embeddings: [B, C, g, g].
            clip_features: [B, T, C], which ``config.pointing`` needs.
        """
        blank = self._blank_canvas(sam_embeddings, clip_features)
        decoders = self.visible_decoder, self.amodal_decoder
        visible, amodal = (segmentation.project(decoder, blank.images, blank.positions) for decoder in decoders)
        return blank._replace(visible=visible, amodal=amodal)

    def _blank_canvas(self, sam_embeddings: torch.Tensor, clip_features: torch.Tensor | None) -> Canvas:
        """One whose image sides the decoders make themselves, as they must while they learn."""
        weight = next(self.prompt_encoder.projection.parameters())
        images = sam_embeddings.to(weight.device, weight.dtype) + self.prompt_encoder.dense()
        return Canvas(images, self.prompt_encoder.image_positions(), None, None, self.image_tokens(clip_features))

    def image_tokens(self, clip_features: torch.Tensor | None) -> torch.Tensor | None:
        """The image tokens [B, T, H] that a pointer chooses from; ``None`` of a model without."""
        if self.prompt_encoder.pointer is None:
            return None
        assert clip_features is not None, "config.pointing needs the image tower's features"
        with self.mllm.products(clip_features.device):
            return self.mllm.project(clip_features)

    def _decode(
        self, seg_hidden: torch.Tensor, canvas: Canvas, seg_image: torch.Tensor, *, spatial: bool = True
    ) -> tuple[MaskOutput, torch.Tensor]:
        """The masks, and a zero that holds on to whatever was computed and is not in them."""
        count = len(seg_hidden)
        if count == 0:
            # A stand-in object, because modules that run on one rank only would stop ZeRO and DDP.
            seg_hidden, seg_image = seg_hidden.new_zeros(1, seg_hidden.shape[1]), seg_image.new_zeros(1)
        refined, pointed = self.prompt_encoder(seg_hidden, canvas.tokens, seg_image)  # e_r [N, C], [N, T]

        def draw(refined: torch.Tensor, seg_image: torch.Tensor) -> dict[str, torch.Tensor]:
            return self._draw(refined, canvas, seg_image, spatial)

        at_once = self._objects_at_once(canvas.images.shape[-2:])
        drawn = in_chunks(draw, (refined, seg_image.to(refined.device)), at_once)
        # SAM's quality heads are trainable, as in LISA, but no loss asks for them.
        idle = [drawn.pop(name) for name in ("visible_quality", "amodal_quality") if name in drawn]
        output = MaskOutput(*map(drawn.get, ("visible", "amodal", "rate", "spatial")))
        output["pointed_logits"] = pointed
        output["asked_logits"] = None if self.intent is None else self.intent(seg_hidden)  # [N, 3]
        if count == 0:
            idle += [value for value in output.values() if value is not None]
            output = MaskOutput(**{name: value if value is None else value[:0] for name, value in output.items()})
        # Spread over several devices, the decoders may lie on different ones.
        unused = 0.0 * torch.stack([value.float().mean().to(refined.device) for value in idle]).sum()
        return output, unused

    def _draw(
        self, refined: torch.Tensor, canvas: Canvas, seg_image: torch.Tensor, spatial: bool
    ) -> dict[str, torch.Tensor]:
        """Masks and occlusion of n objects: e_r [n, C], and the image of each object [n]."""
        drawn: dict[str, torch.Tensor] = {}  # masks [n, h, w], their quality [n], rates [n], the map [n, 3, h, w]

        def decode(kind: str, decoder: Any, prompts: torch.Tensor, side: Any) -> None:
            with self._drawing(canvas.images):
                found = segmentation.decode(decoder, prompts, canvas.images, seg_image, canvas.positions, side)
            drawn[kind], drawn[f"{kind}_quality"] = (value.to(prompts.dtype) for value in found)

        if self.visible_decoder is not None:
            decode("visible", self.visible_decoder, refined, canvas.visible)
        aware = refined  # e_oa [n, C], or both prompts [n, 2, C]
        if self.occlusion_condition is not None:
            aware, drawn["rate"] = self.occlusion_condition(refined)
        if self.amodal_decoder is not None:
            decode("amodal", self.amodal_decoder, aware, canvas.amodal)
        if self.spatial_occlusion is not None and spatial:
            with self._drawing(canvas.images):
                spatial_map = self.spatial_occlusion(drawn["visible"], drawn["amodal"], canvas.images, seg_image)
            drawn["spatial"] = spatial_map.to(refined.dtype)
        return drawn

    def _drawing(self, images: torch.Tensor) -> AbstractContextManager[Any]:
        """How decoders and E_SO multiply: in bf16 under ``autocast``, but not on small grids, where casts cost more."""
        large = images.shape[-2] * images.shape[-1] >= folded_decoder.LEAST_PIXELS
        if large and self.training and self.mllm.autocast:
            return torch.autocast(images.device.type, torch.bfloat16)
        return nullcontext()

    def _objects_at_once(self, grid: Sequence[int]) -> int:
        """Objects whose intermediate results are kept together: 8 on SAM's own grid of 64 x 64, more on a smaller one.

        All under ZeRO-3, which needs each module to be called equally often on every rank.
        """
        if any(hasattr(p, "ds_id") for p in self.prompt_encoder.projection.parameters()):
            return sys.maxsize
        finer = IMAGE_SIDES if self.config.spatial_occlusion and self.config.spatial_form == "image" else 1
        return max(1, OBJECTS_AT_ONCE * 64 * 64 // (grid[0] * grid[1] * finer))

    # --- what is trained ----------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Leave trainable what LISA and the paper train, and nothing else.

        LoRA, token embeddings and head (``config.train_embeddings``), where they ask for it LLaVA's projector
        (``config.train_projector``), the prompt projection and the pointer, the mask decoders, E_OC and E_SO, and the
        head of ``config.intent``. A model loaded with ``from_pretrained`` or changed by :meth:`merge_lora` is frozen so
        already.
        """
        self.requires_grad_(False)
        trained: list[nn.Module | None] = [self.prompt_encoder.rescaling, self.prompt_encoder.projection]
        trained += [self.visible_decoder, self.amodal_decoder, self.occlusion_condition, self.spatial_occlusion]
        trained += [self.prompt_encoder.pointer, self.intent]
        if self.config.train_embeddings:
            trained += [self.mllm.language_model.embed_tokens, self.mllm.lm_head]
        if self.config.train_projector:
            trained += [self.mllm.projector, self.mllm.places]
        for module in trained:
            if module is not None:
                module.requires_grad_(True)
        for parameter in self.mllm.lora_parameters():
            parameter.requires_grad_(True)
        self.mllm.learn_one_token(self.config.seg_token_id if self.config.train_embeddings == "seg" else None)

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def train(self, mode: bool = True) -> AuraModel:
        super().train(mode)
        if mode:
            self.forget_decoders()
        self.image_encoder.eval()
        self.mllm.vision_tower.eval()
        return self

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **kwargs: Any) -> None:
        """Recompute the language model's layers in the backward pass. The frozen encoders have no backward pass."""
        settings = gradient_checkpointing_kwargs or {"use_reentrant": False}
        self.mllm.language_model.gradient_checkpointing_enable(settings, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.mllm.language_model.gradient_checkpointing_disable()

    def add_lora(self, lora: dict[str, Any]) -> None:
        """Put new adapters (a zero update) into a model that has none."""
        assert self.config.lora is None, "merge_lora() first"
        self.mllm.add_lora(lora)
        self.config.lora = {**lora, "targets": list(lora["targets"])}
        self.freeze()

    def merge_lora(self) -> None:
        """Add the adapters into the weights they adapt. The model then has no adapters."""
        self.mllm.merge_lora()
        self.config.lora = None
        self.freeze()

    def get_input_embeddings(self) -> nn.Module:
        return self.mllm.language_model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.mllm.lm_head

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze()  # loading replaces parameters, and with them what it said
        for parameter in model.parameters():
            # A tensor lies in memory as it lies in the file, and CPUs sum in another order off a vector's boundary. A
            # model that was saved and loaded would then not answer bit for bit as before.
            if parameter.device.type == "cpu" and parameter.is_floating_point() and parameter.data_ptr() % 64:
                parameter.data = parameter.data.clone()
        return loaded

    # --- facts about the model ----------------------------------------------------------------------------------------

    def num_parameters_by_part(self) -> dict[str, PartSize]:
        """Parameters of each part; the parts are disjoint and add up to the model."""
        sizes: dict[str, PartSize] = {}
        for name, parameter in self.named_parameters():
            part, count = _part_of(name), getattr(parameter, "ds_numel", parameter.numel())
            total, trainable = sizes.get(part, PartSize(0, 0))
            sizes[part] = PartSize(total + count, trainable + count * parameter.requires_grad)
        return sizes

    def encoder_fingerprint(self) -> str:
        """16 hex digits that tell these frozen encoders (weights, dtype, chosen layer) from others."""
        llava = self.config.llava_config
        read = json.dumps([llava.vision_feature_layer, llava.vision_feature_select_strategy])
        return weights_fingerprint((self.image_encoder, self.mllm.vision_tower), read)


def _part_of(name: str) -> str:
    if ".lora_" in name:
        return "lora"
    top, _, rest = name.partition(".")
    if top == "mllm":
        part = rest.partition(".")[0]
        embeddings = part == "lm_head" or rest.startswith("language_model.embed_tokens")
        return "embeddings_and_head" if embeddings else part
    if top == "prompt_encoder":
        return "projection" if rest.startswith(("rescaling", "projection")) else "prompt_encoder"
    return top
