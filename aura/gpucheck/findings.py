"""What a section found: facts, and claims with what was seen and what was wanted. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


class NotPossible(Exception):
    """What a section needs is not on this machine; the message says what."""


@dataclass
class Findings:
    """Of one section.

    Args:
        on_gpu: A claim about a GPU is not judged without one.
    """

    on_gpu: bool
    facts: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)

    def fact(self, **facts: Any) -> None:
        self.facts |= {name: rounded(value) for name, value in facts.items()}

    def check(self, claim: str, holds: bool, *, seen: Any, wanted: Any, gpu_only: bool = False) -> None:
        """Record a claim; without a GPU one that is ``gpu_only`` is recorded and not judged."""
        judged = None if gpu_only and not self.on_gpu else bool(holds)
        self.checks.append({"claim": claim, "holds": judged, "seen": rounded(seen), "wanted": rounded(wanted)})

    def at_most(self, claim: str, seen: float, limit: float, *, gpu_only: bool = False) -> None:
        """Record that a figure is finite and no larger than ``limit``."""
        holds = math.isfinite(seen) and seen <= limit
        self.check(claim, holds, seen=seen, wanted=f"at most {limit:g}", gpu_only=gpu_only)

    @property
    def disproved(self) -> list[dict[str, Any]]:
        return [check for check in self.checks if check["holds"] is False]


def rounded(value: Any) -> Any:
    """The value as strict JSON can hold it, floats with four significant digits."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, int | str | bool | None) else str(value)
