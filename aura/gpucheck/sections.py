"""The sections of ``scripts/check_gpu.py``: what each proves, and how long it may take. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Section(NamedTuple):
    """One section.

    Args:
        number: As ``--only`` names it.
        title: What it proves, in a few words.
        place: Module of this package and function, which takes a :class:`~aura.gpucheck.lab.Lab` and a
            :class:`~aura.gpucheck.findings.Findings`.
        deadline: Seconds after which it is stopped.
        least: It is not begun with fewer seconds left.
        keeps_large: It works on the large model that a section before it may have left.
    """

    number: int
    title: str
    place: str
    deadline: int
    least: int
    keeps_large: bool = False

    @property
    def function(self) -> Callable[[Any, Any], None]:
        module, _, name = self.place.partition(":")
        found: Callable[[Any, Any], None] = getattr(importlib.import_module(f"aura.gpucheck.{module}"), name)
        return found


SECTIONS = (
    Section(0, "environment, ceilings, attention kernel", "hardware:environment", 45, 10),
    Section(1, "mini model in fp32: this device against the CPU", "small:devices_agree", 60, 20),
    Section(2, "mini model in half precision: train, export, reload", "small:export_is_the_run", 75, 25),
    Section(3, "fp16 overflows: skipped, scale falls, the run goes on", "small:overflows_are_skipped", 40, 15),
    Section(4, "7B with ViT-H: memory against the plan, milliseconds", "large:steps", 110, 45, keeps_large=True),
    Section(5, "7B: profile of one micro-step", "large:profile", 45, 20, keeps_large=True),
    Section(6, "7B: eleven conversations packed against separate", "large:packing", 45, 20, keeps_large=True),
    Section(7, "7B: tokens a second, 1 and 11 prompts", "large:generation", 60, 25, keeps_large=True),
    Section(8, "7B in fp16: features, 6 steps, save, resume", "half:fp16_run", 100, 45),
    Section(9, "7B in 4 bits: a step and an answer", "half:four_bits", 100, 45),
    Section(10, "7B: forty [SEG] at 1024 px, 3,876 tokens", "half:many_objects", 60, 30),
    Section(11, "mini training, 200 steps, against the CPU's trace", "trace:follows_the_cpu", 100, 40),
    Section(12, "a step and an evaluation, the plain way and ours", "gains:plain_against_ours", 90, 30),
)

BY_NUMBER = {section.number: section for section in SECTIONS}
