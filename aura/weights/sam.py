"""SAM from outside, as a ``SamModel``: a Hugging Face folder or an official ``.pth`` file.

What is in such a file: ``docs/formats.md``, "SAM".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import SamConfig, SamModel

from aura.model.tiny_vit import MobileSam, has_tiny_vit, mobile_sam_config
from aura.weights import mobile_sam
from aura.weights.files import PartReport, load_pretrained, read_config, read_tensors


class Variant(NamedTuple):
    """What the width of an official image encoder says about the rest of it."""

    name: str
    depth: int
    heads: int
    global_layers: tuple[int, ...]


VARIANTS = {
    1280: Variant("ViT-H", 32, 16, (7, 15, 23, 31)),
    1024: Variant("ViT-L", 24, 16, (5, 11, 17, 23)),
    768: Variant("ViT-B", 12, 12, (2, 5, 8, 11)),
}
DECODER_HEADS = 8  # of every SAM that was released; no tensor's shape tells it
POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
"""A tensor that every variant has."""
PIXEL_STATISTICS = ("pixel_mean", "pixel_std")

# From the names in transformers to those of segment-anything, in this order.
_RENAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^shared_image_embedding\.", "prompt_encoder.shared_embedding."),
        (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
        (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
        (r"^vision_encoder\.", "image_encoder."),
        (r"patch_embed\.projection", "patch_embed.proj"),
        (r"neck\.conv1", "neck.0"),
        (r"neck\.layer_norm1", "neck.1"),
        (r"neck\.conv2", "neck.2"),
        (r"neck\.layer_norm2", "neck.3"),
        (r"\.point_embed\.", ".point_embeddings."),
        (r"mask_embed\.conv1", "mask_downscaling.0"),
        (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
        (r"mask_embed\.conv2", "mask_downscaling.3"),
        (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
        (r"mask_embed\.conv3", "mask_downscaling.6"),
        (r"upscale_conv1", "output_upscaling.0"),
        (r"upscale_layer_norm", "output_upscaling.1"),
        (r"upscale_conv2", "output_upscaling.3"),
        (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.0", r"\1.layers.1"),
        (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.proj_in", r"\1.layers.0"),
        (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.proj_out", r"\1.layers.2"),
        (r"\.layer_norm", ".norm"),
    )
]


def load_sam(path: str | Path, *, dtype: torch.dtype, allow_random: bool = False) -> tuple[SamModel, PartReport]:
    """An HF SAM folder (``SamModel.save_pretrained``, facebook/sam-vit-*) or an official ``.pth`` file.

    Raises:
        ValueError: It is another kind of model, a file is damaged, or an official file is not exactly one SAM:
            ``allow_random`` lets a folder lack tensors, never a file.
    """
    if Path(path).is_file():
        model, variant = sam_from_state(read_tensors(path, "model.sam"), f"model.sam: {path}", dtype)
        return model, PartReport("sam", f"{path} ({variant})", len(model.state_dict()))
    if not Path(path).exists():
        raise ValueError(
            f"model.sam: {path} does not exist; give an official SAM .pth file, a Hugging Face folder, or OWNER/NAME "
            "on the hub"
        )
    config = read_config(path, "model.sam")
    if config.get("model_type") != "sam":
        raise ValueError(
            f"model.sam: {path}/config.json describes model_type {config.get('model_type')!r} "
            f"({config.get('architectures')}), not SAM (model_type 'sam')"
        )
    kind = MobileSam if has_tiny_vit(SamConfig(**config)) else SamModel
    return load_pretrained(kind, "sam", path, "model.sam", dtype, allow_random)


def sam_from_state(state: Mapping[str, torch.Tensor], source: str, dtype: torch.dtype) -> tuple[SamModel, str]:
    """The model whose weights ``state`` holds under segment-anything's names, and its variant (``ViT-H``).

    Args:
        state: Exactly one SAM; the normalisation's constants may be there too.
        source: Where it is from, for errors.
        dtype: Of the model; the tensors are copied.

    Raises:
        ValueError: Not SAM, or a tensor is missing, too many, or of a shape that the variant does not have.
    """
    prefix = next((name.removesuffix(POSITIONS) for name in state if name.endswith(POSITIONS)), "")
    # Where SAM was a part of a larger module, such as "sam."; LISA's belongs with the rest of LISA.
    if "visual_model." not in prefix and all(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name not in PIXEL_STATISTICS}
    if mobile_sam.MARK in state:
        state = mobile_sam.folded(state)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    config, variant = sam_config(shapes, source)
    try:
        with torch.device("meta"):
            kind: Any = MobileSam if has_tiny_vit(config) else SamModel
            model: Any = kind._from_config(config, attn_implementation="sdpa")
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{source} has sizes that no SAM can have ({error}); download an official file") from error
    wanted = {upstream_name(name): tuple(value.shape) for name, value in model.state_dict().items()}
    missing, extra = sorted(wanted.keys() - shapes), sorted(shapes.keys() - wanted)
    misshapen = [
        f"{name} {list(shapes[name])} for {list(shape)}"
        for name, shape in sorted(wanted.items())
        if shapes.get(name, shape) != shape
    ]
    wrong = {"missing": missing, "not SAM's": extra, "of another shape": misshapen}
    if any(wrong.values()):
        found = "; ".join(f"{len(names)} {what}: {_shown(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"{source} is not a whole SAM {variant} ({found}); download the official file again")
    weights = {name: state[upstream_name(name)].to(dtype, copy=True) for name in model.state_dict()}
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.eval(), variant


def sam_config(shapes: Mapping[str, tuple[int, ...]], source: str) -> tuple[SamConfig, str]:
    """The sizes of a SAM, read off the shapes of its tensors, and the name of its variant.

    The width of ``image_encoder.pos_embed`` names the official variants, whose depth, heads and global layers are then
    known, so that a file which lost whole layers is noticed. Any other encoder is taken as it is.

    Args:
        shapes: By segment-anything's names.
        source: Where they are from, for errors.

    Raises:
        ValueError: The tensors are not SAM's.
    """
    try:
        return _sam_config(shapes)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{source} is not SAM: {_kind(shapes, error)}") from error


def _sam_config(shapes: Mapping[str, tuple[int, ...]]) -> tuple[SamConfig, str]:
    if "image_encoder.patch_embed.0.weight" in shapes:
        return mobile_sam_config(mobile_sam.sizes_of(shapes)), "MobileSAM"
    _, grid, _, width = shapes["image_encoder.pos_embed"]
    patch = shapes["image_encoder.patch_embed.proj.weight"][-1]
    rel_pos = {
        i: shapes[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(_count(shapes, "image_encoder.blocks."))
    }
    lengths = {i: (shape[0] + 1) // 2 for i, shape in rel_pos.items()}
    windows = sorted(set(lengths.values()) - {grid})
    variant = VARIANTS.get(width)
    if variant is None:
        name = f"of width {width}"
        depth, heads = len(rel_pos), width // rel_pos[0][1]
        global_layers = tuple(i for i, length in lengths.items() if length == grid)
    else:
        name, depth, heads, global_layers = variant
    hidden = shapes["mask_decoder.iou_token.weight"][1]
    layer = "mask_decoder.transformer.layers."
    config = SamConfig(
        vision_config={
            "hidden_size": width,
            "output_channels": shapes["image_encoder.neck.0.weight"][0],
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "image_size": grid * patch,
            "patch_size": patch,
            "window_size": windows[0] if windows else grid,
            "global_attn_indexes": list(global_layers),
            "num_pos_feats": shapes["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"][1],
            "mlp_dim": shapes["image_encoder.blocks.0.mlp.lin1.weight"][0],
        },
        prompt_encoder_config={
            "hidden_size": hidden,
            "image_size": grid * patch,
            "patch_size": patch,
            "mask_input_channels": shapes["prompt_encoder.mask_downscaling.3.weight"][0],
        },
        mask_decoder_config={
            "hidden_size": hidden,
            "mlp_dim": shapes[layer + "0.mlp.lin1.weight"][0],
            "num_hidden_layers": _count(shapes, layer),
            "num_attention_heads": DECODER_HEADS,
            "attention_downsample_rate": hidden // shapes[layer + "0.cross_attn_token_to_image.q_proj.weight"][0],
            "num_multimask_outputs": shapes["mask_decoder.mask_tokens.weight"][0] - 1,
            "iou_head_hidden_dim": shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
            # segment-anything leaves these norms at torch's epsilon; transformers' default is a tenth of it.
            "layer_norm_eps": 1e-5,
        },
    )
    return config, name


def upstream_name(name: str) -> str:
    """The name in segment-anything of a tensor of ``SamModel``.

    One to one, but for ``shared_image_embedding``, which is the prompt encoder's positional embedding once more.
    """
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def _count(shapes: Mapping[str, Any], prefix: str) -> int:
    """How many numbered children ``prefix`` has."""
    return len({name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)})


def _kind(shapes: Mapping[str, Any], error: Exception) -> str:
    """What a wrong file seems to hold, and what to do."""
    if any(name.startswith("image_encoder.blocks.") for name in shapes):
        return f"{error} is missing; the file is incomplete, download it again"
    marks = {
        "visual_model.": "it holds a LISA checkpoint; give it as model.init_from",
        "vision_encoder.": "it has the names of transformers; give the folder with its config.json instead",
        "mm_projector": "it holds a LLaVA model; give it as model.mllm",
        "self_attn.q_proj": "it holds a language model or CLIP",
    }
    for mark, meaning in marks.items():
        if any(mark in name for name in shapes):
            return meaning
    return f"it holds {_shown(sorted(shapes))}; download an official file, such as sam_vit_h_4b8939.pth"


def _shown(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
