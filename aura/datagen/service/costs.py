"""The cost of requests: prices that the user states, token estimates, a ledger that stops before the limit."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from aura.datagen.records import BudgetReached

MILLION = 1_000_000


@dataclass(frozen=True)
class ModelPrice:
    """Price of a million tokens, in one currency of the user's choice; nothing is assumed about any model.

    ``cached_input`` is the price of input tokens that the service had cached (without it they cost as much as others);
    ``batch_factor`` multiplies everything that goes through the batch endpoint.
    """

    input: float
    output: float
    cached_input: float | None = None
    batch_factor: float = 1.0

    def __post_init__(self) -> None:
        values = [self.input, self.output, self.batch_factor, self.cached_input or 0.0]
        if not all(math.isfinite(v) and v >= 0 for v in values):
            raise ValueError(f"prices must be finite and not negative, got {self}")


@dataclass(frozen=True)
class Usage:
    """Tokens of one request; ``cached`` of the ``input`` ones were cached by the service."""

    input: int
    output: int
    cached: int = 0

    def cost(self, price: ModelPrice | None, *, batch: bool = False) -> float:
        """In the price's currency; 0 without a price."""
        if price is None:
            return 0.0
        cached = min(self.cached, self.input)
        rate = price.input if price.cached_input is None else price.cached_input
        total = (self.input - cached) * price.input + cached * rate + self.output * price.output
        return total / MILLION * (price.batch_factor if batch else 1.0)


def text_tokens(text: str) -> int:
    """About how many tokens a text has: one per four characters."""
    return math.ceil(len(text) / 4)


def image_tokens(width: int, height: int, detail: str, base: int, tile: int) -> int:
    """Tokens of a picture by the rule of GPT-4o: ``base``, and in high detail ``tile`` for each square of 512 pixels.

    In high detail the service first brings the picture into a square of 2048 pixels, then its shorter side down to 768.
    """
    if detail == "low":
        return base
    scale = min(1.0, 2048 / max(width, height))
    scale *= min(1.0, 768 / (min(width, height) * scale))
    return base + tile * math.ceil(round(width * scale) / 512) * math.ceil(round(height * scale) / 512)


class Ledger:
    """Money spent and money promised to requests under way; ``spent + promised`` never exceeds ``max_cost``.

    A request reserves the most that it can cost before it is sent, and settles for what it did cost. ``spent`` starts
    at what earlier runs cost. Used from one event loop.
    """

    def __init__(self, max_cost: float | None = None, spent: float = 0.0) -> None:
        if max_cost is not None and not max_cost >= 0:
            raise ValueError(f"max_cost must not be negative, got {max_cost}")
        self.max_cost = max_cost
        self.spent = spent
        self.reserved = 0.0
        self._waiting: list[asyncio.Event] = []

    async def reserve(self, amount: float) -> None:
        """Set ``amount`` aside, waiting for requests under way if they may leave enough.

        Raises:
            BudgetReached: ``amount`` does not fit even when all that is under way should cost nothing.
        """
        while not self._fits(self.reserved, amount):
            if not self._fits(0.0, amount) or self.reserved <= 0:
                raise BudgetReached(
                    f"{self.spent:.4f} of max_cost {self.max_cost:g} is spent, and the next request may cost "
                    f"{amount:.4f}; raise max_cost and run again, nothing is lost"
                )
            event = asyncio.Event()
            self._waiting.append(event)
            await event.wait()
        self.reserved += amount

    def reserve_now(self, amount: float) -> None:
        """Set aside what was promised by an earlier process, whether it fits or not."""
        self.reserved += amount

    def settle(self, reserved: float, cost: float) -> None:
        """Give back a reservation and book what was charged."""
        # Sums of floats need not cancel: without anything under way nothing is reserved.
        self.reserved = max(0.0, self.reserved - reserved)
        if self.reserved < 1e-12:
            self.reserved = 0.0
        self.spent += cost
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            event.set()

    def _fits(self, reserved: float, amount: float) -> bool:
        return self.max_cost is None or self.spent + reserved + amount <= self.max_cost
