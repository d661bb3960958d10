"""The runs of a table: where each lies, the commands that make it, and how far it has come."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from aura.config import SAME_NUMBERS, Config, GiouOver, Protocol, load_config
from aura.evaluation.report import read_figures
from aura.reproduction.paper import Variant

CONFIGS = Path("configs")


@dataclass(frozen=True)
class Setting:
    """What all runs of a sweep have in common.

    Args:
        runs: Folder of the run folders, ``RUNS/VARIANT/seed_N``.
        base: YAML layers that every variant stands on.
        extra: YAML layers over every variant: the user's paths, a memory preset.
        data: AmodalReasonSeg file to evaluate on.
        images: Folder of its images.
        protocol: Of the evaluation.
        giou: What gIoU is the mean over where one figure is shown; the reports have all three.
        launcher: Program and options before ``train_ds.py``.
        eval_launcher: Program and options before ``eval.py``.
        limit: Evaluate the first so many images only; ``None`` takes all.
    """

    runs: Path
    base: tuple[Path, ...]
    data: Path
    images: Path | None = None
    extra: tuple[Path, ...] = ()
    protocol: Protocol = "teacher_forced"
    giou: GiouOver = "image"
    launcher: tuple[str, ...] = ("deepspeed",)
    eval_launcher: tuple[str, ...] = (sys.executable,)
    limit: int | None = None


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: Variant
    seed: int
    setting: Setting

    @property
    def name(self) -> str:
        return f"{self.variant.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.setting.runs / self.variant.name / f"seed_{self.seed}"

    @property
    def layers(self) -> tuple[Path, ...]:
        """The YAML files, each over those before it."""
        return (*self.setting.base, *(CONFIGS / layer for layer in self.variant.layers), *self.setting.extra)

    @property
    def report_folder(self) -> Path:
        """One per data file, protocol and limit, so that no evaluation is taken for another."""
        part = f"_first_{self.setting.limit}" if self.setting.limit else ""
        return self.folder / "eval" / f"{self.setting.data.stem}{part}" / self.setting.protocol

    def config(self) -> Config:
        """The settings this run is to have, but for folder and seed; ValueError as :func:`load_config`."""
        return _read(self.layers)

    def train_command(self) -> list[str]:
        layers = [argument for layer in self.layers for argument in ("--config", str(layer))]
        own = ["--train.output_dir", str(self.folder), "--train.seed", str(self.seed)]
        return [*self.setting.launcher, "train_ds.py", *layers, *own]

    def eval_command(self) -> list[str]:
        s = self.setting
        command = [*s.eval_launcher, "eval.py", "--checkpoint", str(self.folder), "--data", str(s.data)]
        command += ["--images", str(s.images)] if s.images else []
        command += [
            "--protocol",
            s.protocol,
            "--giou",
            s.giou,
            "--name",
            self.variant.name,
            "--out",
            str(self.report_folder),
        ]
        command += ["--limit", str(s.limit)] if s.limit else []
        cache = self.config().data.feature_cache
        return [*command, "--feature-cache", cache] if cache else command

    @property
    def is_trained(self) -> bool:
        """The run's own report is written last, after the export."""
        return (self.folder / "report.json").is_file() and (self.folder / "export" / "config.json").is_file()

    @property
    def is_evaluated(self) -> bool:
        """There is a report of this export, not of an earlier one."""
        report, export = self.report_folder / "report.json", self.folder / "export" / "config.json"
        return self.is_trained and report.is_file() and report.stat().st_mtime >= export.stat().st_mtime

    def figures(self) -> dict[str, Any] | None:
        """Of the evaluation; ``None`` before it. ValueError names a damaged file."""
        return read_figures(self.report_folder) if self.is_evaluated else None

    def facts(self) -> dict[str, Any]:
        """What the run says of itself: ``steps``, ``effective_batch``, ``seconds``; ValueError names a damaged file."""
        path = self.folder / "report.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {key: found[key] for key in ("steps", "effective_batch", "seconds")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no report of a training run ({error}); delete {self.folder}") from None

    def check(self) -> None:
        """Refuse a run folder that holds another training, finished or not.

        Raises:
            ValueError: Its settings are not those of this run, or a YAML layer is missing or wrong.
        """
        wanted, stored = self.config(), self.folder / "config.yaml"
        if not stored.is_file():
            return
        if different := differences(load_config(stored), wanted, self.seed):
            raise ValueError(
                f"{self.folder} was trained with other settings: {'; '.join(different)}. Delete it, or keep it and "
                "choose another folder with --runs"
            )


@cache
def _read(layers: tuple[Path, ...]) -> Config:
    """The runs of a sweep share layers, and parsing takes a tenth of a second."""
    return load_config(*layers)


def differences(found: Config, wanted: Config, seed: int) -> list[str]:
    """Settings that change a run's numbers and differ, as ``train.steps 400, not 500``."""
    lines = []
    for section, ignored in SAME_NUMBERS.items():
        ours = {**vars(getattr(wanted, section)), **({"seed": seed} if section == "train" else {})}
        for key, value in vars(getattr(found, section)).items():
            if key not in ignored and value != ours[key]:
                lines.append(f"{section}.{key} {value}, not {ours[key]}")
    return lines


def plan(variants: Iterable[Variant], seeds: Sequence[int], setting: Setting) -> list[Run]:
    """All runs, seed by seed, so that the rows of a sweep that stopped early have about equally many."""
    return [Run(variant, seed, setting) for seed in seeds for variant in variants]


def in_shell(command: Sequence[str]) -> str:
    """A command as one types it."""
    return shlex.join(command)
