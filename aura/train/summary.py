"""What a run says before its first step and after its last, and what goes with its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aura.config import Config
from aura.evaluation import tables
from aura.evaluation.report import read_figures
from aura.files import write_json, write_text
from aura.model import AuraModel
from aura.train.logs import RunLog, read_log
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
    data = f" --data {split.annotations}" + (f" --images {split.images}" if split.images else "")
    if split.annotations is None:
        # eval.py finds what was held out, and several files
        data = "" if best or split.sources else " --data FILE"
    command = f"python eval.py --checkpoint {folder}{data} --protocol teacher_forced"
    losses = {f.name: last[f.name] for f in dataclasses.fields(Losses) if f.name in last}
    seconds, steps = round(log.seconds, 1), last["step"]
    report = {"steps": steps, "effective_batch": effective_batch, "seconds": seconds, "best": best, "losses": losses}
    report["evaluate"] = command
    write_text(folder / "report.md", "\n".join(report_lines(folder, report)) + "\n")
    write_json(folder / "report.json", report, indent=2)
    return command


def report_lines(folder: Path, report: Mapping[str, Any]) -> list[str]:
    """A ``report.json`` as Markdown, line by line."""
    best, minutes = report["best"], report["seconds"] / 60
    choice = f"step {best['step']}, {best['metric']} {best['score']:.4f}" if best else "the last step (no validation)"
    return [
        f"# {folder.name}",
        "",
        f"- {report['steps']} optimizer steps of {report['effective_batch']} images in {minutes:.1f} min",
        f"- export `{folder / 'export'}`: {choice}",
        f"- evaluate it: `{report['evaluate']}`",
        "",
        "| loss | at the end |",
        "|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in report["losses"].items() if value is not None),
    ]


def model_card(
    run: Path, config: Config, *, step: int | None, model: AuraModel, dtype: str, report: Mapping[str, Any] | None
) -> str:
    """``README.md`` of an exported model: figures, recipe, data, licences, how to load it. It names no folder's path.

    Args:
        run: The run folder; its log and its evaluations of this very checkpoint give the table.
        config: The run's settings.
        step: The exported optimizer step, ``None`` where it is unknown.
        model: What is exported.
        dtype: Of the language model's weights.
        report: ``report.json`` of a finished run.
    """
    settings, train = config.model, config.train
    started = settings.init_from or settings.mllm or "unknown"
    lora = settings.lora
    adapters = f"rank {lora.r}, alpha {lora.alpha}, on {', '.join(lora.targets)}" if lora.enabled else "none"
    kept = "kept apart from the weights they adapt" if model.config.lora is not None else "merged into the weights"
    commits = model.config.hub_commits or {}

    def named(source: str) -> str:
        return f"{source}, commit {commits[source]}" if source in commits else Path(source).name

    learnt = "row of [SEG] trained" if settings.train_embeddings == "seg" else "trained"
    total, trained = (sum(sizes) for sizes in zip(*model.num_parameters_by_part().values(), strict=True))
    rows = {
        "optimizer step": f"{'unknown' if step is None else step} of {train.steps}",
        "language model and CLIP": named(started),
        "SAM": named(settings.sam) if settings.sam and not settings.init_from else "from the same",
        "prompt template": settings.prompt_template,
        "LoRA": f"{adapters} ({kept})" if lora.enabled else adapters,
        "token embeddings and head": learnt if settings.train_embeddings else "frozen",
        "masks": settings.masks,
        "occlusion condition encoder, spatial occlusion encoder": ", ".join(
            form if there else "no"
            for there, form in (
                (settings.occlusion_condition, settings.condition_form),
                (settings.spatial_occlusion, settings.spatial_form),
            )
        ),
        **({"[SEG] states point at image tokens": "yes"} if settings.pointing else {}),
        **({"head that tells which mask is asked for": "yes"} if settings.intent else {}),
        "batch": f"{train.micro_batch_size} images x {train.accumulation} accumulation per process"
        + (f", {report['effective_batch']} in all" if report else ""),
        "learning rate": f"{train.lr:g}, {train.warmup_steps} steps of warm-up, linear decay, AdamW {train.betas}",
        "precision, ZeRO stage, seed": f"{train.precision}, {train.zero_stage}, {train.seed}",
        "loss weights": ", ".join(f"{k} {v:g}" for k, v in config.loss_weights.items()),
        "weights": f"{dtype} (SAM and the mask decoders in fp32), {total:,} parameters, {trained:,} of them trainable",
    }
    files = {**config.data.files(), **(config.data.val_files() or {"val": config.data.val})}
    data = {name: split.annotations for name, split in files.items()}
    lines = [
        "---",
        "library_name: transformers",
        "license: other",
        "tags: [aura, amodal-segmentation, reasoning-segmentation, llava, segment-anything]",
        "---",
        "",
        f"# AURA: {run.resolve().name}",
        "",
        "Answers a question about an image and marks every object of the answer with two masks: the part that is "
        "visible, and the whole object with what is hidden (AURA, arXiv 2503.10225).",
        "",
        "## Results",
        "",
        *(_results(run, step, report) or ["Not evaluated: the run has no figures of this checkpoint.", ""]),
        "## Recipe",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        "## Data",
        "",
        *(f"- {name}: `{Path(path).name}`" if path else f"- {name}: none" for name, path in data.items()),
        "",
        "## Licences",
        "",
        "The weights derive from the language model, CLIP and SAM named above and stand under their licences besides "
        "that of this code (LLaVA v1 and Vicuna: the LLaMA licence, research only; Llama 2: its community licence; "
        "CLIP: MIT; SAM: Apache-2.0). COCO's annotations are CC BY 4.0, its pictures stand under Flickr's terms. Fill "
        "in `license` above before you publish.",
        "",
        "## Use",
        "",
        "```python",
        "from aura.chat.assistant import Assistant",
        "",
        'reply = Assistant.from_pretrained("FOLDER").ask("street.jpg", "What could I ride, and what is in the way?")',
        "print(reply.text, [(o.name, o.occlusion_rate) for o in reply.objects])",
        "```",
        "",
        "`AuraModel.from_pretrained(FOLDER)` and `Processor.from_pretrained(FOLDER)` give the parts; "
        "`--model.init_from FOLDER` trains on.",
    ]
    return "\n".join(lines) + "\n"


def _results(run: Path, step: int | None, report: Mapping[str, Any] | None) -> list[str]:
    """Tables of the exported checkpoint: its validation during training and, if it is the run's export, eval.py's."""
    figures: dict[str, Any] = {}
    for record in read_log(run / "log.jsonl"):
        if record["kind"] == "val" and record["step"] == step:
            figures["validation"] = record
    exported = (report.get("best") or report)["step" if report.get("best") else "steps"] if report else None
    if step is not None and step == exported:
        for path in sorted((run / "eval").rglob("report.json")):
            figures[f"evaluation, {path.parent.relative_to(run / 'eval').as_posix()}"] = read_figures(path)
    if not figures:
        return []
    return [
        tables.as_markdown(table(figures)) for table in (tables.main_table, tables.average_table, tables.region_table)
    ]
