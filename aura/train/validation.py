"""Periodic validation: the figure that chooses the best checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aura.config import TrainSettings
from aura.data.feature_cache import FeatureCache
from aura.data.mixture import STRIDE, evenly
from aura.data.processor import Processor
from aura.evaluation.evaluate import evaluate
from aura.evaluation.examples import Extremes
from aura.evaluation.metrics import summarise
from aura.evaluation.report import Report
from aura.model import AuraModel
from aura.train.engine import Process
from aura.train.logs import flat_numbers
from aura.train.randomness import rng_state, set_rng_state
from aura.types import Sample


def validation_samples(samples: Sequence[Sample] | None, settings: TrainSettings, process: Process) -> list[Sample]:
    """The first ``settings.validate_images`` samples that have a conversation; none where validation is off."""
    if samples is None or settings.validate_every == 0:
        return []
    chosen = [sample for sample in evenly(samples, settings.validate_images) if sample.conversations]
    if settings.zero_stage == 3:  # every forward pass is a joint act there: all processes need equally many
        chosen = chosen[: len(chosen) // process.world_size * process.world_size]
    return chosen


def validate(
    model: AuraModel,
    processor: Processor,
    samples: Sequence[Sample],
    cache: FeatureCache | None,
    keep: Path | None,
    sources: Sequence[str] = (),
) -> dict[str, Any]:
    """The teacher-forced report's figures, the same on all processes; the random state stays as it was.

    Args:
        keep: A folder for the whole report and pictures of its best and worst answers; ``None`` writes nothing. What
            cannot be written there is left out: it is for the eye, and stops no run.
        sources: Names of the sources of a mixture; the figures of each stand under its name in ``sources``.
    """
    before = rng_state()
    extremes = Extremes()
    observers = [extremes] if keep else []
    report = evaluate(model, processor, samples, "teacher_forced", cache=cache, observers=observers)
    parts = {name: part.as_dict() for name, part in by_source(report, sources).items()}
    if keep is not None:
        try:
            extremes.save(keep)
            report.write(keep, beside=parts)
        except (OSError, ValueError) as error:
            tqdm.write(f"WARNING: {keep} is not complete: {error}")
    set_rng_state(before)
    shown = ("num_objects", "amodal", "visible", "no_target", "asked")
    alone = {name: {key: part[key] for key in shown if key in part} for name, part in parts.items()}
    figures = {key: value for key, value in report.as_dict().items() if not isinstance(value, list)}
    return {**figures, "sources": alone} if alone else figures


def by_source(report: Report, sources: Sequence[str]) -> dict[str, Report]:
    """The report of each source of a mixture, by its name; nothing where there is no mixture."""
    return {
        name: Report(
            report.protocol,
            tuple(o for o in report.objects if o.record.image_id // STRIDE == number),
            tuple(a for a in report.answers if a.image_id // STRIDE == number),
            name,
        )
        for number, name in enumerate(sources)
    }


def shown(report: Mapping[str, Any], key: str) -> str:
    """A figure for the terminal, with that of each source beside it where there are several."""
    value, slashed = look_up(report, key), key.replace(".", "/")
    of_source = {name: flat_numbers(part).get(slashed) for name, part in report.get("sources", {}).items()}
    told = ", ".join(f"{name} {found:.4f}" for name, found in of_source.items() if found is not None)
    return f"{key} {value if value is None else round(value, 4)}{f' ({told})' if told else ''}"


def check_metric(key: str) -> None:
    """Refuse, before a run begins, a ``train.best_metric`` that no validation measures or that falls as a model learns.

    Raises:
        ValueError: With the keys to choose from.
    """
    regions = {name: figures for name, figures in summarise([], []).items() if isinstance(figures, Mapping)}
    known = [f"{region}.{name}" for region, figures in regions.items() for name in figures if name != "num_objects"]
    known.append("seg_count_accuracy")
    if key not in known:
        raise ValueError(
            f"train.best_metric: {key!r} cannot choose the best checkpoint; take one of {', '.join(known)}"
        )


def look_up(report: Mapping[str, Any], key: str) -> float | None:
    """A figure by dotted key; ``None`` where it could not be measured.

    Raises:
        ValueError: There is no such figure.
    """
    value: Any = report
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"train.best_metric: the report has no figure {key!r}; it has {', '.join(report)}")
        value = value[part]
    return None if value is None else float(value)
