"""Checkpoints of a run: written whole or not at all, kept in number, found again, and exported.

A run folder holds ``checkpoints/step_000500/`` (trainable weights, optimizer, scheduler, random state, ``state.json``)
and ``checkpoints/latest``, a file with the newest one's name. A checkpoint is written under a hidden name and renamed
when it is complete, so that whatever kills a run, every ``step_*`` folder is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from aura.config import SAME_NUMBERS, Config
from aura.data.selection import records_digest
from aura.files import is_neighbour, make_weights_plain, write_json, write_text
from aura.model.precision import describe_export, export_dtype
from aura.train.engine import Engine, Process, trained_weights, wait_for_all
from aura.types import Sample

STATE = "state.json"
HUB_COMMITS = "hub_commits"
"""In it: the commits of the names on the hub that the run's frozen weights come from."""
FORMAT = 1

MAY_CHANGE = {
    **SAME_NUMBERS,
    "model": SAME_NUMBERS["model"] | {"mllm", "vision_tower", "sam", "init_from"},
    "data": SAME_NUMBERS["data"] | {"train", "val", "held_out", "on_bad_record"},
    "train": SAME_NUMBERS["train"] | {"validate_every", "validate_images"},
}
"""Settings that a continued run may change: those of no consequence, and names of what is compared by its content."""


class Processor(Protocol):
    """What an export needs of the processor."""

    def save_pretrained(self, folder: str) -> Any: ...


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        run: The run folder.
        keep_last: Checkpoints kept besides the best.
        process: This process; files common to all are written by the main one.
    """

    def __init__(self, run: str | Path, keep_last: int, process: Process) -> None:
        self.folder = Path(run) / "checkpoints"
        self.keep_last = keep_last
        self.process = process

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return complete_steps(self.folder)

    def save(self, engine: Engine, state: Mapping[str, Any], own_state: Mapping[str, Any]) -> Path:
        """Write a checkpoint of the engine's current step; all processes call it together.

        Args:
            engine: What to save.
            state: JSON-able, the same on all processes; ``state["best"]["step"]``, if there, is never deleted.
            own_state: This process's own part, of plain types and tensors.

        Raises:
            ValueError: It cannot be written. Nothing is left of it, and the checkpoints before it are whole.
        """
        final = self.path(engine.steps)
        unfinished = self.folder / f".{final.name}.unfinished"
        try:
            self._write(engine, state, own_state, unfinished, final)
        except (OSError, RuntimeError) as error:
            reason = _why_unwritable(error, self.folder)
            if reason is None:
                raise
            shutil.rmtree(unfinished, ignore_errors=True)
            good = newest(self.folder)
            raise ValueError(
                f"the checkpoint of step {engine.steps} cannot be written to {self.folder}: {reason}. Mend this, then "
                f"start the same command again: it {f'continues from {good.name}' if good else 'starts anew'}"
            ) from error
        return final

    def _write(
        self, engine: Engine, state: Mapping[str, Any], own_state: Mapping[str, Any], unfinished: Path, final: Path
    ) -> None:
        if self.process.is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        wait_for_all(self.process)
        engine.save(self.folder, unfinished.name)
        torch.save(dict(own_state), unfinished / f"process_{self.process.rank}.pt")
        wait_for_all(self.process)
        if self.process.is_main:
            sizes = {p.name: p.stat().st_size for p in sorted(unfinished.iterdir())}
            facts = {"format": FORMAT, "step": engine.steps, "files": sizes}
            write_json(unfinished / STATE, {**facts, **state}, indent=2)
            shutil.rmtree(final, ignore_errors=True)  # of an abandoned continuation
            unfinished.rename(final)
            write_text(self.folder / "latest", final.name)
            self._prune((state.get("best") or {}).get("step"))
        wait_for_all(self.process)

    def _prune(self, best: int | None) -> None:
        for step in superfluous(self.steps(), self.keep_last, best):
            shutil.rmtree(self.path(step), ignore_errors=True)
        for leftover in self.folder.glob(".step_*.unfinished"):
            shutil.rmtree(leftover, ignore_errors=True)

    def forget_after(self, step: int) -> list[int]:
        """Delete the checkpoints after ``step``: a run continued from there abandons them. Returns their steps."""
        later = [s for s in self.steps() if s > step]
        wait_for_all(self.process)
        if self.process.is_main:
            write_text(self.folder / "latest", self.path(step).name)
            for s in later:
                shutil.rmtree(self.path(s), ignore_errors=True)
        wait_for_all(self.process)
        return later

    def find(self, resume: str) -> Path | None:
        """The checkpoint that ``train.resume`` (``auto``, ``none`` or a path) asks for, or ``None`` to start anew.

        Raises:
            ValueError: ``none`` in a folder with checkpoints, or a path that is no checkpoint.
        """
        steps = self.steps()
        if resume == "none":
            if steps:
                raise ValueError(
                    f"{self.folder} has checkpoints up to step {steps[-1]} and train.resume is none; "
                    "continue them with --train.resume auto, or choose another --train.output_dir"
                )
            return None
        if resume != "auto":
            return _checkpoint_at(Path(resume))
        return newest(self.folder)


def _why_unwritable(error: OSError | RuntimeError, folder: Path) -> str | None:
    """What the system says of a file that could not be written; ``None`` if the error is of another kind.

    torch tells no reason: its writer comes to a stop, in words of its own.
    """
    mebibytes = 2**20
    free = f"{shutil.disk_usage(folder).free // mebibytes} MiB of the disk are free"
    if isinstance(error, OSError):
        return f"{error.strerror or error}; {free}"
    told = str(error)
    writer = ("PytorchStreamWriter", "inline_container", "iostream error")
    return f"the writer stopped; {free}" if any(name in told for name in writer) else None


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a run's ``checkpoints`` folder, ascending."""
    found = (re.fullmatch(r"step_(\d{6,})", p.name) for p in folder.glob("step_*") if (p / STATE).is_file())
    return sorted(int(match[1]) for match in found if match)


def newest(folder: Path) -> Path | None:
    """The checkpoint that ``latest`` names in a run's ``checkpoints`` folder, else the last; ``None`` without any."""
    pointer = folder / "latest"
    name = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else None
    if is_neighbour(name) and (folder / name / STATE).is_file():
        return folder / name
    steps = complete_steps(folder)
    return folder / f"step_{steps[-1]:06d}" if steps else None


def superfluous(steps: Collection[int], keep_last: int, best: int | None) -> list[int]:
    """The steps whose checkpoints can go: all but the ``keep_last`` newest and the best."""
    return sorted(set(steps) - set(sorted(steps)[-keep_last:]) - {best})


def _checkpoint_at(path: Path) -> Path:
    """``path`` itself if it is a checkpoint, or the newest of the run folder that it is."""
    if (path / STATE).is_file():
        return path
    if (found := newest(path / "checkpoints")) is not None:
        return found
    raise ValueError(f"train.resume: {path} is neither a checkpoint (no {STATE} in it) nor a run folder with one")


RESUME_ANOTHER = "choose another checkpoint with --train.resume PATH, or delete this one"


def read_state(checkpoint: Path, remedy: str = RESUME_ANOTHER) -> dict[str, Any]:
    """``state.json`` of a checkpoint whose files are all there; ``remedy`` ends the message of an error.

    Raises:
        ValueError: A file is missing, cut off or unreadable.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
        files, version = state["files"], state["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{checkpoint / STATE} cannot be read ({error}); {remedy}") from error
    if version != FORMAT:
        raise ValueError(f"{checkpoint} has format {version}, this version of AURA reads {FORMAT}; {remedy}")
    if not isinstance(files, dict) or not all(map(is_neighbour, files)):
        raise ValueError(f"{checkpoint / STATE} has no list of files beside it; {remedy}")
    for name, size in files.items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(f"{file} is damaged ({size} bytes expected); {remedy}")
    return state


def read_own_state(checkpoint: Path, process: Process) -> dict[str, Any]:
    """This process's own part of a checkpoint; ValueError if it is damaged."""
    file = checkpoint / f"process_{process.rank}.pt"
    try:
        loaded: dict[str, Any] = torch.load(file, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())[:200]}); {RESUME_ANOTHER}") from error
    return loaded


def identity(
    config: Config, process: Process, samples: Sequence[Sample], model: nn.Module
) -> dict[str, int | float | str | bool | list[Any] | None]:
    """What must be equal for a continued run to equal the uninterrupted one.

    The number of processes (it may change with the accumulation, see :data:`PROCESSES`), digests of the training
    records and of the frozen weights (which are not in a checkpoint), and every setting but :data:`MAY_CHANGE`, by
    dotted key. Call it before DeepSpeed takes the model.
    """
    return {
        PROCESSES: process.world_size,
        "training records": f"{len(samples)} images, digest {records_digest(samples)[:12]}",
        FROZEN: frozen_digest(model),
        **_settings(config),
    }


def _settings(config: Config) -> dict[str, Any]:
    """Every setting but :data:`MAY_CHANGE`, by dotted key."""
    free = {f"{section}.{key}" for section, keys in MAY_CHANGE.items() for key in keys}
    return {
        key: value
        for key, value in settings_by_key(config).items()
        if key not in free and ".".join(key.split(".")[:2]) not in free
    }


def settings_by_key(config: Config) -> dict[str, Any]:
    """All settings by dotted key, as JSON gives them back, so that they can be compared."""
    return _flatten(json.loads(json.dumps(dataclasses.asdict(config))))


PROCESSES, ACCUMULATION = "number of processes", "train.accumulation"
"""Keys of :func:`identity` that may change together: an optimizer step must see the same images."""

FROZEN = "frozen weights"
"""Key of the frozen weights' digest in :func:`identity`."""


def frozen_digest(model: nn.Module) -> str:
    """Tells any two sets of frozen weights apart; before DeepSpeed takes the model."""
    frozen = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            flat = parameter.detach().flatten()
            some = flat[:: max(1, flat.numel() // 1024)]  # enough to tell any two sets of weights apart
            frozen.update(name.encode() + some.float().cpu().numpy().tobytes())
    return f"digest {frozen.hexdigest()[:12]}"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def read_continuable(checkpoint: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`read_state`, refusing a continuation that could not equal the uninterrupted run.

    Args:
        checkpoint: Its folder.
        now: :func:`identity` of this run.

    Raises:
        ValueError: Something that matters is different now; the message gives both values.
    """
    state = read_state(checkpoint)
    # A setting that came after the checkpoint was written had the value that is now its default.
    then = {**_settings(Config()), **state["identity"]}
    before, after = (facts[PROCESSES] * facts[ACCUMULATION] for facts in (then, now))
    keys = [key for key in {**then, **now} if before != after or key not in (PROCESSES, ACCUMULATION)]
    changed = [f"{key}: {then.get(key)} -> {now.get(key)}" for key in keys if now.get(key) != then.get(key)]
    if before != after and before % now[PROCESSES] == 0:
        changed.append(f"a step sees as many images as before with --train.accumulation {before // now[PROCESSES]}")
    if changed:
        raise ValueError(
            f"{checkpoint} is of another run than this one ({'; '.join(changed)}); go back to what it had, or start a "
            "new run from its export: --model.init_from RUN/export --train.output_dir NEW"
        )
    return state


SHARD_SIZE = "5GB"
"""Largest weight file of an export."""


def export(
    engine: Engine,
    processor: Processor,
    folder: Path,
    checkpoint: Path | None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a Hugging Face folder that ``AuraModel.from_pretrained`` loads; all processes call it together.

    The files are those of ``scripts/export.py --keep-lora`` to the last bit, but for quantised weights.

    Args:
        engine: The model with its frozen weights.
        processor: Saved beside the model.
        folder: Where to; an older export is replaced.
        checkpoint: Whose trained weights to take; ``None`` takes the engine's current ones.
        dtype: Of the language model.
    """
    weights = engine.full_state_dict()
    if weights is not None:
        if checkpoint is not None:
            trained = {name: value for name, value in trained_weights(checkpoint).items() if name in weights}
            weights.update({name: value for name, value in trained.items() if value.numel()})
        for name, value in weights.items():
            weights[name] = value.to(export_dtype(name, dtype)) if value.is_floating_point() else value
        if config := getattr(engine.module, "config", None):
            describe_export(config, dtype)
        with replaced_folder(folder) as unfinished:
            save: Any = engine.module.save_pretrained
            save(str(unfinished), state_dict=weights, max_shard_size=SHARD_SIZE)
            processor.save_pretrained(str(unfinished))
            make_weights_plain(unfinished)
    wait_for_all(engine.process)


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of ``folder`` once the block ends well.

    A kill leaves ``folder`` as it was, and a hidden ``.NAME.unfinished`` beside it that the next call clears.
    """
    unfinished, old = (folder.with_name(f".{folder.name}.{state}") for state in ("unfinished", "old"))
    if old.exists() and not folder.exists():  # killed between the two renames below
        old.rename(folder)
    for leftover in (unfinished, old):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
