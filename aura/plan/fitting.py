"""Whether a run keeps its activations or computes them anew, decided on its own data and device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from aura.config import Config
from aura.data.collate import pack
from aura.data.processor import Processor
from aura.model import AuraModel
from aura.plan.activations import Workload
from aura.plan.estimate import MARGIN, Plan, quantisable
from aura.plan.gpus import GIB
from aura.plan.meter import available_bytes
from aura.types import Sample

LOOKED_AT = 200
"""Images whose conversations are measured, spread over the data."""


def largest_workload(samples: Sequence[Sample], processor: Processor, config: Config) -> Workload:
    """The largest micro-batch that the data can make, as far as :data:`LOOKED_AT` of its images tell.

    Each number is the largest of any image, so that together they may be more than any one image asks for.
    """
    length = targets = objects = height = width = 1
    for sample in samples[:: max(1, len(samples) // LOOKED_AT)]:
        lengths = []
        for conversation in sample.conversations:
            try:
                lengths.append(processor.text.conversation(conversation, sample.image_id))
            except ValueError:  # a record that the run will refuse or leave out
                continue
        lengths.sort(key=lambda one: len(one.input_ids), reverse=True)
        chosen = lengths[: config.data.conversations_per_image]
        if not chosen:
            continue
        packed = pack(chosen)
        length, targets = max(length, len(packed.input_ids)), max(targets, len(packed.target_ids))
        seg = sorted((len(one.seg_positions) for one in lengths), reverse=True)
        objects = max(objects, sum(seg[: config.data.conversations_per_image]))
        height, width = max(height, sample.height), max(width, sample.width)
    return Workload(
        images=config.train.micro_batch_size,
        conversations=1,
        prompt_tokens=0,
        text_tokens=max(1, length - processor.text.num_image_tokens),
        answer_tokens=targets,
        objects=objects,
        height=height,
        width=width,
    )


def memory_of(device: torch.device, processes: int = 1) -> int | None:
    """Bytes that a run may take: all of a GPU's, or this process's share of what the CPU has free."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    free = available_bytes()
    return None if free is None else free // processes


def decide_recomputing(
    config: Config, model: AuraModel, work: Workload, *, processes: int, memory_bytes: int | None
) -> tuple[bool, str]:
    """Whether activations are recomputed, and a sentence that says so.

    Args:
        config: Its ``train.gradient_checkpointing`` is taken as it is, unless it is ``auto``.
        model: The run's.
        work: Its largest micro-batch.
        processes: Of the run.
        memory_bytes: From :func:`memory_of`; ``None`` recomputes.
    """
    wanted = config.train.gradient_checkpointing
    if wanted != "auto":
        return wanted, f"activations: {_does(wanted)} (train.gradient_checkpointing)"
    if memory_bytes is None:
        return True, f"activations: {_does(True)}, since this system does not say how much memory is free"
    plan = Plan(
        config=dataclasses.replace(config, train=dataclasses.replace(config.train, gradient_checkpointing=False)),
        architecture=model.config,
        sources=(),
        work=work,
        num_gpus=processes,
        parts=model.num_parameters_by_part(),
        quantised=quantisable(model.config) if config.model.quantize != "none" else 0,
        num_images=0,
    )
    need, have = plan.memory().total, memory_bytes
    recompute = need > MARGIN * have
    return recompute, (
        f"activations: {_does(recompute)}; kept, the largest batch would need {need / GIB:.1f} GiB by the plan, and "
        f"{MARGIN:.0%} of {have / GIB:.1f} GiB may be filled (train.gradient_checkpointing auto)"
    )


def _does(recompute: bool) -> str:
    return "computed anew in the backward pass" if recompute else "kept for the backward pass"
