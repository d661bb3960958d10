"""fp16's dynamic loss scale: half-precision gradients are tiny, so the loss is multiplied before the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class LossScale:
    """Halved when the gradients of an optimizer step overflow, doubled after ``window`` steps without.

    It depends on nothing but the sequence of overflows, which all processes see alike.
    """

    def __init__(self, scale: float = 2.0**16, window: int = 1000) -> None:
        self.scale, self.window = scale, window
        self.good_steps = 0
        """Steps since it last changed."""
        self.overflows_in_a_row = 0

    def update(self, overflowed: bool) -> None:
        """Take in how an optimizer step ended."""
        if overflowed:
            self.scale, self.good_steps = max(self.scale / 2, 1.0), 0
            self.overflows_in_a_row += 1
            return
        self.good_steps += 1
        self.overflows_in_a_row = 0
        if self.good_steps == self.window:
            self.scale, self.good_steps = self.scale * 2, 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"scale": self.scale, "good_steps": self.good_steps, "overflows_in_a_row": self.overflows_in_a_row}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go back to what :meth:`state` returned."""
        self.scale, self.good_steps = state["scale"], state["good_steps"]
        self.overflows_in_a_row = state["overflows_in_a_row"]
