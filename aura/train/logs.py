"""What a run writes while it trains: ``log.jsonl``, TensorBoard files, and a report at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aura.files import write_json, write_text


class RunLog:
    """The log of one run, by optimizer step: one JSON record per line, and the same numbers for TensorBoard.

    A continued run's log holds each step once: records after ``start`` are of work that was lost, and are dropped.

    Args:
        run: The run folder.
        start: Optimizer steps already done.
        tensorboard: Write TensorBoard files too.
    """

    def __init__(self, run: Path, *, start: int, tensorboard: bool) -> None:
        path = run / "log.jsonl"
        kept = [record for record in read_log(path) if 0 < start and record["step"] <= start]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1 if start else None)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append a record ``{"kind", "step", **values}`` and return it; nested numbers become ``a/b`` in TensorBoard."""
        record = {"kind": kind, "step": step, **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, number in flat_numbers(values).items():
                self._board.add_scalar(f"{kind}/{name}", number, step)
            self._board.flush()
        return record

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a ``log.jsonl``; a line that a kill cut off is left out. Empty without the file."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
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
        self.count: int = state["count"] if state else 0

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

    Silent collapse is how training with wrong weights, a wrong learning rate or a wrong batch shows.
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


def write_run_report(run: Path, report: Mapping[str, Any], evaluate: str) -> None:
    """``report.json`` and ``report.md`` of a finished run."""
    write_json(run / "report.json", report, indent=2)
    best, losses = report["best"], report["losses"]
    lines = [
        f"# {run.name}",
        "",
        f"- {report['steps']} optimizer steps of {report['effective_batch']} images in {report['seconds'] / 60:.1f} min",
        f"- best checkpoint: step {best['step']}, {best['metric']} {best['score']:.4f}"
        if best
        else "- no validation; the export is of the last step",
        f"- export: `{run / 'export'}`",
        f"- evaluate: `{evaluate}`",
        "",
        "| loss | at the end |",
        "|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in losses.items()),
    ]
    write_text(run / "report.md", "\n".join(lines) + "\n")
