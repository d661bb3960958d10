"""From a config to a finished run: what ``train_ds.py`` calls."""

from __future__ import annotations

from rich.console import Console

from aura.config import Config, SplitSettings
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.model.configuration import DTYPES
from aura.train import engine
from aura.train.checkpoint import Checkpoints
from aura.train.trainer import Trainer
from aura.train.validation import check_metric
from aura.weights.build import build_model


def train(config: Config) -> int:
    """Build the model and the data that ``config`` names, train, export.

    Returns:
        The program's exit code, see :meth:`Trainer.run`.

    Raises:
        ValueError: Something the settings name is missing or does not fit; the message says what to do.
        FloatingPointError: A loss was not finite.
    """
    process = engine.start_process(config.train)
    try:
        check_metric(config.train.best_metric)
        Checkpoints(config.train.output_dir, config.train.keep_last, process).find(config.train.resume)
        engine.seed_everything(config.train.seed)
        samples, val_samples = load_split(config.data.train, "train"), None
        if config.data.val.annotations is not None:
            val_samples = load_split(config.data.val, "val")
            refuse_leak(samples, val_samples)
        model, processor, report = build_model(config.model, config.data, dtype=DTYPES[config.train.precision])
        if process.is_main:
            Console().print(report)
        return Trainer(config, model, processor, samples, val_samples, process).run()
    finally:
        engine.stop_process()


def load_split(split: SplitSettings, name: str) -> AmodalReasonSeg:
    """Read a split, and look whether its pictures are there.

    Raises:
        ValueError: Its annotations are not set, or not valid; a picture is missing; there is no conversation.
    """
    if split.annotations is None:
        raise ValueError(f"data.{name}.annotations is not set; give an AmodalReasonSeg JSON file")
    dataset = AmodalReasonSeg.load(split.annotations, split.images)
    used = [sample for sample in dataset if sample.conversations]
    if not used:
        raise ValueError(
            f"{split.annotations} (data.{name}) has no conversation; scripts/generate_questions.py writes some"
        )
    if missing := [sample for sample in used if not sample.image_path.is_file()]:
        raise ValueError(
            f"{split.annotations} (data.{name}): {len(missing)} of {len(used)} pictures do not exist, the first is "
            f"{missing[0].image_path} of image {missing[0].image_id}; give their folder with data.{name}.images"
        )
    return dataset


def refuse_leak(samples: AmodalReasonSeg, val_samples: AmodalReasonSeg) -> None:
    """Raise ``ValueError`` if an image file is in both splits."""
    files = {sample.image_path.resolve() for sample in samples}
    shared = [str(sample.image_path) for sample in val_samples if sample.image_path.resolve() in files]
    if shared:
        raise ValueError(
            f"{len(shared)} images are in data.train and in data.val, the first {shared[0]}; splits must be disjoint"
        )
