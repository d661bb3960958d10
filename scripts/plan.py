#!/usr/bin/env python
"""What a run will need, before anything is loaded: parameters, memory of each GPU, disk, arithmetic, hours.

    python scripts/plan.py --config configs/aura_7b.yaml --gpus 2 --gpu v100
    python scripts/plan.py --config configs/aura_7b.yaml --config configs/mllm/13b.yaml --gpus 2 --gpu a100 --json

The options of train_ds.py work here too (--train.zero_stage 3). No weights are read: where the folders that the config
names are absent, their names tell the architecture, or --mllm and --sam do. Exit code 0: it fits; 1: it does not;
2: the options are wrong. What is counted and what is assumed: docs/memory.md.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aura.config import parse_config
from aura.plan import GPUS, Gpu, Plan, Workload, describe, make_plan, settled
from aura.plan.activations import features_bytes
from aura.plan.architectures import MLLMS, SAMS
from aura.plan.duration import Duration
from aura.plan.estimate import PAPER_HOURS
from aura.plan.gpus import GIB

COLUMNS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "AdamW",
    "buckets": "buckets",
    "activations": "activ.",
    "working": "work",
    "reserve": "CUDA",
    "total": "total",
}


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="plan.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = Workload()
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="GPUs (1)")
    parser.add_argument("--gpu", choices=GPUS, default="v100", help="which one (v100)")
    parser.add_argument("--gpu-memory", type=int, metavar="GIB", help="if it has another size")
    parser.add_argument("--mllm", choices=MLLMS, help="the language model, instead of model.mllm's folder")
    parser.add_argument("--sam", choices=SAMS, help="the SAM, instead of model.sam's file")
    parser.add_argument("--images", type=int, default=2018, metavar="N", help="images to cache (2018, the paper's)")
    parser.add_argument("--text-tokens", type=int, default=usual.text_tokens, metavar="N", help="of one conversation")
    parser.add_argument("--objects", type=int, default=usual.objects, metavar="N", help="[SEG] of one conversation")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    options, rest = parser.parse_known_args(argv)
    for key in ("gpus", "gpu_memory", "images", "text_tokens", "objects"):
        if (value := getattr(options, key)) is not None and value < 1:
            parser.error(f"--{key.replace('_', '-')} must be positive, got {value}")
    return options, rest


def show(plan: Plan, gpu: Gpu) -> None:
    """Print the tables."""
    console = Console()
    console.print(_parameters(plan))
    console.print(_memory(plan, gpu))
    console.print(_hours(plan))
    console.print(f"the paper: {PAPER_HOURS}", highlight=False)
    per_image = features_bytes(plan.architecture) / 2**20
    used = "used" if not plan.encodes else "not used: data.feature_cache is null"
    console.print(
        f"feature cache: {per_image:.1f} MiB an image, {plan.cache_bytes / GIB:.1f} GiB for {plan.num_images} ({used})"
    )
    for source in plan.sources:
        console.print(f"sizes of the {source}", highlight=False)
    problems = plan.problems(gpu)
    for problem in problems:
        console.print(Text(f"does not fit: {problem}", style="bold red"))
    if not problems:
        free = gpu.gib - plan.memory().total / GIB
        console.print(Text(f"fits {plan.num_gpus} x {gpu.name} with {free:.1f} GiB to spare", style="bold green"))


def _parameters(plan: Plan) -> Table:
    table = Table("part", title="Parameters (millions)")
    for heading in ("all", "trained"):
        table.add_column(heading, justify="right")
    for name, size in sorted(plan.parts.items(), key=lambda item: -item[1].total):
        table.add_row(name, f"{size.total / 1e6:,.2f}", f"{size.trainable / 1e6:,.2f}")
    table.add_section()
    table.add_row("together", f"{plan.total / 1e6:,.2f}", f"{plan.trainable / 1e6:,.2f}")
    return table


def _memory(plan: Plan, gpu: Gpu) -> Table:
    train, work = plan.config.train, plan.work
    table = Table(
        title=f"GiB on each of {plan.num_gpus} x {gpu.name}, {train.precision}, {work.images} x "
        f"{work.length(plan.architecture)} tokens, {work.num_objects} [SEG]",
        caption="* this config; r: recomputes activations (train.gradient_checkpointing)",
        padding=(0, 0),
    )
    table.add_column("ZeRO", no_wrap=True)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")
    table.add_column("")
    for stage in plan.stages:
        for recompute in (False, True):
            memory = plan.memory(zero_stage=stage, checkpointing=recompute)
            chosen = (stage, recompute) == (train.zero_stage, plan.recomputes)
            verdict = "fits" if memory.total <= gpu.gib * GIB else "too much"
            table.add_row(
                f"{stage} {'r' if recompute else ' '} {'*' if chosen else ''}",
                *(f"{getattr(memory, name) / GIB:.1f}" for name in COLUMNS),
                verdict,
                style="bold" if chosen else None if verdict == "fits" else "dim",
            )
    return table


def _hours(plan: Plan) -> Table:
    flops, train = plan.micro_flops, plan.config.train
    table = Table(
        "GPU",
        title=f"{plan.step_flops / 1e12:.0f} TFLOP per optimizer step: {train.accumulation} x {plan.num_gpus} x (SAM "
        f"{flops.sam_encoder / 1e12:.1f}, CLIP {flops.clip / 1e12:.1f}, language model "
        f"{flops.language_model / 1e12:.1f}, mask decoders {flops.mask_decoders / 1e12:.2f})",
    )
    for heading in ("assumed use", "seconds a step", "of them", f"hours for {train.steps} steps"):
        table.add_column(heading, justify="right")
    for gpu in GPUS.values():
        duration, hours = plan.duration(gpu), plan.hours(gpu)
        figures = ("-", "-", "-")
        if duration is not None and hours is not None:
            figures = (f"{duration.total:.2f}", parts_of(duration), f"{hours:.1f}")
        peak = gpu.peak.get(train.precision)
        use = f"no {train.precision}" if peak is None else f"{gpu.utilisation:.0%} of {peak:g} TFLOP/s"
        table.add_row(f"{plan.num_gpus} x {gpu.name}", use, *figures)
    return table


def parts_of(duration: Duration) -> str:
    """What a step's seconds go into; the GPU computes while the CPU launches, and the longer of the two counts."""
    parts = {
        "launching": duration.launches if duration.waits_for_the_cpu else 0,
        "products": 0 if duration.waits_for_the_cpu else duration.products,
        "link": duration.reductions,
        "AdamW": duration.optimizer,
    }
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items() if seconds >= 0.005)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if it fits, 1 if not, 2 for what the user can mend (with one line on stderr)."""
    options, rest = parse(argv)
    config = parse_config(rest, prog="plan.py")
    gpu = GPUS[options.gpu]
    if options.gpu_memory is not None:
        gpu = gpu._replace(name=f"{options.gpu.upper()} {options.gpu_memory} GB", gib=options.gpu_memory)
    try:
        architecture, sources = describe(config.model, options.mllm, options.sam)
    except ValueError as error:
        print(f"plan.py: {error}", file=sys.stderr)
        return 2
    work = Workload(
        images=config.train.micro_batch_size,
        conversations=config.data.conversations_per_image or 11,  # the paper's data: 11.3 on average
        text_tokens=options.text_tokens,
        answer_tokens=max(1, options.text_tokens * 9 // 16),
        objects=options.objects,
    )
    plan = make_plan(
        config, architecture, work=work, num_gpus=options.gpus, num_images=options.images, sources=tuple(sources)
    )
    plan = settled(plan, gpu.gib * GIB)
    if options.json:
        print(json.dumps(plan.as_dict(gpu), indent=2, allow_nan=False))
    else:
        show(plan, gpu)
    return 1 if plan.problems(gpu) else 0


if __name__ == "__main__":
    sys.exit(main())
