"""LISA checkpoints: the merged Hugging Face folder and the unmerged training state (``docs/formats.md``, "LISA").

Legend: H hidden size of the language model, C SAM's prompt channels, r rank of an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionModel, LlavaForConditionalGeneration, SamModel

from aura.weights.files import PartReport, read_config, read_folder_tensors, read_tensors
from aura.weights.llava import llava_from_v1_state
from aura.weights.sam import sam_from_state

LORA_ALPHA = 16  # LISA's default; no tensor tells it
TRAINING_PREFIX = "base_model.model."
_SAM, _PROJECTION = "model.visual_model.", "model.text_hidden_fcs.0."
_TOWER = "model.vision_tower."
_EMBEDDINGS = "model.embed_tokens.weight"
_SETTING = "model.init_from"


@dataclass(frozen=True)
class Lisa:
    """A LISA checkpoint, taken apart.

    ``projection`` is the state of a :class:`~aura.model.segmentation.TextProjection`. ``num_tokens`` counts the token
    embeddings. ``tokenizer`` is a folder, for a training state its base's; its model has ``tokenizer_rows`` embeddings.
    """

    llava: LlavaForConditionalGeneration
    sam: SamModel
    projection: dict[str, Tensor]
    num_tokens: int
    tokenizer: Path
    tokenizer_rows: int
    parts: tuple[PartReport, ...]
    sam_report: PartReport


def is_lisa(path: str | Path) -> bool:
    """Whether ``model.init_from`` names a LISA checkpoint: by its config, or weights without any config."""
    path = Path(path)
    if path.is_file():
        return True
    if path.is_dir() and not (path / "config.json").is_file():
        return any(path.glob("pytorch_model*.bin")) or any(path.glob("model*.safetensors"))
    return path.is_dir() and _is_lisa_config(read_config(path, _SETTING))


def load_lisa(path: str | Path, *, base: str | Path | None, vision_tower: CLIPVisionModel, dtype: torch.dtype) -> Lisa:
    """Language model, projector, SAM and text projection of LISA.

    Args:
        path: The merged folder, or the training state: a file or a folder that ``zero_to_fp32.py`` wrote. Adapters of
            the latter are added into the weights they adapt: W + 16 / r * B A.
        base: The LLaVA v1 folder that a training state started from, for its config and tokenizer; a merged folder
            has its own.
        vision_tower: CLIP, which merged folders lack. A training state holds a copy, which must be equal to it.
        dtype: Of LLaVA's weights; SAM's are fp32.

    Raises:
        ValueError: Another kind of checkpoint, damaged files, a training state without ``base``, an adapter without
            its counterpart, or a vision tower that is not the one LISA was trained with.
    """
    path = Path(path)
    stored = read_folder_tensors(path, _SETTING) if path.is_dir() else read_tensors(path, _SETTING)
    unmerged = any(name.startswith(TRAINING_PREFIX) for name in stored)
    state = MergedState(stored, str(path)) if unmerged else stored
    for prefix in (_SAM, _PROJECTION, _EMBEDDINGS):
        if not any(name.startswith(prefix) for name in state):
            raise ValueError(
                f"{_SETTING}: {path} is not a LISA checkpoint, it has no {prefix}* (LISA v0 had another layout); "
                "give a LISA v1 folder, the training state of one, or an AURA export"
            )
    tokenizer = path if path.is_dir() and (path / "config.json").is_file() else _base_folder(base, path)
    config = {"mm_use_im_start_end": True, **read_config(tokenizer, _SETTING if tokenizer == path else "model.mllm")}
    if "text_config" in config:
        raise ValueError(
            f"model.mllm: {tokenizer} is a Hugging Face LLaVA; the training state {path} needs the original LLaVA v1 "
            "folder that it started from"
        )
    sam, variant = sam_from_state(_part(state, _SAM), f"{_SETTING}: {path}: {_SAM}*", torch.float32)
    rest = [name for name in state if not name.startswith((_SAM, _PROJECTION, _TOWER))]
    try:
        llava, missing, unexpected = llava_from_v1_state(config, _Selection(state, rest), vision_tower, dtype)
    except ValueError as error:
        raise ValueError(f"{_SETTING}: {path}: {error}") from error
    projection = _projection(_part(state, _PROJECTION), llava, sam, path)
    parts = [PartReport("mllm", str(path), len(rest) - len(unexpected) - _buffers(rest), missing, unexpected)]
    if isinstance(state, MergedState):
        parts.append(PartReport("LISA's lora (merged)", str(path), 2 * len(state.adapters)))
    if copies := _part(state, _TOWER):
        _check_tower(copies, vision_tower, path)
        parts.append(PartReport("LISA's vision tower (equal)", str(path), len(copies)))
    parts.append(PartReport("projection", str(path), len(projection)))
    sam_report = PartReport("sam", f"{path} ({variant})", len(sam.state_dict()))
    num_tokens = len(state[_EMBEDDINGS])
    tokenizer_rows = num_tokens if tokenizer == path else config.get("vocab_size", num_tokens)
    return Lisa(llava, sam, projection, num_tokens, tokenizer, tokenizer_rows, tuple(parts), sam_report)


class MergedState(Mapping[str, Tensor]):
    """A training state under the names of a merged model; an adapter is added when its weight is read.

    Args:
        stored: As read from the file.
        source: Where from, for errors.

    Raises:
        ValueError: A name without peft's prefix, or an adapter that lacks its other half, its weight, or the shape.
    """

    def __init__(self, stored: Mapping[str, Tensor], source: str) -> None:
        self.weights: dict[str, Tensor] = {}
        self.adapters: dict[str, dict[str, Tensor]] = {}
        for name, tensor in stored.items():
            if not name.startswith(TRAINING_PREFIX):
                raise ValueError(f"{_SETTING}: {source} mixes names with and without {TRAINING_PREFIX}, as {name}")
            name = name.removeprefix(TRAINING_PREFIX)
            layer, mark, half = name.partition(".lora_")
            if mark and half[:2] in ("A.", "B."):
                self.adapters.setdefault(f"{layer}.weight", {})[half[0]] = tensor
            else:
                self.weights[name.replace(".base_layer.", ".")] = tensor
        for name, halves in self.adapters.items():
            if halves.keys() != {"A", "B"} or name not in self.weights:
                raise ValueError(f"{_SETTING}: {source} has only a part of the adapter of {name}; get the state again")
            a, b = halves["A"], halves["B"]
            if len(a) != b.shape[1] or (len(b), a.shape[1]) != tuple(self.weights[name].shape):
                raise ValueError(
                    f"{_SETTING}: {source}: the adapter of {name} has shapes {list(a.shape)} and {list(b.shape)}, "
                    f"which do not fit {list(self.weights[name].shape)}; get the state again"
                )

    def __getitem__(self, name: str) -> Tensor:
        weight = self.weights[name]
        if name not in self.adapters:
            return weight
        a, b = (self.adapters[name][half].float() for half in "AB")
        return weight.float() + LORA_ALPHA / len(a) * (b @ a)

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


class _Selection(Mapping[str, Tensor]):
    """Some entries of a state, none of them read before it is asked for."""

    def __init__(self, state: Mapping[str, Tensor], names: list[str]) -> None:
        self.state, self.names = state, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.state[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _is_lisa_config(config: Mapping[str, Any]) -> bool:
    return "LISAForCausalLM" in (config.get("architectures") or ()) or "train_mask_decoder" in config


def _base_folder(base: str | Path | None, path: Path) -> Path:
    if base is None:
        raise ValueError(
            f"model.mllm is not set; {path} is a LISA training state without config and tokenizer: give the LLaVA v1 "
            "folder that it was trained from"
        )
    return Path(base)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}


def _buffers(names: list[str]) -> int:
    """Rotary frequencies, which old files carry and the config determines."""
    return sum(name.endswith(".inv_freq") for name in names)


def _projection(state: dict[str, Tensor], llava: Any, sam: Any, path: Path) -> dict[str, Tensor]:
    hidden, channels = llava.config.text_config.hidden_size, sam.config.prompt_encoder_config.hidden_size
    wanted = {"0.weight": (hidden, hidden), "0.bias": (hidden,), "2.weight": (channels, hidden), "2.bias": (channels,)}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != wanted:
        raise ValueError(f"{_SETTING}: {path}: {_PROJECTION}* is {found}, expected {wanted}; get the checkpoint again")
    return state


def _check_tower(copies: Mapping[str, Tensor], vision_tower: CLIPVisionModel, path: Path) -> None:
    """The copy in a training state and the tower given are one model, but for rounding to half precision."""
    # Module and wrapper are both called vision_tower there; the library's own prefix depends on its version.
    own = {name.removeprefix("vision_model."): tensor for name, tensor in vision_tower.state_dict().items()}
    for name, copy in copies.items():
        name = name.removeprefix("vision_tower.").removeprefix("vision_model.")
        if name.endswith("position_ids"):
            continue
        mine = own.get(name)
        if (
            mine is None
            or mine.shape != copy.shape
            or not torch.allclose(copy.float(), mine.float(), rtol=0.02, atol=1e-3)
        ):
            raise ValueError(
                f"model.vision_tower: {name} differs from the copy in {path}; give the CLIP that LISA was trained with "
                "(openai/clip-vit-large-patch14)"
            )
