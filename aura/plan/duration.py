"""Seconds of an optimizer step on one GPU of several, and what they go into.

Everything here is an estimate: the arithmetic and the launches are counted, the bytes that travel are counted, and the
rates at which a machine does them are assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from aura.plan.gpus import Gpu
from aura.plan.launches import Launches

LAUNCH = (15e-6, 7e-6)
"""Seconds of the CPU for one operation: launched from Python (transformers' modules are many), and from autograd."""
CPU_LINK = 10e9
"""Bytes a second between a GPU and the CPU's memory."""
CPU_ADAMW = 1e9
"""Weights a second that AdamW updates on the CPU."""
ADAMW_BYTES = 28
"""Read and written for each weight: fp32 weight and two moments both ways, the gradient once."""


@dataclass(frozen=True)
class Duration:
    """Seconds of one optimizer step."""

    products: float
    launches: float
    reductions: float
    optimizer: float

    @property
    def total(self) -> float:
        """The GPU computes while the CPU launches; reductions are counted as if nothing ran beside them."""
        return max(self.products, self.launches) + self.reductions + self.optimizer

    @property
    def waits_for_the_cpu(self) -> bool:
        return self.launches > self.products


def of_step(
    gpu: Gpu,
    *,
    flops: int,
    launches: Launches,
    peak: float,
    accumulation: int,
    trained: int,
    total: int,
    gradient_bytes: int,
    value_bytes: int,
    num_gpus: int,
    zero_stage: int,
    offload: bool,
) -> Duration:
    """Of one GPU.

    Args:
        gpu: Which one.
        flops: Of one micro-batch.
        launches: Of one micro-batch.
        peak: TFLOP/s in the run's precision.
        accumulation: Micro-batches of an optimizer step.
        trained: Trained parameters.
        total: All parameters.
        gradient_bytes: Of one gradient value.
        value_bytes: Of one weight as it is used.
        num_gpus: N.
        zero_stage: ZeRO stage.
        offload: AdamW runs on the CPU.
    """
    share = (num_gpus - 1) / num_gpus
    once = share * trained * gradient_bytes  # a reduce-scatter, or an all-gather, of what is trained
    # Stage 2 keeps no whole gradient, so that each micro-batch is reduced; stage 3 gathers every weight twice, too.
    travelled = {0: 2 * once, 1: 2 * once, 2: (accumulation + 1) * once, 3: accumulation * once}[zero_stage]
    if zero_stage == 3:
        travelled += accumulation * 2 * share * total * value_bytes
    mine = trained / num_gpus if zero_stage else trained
    if offload:
        optimizer = mine * ((gradient_bytes + value_bytes) / CPU_LINK + 1 / CPU_ADAMW)
    else:
        optimizer = mine * ADAMW_BYTES / (gpu.memory_gb_s * 1e9)
    return Duration(
        products=accumulation * flops / (peak * 1e12 * gpu.utilisation),
        launches=accumulation * sum(count * each for count, each in zip(launches, LAUNCH, strict=True)),
        reductions=travelled / (gpu.link_gb_s * 1e9),
        optimizer=optimizer,
    )
