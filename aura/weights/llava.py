"""Multimodal language models from outside, as a ``LlavaForConditionalGeneration``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from aura.data.tokenization import IM_PATCH, complete_v1_tokenizer, load_tokenizer
from aura.model.precision import cast_parameters
from aura.weights.delta import is_delta, refuse_delta
from aura.weights.files import PartReport, check_weight_files, load_pretrained, read_config, read_folder_tensors
from aura.weights.pair import PACKAGES, load_language_model, new_llava, packaged_gguf
from aura.weights.vision_tower import describe_reading, load_vision_tower, resize_tower

_LLAMA_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)
# How names begin in transformers and in an original checkpoint; the rest of a name is the same in both.
_NAMES = {
    "model.language_model.": "model.",  # embed_tokens, layers, norm
    "lm_head.": "lm_head.",
}
_NAMES_V1 = _NAMES | {
    "model.multi_modal_projector.linear_1.": "model.mm_projector.",  # linear_2 is the identity and in no file
}
_NAMES_V15 = _NAMES | {
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
}
_SETTING = "model.mllm"
_TOWER_SIZES = {"clip-vit-large-patch14": 224, "clip-vit-large-patch14-336": 336}


@dataclass(frozen=True)
class LoadedLlava:
    """A multimodal language model with what belongs to it.

    ``clip_folder`` is the folder whose ``preprocessor_config.json``, if it has one, tells how the tower reads an image.
    The first of ``parts`` is the language model's; a part called ``projector`` says that it is new.
    """

    llava: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    clip_folder: Path
    parts: tuple[PartReport, ...]


def load_llava(
    source: str | Path,
    *,
    vision_tower: str | Path | None = None,
    dtype: torch.dtype,
    allow_random: bool = False,
    image_token_merge: int = 1,
    vision_image_size: int | None = None,
    vision_feature_layer: int | None = None,
    device: torch.device | None = None,
) -> LoadedLlava:
    """The multimodal language model that ``source`` is, told by its ``config.json``.

    Args:
        source: A Hugging Face LLaVA folder (llava-hf 1.5, or one that we saved), which holds everything; an original
            LLaVA v1 folder; or a language model of Llama's architecture, which becomes a LLaVA with a new projector: a
            Hugging Face folder, a ``.gguf`` file, or the name of a package in :data:`.pair.PACKAGES`.
        vision_tower: CLIP's folder, for the last two; for a new pair it may also be DINOv2's, SigLIP's, or that of a
            LLaVA with a tower in it.
        dtype: Of all weights.
        allow_random: A folder may lack weights; the report names them.
        image_token_merge: For a new pair, see :func:`.pair.new_llava`; others have their projector.
        vision_image_size: For a new pair, the side of the tower's input in pixels where it is not the tower's own.
        vision_feature_layer: For a new pair, the tower's layer to read, see :func:`.vision_tower.describe_reading`.
        device: Where to put an original LLaVA, tensor by tensor; the others come on the CPU.

    Raises:
        ValueError: Another kind of model, a delta, a damaged file, or no ``vision_tower`` where one is needed.
    """

    def new_pair(language_model: Path) -> LoadedLlava:
        return _new_pair(
            language_model,
            vision_tower,
            dtype=dtype,
            allow_random=allow_random,
            image_token_merge=image_token_merge,
            image_size=vision_image_size,
            feature_layer=vision_feature_layer,
        )

    if str(source) in PACKAGES and not Path(source).exists():
        file = packaged_gguf(str(source))
        loaded = new_pair(file)
        report = dataclasses.replace(loaded.parts[0], source=f"{source} ({file.name})")
        return dataclasses.replace(loaded, parts=(report, *loaded.parts[1:]))
    source = Path(source)
    if source.suffix == ".gguf":
        if not source.is_file():
            raise ValueError(f"{_SETTING}: {source} is missing; give the path of a GGUF file")
        return new_pair(source)
    config = read_config(source, _SETTING)
    kinds = config.get("architectures") or []
    if "LISAForCausalLM" in kinds or "train_mask_decoder" in config:
        raise ValueError(f"{_SETTING}: {source} is a LISA checkpoint; give it as model.init_from")
    if config.get("model_type") == "llava" and "text_config" in config:
        llava, report = load_pretrained(LlavaForConditionalGeneration, "mllm", source, _SETTING, dtype, allow_random)
        return LoadedLlava(llava, load_tokenizer(source), source, (report,))
    if config.get("model_type") == "llava" or "LlavaLlamaForCausalLM" in kinds:
        return load_original(source, vision_tower=vision_tower, dtype=dtype, allow_random=allow_random, device=device)
    if config.get("model_type") == "llama":
        return new_pair(source)
    raise ValueError(
        f"{_SETTING}: {source}/config.json describes model_type {config.get('model_type')!r} ({kinds}); give a LLaVA "
        "(llava-hf or original v1) or a language model of Llama's architecture (model_type 'llama')"
    )


def load_original(
    folder: Path,
    *,
    vision_tower: str | Path | None,
    dtype: torch.dtype,
    allow_random: bool = False,
    state: Mapping[str, Tensor] | None = None,
    device: torch.device | None = None,
) -> LoadedLlava:
    """An original LLaVA v1 folder (``docs/formats.md``, "LLaVA v1").

    Args:
        folder: Config, tokenizer and weights.
        vision_tower: CLIP's folder.
        dtype: Of all weights.
        allow_random: The folder may lack weights.
        state: Weights to take in place of the folder's, as those of a delta and its base.
        device: Where to put each tensor as it is read; the CPU without.

    Raises:
        ValueError: As :func:`load_llava`.
    """
    config = read_config(folder, _SETTING)
    stated = str(config.get("mm_vision_tower") or config.get("vision_tower") or "openai/clip-vit-large-patch14")
    if vision_tower is None:
        raise ValueError(
            f"model.vision_tower is not set; an original LLaVA ({folder}) does not hold its CLIP: give the folder of "
            f"{stated}"
        )
    if state is None:
        has_weights = check_weight_files(folder, _SETTING, required=not allow_random)
        state = read_folder_tensors(folder, _SETTING) if has_weights else {}
        if has_weights and is_delta(state, folder):
            raise refuse_delta(folder, _SETTING)
    tower, tower_report = load_vision_tower(vision_tower, dtype=dtype)
    size = _TOWER_SIZES.get(Path(stated).name, tower.config.image_size)
    if tower.config.image_size != size:
        raise ValueError(
            f"model.vision_tower: {vision_tower} reads images of {tower.config.image_size} px, but {folder} was "
            f"trained with {stated} of {size} px"
        )
    try:
        llava, missing, unexpected = llava_from_v1_state(config, state, tower, dtype, device)
    except ValueError as error:
        raise ValueError(f"{_SETTING}: {folder}: {error}") from error
    tokenizer = load_tokenizer(folder, original=True)
    settings: Any = llava.config
    try:
        complete_v1_tokenizer(tokenizer, settings.text_config.vocab_size, settings.mm_use_im_start_end)
    except ValueError as error:
        raise ValueError(f"{_SETTING}: {folder}: {error}") from error
    settings.image_token_index = tokenizer.get_vocab().get(IM_PATCH, settings.image_token_index)
    loaded = sum(not _ignored(name) for name in state) - len(unexpected)
    report = PartReport("mllm", str(folder), loaded, missing, unexpected)
    return LoadedLlava(llava, tokenizer, Path(vision_tower), (report, tower_report))


def _new_pair(
    source: Path,
    vision_tower: str | Path | None,
    *,
    dtype: torch.dtype,
    allow_random: bool,
    image_token_merge: int,
    image_size: int | None,
    feature_layer: int | None,
) -> LoadedLlava:
    if vision_tower is None:
        raise ValueError(
            f"model.vision_tower is not set; {source} is a language model that sees nothing: give the folder of a "
            "CLIP, DINOv2 or SigLIP (or of a LLaVA, whose tower is then taken) to pair it with"
        )
    reading = describe_reading(vision_tower, image_size=image_size, feature_layer=feature_layer)
    if read_config(vision_tower, "model.vision_tower").get("model_type") == "llava":
        tower, tower_report = _tower_of_llava(Path(vision_tower), dtype)
    else:
        tower, tower_report = load_vision_tower(vision_tower, dtype=dtype)
    tower = resize_tower(tower, reading.config.image_size)
    language_model, report = load_language_model(source, dtype=dtype, allow_random=allow_random)
    llava, projector_report = new_llava(
        language_model,
        tower,
        feature_layer=reading.feature_layer,
        strategy=reading.strategy,
        image_token_merge=image_token_merge,
    )
    return LoadedLlava(llava, load_tokenizer(source), Path(vision_tower), (report, tower_report, projector_report))


def _tower_of_llava(folder: Path, dtype: torch.dtype) -> tuple[Any, PartReport]:
    """The vision tower inside a Hugging Face LLaVA; its language model is not read."""
    setting = "model.vision_tower"
    check_weight_files(folder, setting)
    config: Any = AutoConfig.from_pretrained(str(folder)).vision_config
    state = {}
    for name, tensor in read_folder_tensors(folder, setting).items():
        _, mark, rest = name.partition("vision_tower.")
        if mark:
            state[rest.removeprefix("vision_model.")] = tensor.to(dtype, copy=True)
    tower: Any = AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa")
    result = tower.load_state_dict(state, strict=False)
    missing = tuple(name for name in result.missing_keys if not name.endswith("position_ids"))
    unexpected = tuple(name for name in result.unexpected_keys if not name.endswith("position_ids"))
    return tower, PartReport("vision tower", str(folder), len(state) - len(unexpected), missing, unexpected)


def llava_from_v1_state(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    vision_tower: CLIPVisionModel,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> tuple[LlavaForConditionalGeneration, tuple[str, ...], tuple[str, ...]]:
    """A LLaVA from an original checkpoint's tensors, never held twice.

    The single linear projector W, b becomes ``linear_2(linear_1(x))`` with ``linear_1`` = (W, b) and ``linear_2`` = (I,
    0) without an activation between: the same numbers to the last bit. The two-layer projector of LLaVA 1.5 fits as it
    is. The vocabulary is as large as the embedding table, whatever ``config`` says.

    Args:
        config: ``config.json`` of the checkpoint, with Llama's fields at its top level.
        state: Original names to tensors; read one at a time and copied to ``dtype``, so it may be a
            :class:`~aura.weights.files.StateFiles`. ``inv_freq`` buffers and ``vision_tower`` are passed over.
        vision_tower: The CLIP tower, which such checkpoints lack; moved to ``dtype`` and used, not copied.
        dtype: Of all weights.
        device: Where to put each tensor as it is read; the CPU without.

    Returns:
        The model, and under their original names the tensors that ``state`` lacks (random in the model) and those it
        has that are no LLaVA's.

    Raises:
        ValueError: A tensor of another shape than ``config`` implies.
    """
    two_layers = "model.mm_projector.0.weight" in state
    llava: Any = _empty_llava(v1_config(config, state, vision_tower, two_layers=two_layers))
    llava.model.vision_tower = cast_parameters(vision_tower, dtype).to(device)
    if not two_layers:
        rows = llava.config.text_config.hidden_size
        _assign(llava, "model.multi_modal_projector.linear_2.weight", torch.eye(rows, dtype=dtype, device=device))
        _assign(llava, "model.multi_modal_projector.linear_2.bias", torch.zeros(rows, dtype=dtype, device=device))
    names = _NAMES_V15 if two_layers else _NAMES_V1
    wanted = {original_name(name, names): name for name, tensor in llava.named_parameters() if tensor.is_meta}
    unexpected = []
    for key in state:
        if _ignored(key):
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
        _assign(llava, name, tensor.to(device=device, dtype=dtype, copy=True))
    for name in wanted.values():
        _assign(llava, name, _random(llava, name).to(device=device, dtype=dtype))
    llava.tie_weights()
    return llava, tuple(wanted), tuple(unexpected)


def v1_config(
    config: Mapping[str, Any], state: Mapping[str, Tensor], vision_tower: CLIPVisionModel, *, two_layers: bool = False
) -> LlavaConfig:
    """The Hugging Face description of an original checkpoint; its own ``mm_use_im_start_end`` stays in it."""
    fields = {name: config[name] for name in _LLAMA_FIELDS if config.get(name) is not None}
    embeddings = state.get("model.embed_tokens.weight")
    fields["vocab_size"] = config["vocab_size"] if embeddings is None else len(embeddings)
    vision: Any = vision_tower.config
    described: Any = LlavaConfig(
        text_config=LlamaConfig(**fields),
        vision_config=vision,
        projector_hidden_act="gelu" if two_layers else "linear",
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if config.get("mm_vision_select_feature") == "cls_patch" else "default",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        image_token_index=fields["vocab_size"] - 1,  # the tokenizer knows the right one
        tie_word_embeddings=fields.get("tie_word_embeddings", False),
    )
    described.mm_use_im_start_end = bool(config.get("mm_use_im_start_end", False))
    return described


def original_name(name: str, names: Mapping[str, str]) -> str:
    """The name in an original checkpoint of a parameter of ``LlavaForConditionalGeneration``."""
    prefix = next(prefix for prefix in names if name.startswith(prefix))
    return names[prefix] + name.removeprefix(prefix)


def _ignored(name: str) -> bool:
    """Rotary frequencies, which the config determines, and copies of the vision tower."""
    return name.endswith(".inv_freq") or "vision_tower" in name


def _empty_llava(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """A model without memory for its weights; what no checkpoint holds (rotary frequencies) is there."""
    text: Any = config.text_config
    with torch.device("meta"):
        llava: Any = LlavaForConditionalGeneration(config)
    llava.model.language_model.rotary_emb = LlamaRotaryEmbedding(text)
    return llava


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(tensor))


def _random(llava: Any, name: str) -> Tensor:
    """A start for a tensor that no file has: Llama's own (norms at one, biases at zero, small normal weights)."""
    shape = llava.get_parameter(name).shape
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return torch.empty(shape).normal_(std=llava.config.text_config.initializer_range)
