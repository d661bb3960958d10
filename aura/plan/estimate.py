"""A plan: does a config fit the GPUs, and how long will it take.

The memory of one GPU under DeepSpeed, with P parameters of which T are trained in fp32, the others of w bytes, N GPUs:

| | ZeRO 0 | 1 | 2 | 3 |
|---|---|---|---|---|
| weights, W = w (P - T) + 4T | W | W | W | W/N + gathered |
| gradients | 4T | 4T | 4T/N | 4T/N |
| AdamW: two moments, and from stage 1 the weights once more | 8T | 12T/N | 12T/N | 12T/N |
| reduction buckets | 0 | 8b | 8b | 4b |

b is DeepSpeed's bucket (:data:`aura.config.REDUCE_BUCKET`), allocated whole and twice where communication overlaps.
With several GPUs NCCL takes buffers of its own. Frozen weights have neither gradients nor optimizer state; quantised
ones have less than a byte each.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aura.config import REDUCE_BUCKET, Config, Precision
from aura.model import AuraModel
from aura.model.aura import PartSize
from aura.model.configuration import AuraConfig
from aura.plan import activations
from aura.plan.activations import Workload
from aura.plan.duration import Duration, of_step
from aura.plan.flops import Flops, step_flops
from aura.plan.gpus import GIB, GPUS, Gpu
from aura.plan.launches import Launches, step_launches

TRAINED = 4
"""Bytes of a trained weight and of its gradient, in every precision (:mod:`aura.model.precision`)."""
GATHERED = 1_000_000_000
"""Parameters that ZeRO 3 keeps whole at a time (``max_live_parameters``)."""
RESERVE = 1.5 * GIB
"""CUDA's own memory and what the allocator cannot use between its blocks."""

NCCL = 0.5 * GIB
"""Its buffers, where several GPUs talk."""
MARGIN = 0.85
"""Share of the memory that may be filled without recomputed activations (``train.gradient_checkpointing auto``)."""
PAPER_HOURS = "about 10 hours on 2 x V100 32 GB for the 7B model (arXiv 2503.10225, section 5.1)"

QUANTISED_BYTES = {"int8": 1.0, "int4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Per weight; NF4 has one scale of 8 bits per 64 weights, and one of 32 bits per 256 of those."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: float
    gradients: float
    optimizer: float
    buckets: float
    activations: float
    working: float
    reserve: float = RESERVE

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Plan:
    """Everything about one config on ``num_gpus`` GPUs."""

    config: Config
    architecture: AuraConfig
    sources: tuple[str, ...]
    work: Workload
    num_gpus: int
    parts: dict[str, PartSize]
    quantised: int
    num_images: int

    @property
    def total(self) -> int:
        return sum(part.total for part in self.parts.values())

    @property
    def trainable(self) -> int:
        return sum(part.trainable for part in self.parts.values())

    @property
    def value_bytes(self) -> int:
        return 4 if self.config.train.precision == "fp32" else 2

    @property
    def encodes(self) -> bool:
        """Whether steps run the frozen encoders."""
        return self.config.data.feature_cache is None

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed; ``auto`` counts as yes until :func:`settled` decides."""
        return self.config.train.gradient_checkpointing is not False

    @property
    def micro_flops(self) -> Flops:
        """Of one micro-batch."""
        return step_flops(self.architecture, self.work, checkpointing=self.recomputes, encode=self.encodes)

    @property
    def micro_launches(self) -> Launches:
        """Of one micro-batch."""
        return step_launches(self.architecture, self.work, checkpointing=self.recomputes, encode=self.encodes)

    @property
    def cache_bytes(self) -> int:
        """On disk, for all images."""
        return self.num_images * activations.features_bytes(self.architecture)

    @property
    def step_flops(self) -> int:
        """Of one optimizer step on all GPUs."""
        return self.micro_flops.total * self.config.train.accumulation * self.num_gpus

    def weights_bytes(self) -> float:
        packed = QUANTISED_BYTES.get(self.config.model.quantize, 0.0) * self.quantised
        return self.value_bytes * (self.total - self.quantised - self.trainable) + TRAINED * self.trainable + packed

    def memory(self, *, zero_stage: int | None = None, checkpointing: bool | None = None) -> Memory:
        """Of one GPU; the config's ZeRO stage and checkpointing, unless others are asked for."""
        train = self.config.train
        stage = train.zero_stage if zero_stage is None else zero_stage
        recompute = self.recomputes if checkpointing is None else checkpointing
        w, n, trained = self.value_bytes, self.num_gpus, self.trainable
        weights, gathered = self.weights_bytes(), min(GATHERED, self.total) * w
        optimizer = 12 * trained / n if stage else 8 * trained
        kept = activations.saved(
            self.architecture,
            self.work,
            value_bytes=w,
            checkpointing=recompute,
            mask_resolution=self.config.loss.mask_resolution,
        )
        return Memory(
            weights=min(weights, weights / n + gathered) if stage == 3 else weights,
            gradients=TRAINED * trained / (n if stage >= 2 else 1),
            optimizer=0.0 if train.offload_optimizer and stage else optimizer,
            buckets=REDUCE_BUCKET * TRAINED * {0: 0, 1: 2, 2: 2, 3: 1}[stage],
            activations=sum(kept.values()),
            working=activations.working(
                self.architecture, self.work, value_bytes=w, checkpointing=recompute, encode=self.encodes
            ),
            reserve=RESERVE + (NCCL if n > 1 else 0),
        )

    def seconds_per_step(self, gpu: Gpu) -> float | None:
        """Of one optimizer step; ``None`` where the GPU does not know the precision."""
        duration = self.duration(gpu)
        return None if duration is None else duration.total

    def duration(self, gpu: Gpu) -> Duration | None:
        """What one optimizer step takes, and why; ``None`` where the GPU does not know the precision."""
        train = self.config.train
        peak = gpu.peak.get(train.precision)
        if peak is None:
            return None
        return of_step(
            gpu,
            flops=self.micro_flops.total,
            launches=self.micro_launches,
            peak=peak,
            accumulation=train.accumulation,
            trained=self.trainable,
            total=self.total,
            gradient_bytes=TRAINED,
            value_bytes=self.value_bytes,
            num_gpus=self.num_gpus,
            zero_stage=train.zero_stage,
            offload=train.offload_optimizer,
        )

    def hours(self, gpu: Gpu) -> float | None:
        """Of all optimizer steps, and of filling the feature cache; without validation and loading."""
        step, peak = self.seconds_per_step(gpu), gpu.peak.get(self.config.train.precision)
        if step is None or peak is None:
            return None
        seconds = step * self.config.train.steps
        if not self.encodes:
            once = step_flops(self.architecture, self.work, checkpointing=False, encode=True)
            per_image = (once.sam_encoder + once.clip) / self.work.images
            seconds += self.num_images * per_image / (peak * 1e12 * gpu.utilisation) / self.num_gpus
        return seconds / 3600

    def as_dict(self, gpu: Gpu) -> dict[str, Any]:
        """The plan as JSON can hold it: bytes, operations, hours."""
        train = self.config.train

        def row(stage: int, recompute: bool) -> dict[str, Any]:
            memory = self.memory(zero_stage=stage, checkpointing=recompute)
            return {
                "zero_stage": stage,
                "gradient_checkpointing": recompute,
                "chosen": (stage, recompute) == (train.zero_stage, self.recomputes),
                **{name: int(value) for name, value in dataclasses.asdict(memory).items()},
                "total": int(memory.total),
                "fits": memory.total <= gpu.gib * GIB,
            }

        kept = activations.saved(
            self.architecture,
            self.work,
            value_bytes=self.value_bytes,
            checkpointing=self.recomputes,
            mask_resolution=self.config.loss.mask_resolution,
        )
        return {
            "sources": list(self.sources),
            "parameters": {
                "total": self.total,
                "trainable": self.trainable,
                "quantised": self.quantised,
                "parts": {name: part._asdict() for name, part in self.parts.items()},
            },
            "workload": {**dataclasses.asdict(self.work), "sequence_length": self.work.length(self.architecture)},
            "precision": train.precision,
            "gpu": {"name": gpu.name, "gib": gpu.gib, "count": self.num_gpus},
            "memory": [row(stage, recompute) for stage in self.stages for recompute in (False, True)],
            "activations": kept,
            "fits": self.memory().total <= gpu.gib * GIB,
            "cpu_bytes_per_gpu": int(16 * self.trainable / self.num_gpus) if train.offload_optimizer else 0,
            "feature_cache": {"images": self.num_images, "bytes": self.cache_bytes, "used": not self.encodes},
            "flops": {**dataclasses.asdict(self.micro_flops), "optimizer_step": self.step_flops},
            "hours": {key: self._hours_of(each) for key, each in GPUS.items()},
            "paper": PAPER_HOURS,
        }

    def _hours_of(self, gpu: Gpu) -> dict[str, Any]:
        duration = self.duration(gpu)
        seconds = None if duration is None else dataclasses.asdict(duration)
        assumed = {"utilisation": gpu.utilisation, "peak_tflops": gpu.peak, "link_gb_s": gpu.link_gb_s}
        return {"hours": self.hours(gpu), "seconds_per_step": seconds, **assumed}

    @property
    def stages(self) -> tuple[int, ...]:
        """ZeRO stages that are possible."""
        return (0, 1, 2, 3) if self.config.model.quantize == "none" else (0, 1, 2)

    def problems(self, gpu: Gpu) -> list[str]:
        """What stands in the way, each with a remedy; none where the config fits."""
        found = []
        precision: Precision = self.config.train.precision
        if precision not in gpu.peak:
            found.append(f"{gpu.name} has no {precision} units; set train.precision to fp16")
        need, have = self.memory().total / GIB, gpu.gib
        if need > have:
            found.append(f"{need:.1f} GiB are needed on each GPU and there are {have}; {self._remedy(gpu)}")
        return found

    def _remedy(self, gpu: Gpu) -> str:
        train = self.config.train
        changes: list[tuple[str, Plan]] = [
            ("train.gradient_checkpointing true", self._with_train(gradient_checkpointing=True)),
            *[(f"train.zero_stage {stage}", self._with_train(zero_stage=stage)) for stage in self.stages[1:]],
            ("train.offload_optimizer true", self._with_train(offload_optimizer=True, zero_stage=2)),
        ]
        if self.config.model.quantize == "none" and train.zero_stage < 3:
            model = dataclasses.replace(self.config.model, quantize="int4")
            changes.append(("model.quantize int4", self._with(model=model)))
        enough = [name for name, plan in changes if plan.memory().total <= gpu.gib * GIB]
        return f"enough, each alone: {', '.join(enough)}" if enough else "use a smaller model, or larger or more GPUs"

    def _with_train(self, **changes: Any) -> Plan:
        return self._with(train=dataclasses.replace(self.config.train, **changes))

    def _with(self, **sections: Any) -> Plan:
        config = dataclasses.replace(self.config, **sections)
        quantised = self.quantised or quantisable(self.architecture)
        return dataclasses.replace(self, config=config, quantised=quantised if config.model.quantize != "none" else 0)


def make_plan(
    config: Config,
    architecture: AuraConfig,
    *,
    work: Workload,
    num_gpus: int = 1,
    num_images: int = 0,
    sources: tuple[str, ...] = (),
) -> Plan:
    """Count everything; the parameters are those of the real model, built without memory (``meta``)."""
    with torch.device("meta"):
        model = AuraModel(architecture)
    return Plan(
        config=config,
        architecture=architecture,
        sources=sources,
        work=work,
        num_gpus=num_gpus,
        parts=model.num_parameters_by_part(),
        quantised=quantisable(architecture) if config.model.quantize != "none" else 0,
        num_images=num_images,
    )


def settled(plan: Plan, memory_bytes: float) -> Plan:
    """The plan with ``train.gradient_checkpointing auto`` decided: off where all fits into the memory with a margin."""
    if plan.config.train.gradient_checkpointing != "auto":
        return plan
    recompute = plan.memory(checkpointing=False).total > MARGIN * memory_bytes
    return plan._with_train(gradient_checkpointing=recompute)


def quantisable(architecture: AuraConfig) -> int:
    """Weights in the linear layers that :mod:`aura.model.quantize` would pack."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    text = architecture.llava_config.text_config
    with torch.device("meta"):
        layer = LlamaDecoderLayer(text, 0)
    linears = (module for module in layer.modules() if isinstance(module, nn.Linear))
    return int(text.num_hidden_layers * sum(linear.weight.numel() for linear in linears))
