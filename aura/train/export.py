"""A Hugging Face folder from a checkpoint of a run: on a CPU, without the run's processes, one copy of the model.

A checkpoint holds what was trained; the frozen weights come from where the run took them (its ``config.yaml``), and a
digest in the checkpoint tells whether those are still the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aura.config import Config
from aura.data.processor import Processor
from aura.files import make_weights_plain
from aura.model import AuraModel
from aura.model.configuration import DTYPES
from aura.model.precision import describe_export, export_dtype
from aura.train.checkpoint import FROZEN, HUB_COMMITS, STATE, frozen_digest, newest, read_state, replaced_folder
from aura.train.engine import trained_weights
from aura.train.randomness import seed_everything
from aura.train.stored import refuse_code
from aura.weights import hub
from aura.weights.build import build_model
from aura.weights.files import read_index

ADAPTER = "adapter"
"""Folder of the adapters alone, in peft's format, inside an export that keeps them."""

ANOTHER = "choose another with --checkpoint best, last or a path, or copy the checkpoint again"


@dataclass(frozen=True)
class Chosen:
    """A checkpoint: its path, and the state that was saved with it (empty for files that other tools wrote)."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int | None:
        step: int | None = self.state.get("step")
        return step


def choose_checkpoint(run: Path, choice: str) -> Chosen:
    """The checkpoint that ``choice`` means: ``best``, ``last`` or a path.

    ``best`` is the one with the highest validation figure, or the last one of a run without validation. A path may be a
    checkpoint folder, a DeepSpeed folder, or weights that were consolidated before (a file, or the folder that
    ``zero_to_fp32.py`` writes).

    Raises:
        ValueError: There is none, or a file of it is missing or cut off.
    """
    if choice not in ("best", "last"):
        path = Path(choice)
        if not path.exists():
            raise ValueError(f"--checkpoint: {path} does not exist; give a checkpoint of {run}, or best or last")
        return Chosen(path, read_state(path, ANOTHER) if (path / STATE).is_file() else {})
    folder = run / "checkpoints"
    last = newest(folder)
    if last is None:
        raise ValueError(f"{folder} holds no complete checkpoint; train first, or give one with --checkpoint PATH")
    state = read_state(last, ANOTHER)
    best = state.get("best")
    if choice == "last" or not best or best["step"] == state["step"]:
        return Chosen(last, state)
    path = folder / f"step_{best['step']:06d}"
    if not (path / STATE).is_file():
        raise ValueError(f"{path}, the best checkpoint, is not there any more; export --checkpoint last instead")
    return Chosen(path, read_state(path, ANOTHER))


# --- trained weights --------------------------------------------------------------------------------------------------


def read_trained(path: Path) -> dict[str, Tensor]:
    """The trained weights by name, on the CPU, from any form a DeepSpeed run leaves behind.

    Args:
        path: A DeepSpeed folder of any ZeRO stage (0 to 3) and number of processes; a state dict in one file
            (``.safetensors``, ``.bin``, ``.pt``); or a folder of such files, whole or in shards.

    Raises:
        ValueError: A file is missing, cut off, or holds more than weights.
    """
    if path.is_file():
        return _read_file(path)
    states = sorted(path.glob("*_states.pt"))
    if not states:
        return _read_folder(path)
    refuse_code(path, ANOTHER)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stdout(messages):
            return trained_weights(path)
    except (ValueError, FileNotFoundError, KeyError, RuntimeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is not a complete DeepSpeed checkpoint ({reason}); it needs the files of every process. "
            f"It has {', '.join(file.name for file in states)}: {ANOTHER}"
        ) from error


def _read_folder(path: Path) -> dict[str, Tensor]:
    """Consolidated weights: one file, or shards with their index."""
    indexes = sorted(path.glob("*.index.json"))
    if indexes:
        names = sorted(set(read_index(indexes[0], "--checkpoint").values()))
    else:
        names = sorted(file.name for kind in ("*.safetensors", "*.bin") for file in path.glob(kind))
    if not names:
        raise ValueError(f"{path} holds no weights (*_states.pt, *.safetensors or *.bin); {ANOTHER}")
    weights: dict[str, Tensor] = {}
    for name in names:
        if not (path / name).is_file():
            raise ValueError(f"{path / name} is missing, though {indexes[0].name} names it; copy the folder again")
        weights |= _read_file(path / name)
    return weights


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} is damaged, cut off, or holds more than weights ({reason}); {ANOTHER}") from error
    loaded = loaded.get("module", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{file} is no state dict (tensors by name); {ANOTHER}")
    return loaded


# --- the model --------------------------------------------------------------------------------------------------------


def load_trained_model(
    config: Config, chosen: Chosen, trained: dict[str, Tensor], frozen_from: str | Path | None = None
) -> tuple[AuraModel, Processor]:
    """The model of a run as it was after ``chosen``, on the CPU; trained weights are in ``trained``'s precision.

    Args:
        config: The run's.
        chosen: Its checkpoint.
        trained: From :func:`read_trained`; its tensors become the model's, they are not copied.
        frozen_from: An AURA folder (such as ``RUN/export``) to take the frozen weights from, where what the run started
            from has moved.

    Raises:
        ValueError: The run's sources are gone or hold other weights now, or the checkpoint is of another model.
    """
    settings = dataclasses.replace(config.model, quantize="none")
    if frozen_from is not None:
        settings = dataclasses.replace(settings, init_from=str(frozen_from))
    hub.remember(chosen.state.get(HUB_COMMITS, {}))
    seed_everything(config.train.seed)  # parts that are random by intent are the run's random parts
    try:
        model, processor, _ = build_model(settings, config.data, dtype=DTYPES[config.train.precision])
    except ValueError as error:
        raise ValueError(
            f"{error}. The frozen weights are not in a checkpoint: put the folder back, run this where the run's paths "
            "hold, or give --frozen-from RUN/export"
        ) from error
    then = chosen.state.get("identity", {}).get(FROZEN)
    now = frozen_digest(model)
    if then is not None and config.model.quantize == "none" and now != then:
        raise ValueError(
            f"{chosen.path} was trained on other frozen weights ({then}) than there are now ({now}): what config.yaml "
            "names under model has changed; put it back, or give --frozen-from RUN/export"
        )
    if config.model.quantize != "none":  # the frozen layers' scales, which lie beside the trained weights
        names = set(model.state_dict())
        trained = {
            k: v for k, v in trained.items() if k in names or f"{k.partition('.weight.')[0]}.weight" not in names
        }
    _put(model, trained, chosen.path)
    return model.eval(), processor


def _put(model: AuraModel, trained: dict[str, Tensor], where: Path) -> None:
    """Give the model the trained tensors; every trainable parameter must be there, and nothing else."""
    places = model.state_dict(keep_vars=True)
    strange = sorted(set(trained) - set(places))
    given = {id(places[name]) for name, value in trained.items() if name in places and value.numel()}
    lacking = [name for name, parameter in model.trainable_parameters() if id(parameter) not in given]
    if strange or lacking:
        raise ValueError(
            f"{where} is of another model: it lacks {len(lacking)} trained weights {lacking[:3]} and has "
            f"{len(strange)} unknown ones {strange[:3]}; is it a checkpoint of this run?"
        )
    for name, value in trained.items():
        place = places[name]
        if not value.numel():
            continue
        if place.shape != value.shape:
            raise ValueError(
                f"{where}: {name} has the shape {list(value.shape)}, the model's has {list(place.shape)}; is it a "
                "checkpoint of this run?"
            )
        place.data = value


def convert(model: AuraModel, dtype: torch.dtype) -> None:
    """Cast in place, tensor by tensor; SAM and the heads are kept in fp32, in which they always compute."""
    for name, value in model.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            value.data = value.data.to(export_dtype(name, dtype))
    describe_export(model.config, dtype)


def merge_adapters(model: AuraModel) -> None:
    """Merge LoRA in fp32, whatever the weights' precision: a small update would be rounded away in fp16."""
    for module in model.mllm.language_model.modules():
        if isinstance(module, LoraLayer):
            module.float()  # type: ignore[attr-defined]
    model.merge_lora()


# --- the folder -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """A folder to fill that becomes ``out`` when the block ends well.

    Raises:
        ValueError: ``out`` exists, and ``force`` is not set or it is no export that may be replaced.
    """
    check_out(out, force=force)
    with replaced_folder(out) as unfinished:
        yield unfinished


def check_out(out: Path, *, force: bool) -> None:
    """Refuse an ``out`` that exists, or with ``force`` one that is not an export of AURA.

    Raises:
        ValueError: See above.
    """
    if not out.exists():
        return
    if not force:
        raise ValueError(f"{out} exists; choose another --out, or replace it with --force")
    if out.is_dir() and not any(out.iterdir()):
        return
    try:
        kind = json.loads((out / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != "aura":
        raise ValueError(f"{out} is not an export of AURA, so --force does not replace it; choose another --out")


def write_folder(model: AuraModel, processor: Processor, folder: Path, *, shard_size: str) -> None:
    """Weights, configuration, tokenizer and processor; with the adapters also on their own, for peft."""
    model.save_pretrained(str(folder), max_shard_size=shard_size)
    processor.save_pretrained(str(folder))
    if model.config.lora is not None:
        write_adapter(model, folder / ADAPTER)
    make_weights_plain(folder)


def write_adapter(model: AuraModel, folder: Path) -> None:
    """The adapters as a peft folder for the decoder, ``PeftModel.from_pretrained(llava.model.language_model, ...)``."""
    decoder: Any = model.mllm.language_model
    folder.mkdir()
    settings = dataclasses.replace(decoder.peft_config["default"], inference_mode=True)
    # Sorted, since peft holds a set: the same adapters give the same bytes.
    settings.target_modules = sorted(settings.target_modules)
    settings.save_pretrained(str(folder))
    weights = get_peft_model_state_dict(decoder, adapter_name="default")
    named = {f"base_model.model.{name}": value.contiguous() for name, value in weights.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
