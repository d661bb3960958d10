"""From settings to a model and its processor, with a report of what was loaded where."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from aura.config import DataSettings, LoraSettings, ModelSettings
from aura.data.images import clip_preprocessing
from aura.data.processor import Processor
from aura.data.tokenization import complete_v1_tokenizer, load_tokenizer, prepare_tokenizer
from aura.model.aura import AuraModel
from aura.model.configuration import AuraConfig
from aura.model.precision import hold
from aura.model.quantize import check_quantization
from aura.weights import (
    PartReport,
    check_weight_files,
    hub,
    is_lisa,
    load_lisa,
    load_llava,
    load_sam,
    load_vision_tower,
    read_config,
)
from aura.weights.text import text_settings
from aura.weights.vision_tower import default_preprocessing


@dataclass(frozen=True)
class LoadReport:
    """Every part of a model and the source of its weights."""

    parts: tuple[PartReport, ...]

    def check(self, allow_random: bool) -> None:
        """Refuse a model whose pretrained parts are not: training from random encoders fails without a sound.

        Raises:
            ValueError: Tensors are missing from a source, unless ``allow_random``.
        """
        for part in self.parts:
            if part.missing and not allow_random:
                shown = ", ".join(part.missing[:5]) + (", ..." if len(part.missing) > 5 else "")
                raise ValueError(
                    f"{part.part}: {len(part.missing)} tensors are not in {part.source} and would be random: {shown}; "
                    "give complete weights, or set model.allow_random to start anyway"
                )

    def __rich__(self) -> Table:
        table = Table(title="Weights")
        table.add_column("part", no_wrap=True)
        table.add_column("source", overflow="fold")
        for heading in ("loaded", "missing", "unexpected", "new"):
            table.add_column(heading, justify="right")
        for part in self.parts:
            counts = (part.loaded, len(part.missing), len(part.unexpected), len(part.new))
            style = "red" if part.missing else "yellow" if part.unexpected else None
            table.add_row(part.part, hub.short(part.source), *map(str, counts), style=style)
        return table


def build_model(
    settings: ModelSettings,
    data: DataSettings,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[AuraModel, Processor, LoadReport]:
    """The model that ``settings`` describe, ready to train.

    Args:
        settings: From ``mllm`` and ``sam``, or from an AURA export or a LISA checkpoint (``init_from``).
        data: ``max_length`` and ``objects_per_answer`` go into the processor.
        device: Where to put the model, each backbone as soon as it is read; left on the CPU without.
        dtype: Of the frozen backbones; what is trained is in fp32 (see :mod:`aura.model.precision`).

    Raises:
        ValueError: A folder is missing, damaged or of the wrong kind, or a part that should be pretrained is not.
    """
    model: Any
    quantize_on = check_quantization(settings.quantize, device)  # before minutes of loading
    settings, commits = hub.here(settings)
    if settings.init_from is not None and is_lisa(settings.init_from):
        model, processor, report = _from_lisa(settings, data, dtype)
    elif settings.init_from is not None:
        model, processor, report = _from_export(settings, data, dtype)
    else:
        # What is to be quantised is packed first and moved then.
        place = torch.device(device) if device is not None and settings.quantize == "none" else None
        model, processor, report = _from_backbones(settings, data, dtype, place)
    report.check(settings.allow_random)
    if commits:
        model.config.hub_commits = {**(model.config.hub_commits or {}), **commits}
    if settings.quantize != "none":
        model.mllm.quantize(settings.quantize, model.config.lora, dtype=dtype, device=quantize_on)
        model.freeze()
    hold(model, dtype)
    return model if device is None else model.to(device), processor, report


def model_config(settings: ModelSettings, llava_config: Any, sam_config: Any) -> AuraConfig:
    """The model that ``settings`` make of these two; ids of tokens are the tokenizer's and still to be set.

    Args:
        settings: What to add to the two, and what to train.
        llava_config: A ``LlavaConfig`` or its dict.
        sam_config: A ``SamConfig`` or its dict.
    """
    return AuraConfig(
        llava_config=llava_config,
        sam_config=sam_config,
        seg_state=settings.seg_state,
        occlusion_condition=settings.occlusion_condition,
        spatial_occlusion=settings.spatial_occlusion,
        condition_form=settings.condition_form,
        spatial_form=settings.spatial_form,
        masks=settings.masks,
        lora=_lora(settings.lora),
        train_embeddings=settings.train_embeddings,
        train_projector=settings.train_projector,
        image_token_merge=settings.image_token_merge,
        image_places=settings.image_places,
        rescale_states=settings.rescale_states,
        pointing=settings.pointing,
        intent=settings.intent,
    )


def _from_backbones(
    settings: ModelSettings, data: DataSettings, dtype: torch.dtype, device: torch.device | None
) -> tuple[AuraModel, Processor, LoadReport]:
    mllm_folder = _given(settings.mllm, "model.mllm")
    sam_folder = _given(settings.sam, "model.sam")
    mllm = load_llava(
        mllm_folder,
        vision_tower=settings.vision_tower,
        dtype=dtype,
        allow_random=settings.allow_random,
        image_token_merge=settings.image_token_merge,
        vision_image_size=settings.vision_image_size,
        vision_feature_layer=settings.vision_feature_layer,
        device=device,
    )
    _move(mllm.llava, device)
    new_projector = any(part.part == "projector" for part in mllm.parts)
    if not new_projector:
        _check_read_as_learnt(settings, mllm_folder)
    if new_projector and not settings.train_projector:
        raise ValueError(
            f"model.mllm: {mllm_folder} has never seen {settings.vision_tower}; the projector between them is new and "
            "has to learn: set model.train_projector to true"
        )
    sam, sam_report = load_sam(sam_folder, dtype=torch.float32, allow_random=settings.allow_random)
    _move(sam, device)
    model, processor, rows = _assemble(settings, data, mllm.llava, sam, mllm.tokenizer, mllm.clip_folder)
    language_model, *rest = mllm.parts
    parts = [dataclasses.replace(language_model, new=rows), *rest, *_sam_parts(sam, sam_report), *_new_parts(model)]
    return model, processor, LoadReport(tuple(parts))


def _check_read_as_learnt(settings: ModelSettings, folder: str) -> None:
    if settings.image_token_merge > 1:
        raise ValueError(
            f"model.image_token_merge is {settings.image_token_merge}, but the projector of {folder} learnt to "
            "read one feature at a time; set it to 1"
        )
    for name in ("vision_image_size", "vision_feature_layer", "image_places"):
        if getattr(settings, name) not in (None, False):
            raise ValueError(
                f"model.{name} is {getattr(settings, name)}, but the projector of {folder} learnt to read its tower as "
                "it is; leave the setting out"
            )


def _move(backbone: Any, device: torch.device | None) -> None:
    """So the host holds one backbone at a time, and of an original LLaVA one tensor."""
    if device is not None:
        backbone.to(device)


def _assemble(
    settings: ModelSettings,
    data: DataSettings,
    llava: Any,
    sam: Any,
    tokenizer: PreTrainedTokenizerBase,
    clip_folder: str | Path,
    *,
    knows_seg: bool = False,
) -> tuple[AuraModel, Processor, tuple[str, ...]]:
    """Model and processor of two backbones, and the names of the token embeddings that are new.

    ``knows_seg`` keeps the row of ``[SEG]`` as it is.
    """
    config = model_config(settings, llava.config, sam.config)
    clip_image_size = config.llava_config.vision_config.image_size
    processor = Processor(
        tokenizer,
        **{
            "use_im_start_end": getattr(llava.config, "mm_use_im_start_end", False),
            "sam_image_size": config.sam_config.vision_config.image_size,
            "clip_image_size": clip_image_size,
            "num_image_tokens": config.num_image_tokens,
            **text_settings(settings, data),
            **_clip_settings(clip_folder, config.llava_config.vision_config, settings.vision_image_size is not None),
        },
    )
    rows = add_tokens(llava, len(processor.text.tokenizer), *(() if knows_seg else (processor.text.seg_token_id,)))
    llava.config.image_token_index = processor.text.image_token_id
    config.llava_config, config.seg_token_id = llava.config, processor.text.seg_token_id
    config.eos_token_id = processor.text.eos_token_id

    _check_pointing(config, processor)
    model: Any = AuraModel(config, llava=llava, sam=sam)
    if model.mllm.places is not None:
        model.mllm.places.match_scale(llava.get_input_embeddings().weight)
    return model, processor, rows


def _check_pointing(config: AuraConfig, processor: Processor) -> None:
    """Refuse image tokens that do not lie where SAM has them, as :mod:`aura.model.pointing` takes for granted."""
    if config.pointing and processor.clip_resize != "corner":
        raise ValueError(
            f"model.pointing: with clip_resize {processor.clip_resize!r} image tokens do not lie where SAM has them; "
            "take a new DINOv2 or SigLIP tower, or clip_resize 'corner' in its preprocessor_config.json"
        )


def _from_lisa(
    settings: ModelSettings, data: DataSettings, dtype: torch.dtype
) -> tuple[AuraModel, Processor, LoadReport]:
    path = _given(settings.init_from, "model.init_from")
    if settings.rescale_states:
        raise ValueError("model.rescale_states is for a new projection; LISA's learnt to read its states as they are")
    if settings.vision_tower is None:
        raise ValueError(
            f"model.vision_tower is not set; LISA ({path}) has no CLIP of its own: give the folder of "
            "openai/clip-vit-large-patch14"
        )
    tower, tower_report = load_vision_tower(settings.vision_tower, dtype=dtype)
    lisa = load_lisa(path, base=settings.mllm, vision_tower=tower, dtype=dtype)
    tokenizer = load_tokenizer(lisa.tokenizer, original=True)
    try:
        complete_v1_tokenizer(tokenizer, lisa.tokenizer_rows, lisa.llava.config.mm_use_im_start_end)
    except ValueError as error:
        raise ValueError(f"{lisa.tokenizer}: {error}") from error
    tokens = len(prepare_tokenizer(tokenizer, use_im_start_end=True))
    # LISA has every token of ours but the placeholder of images, which comes last.
    if tokens != lisa.num_tokens + 1:
        raise ValueError(
            f"model.init_from: {path} has {lisa.num_tokens} token embeddings, but the tokenizer of {lisa.tokenizer} "
            f"makes {tokens - 1} with LISA's own; it is the tokenizer of another model"
        )
    model, processor, new = _assemble(
        settings, data, lisa.llava, lisa.sam, tokenizer, settings.vision_tower, knows_seg=True
    )
    model.prompt_encoder.projection.load_state_dict(lisa.projection)
    mllm, *others = lisa.parts
    fresh = [part for part in _new_parts(model) if part.part != "projection"]
    parts = [dataclasses.replace(mllm, new=new), tower_report, *others, *_sam_parts(lisa.sam, lisa.sam_report), *fresh]
    return model, processor, LoadReport(tuple(parts))


def _from_export(
    settings: ModelSettings, data: DataSettings, dtype: torch.dtype
) -> tuple[AuraModel, Processor, LoadReport]:
    folder = _given(settings.init_from, "model.init_from")
    stored = read_config(folder, "model.init_from")
    if stored.get("model_type") != AuraConfig.model_type:
        raise ValueError(
            f"model.init_from: {folder}/config.json describes model_type {stored.get('model_type')!r}, not 'aura'; "
            "give the export of an AURA run or a LISA checkpoint, or start from model.mllm and model.sam"
        )
    check_weight_files(folder, "model.init_from")
    processor = Processor.from_pretrained(folder, **text_settings(settings, data))
    config = AuraConfig.from_pretrained(folder)
    config.seg_state, config.train_embeddings = settings.seg_state, settings.train_embeddings
    config.train_projector = settings.train_projector
    for encoder, form in (("occlusion_condition", "condition_form"), ("spatial_occlusion", "spatial_form")):
        own, wanted = getattr(config, form), getattr(settings, form)
        if getattr(config, encoder) and getattr(settings, encoder) and own != wanted:
            raise ValueError(
                f"model.init_from: {folder} has the {form} {own}, and model.{form} is {wanted}; set it to {own}"
            )
        setattr(config, encoder, getattr(settings, encoder))
        setattr(config, form, wanted)
    config.masks, config.intent, config.pointing = settings.masks, settings.intent, settings.pointing
    _check_pointing(config, processor)
    model, info = AuraModel.from_pretrained(
        folder, config=config, dtype=dtype, output_loading_info=True, local_files_only=True
    )
    absent, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    optional = ("occlusion_condition.", "spatial_occlusion.", "intent.", "prompt_encoder.pointer.")
    new = tuple(key for key in absent if key.startswith(optional))
    missing = tuple(key for key in absent if not key.startswith(optional))
    loaded = len(model.state_dict()) - len(absent)
    parts = [PartReport("all", folder, loaded, missing, tuple(unexpected), new)]

    wanted = _lora(settings.lora)
    if model.config.lora is not None and model.config.lora != wanted:
        model.merge_lora()
    if model.config.lora is None and wanted is not None:
        model.add_lora(wanted)
        parts += [part for part in _new_parts(model) if part.part == "lora"]
    return model, processor, LoadReport(tuple(parts))


def add_tokens(llava: Any, vocab_size: int, *fresh_ids: int) -> tuple[str, ...]:
    """Give a ``LlavaForConditionalGeneration`` rows for the tokens that the tokenizer got from AURA; never remove any.

    New rows start as the mean of the old ones: a random row would disturb every softmax. ``fresh_ids`` are tokens that
    may stand on rows which padding of the vocabulary left unused; they start so too.

    Returns:
        Names of the new rows, such as ``embed_tokens[32003]``.
    """
    old = llava.config.text_config.vocab_size
    if vocab_size > old:
        llava.resize_token_embeddings(vocab_size, mean_resizing=False)
    rows = sorted({*range(old, vocab_size), *fresh_ids})
    kept = torch.ones(old, dtype=torch.bool)
    kept[[row for row in rows if row < old]] = False
    names = []
    tables: dict[str, Any] = {"embed_tokens": llava.get_input_embeddings()}
    if llava.get_output_embeddings().weight is not llava.get_input_embeddings().weight:
        tables["lm_head"] = llava.get_output_embeddings()
    with torch.no_grad():
        for name, table in tables.items():
            weight = table.weight
            weight[rows] = weight[:old][kept.to(weight.device)].float().mean(0).to(weight.dtype)
            names += [f"{name}[{row}]" for row in rows]
    return tuple(names)


def _sam_parts(sam: Any, report: PartReport) -> list[PartReport]:
    """The account of SAM, part by part."""
    loaded = set(sam.state_dict()) - set(report.missing)
    names = {"vision_encoder": "image_encoder", "prompt_encoder": "prompt_encoder", "mask_decoder": "mask decoders"}
    parts = []
    for prefix, part in names.items():
        mine = [key for key in loaded if key.startswith(prefix)]
        missing = tuple(key for key in report.missing if key.startswith(prefix))
        unexpected = tuple(key for key in report.unexpected if key.startswith(prefix))
        parts.append(PartReport(part, report.source, len(mine), missing, unexpected))
    return parts


def _given(folder: str | None, setting: str) -> str:
    if folder is None:
        raise ValueError(f"{setting} is not set; give a folder (or model.init_from an AURA export)")
    return folder


def _clip_settings(folder: str | Path, vision_config: Any, resized: bool) -> dict[str, Any]:
    """How the vision tower reads an image: as its folder says; of DINOv2 and SigLIP, all of it at the tower's size."""
    whole, image_size = default_preprocessing(vision_config), vision_config.image_size
    if whole:
        return whole | clip_preprocessing(folder, whole_image=True)
    found = clip_preprocessing(folder)
    stated = found.pop("clip_image_size", image_size)
    if resized:
        return found
    if stated != image_size:
        raise ValueError(
            f"model.mllm: {Path(folder) / 'preprocessor_config.json'} prepares images of {stated} px but config.json "
            f"says the vision tower reads {image_size} px"
        )
    return found


def _lora(settings: LoraSettings) -> dict[str, Any] | None:
    if not settings.enabled:
        return None
    return {"r": settings.r, "alpha": settings.alpha, "dropout": settings.dropout, "targets": list(settings.targets)}


def _new_parts(model: AuraModel) -> list[PartReport]:
    """The parts that always start fresh."""
    prefixes = {
        "lora": (".lora_",),
        "places": ("mllm.places.",),
        "projection": ("prompt_encoder.projection.",),
        "rescaling": ("prompt_encoder.rescaling.",),
        "pointer": ("prompt_encoder.pointer.",),
        "occlusion_condition": ("occlusion_condition.",),
        "spatial_occlusion": ("spatial_occlusion.",),
        "intent": ("intent.",),
    }
    parts = []
    for part, (mark,) in prefixes.items():
        if names := tuple(name for name, _ in model.named_parameters() if mark in name):
            parts.append(PartReport(part, "new", 0, new=names))
    return parts
