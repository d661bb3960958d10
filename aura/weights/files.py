"""What all loaders share: the account of every tensor, checks of folders, and loading through ``from_pretrained``."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig

from aura.files import is_neighbour, read_text
from aura.model.precision import cast_parameters

WEIGHT_FILES = (("model", "safetensors"), ("pytorch_model", "bin"))
"""Stems and endings of a model folder's weights, the better kind first."""
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel, DeepSpeed and torch.compile put before the name of every tensor."""


@dataclass(frozen=True)
class PartReport:
    """Where the weights of one part came from.

    ``missing`` tensors should have come from ``source`` and did not (they are random); ``unexpected`` ones are in the
    source and nowhere in the part; ``new`` ones are meant to start fresh.
    """

    part: str
    source: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    new: tuple[str, ...] = ()


def read_config(folder: str | Path, setting: str) -> dict[str, Any]:
    """``config.json`` of a model folder; ``setting`` (such as ``model.sam``) is named in errors.

    Raises:
        ValueError: No such folder, no ``config.json`` in it, or one that is not JSON.
    """
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise ValueError(
            f"{setting}: {folder} is not a folder; give the path of a downloaded model, or OWNER/NAME on the hub"
        )
    if not path.is_file():
        raise ValueError(f"{setting}: {path} is missing; {folder} is not a Hugging Face model folder")
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{setting}: {path} is not valid JSON ({error}); download it again") from error


def load_pretrained(
    kind: Any,
    part: str,
    folder: str | Path,
    setting: str,
    dtype: torch.dtype,
    allow_random: bool,
    config: Any = None,
) -> tuple[Any, PartReport]:
    """A ``transformers`` model of class ``kind`` from its folder, and the account; random if ``allow_random``.

    ``config`` takes the place of the folder's.
    """
    if not check_weight_files(folder, setting, required=not allow_random):
        model = cast_parameters(kind(config or AutoConfig.from_pretrained(str(folder))), dtype)
        return model, PartReport(part, f"{folder} (config only)", 0, missing=tuple(model.state_dict()))
    # Our own account takes the place of the library's, which lists what we leave out on purpose.
    library = logging.getLogger("transformers.modeling_utils")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        model, info = kind.from_pretrained(
            str(folder),
            **({"config": config} if config else {}),
            dtype=dtype,
            output_loading_info=True,
            local_files_only=True,
            attn_implementation="sdpa",
        )
    except RuntimeError as error:  # of other shapes than the config's
        raise ValueError(f"{setting}: the weights of {folder} do not fit its config.json; get both again") from error
    finally:
        library.setLevel(level)
    missing = tuple(sorted(info["missing_keys"]))
    loaded = len(model.state_dict()) - len(missing)
    return model, PartReport(part, str(folder), loaded, missing, tuple(sorted(info["unexpected_keys"])))


def check_weight_files(folder: str | Path, setting: str, *, required: bool = True) -> bool:
    """Whether the folder has weights, all of them whole.

    Raises:
        ValueError: No weights (if ``required``), a shard that the index names is not there, or a damaged file.
    """
    folder = Path(folder)
    names = {path.name for path in folder.glob("*.safetensors") if not path.name.startswith(".")}
    for kind, ending in WEIGHT_FILES:
        index = folder / f"{kind}.{ending}.index.json"
        if index.is_file():
            shards = set(read_index(index, setting).values())
            if absent := sorted(name for name in shards if not (folder / name).is_file()):
                raise ValueError(
                    f"{setting}: {folder} lacks {', '.join(absent)}, which its index names; download it again"
                )
        if index.is_file() or (folder / f"{kind}.{ending}").is_file():
            break  # the other kind is not read
    for name in sorted(names):
        try:
            with safe_open(folder / name, "pt") as tensors:
                tensors.keys()
        except SafetensorError as error:
            raise ValueError(f"{setting}: {folder / name} is truncated or damaged ({error}); get it again") from error
    found = bool(names) or any(folder.glob("pytorch_model*.bin"))
    if required and not found:
        raise ValueError(f"{setting}: {folder} has a config.json but no weights (*.safetensors); download it again")
    return found


def read_index(path: Path, setting: str) -> dict[str, str]:
    """Tensors and the shards that hold them, from ``*.index.json``; a shard lies beside it.

    Raises:
        ValueError: It is no such index, or calls something a shard that is no name of a file beside it.
    """
    try:
        where = json.loads(read_text(path))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{setting}: {path} is not an index of weights; get it again") from error
    if not isinstance(where, dict):
        raise ValueError(f"{setting}: {path} is not an index of weights; get it again")
    for tensor, name in where.items():
        if not is_neighbour(name):
            raise ValueError(
                f"{setting}: {path} says that {tensor!r:.80} is in {name!r:.100}, which is no name of a file beside "
                "it; get it again"
            )
    return where


def read_tensors(path: str | Path, setting: str) -> dict[str, torch.Tensor]:
    """All tensors of one weight file, mapped into memory where the format allows: a tensor is read when it is used.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote (``.pth``, ``.bin``) with a bare state dict.
        setting: Named in errors, such as ``model.sam``.

    Raises:
        ValueError: The file is missing, truncated, of another format, or holds something else than named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{setting}: {path} is missing; give the path of the downloaded weights")
    if path.suffix == ".safetensors":
        try:
            return _unwrapped(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{setting}: {path} is truncated or damaged ({error}); get it again") from error
    try:
        # Files from before torch 1.6 are no archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_starts_with(path, b"PK"))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{setting}: {path} is not a file of plain weights, or is damaged; download the original again"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, IndexError, ValueError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]  # torch goes on with guesses
        raise ValueError(f"{setting}: {path} is truncated or damaged ({reason}); get it again") from error
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        held = "nothing" if not state else type(state).__name__
        if isinstance(state, dict) and state:
            held = f"the entries {', '.join(map(str, list(state)[:4]))}"
        raise ValueError(f"{setting}: {path} holds {held}, not a bare state dict of tensors; give the right file")
    return _unwrapped(state)


def _unwrapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names without what a wrapper put before every one of them."""
    for wrapper in WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return state


def read_folder_tensors(folder: str | Path, setting: str) -> dict[str, torch.Tensor]:
    """All tensors of a model folder: ``model*.safetensors`` or ``pytorch_model*.bin``, in one file or in shards.

    Raises:
        ValueError: No weights, a shard or a tensor that the index names is not there, or what :func:`read_tensors`
            refuses.
    """
    folder = Path(folder)
    for kind, ending in WEIGHT_FILES:
        index, single = folder / f"{kind}.{ending}.index.json", folder / f"{kind}.{ending}"
        if index.is_file():
            where = read_index(index, setting)
            shards = sorted(set(where.values()))
            if absent := [name for name in shards if not (folder / name).is_file()]:
                raise ValueError(f"{setting}: {folder} lacks {', '.join(absent)}, which its index names; get it again")
        elif single.is_file():
            where, shards = {}, [single.name]
        elif shards := sorted(path.name for path in folder.glob(f"{kind}-*.{ending}")):
            raise ValueError(f"{setting}: {index} is missing, so whether all shards are there is not known; get it too")
        else:
            continue
        state: dict[str, torch.Tensor] = {}
        for name in shards:
            state |= read_tensors(folder / name, setting)
        if lost := sorted(where.keys() - state.keys()):
            raise ValueError(f"{setting}: {index} names {len(lost)} tensors that no shard holds: {', '.join(lost[:5])}")
        return state
    raise ValueError(f"{setting}: {folder} has no weights (model*.safetensors or pytorch_model*.bin); get them too")


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
