"""The configuration that is saved with an AURA model."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from transformers import LlavaConfig, PretrainedConfig, SamConfig

from aura.config import ConditionForm, SpatialForm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the names that settings and options call them."""


class AuraConfig(PretrainedConfig):
    """What an AURA model is made of; enough to build it without its weights.

    Args:
        llava_config: The multimodal language model (a ``LlavaConfig`` or its dict); its vocabulary holds ``[SEG]``.
        sam_config: The segmentation model (a ``SamConfig`` or its dict).
        seg_token_id: Id of ``[SEG]``.
        eos_token_id: Id that ends an answer.
        seg_state: Hidden state that stands for a ``[SEG]``: the one ``before`` it, which predicts it, or ``at`` it.
        occlusion_condition: Has the occlusion condition encoder E_OC.
        spatial_occlusion: Has the spatial occlusion encoder E_SO.
        condition_form: Form of E_OC, see :class:`aura.model.occlusion.OcclusionConditionEncoder`.
        spatial_form: Form of E_SO, see :class:`aura.model.occlusion.SpatialOcclusionEncoder`.
        masks: Decoders it has: ``both``, or ``visible`` or ``amodal`` alone, then without what needs the other one.
        lora: ``{"r", "alpha", "dropout", "targets"}`` of the adapters in the language model, ``None`` without.
        train_embeddings: Token embeddings and language model head are trainable; ``seg``: their row of ``[SEG]`` alone.
        train_projector: LLaVA's projector is trainable.
        image_token_merge: Side of the square of neighbouring CLIP features that the projector makes one token of.
        image_places: Image tokens say where they lie, see :class:`aura.model.mllm.Places`.
        rescale_states: E_P rescales the ``[SEG]`` states before its projection, dimension by dimension.
        pointing: E_P adds the prompt of the place that a state points at, see :mod:`aura.model.pointing`.
        intent: Has the head that tells which mask each ``[SEG]`` is asked for.
        hub_commits: Names on the hub that its parts came from, as they were given, and the commits that these meant.
    """

    model_type = "aura"
    sub_configs = {"llava_config": LlavaConfig, "sam_config": SamConfig}  # noqa: RUF012 (read by transformers)

    llava_config: Any = None
    sam_config: Any = None
    seg_token_id: int | None = None
    eos_token_id: int | None = None
    seg_state: str = "before"
    occlusion_condition: bool = True
    spatial_occlusion: bool = True
    condition_form: ConditionForm = "residual"
    spatial_form: SpatialForm = "decoder"
    masks: str = "both"
    lora: dict[str, Any] | None = None
    train_embeddings: bool | Literal["seg"] = True
    train_projector: bool = False
    image_token_merge: int = 1
    image_places: bool = False
    rescale_states: bool = False
    pointing: bool = False
    intent: bool = False
    hub_commits: dict[str, str] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name, kind in self.sub_configs.items():
            value = getattr(self, name)
            if value is None or isinstance(value, dict):
                setattr(self, name, kind(**(value or {})))
        # The library ties weights by the outermost config's word.
        self.tie_word_embeddings = bool(self.llava_config.tie_word_embeddings)
        if self.seg_state not in ("before", "at"):
            raise ValueError(f"seg_state must be 'before' or 'at', got {self.seg_state!r}")
        if self.masks not in ("both", "visible", "amodal"):
            raise ValueError(f"masks must be 'both', 'visible' or 'amodal', got {self.masks!r}")
        for key, forms in (("condition_form", ConditionForm), ("spatial_form", SpatialForm)):
            if getattr(self, key) not in get_args(forms):
                raise ValueError(f"{key} must be one of {', '.join(get_args(forms))}, got {getattr(self, key)!r}")
        if self.spatial_occlusion and self.masks != "both":
            raise ValueError(f"spatial_occlusion needs both masks, and masks is {self.masks!r}")
        if self.occlusion_condition and self.masks == "visible":
            raise ValueError("occlusion_condition needs the amodal decoder, and masks is 'visible'")
        check_image_token_merge(self.image_token_merge, self.llava_config)
        if self.image_places and num_kept_class_tokens(self.llava_config):
            raise ValueError("image_places is for patches, but this model keeps CLIP's class token")
        if self.pointing and num_kept_class_tokens(self.llava_config):
            raise ValueError("pointing is at patches, but this model keeps CLIP's class token")
        if self.lora is not None:
            self.lora = {**self.lora, "targets": list(self.lora["targets"])}
        super().__post_init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        """The language model's config, where the library looks for vocabulary and cache sizes."""
        return self.llava_config.text_config if isinstance(self.llava_config, LlavaConfig) else self

    @property
    def image_token_id(self) -> int:
        """Id of the image placeholder, which stands once per image feature."""
        return self.llava_config.image_token_index

    @property
    def num_image_tokens(self) -> int:
        """Placeholders per image."""
        vision = self.llava_config.vision_config
        patches = (vision.image_size // vision.patch_size // self.image_token_merge) ** 2
        return patches + num_kept_class_tokens(self.llava_config)

    @property
    def prompt_hidden_size(self) -> int:
        """Channels of SAM's prompt embeddings, of e_r and of e_oa."""
        return self.sam_config.prompt_encoder_config.hidden_size


def num_class_tokens(vision_config: Any) -> int:
    """Tokens that the vision tower puts before those of the patches: CLIP's and DINOv2's one, SigLIP has none."""
    return int(not vision_config.model_type.startswith("siglip"))


def num_kept_class_tokens(llava_config: LlavaConfig) -> int:
    """Those of them that go to the language model: LLaVA's strategy ``default`` leaves them out."""
    kept = llava_config.vision_feature_select_strategy == "full"
    return num_class_tokens(llava_config.vision_config) if kept else 0


def check_image_token_merge(merge: int, llava_config: LlavaConfig) -> None:
    """ValueError if ``merge`` x ``merge`` neighbouring patches cannot make one token."""
    vision: Any = llava_config.vision_config
    side = vision.image_size // vision.patch_size
    if merge < 1 or side % merge:
        raise ValueError(f"image_token_merge is {merge}, which does not divide CLIP's {side} x {side} patches")
    if merge > 1 and num_kept_class_tokens(llava_config):
        raise ValueError("image_token_merge takes patches alone, but this model keeps CLIP's class token")
