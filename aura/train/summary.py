"""What a run says before its first step and after its last."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aura.config import Config
from aura.files import write_json, write_text
from aura.model import AuraModel
from aura.train.logs import RunLog
from aura.types import Losses


def opening(model: AuraModel, config: Config, world_size: int, num_images: int) -> str:
    """The parameters of each part, and what one optimizer step and the whole run amount to."""
    lines = [f"{'part':24}{'parameters':>15}{'trained':>15}"]
    for part, (total, trainable) in model.num_parameters_by_part().items():
        lines.append(f"{part:24}{total:15,}{trainable:15,}")
    train = config.train
    per_step = train.micro_batch_size * train.accumulation * world_size
    lines.append(
        f"effective batch: {train.micro_batch_size} images x {train.accumulation} accumulation x {world_size} "
        f"processes = {per_step} images per optimizer step; {train.steps} optimizer steps = "
        f"{train.steps * per_step / num_images:.1f} passes over {num_images} images"
    )
    return "\n".join(lines)


def write_run_report(
    folder: Path, config: Config, log: RunLog, *, effective_batch: int, best: Mapping[str, Any] | None
) -> str:
    """Write ``report.json`` and ``report.md`` of a finished run; returns the command that evaluates it.

    Args:
        folder: The run folder.
        config: The run's settings.
        log: The run's log; its last record gives the final losses.
        effective_batch: Images per optimizer step.
        best: ``step``, ``metric`` and ``score`` of the exported checkpoint; ``None`` if the last one was exported.
    """
    split, last = config.data.val, log.records("train")[-1]
    data = f"{split.annotations} --images {split.images}" if split.annotations else "FILE"
    command = f"python eval.py --checkpoint {folder} --data {data} --protocol teacher_forced"
    losses = {f.name: last[f.name] for f in dataclasses.fields(Losses)}
    seconds, steps = round(log.seconds, 1), last["step"]
    choice = f"step {best['step']}, {best['metric']} {best['score']:.4f}" if best else "the last step (no validation)"
    lines = [
        f"# {folder.name}",
        "",
        f"- {steps} optimizer steps of {effective_batch} images in {seconds / 60:.1f} min",
        f"- export `{folder / 'export'}`: {choice}",
        f"- evaluate it: `{command}`",
        "",
        "| loss | at the end |",
        "|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in losses.items()),
    ]
    write_text(folder / "report.md", "\n".join(lines) + "\n")
    report = {"steps": steps, "effective_batch": effective_batch, "seconds": seconds, "best": best, "losses": losses}
    write_json(folder / "report.json", {**report, "evaluate": command}, indent=2)
    return command
