"""The training run: optimizer steps, log, validation, checkpoints, export."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from aura.config import OPTIONAL_TERMS, Config, to_yaml
from aura.data.feature_cache import FeatureCache
from aura.data.mixture import Mixture
from aura.data.processor import Processor
from aura.data.selection import pictures
from aura.features import fill_cache
from aura.files import write_text
from aura.losses import AuraCriterion
from aura.machine import ranks
from aura.model import AuraModel
from aura.model.configuration import DTYPES
from aura.plan.activations import Workload
from aura.plan.fitting import decide_recomputing, largest_workload, memory_of
from aura.train import checkpoint as ckpt
from aura.train import engine as ds
from aura.train.align import align_projector, rescale_states, share_named
from aura.train.align_pointer import POINTER_IMAGES, align_pointer, share_pointed
from aura.train.feed import batches
from aura.train.interrupt import Interrupt
from aura.train.logs import RunLog, Window, stuck_warning
from aura.train.page import pictures_of, try_to_write_page
from aura.train.randomness import rng_state, seed_everything, set_rng_state
from aura.train.source_losses import SourceLosses
from aura.train.summary import opening, write_run_report
from aura.train.validation import look_up, shown, validate, validation_samples
from aura.types import Batch, Losses, Sample

LOSS_NAMES = tuple(f.name for f in dataclasses.fields(Losses) if f.name not in OPTIONAL_TERMS)
"""The losses of every model."""

RESCALING_BATCHES = 16
"""Batches whose ``[SEG]`` states say how large they are (``model.rescale_states``)."""


class Trainer:
    """Trains ``model`` on ``samples`` as ``config`` says; everything it makes goes into ``config.train.output_dir``.

    Args:
        config: All settings.
        model: On the CPU; it is moved to the process's device.
        processor: The model's.
        samples: The training split.
        val_samples: The validation split, or ``None``.
        process: This process.
    """

    def __init__(
        self,
        config: Config,
        model: AuraModel,
        processor: Processor,
        samples: Sequence[Sample],
        val_samples: Sequence[Sample] | None,
        process: ds.Process,
    ) -> None:
        self.config, self.settings, self.process = config, config.train, process
        self.model, self.processor, self.samples = model, processor, samples
        self.val_samples = validation_samples(val_samples, config.train, process)
        self.val_sources = val_samples.names if isinstance(val_samples, Mixture) else ()
        self.folder = Path(config.train.output_dir)
        self.checkpoints = ckpt.Checkpoints(self.folder, config.train.keep_last, process)
        self.criterion = AuraCriterion(config.loss)
        self.loss_names = (*LOSS_NAMES, *(name for name in OPTIONAL_TERMS if getattr(config.model, name)))
        self.effective_batch = self.settings.micro_batch_size * self.settings.accumulation * process.world_size
        self.best: dict[str, Any] | None = None
        self.terms: list[tuple[tuple[int, ...], torch.Tensor]] = []
        """Images and losses (in the order of ``loss_names``) of the optimizer step's micro-batches so far."""
        self.skipped = False
        self.sources = SourceLosses(samples.names if isinstance(samples, Mixture) else (), self.loss_names)

    def run(self) -> int:
        """Train to the end, or until a signal comes.

        Returns:
            0, or 128 + the signal's number after a checkpoint was saved.

        Raises:
            ValueError: The checkpoint or the data do not fit.
            FloatingPointError: A loss was not finite.
        """
        # The first rank decides for all: another machine might still see what lay in the folder a moment ago.
        found = ranks.from_first(lambda: self.checkpoints.find(self.settings.resume))
        self.identity = ckpt.identity(self.config, self.process, self.samples, self.model)
        state = ckpt.read_continuable(found, self.identity) if found else {}
        if self.process.is_main:
            write_text(self.folder / "config.yaml", to_yaml(self.config))
        self._prepare_model(new=found is None)
        self.engine = ds.Engine(self.model, self.settings, self.process)
        seed_everything(self.settings.seed + 1 + self.process.rank)
        self.window = Window()
        if found is not None:
            self._restore(found, state)
        where, seconds = self.folder if self.process.is_main else None, state.get("seconds", 0.0)
        self.log = RunLog(
            where,
            start=self.engine.steps,
            tensorboard=self.settings.tensorboard,
            services=self.settings.loggers,
            settings=ckpt.settings_by_key(self.config),
            seconds=seconds,
        )
        self._say(opening(self.model, self.config, self.process.world_size, len(self.samples)))
        self._say(self.recomputing)
        stopped_by = self._train()
        if not stopped_by:
            self._finish()
        self.log.close()
        return 128 + stopped_by if stopped_by else 0

    def _prepare_model(self, new: bool) -> None:
        self.model.to(self.process.device)  # type: ignore[arg-type]
        self.cache = FeatureCache.open(self.config.data.feature_cache, self.model, self.processor)
        if self.cache is not None:
            paths = [picture.path for samples in (self.samples, self.val_samples) for picture in pictures(samples)]
            rank, world = self.process.rank, self.process.world_size
            workers, quiet = self.config.data.num_workers, rank > 0
            fill_cache(
                self.cache, paths, self.model, self.processor, rank=rank, world=world, workers=workers, quiet=quiet
            )
            ds.wait_for_all(self.process)
            self.cache.refresh()
        if new and self.settings.align_steps:
            self._align()
        self.model.mllm.autocast = ds.uses_autocast(self.settings, self.process)
        if new and self.config.asks_for_objects:
            self._prepare_prompts()
        if self._recomputes():
            self.model.gradient_checkpointing_enable()
        self.model.train()

    def _prepare_prompts(self) -> None:
        """What the prompt encoder learns from the language model as it comes, before the first step."""
        prompts, quiet = self.model.prompt_encoder, not self.process.is_main

        def first(number: int, samples: Sequence[Sample]) -> Iterator[Batch]:
            with closing(batches(samples, self.processor, self.config, self.process, self.cache)) as stream:
                yield from islice(stream, number)

        def to_point(samples: Sequence[Sample]) -> Iterator[Batch]:
            images = min(POINTER_IMAGES, len(samples))
            return first(math.ceil(images / self.settings.micro_batch_size), samples)

        if prompts.rescaling is not None and prompts.rescaling.is_new:
            rescale_states(self.model, first(RESCALING_BATCHES, self.samples), quiet=quiet)
        if prompts.pointer is not None and prompts.pointer.is_new:
            right = align_pointer(self.model, to_point(self.samples), quiet=quiet)
            self._say(f"{right:.0%} of the [SEG] states point at their object")
            if self.val_samples:
                right = share_pointed(self.model, to_point(self.val_samples), quiet=quiet)
                self._say(f"{right:.0%} on the validation images")

    def _recomputes(self) -> bool:
        """Whether the language model's activations are recomputed, the same on all processes."""
        work, memory = Workload(), None
        if self.settings.gradient_checkpointing == "auto":
            work = largest_workload(self.samples, self.processor, self.config)
            memory = memory_of(self.process.device, self.process.world_size)
        number = self.process.world_size
        wanted, self.recomputing = decide_recomputing(
            self.config, self.model, work, processes=number, memory_bytes=memory
        )
        return bool(ds.largest_over_processes(int(wanted), self.process))

    def _align(self) -> None:
        steps, seed, quiet = self.settings.align_steps, self.settings.seed, not self.process.is_main
        right = align_projector(
            self.model, self.processor, self.samples, self.cache, steps=steps, seed=seed, quiet=quiet
        )
        self._say(f"{right:.0%} of the image tokens that show an object are nearest to its word")
        if self.val_samples and self.process.is_main:
            named = share_named(self.model, self.processor, self.samples, self.val_samples, self.cache)
            self._say(f"{named:.0%} on the validation images: what is not told apart there is hardly found there")

    def _restore(self, found: Path, state: dict[str, Any]) -> None:
        processes = state["identity"][ckpt.PROCESSES]
        resharded = processes != self.process.world_size
        self.engine.load(found.parent, found.name, resharded=resharded)
        if resharded:  # random states belong to processes; the draws to come are new ones, the same at each try
            seed_everything(self.settings.seed + 1 + self.process.rank + 1_000_003 * self.engine.attempts)
            writers = [dataclasses.replace(self.process, rank=rank) for rank in range(processes)]
            windows = [ckpt.read_own_state(found, writer)["window"] for writer in writers]
            self.window = Window.shared(windows, self.process.world_size)
            parts = [ckpt.read_own_state(found, writer).get("sources") or [] for writer in writers]
            names = self.sources.sources
            self.sources = SourceLosses.shared(names, self.loss_names, parts, self.process.world_size)
        else:
            own = ckpt.read_own_state(found, self.process)
            set_rng_state(own["rng"])
            self.window = Window(own["window"])
            self.sources = SourceLosses(self.sources.sources, self.loss_names, own.get("sources"))
        of = f" (processes: {processes}, now {self.process.world_size})" if resharded else ""
        self._say(f"continuing {found}{of} in {self.folder}")
        # Elsewhere the best checkpoint would stay behind, and could not be exported at the end.
        if found.resolve().parent == self.checkpoints.folder.resolve():
            self.best = state["best"]
            if dropped := self.checkpoints.forget_after(self.engine.steps):
                self._say(f"dropped the later checkpoints {dropped}")

    def _train(self) -> int:
        """Returns the signal that stopped it, 0 at the end."""
        s, engine, process = self.settings, self.engine, self.process
        done = engine.attempts * s.accumulation
        stream = batches(self.samples, self.processor, self.config, process, self.cache, start=done)
        bar = tqdm(total=s.steps, initial=engine.steps, desc="training", unit="step", disable=not process.is_main)
        with Interrupt() as interrupt, bar, closing(stream):
            while engine.steps < s.steps:
                lr = engine.lr
                for _ in range(s.accumulation):
                    self._micro_step(next(stream))
                step, improved, due = engine.steps, False, False
                if self._end_step():
                    bar.update()
                    if self._is_due(step, s.log_every) or step == 1:
                        bar.set_postfix({name: f"{loss:.3f}" for name, loss in self._log(step, lr).items()})
                    improved = self._is_due(step, s.validate_every) and self._validate(step)
                    due = self._is_due(step, s.checkpoint_every) or step == s.steps
                signal = ds.largest_over_processes(interrupt.signal, process)
                if due or improved or signal:
                    self._save()
                if signal and step < s.steps:
                    self._say(f"stopped by signal {signal} after step {step}; --train.resume auto continues")
                    return signal
        return 0

    def _is_due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.settings.steps)

    def _micro_step(self, batch: Batch) -> None:
        self.model.mllm.check_placeholders(batch.input_ids, self.model.config.num_image_tokens)
        batch = batch.to(self.process.device)
        if self.sources.sources:
            losses, own = self.criterion.with_images(self.engine(batch), batch)
            self.sources.note(batch.image_ids, own)
        else:
            losses = self.criterion(self.engine(batch), batch)
        self.engine.backward(losses.total)
        # Read once per optimizer step, all together: each look makes the GPU wait.
        values = torch.stack([getattr(losses, name).detach().float() for name in self.loss_names])
        self.terms.append((batch.image_ids, values))
        try:
            self.skipped = self.engine.step()
        except FloatingPointError as error:
            self._read_losses(self.engine.steps + 1)
            images = [image for ids, _ in self.terms for image in ids]
            raise FloatingPointError(f"{error}; the last images were {images}") from error

    def _end_step(self) -> bool:
        """Take in the losses of an optimizer step; false if it was skipped."""
        losses = self._read_losses(self.engine.steps)
        self.terms.clear()
        self.sources.end_step(keep=not self.skipped)
        if self.skipped:
            assert self.engine.scaler is not None
            scale, count = self.engine.scaler.scale, self.engine.skipped_steps
            self._say(f"step {self.engine.steps + 1}: the gradients overflowed, tried again with loss scale {scale:g}")
            self.log.write("skip", self.engine.steps, {"loss_scale": scale, "skipped_steps": count})
            return False
        for terms in losses:
            if math.isfinite(terms["total"]):
                self.window.add(terms)
        return True

    def _read_losses(self, step: int) -> list[dict[str, float]]:
        """The terms of each micro-batch of optimizer step ``step``.

        Raises:
            FloatingPointError: One is not finite, where no loss scale can be the reason; the message names its images.
        """
        rows = torch.stack([terms for _, terms in self.terms]).tolist()
        losses = [dict(zip(self.loss_names, row, strict=True)) for row in rows]
        for (images, _), terms in zip(self.terms, losses, strict=True):
            if self.engine.scaler is None and not math.isfinite(terms["total"]):
                raise FloatingPointError(
                    f"the loss is not finite in optimizer step {step}: {terms}; images {list(images)}. Look at these "
                    "records, or lower --train.lr; the last checkpoint is good"
                )
        return losses

    def _log(self, step: int, lr: float) -> dict[str, float]:
        """Write a log line; the losses for the progress bar, of all and of each source."""
        # A window in which no loss was finite (fp16) has no means; all processes give the same names.
        means = {name: self.window.means().get(name, math.nan) for name in self.loss_names}
        means = dict(zip(means, ds.mean_over_processes(list(means.values()), self.process), strict=True))
        self.window = Window()
        speed = round(self.log.speed(step) * self.effective_batch, 3)
        facts: dict[str, Any] = {"lr": lr, "grad_norm": self.engine.grad_norm}
        if self.engine.scaler is not None:
            facts |= {"loss_scale": self.engine.scaler.scale, "skipped_steps": self.engine.skipped_steps}
        if isinstance(self.samples, Mixture):
            facts["drawn"] = self.samples.visits(self.engine.attempts * self.effective_batch)
            facts["sources"] = self.sources.take(self.process)
        self.log.write("train", step, {**means, **facts, "samples_per_second": speed})
        check_at = max(3 * self.settings.warmup_steps, self.settings.steps // 4)
        if step - self.settings.log_every < check_at <= step:
            warning = stuck_warning([record["total"] for record in self.log.records("train")])
            self._say(f"WARNING: {warning}" if warning else f"the loss has moved by step {step}")
        return {"loss": means["total"]} | {name: own["total"] for name, own in facts.get("sources", {}).items()}

    def _validate(self, step: int) -> bool:
        """Score the model; true if it is the best so far."""
        if not self.val_samples:
            return False
        keep = pictures_of(self.folder, step) if self.process.is_main else None
        report = validate(self.model, self.processor, self.val_samples, self.cache, keep, self.val_sources)
        self.log.write("val", step, report)
        key = self.settings.best_metric
        score = look_up(report, key)
        improved = score is not None and (self.best is None or score > self.best["score"])
        if improved:
            self.best = {"step": step, "metric": key, "score": score}
        self._say(f"step {step}: {shown(report, key)}{' (best)' if improved else ''}")
        return improved

    def _save(self) -> None:
        state = {"identity": self.identity, "best": self.best, "seconds": self.log.seconds}
        state[ckpt.HUB_COMMITS] = self.model.config.hub_commits or {}
        windows = {"window": self.window.state(), "sources": self.sources.state()}
        self.checkpoints.save(self.engine, state, {"rng": rng_state(), **windows})

    def _finish(self) -> None:
        """Export the best checkpoint (the last one without validation) and write the report."""
        chosen = self.checkpoints.path(self.best["step"]) if self.best else None
        dtype = DTYPES[self.settings.precision]
        ckpt.export(self.engine, self.processor, self.folder / "export", chosen, dtype)
        if self.process.is_main:
            total = self.effective_batch
            command = write_run_report(self.folder, self.config, self.log, effective_batch=total, best=self.best)
            try_to_write_page(self.folder)
            self._say(f"done in {self.log.seconds / 60:.1f} min; next: {command}")

    def _say(self, text: str) -> None:
        if self.process.is_main:
            tqdm.write(text)
