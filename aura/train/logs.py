"""What a run writes while it trains: ``log.jsonl``, and the same numbers for whoever else tracks it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aura.files import finite, to_json, write_text
from aura.train.trackers import Trackers


class RunLog:
    """The log of one run, by optimizer step: one JSON record per line, and the same numbers for its trackers.

    A continued run's log holds each step once: records after ``start`` are of work that was lost, and are dropped.

    Args:
        run: The run folder; ``None`` writes nothing (processes other than the main one).
        start: Optimizer steps already done.
        tensorboard: Write TensorBoard files too.
        services: Names of other trackers (``train.loggers``).
        settings: The run's settings by dotted key, for these.
        seconds: Time the run took before this process began.
    """

    def __init__(
        self,
        run: Path | None,
        *,
        start: int = 0,
        tensorboard: bool = False,
        services: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
    ) -> None:
        self._trackers: Trackers | None = None
        self._path = None if run is None else run / "log.jsonl"
        self._seconds_before, self._started = seconds, time.monotonic()
        self._last = (start, self._started)
        if run is None or self._path is None:
            return
        kept = [record for record in read_log(self._path) if record["step"] <= start] if start else []
        write_text(self._path, "".join(to_json(record) + "\n" for record in kept))
        self._trackers = Trackers(run, start, tensorboard, services, settings or {})

    @property
    def seconds(self) -> float:
        """Time the run has taken, over all its continuations."""
        return self._seconds_before + time.monotonic() - self._started

    def speed(self, step: int) -> float:
        """Optimizer steps per second since this was last asked."""
        (step_before, time_before), now = self._last, time.monotonic()
        self._last = (step, now)
        return (step - step_before) / max(now - time_before, 1e-9)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a record ``{"kind", "step", **values}``; nested numbers become ``a/b`` for trackers.

        What is not finite is ``null`` there, and ``not_finite`` lists it.
        """
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            record = {"kind": kind, "step": step, **values, "seconds": round(self.seconds, 2)}
            file.write(to_json(finite(record)) + "\n")
        if self._trackers is not None:
            self._trackers.write({f"{kind}/{name}": number for name, number in flat_numbers(values).items()}, step)

    def records(self, kind: str) -> list[dict[str, Any]]:
        """All records of one kind, of this process and of those it continues."""
        return [r for r in read_log(self._path) if r["kind"] == kind] if self._path is not None else []

    def close(self) -> None:
        if self._trackers is not None:
            self._trackers.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a ``log.jsonl``, up to a line that a kill cut off. Empty without the file."""
    records: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not (isinstance(record, dict) and isinstance(record.get("kind"), str) and type(record.get("step")) is int):
            break
        records.append(record)
    return records


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested mapping, by path ``a/b``; everything else is left out."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            numbers |= flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{key}"] = float(value)
    return numbers


class Window:
    """Running means of the losses since the last log line. Its state is part of a checkpoint."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.sums: dict[str, float] = dict(state["sums"]) if state else {}
        self.count: float = state["count"] if state else 0

    @classmethod
    def shared(cls, states: Sequence[Mapping[str, Any]], processes: int) -> Window:
        """What several processes had summed up, in equal shares for another number of them: the mean stays."""
        sums: dict[str, float] = {}
        for state in states:
            for name, value in state["sums"].items():
                sums[name] = sums.get(name, 0.0) + value / processes
        return cls({"sums": sums, "count": sum(state["count"] for state in states) / processes})

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        return {name: total / self.count for name, total in self.sums.items()}

    def state(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "count": self.count}


def stuck_warning(totals: list[float], share: float = 0.98) -> str | None:
    """A warning if the loss has not moved: the mean of the last third is not below ``share`` of the first log line's.

    Wrong weights, a wrong learning rate or too small a batch show in nothing but this.
    """
    if len(totals) < 3:
        return None
    last = totals[-max(1, len(totals) // 3) :]
    recent = sum(last) / len(last)
    if recent < share * totals[0]:
        return None
    return (
        f"the loss does not move ({totals[0]:.3f} at first, {recent:.3f} now): check the weights table above, the "
        "learning rate and the effective batch; --train.overfit_one_batch true shows whether the model can learn at all"
    )
