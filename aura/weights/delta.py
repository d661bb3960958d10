"""Deltas: LLaVA v1-1 was published as differences from LLaMA (``docs/formats.md``, "Deltas"), added to it here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from aura.files import write_json

_NORM = "model.norm.weight"
_ONLY_IN_DELTA = ("model.mm_projector.weight", "model.mm_projector.bias")
_GROWN = ("model.embed_tokens.weight", "lm_head.weight")


def is_delta(state: Mapping[str, Tensor], folder: str | Path) -> bool:
    """Whether weights are differences: their final norm lies near 0, a model's near 1 or above.

    Names and shapes do not tell. Without a final norm the folder's name decides, as far as it says "delta".
    """
    if _NORM not in state:
        return "delta" in Path(folder).name.lower()
    return float(state[_NORM].float().abs().mean()) < 0.2


def refuse_delta(folder: str | Path, setting: str) -> ValueError:
    """The error for a delta in a model's place."""
    return ValueError(
        f"{setting}: {folder} is a delta, not a model: it holds the differences between LLaVA and the original LLaMA, "
        "and a model of differences answers nonsense. Add the LLaMA weights (Hugging Face format) first: "
        f"python scripts/convert_weights.py --base LLAMA_FOLDER --delta {folder} --out NEW_FOLDER"
    )


class MergedDelta(Mapping[str, Tensor]):
    """The model that a delta and its base make, each tensor added when it is read, in half precision.

    The projector exists in the delta alone; the tokens that LLaVA added have no counterpart in the base; everything
    else is the sum. Rotary frequencies, which old files carry, are left out.

    Args:
        delta: The published differences.
        base: The original LLaMA (not Vicuna), with Hugging Face's names.

    Raises:
        ValueError: A tensor that only one of them has, or shapes that do not fit: not the delta of this base.
    """

    def __init__(self, delta: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
        self._delta, self._base = delta, base
        self._names = [name for name in delta if not name.endswith(".inv_freq")]
        absent = [name for name in self._names if name not in base and name not in _ONLY_IN_DELTA]
        absent += [name for name in base if name not in delta and not name.endswith(".inv_freq")]
        if absent:
            raise ValueError(
                f"delta and base have not the same tensors ({', '.join(absent[:3])}{', ...' * (len(absent) > 3)} in "
                "one of them only); the base of the LLaVA v1-1 deltas is the original LLaMA of the same size"
            )
        for name in self._names:
            if name in base and not self._fits(name):
                raise ValueError(
                    f"{name} is {list(delta[name].shape)} in the delta and {list(base[name].shape)} in the base; the "
                    "base of the LLaVA v1-1 deltas is the original LLaMA of the same size"
                )

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        merged = self._delta[name].to(torch.float16, copy=True)
        if name in self._base:
            base = self._base[name].to(torch.float16)
            merged[: len(base)] += base
        return merged

    def __contains__(self, name: object) -> bool:
        return name in self._delta and not str(name).endswith(".inv_freq")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _fits(self, name: str) -> bool:
        mine, base = self._delta[name].shape, self._base[name].shape
        return mine == base or (name in _GROWN and mine[0] >= base[0] and mine[1:] == base[1:])


def save_shards(state: Mapping[str, Tensor], folder: Path, *, shard_bytes: int = 5_000_000_000) -> int:
    """Write tensors as ``model-0000i-of-0000n.safetensors`` with their index; one shard at a time is in memory.

    Returns:
        The number of shards.
    """
    shard: dict[str, Tensor] = {}
    shards: list[list[str]] = []
    size = total = 0

    def flush() -> None:
        save_file(shard, folder / f"{len(shards)}.unfinished", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for name in state:
        tensor = state[name].contiguous()
        if shard and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        shard[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    where: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.unfinished").rename(folder / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_json(folder / "model.safetensors.index.json", index, indent=2)
    return len(shards)
