"""The GPUs that a plan knows, and what it assumes of them."""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Gpu(NamedTuple):
    """A GPU.

    Args:
        name: As tables call it.
        gib: Its memory.
        peak: TFLOP/s by precision (dense tensor cores).
        utilisation: Share of the peak that products are assumed to reach where the CPU keeps up. Not measured.
        memory_gb_s: Of its memory.
        link_gb_s: Between two GPUs of a machine in one direction, assumed: PCIe 3 for V100, NVLink for the others.
    """

    name: str
    gib: int
    peak: dict[str, float]
    utilisation: float
    memory_gb_s: float
    link_gb_s: float


GPUS = {
    "v100": Gpu("V100 32 GB", 32, {"fp16": 125, "fp32": 15.7}, 0.25, 900, 10),
    "a100": Gpu("A100 80 GB", 80, {"fp16": 312, "bf16": 312, "fp32": 19.5}, 0.35, 2000, 200),
    "h100": Gpu("H100 80 GB", 80, {"fp16": 989, "bf16": 989, "fp32": 67}, 0.40, 3350, 300),
}
