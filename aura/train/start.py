"""From a config to a finished run: what ``train_ds.py`` calls."""

from __future__ import annotations

from rich.console import Console

from aura.config import Config
from aura.machine import ranks
from aura.model.configuration import DTYPES
from aura.train import engine
from aura.train.checkpoint import HUB_COMMITS, Checkpoints, read_state
from aura.train.determinism import deterministic
from aura.train.owner import owned
from aura.train.peers import watched
from aura.train.randomness import seed_everything
from aura.train.splits import open_splits
from aura.train.trackers import check_services
from aura.train.trainer import Trainer
from aura.train.validation import check_metric
from aura.weights import hub
from aura.weights.build import build_model
from aura.weights.text import load_text_side


def train(config: Config) -> int:
    """Build the model and the data that ``config`` names, train, export.

    Returns:
        The program's exit code, see :meth:`Trainer.run`.

    Raises:
        ValueError: Something the settings name is missing or does not fit; the message says what to do.
        FloatingPointError: A loss was not finite.
    """
    with deterministic(config.train.deterministic):
        process = engine.start_process(config.train)
        try:
            with watched(process, config.train.timeout_minutes), owned(config.train.output_dir):
                return _train(config, process)
        except OSError as error:
            raise ValueError(str(error)) from error  # it names the file and what the system says of it
        finally:
            engine.stop_process()


def _train(config: Config, process: engine.Process) -> int:
    check_metric(config.train.best_metric)
    check_services(config.train.loggers)
    checkpoints = Checkpoints(config.train.output_dir, config.train.keep_last, process)
    if found := ranks.from_first(lambda: checkpoints.find(config.train.resume)):
        hub.remember(read_state(found).get(HUB_COMMITS, {}))
    hub.together(lambda: hub.here(config.model, weights=False))
    seed_everything(config.train.seed)
    splits = open_splits(config, load_text_side(config.model, config.data), process)
    dtype = DTYPES[config.train.precision]
    hub.together(lambda: hub.here(config.model))
    model, processor, report = build_model(config.model, config.data, process.device, dtype)
    if process.is_main:
        for line in splits.told:
            print(line, flush=True)
        Console().print(report)
    return Trainer(config, model, processor, splits.train, splits.val, process).run()
