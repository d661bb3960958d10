"""Where a run's numbers go besides its own log: TensorBoard, Weights & Biases, MLflow, behind one small interface."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from aura.files import read_text, write_json


class Tracker(Protocol):
    """Takes numbers by name and optimizer step."""

    def write(self, numbers: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Files in ``RUN/tensorboard``."""

    def __init__(self, run: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board: Any = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1 if start else None)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, number in numbers.items():
            self._board.add_scalar(name, number, step)
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class Wandb:
    """Weights & Biases; a continued run goes on in the run it began. Its own environment variables choose the rest."""

    def __init__(self, run: Path, start: int, settings: Mapping[str, Any]) -> None:
        import wandb

        known = _run_id(run, "wandb") if start else None
        self._run: Any = wandb.init(name=run.name, dir=str(run), config=dict(settings), id=known, resume="allow")
        _keep_run_id(run, "wandb", self._run.id)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow; a continued run goes on in the run it began. Its environment variables choose server and experiment."""

    def __init__(self, run: Path, start: int, settings: Mapping[str, Any]) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        known = _run_id(run, "mlflow") if start else None
        found = mlflow.start_run(run_id=known, run_name=None if known else run.name)
        _keep_run_id(run, "mlflow", found.info.run_id)
        if known is None:
            # It takes no value twice, and none of more than some hundred letters.
            mlflow.log_params({name: str(value)[:250] for name, value in settings.items()})

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(numbers), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


SERVICES: dict[str, Any] = {"wandb": Wandb, "mlflow": Mlflow}
"""By their names in ``train.loggers``, which are also those of their packages."""


class Trackers:
    """Those of one run. One that fails is named and left alone: a service that is down stops no training.

    Args:
        run: The run folder.
        start: Optimizer steps already done.
        tensorboard: Write TensorBoard files.
        services: Names of :data:`SERVICES`.
        settings: The run's settings by dotted key, which services show beside its numbers.
    """

    def __init__(
        self, run: Path, start: int, tensorboard: bool, services: Sequence[str], settings: Mapping[str, Any]
    ) -> None:
        self._open: dict[str, Tracker] = {"tensorboard": TensorBoard(run, start)} if tensorboard else {}
        for name in services:
            try:
                self._open[name] = SERVICES[name](run, start, settings)
            except Exception as error:  # a library's own, of any kind
                _warn(name, error)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, tracker in list(self._open.items()):
            if name == "tensorboard":
                tracker.write(numbers, step)
                continue
            try:
                tracker.write({key: value for key, value in numbers.items() if math.isfinite(value)}, step)
            except Exception as error:
                del self._open[name]
                _warn(name, error)

    def close(self) -> None:
        for name, tracker in self._open.items():
            try:
                tracker.close()
            except Exception as error:
                _warn(name, error)


def check_services(names: Sequence[str]) -> None:
    """Refuse, before a run loads weights, a service whose package is not installed.

    Raises:
        ValueError: With what to install.
    """
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"train.loggers names {name}, which is not installed: pip install {name}, or leave it out")


def _warn(name: str, error: Exception) -> None:
    # Not the message itself: it may hold the address of a server with a password in it.
    tqdm.write(f"WARNING: {name} gets no more numbers of this run ({type(error).__name__}); log.jsonl has all")


def _run_id(run: Path, name: str) -> str | None:
    path = run / f"{name}.json"
    found: str | None = json.loads(read_text(path)).get("id") if path.is_file() else None
    return found


def _keep_run_id(run: Path, name: str, value: str) -> None:
    write_json(run / f"{name}.json", {"id": value})
