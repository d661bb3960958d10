"""The training run: optimizer steps, log, validation, checkpoints, export."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from aura.config import Config, to_yaml
from aura.data.collate import collate
from aura.data.dataset import AuraDataset, EpochSampler
from aura.data.processor import Processor
from aura.evaluation import evaluate
from aura.files import write_text
from aura.losses import AuraCriterion
from aura.model import AuraModel
from aura.train import checkpoint as checkpoints
from aura.train import engine as ds
from aura.train.features import fill_cache, open_cache
from aura.train.interrupt import Interrupt
from aura.train.logs import RunLog, Window, read_log, stuck_warning, write_run_report
from aura.types import Batch, Sample


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
        self.model, self.processor = model, processor
        self.samples, self.val_samples = samples, val_samples
        self.run_folder = Path(config.train.output_dir)
        self.checkpoints = checkpoints.Checkpoints(self.run_folder, config.train.keep_last, process)
        self.effective_batch = self.settings.micro_batch_size * self.settings.accumulation * process.world_size
        self.best: dict[str, Any] | None = None

    def run(self) -> int:
        """Train to the end, or until a signal comes.

        Returns:
            0, or 128 + the signal's number after a checkpoint was saved.

        Raises:
            ValueError: The checkpoint or the data do not fit.
            FloatingPointError: A loss was not finite.
        """
        found, state = self._find_checkpoint()
        if self.process.is_main:
            write_text(self.run_folder / "config.yaml", to_yaml(self.config))
        self._prepare_model()
        self.engine = ds.Engine(self.model, self.settings, self.process)
        ds.seed_everything(self.settings.seed + 1 + self.process.rank)
        own = self._restore(found, state) if found else {}
        self.window = Window(own.get("window"))
        self.seconds_before, self.started = float(state.get("seconds", 0.0)), time.monotonic()
        self.log = None
        if self.process.is_main:
            self.log = RunLog(self.run_folder, start=self.engine.steps, tensorboard=self.settings.tensorboard)
        self._announce()
        code = self._train()
        if code == 0:
            self._finish()
        if self.log is not None:
            self.log.close()
        return code

    # --- before the first step ----------------------------------------------------------------------------------------

    def _find_checkpoint(self) -> tuple[Path | None, dict[str, Any]]:
        found = self.checkpoints.find(self.settings.resume)
        ds.wait_for_all(self.process)
        if found is None:
            return None, {}
        state = checkpoints.read_state(found)
        checkpoints.check_continuable(found, state, self.config, self.process.world_size)
        if state["num_samples"] != len(self.samples):
            raise ValueError(
                f"{found} was trained on {state['num_samples']} images, data.train.annotations has {len(self.samples)}"
            )
        return found, state

    def _prepare_model(self) -> None:
        self.model.to(self.process.device)
        self.cache = open_cache(self.config.data.feature_cache, self.model, self.processor)
        if self.cache is not None:
            paths = [s.image_path for s in itertools.chain(self.samples, self._validation_samples())]
            fill_cache(self.cache, paths, self.model, self.processor, self.process)
        if self.settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.train()

    def _restore(self, found: Path, state: dict[str, Any]) -> dict[str, Any]:
        self.engine.load(found.parent, found.name)
        own = checkpoints.read_own_state(found, self.process)
        ds.set_rng_state(own["rng"])
        self.best = state["best"]
        if found.resolve().parent == self.checkpoints.folder.resolve():
            dropped = self.checkpoints.forget_after(self.engine.steps)
            self._say(f"continuing {found}" + (f"; dropped the later checkpoints {dropped}" if dropped else ""))
        else:
            self.best = None  # its checkpoint is not in this run folder, so it could not be exported
            self._say(f"continuing {found} in {self.run_folder}")
        return own

    def _announce(self) -> None:
        for part, (total, trainable) in self.model.num_parameters_by_part().items():
            self._say(f"{part:24}{total:>15,} parameters{trainable:>15,} trained")
        s = self.settings
        self._say(
            f"effective batch: {s.micro_batch_size} images x {s.accumulation} accumulation x {self.process.world_size} "
            f"processes = {self.effective_batch} images per optimizer step; {s.steps} optimizer steps = "
            f"{s.steps * self.effective_batch / len(self.samples):.1f} passes over {len(self.samples)} images"
        )

    def _batches(self) -> Iterator[Batch]:
        data, s = self.config.data, self.settings
        dataset = AuraDataset(
            self.samples,
            self.processor,
            conversations_per_image=data.conversations_per_image,
            seed=s.seed,
            cache=self.cache,
        )
        start = self.engine.steps * s.accumulation
        rank, world = self.process.rank, self.process.world_size
        keys: Any = EpochSampler(len(dataset), s.micro_batch_size, seed=s.seed, rank=rank, world=world, start=start)
        if s.overfit_one_batch:
            keys = itertools.cycle([keys.keys(micro_step) for micro_step in range(s.accumulation)])
        # A generator of its own: the loader draws a number when it starts, which would shift the model's dropout.
        loader = DataLoader(
            dataset, batch_sampler=keys, collate_fn=collate, num_workers=data.num_workers, generator=torch.Generator()
        )
        return iter(loader)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _train(self) -> int:
        s, engine = self.settings, self.engine
        batches, self.criterion = self._batches(), AuraCriterion(self.config.loss)
        self.logged_at = (engine.steps, time.monotonic())
        bar = tqdm(
            total=s.steps, initial=engine.steps, desc="training", unit="step", disable=not self.process.is_main
        )
        with Interrupt() as interrupt, bar:
            while engine.steps < s.steps:
                lr = engine.lr
                for _ in range(s.accumulation):
                    self._micro_step(next(batches))
                step, last = engine.steps, engine.steps == s.steps
                bar.update()
                if step % s.log_every == 0 or step == 1 or last:
                    bar.set_postfix(loss=f"{self._log(step, lr):.3f}")
                improved = self._is_due(step, s.validate_every) and self._validate(step)
                signal = ds.largest_over_processes(interrupt.signal, self.process)
                if self._is_due(step, s.checkpoint_every) or last or improved or signal:
                    self._save()
                if signal and not last:
                    self._say(f"stopped by signal {signal} after step {step}; --train.resume auto continues")
                    return 128 + signal
        return 0

    def _is_due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.settings.steps)

    def _micro_step(self, batch: Batch) -> None:
        losses = self.criterion(self.engine(batch.to(self.process.device)), batch.to(self.process.device))
        names = [f.name for f in dataclasses.fields(losses)]
        # One transfer for all terms: each would make the GPU wait.
        values = torch.stack([getattr(losses, name).detach().float() for name in names]).tolist()
        terms = dict(zip(names, values, strict=True))
        if not math.isfinite(terms["total"]):
            raise FloatingPointError(
                f"the loss is not finite in optimizer step {self.engine.steps + 1}: {terms}; images "
                f"{list(batch.image_ids)}. Nothing was saved for this step; look at these records, or lower --train.lr"
            )
        self.engine.backward(losses.total)
        self.engine.step()
        self.window.add(terms)

    def _log(self, step: int, lr: float) -> float:
        means = self.window.means()
        means = dict(zip(means, ds.mean_over_processes(list(means.values()), self.process), strict=True))
        self.window = Window()
        (step_before, time_before), now = self.logged_at, time.monotonic()
        self.logged_at = (step, now)
        if self.log is not None:
            speed = (step - step_before) * self.effective_batch / (now - time_before)
            times = {"seconds": round(self._seconds(), 2), "samples_per_second": round(speed, 3)}
            self.log.write("train", step, {**means, "lr": lr, "grad_norm": self.engine.grad_norm, **times})
            self._warn_if_stuck(step)
        return means["total"]

    def _warn_if_stuck(self, step: int) -> None:
        check_at = max(3 * self.settings.warmup_steps, self.settings.steps // 4)
        if step - self.settings.log_every < check_at <= step:
            records = read_log(self.run_folder / "log.jsonl")
            warning = stuck_warning([r["total"] for r in records if r["kind"] == "train"])
            if warning:
                self._say(f"WARNING: {warning}")

    # --- validation, checkpoints, end ---------------------------------------------------------------------------------

    def _validation_samples(self) -> Sequence[Sample]:
        if self.val_samples is None or self.settings.validate_every == 0:
            return []
        limit = self.settings.validate_images
        chosen = [s for s in itertools.islice(self.val_samples, limit) if s.conversations]
        if self.settings.zero_stage == 3:  # every forward pass is a joint act there: all processes need equally many
            chosen = chosen[: len(chosen) // self.process.world_size * self.process.world_size]
        return chosen

    def _validate(self, step: int) -> bool:
        """Score the model; true if it is the best so far."""
        samples = self._validation_samples()
        if not samples:
            return False
        random_state = ds.rng_state()
        report = evaluate(self.engine.module, self.processor, samples, "teacher_forced", cache=self.cache).as_dict()
        ds.set_rng_state(random_state)
        key = self.settings.best_metric
        score = _look_up(report, key)
        best_before = -math.inf if self.best is None else self.best["score"]
        improved = score is not None and score > best_before
        if improved:
            self.best = {"step": step, "metric": key, "score": score}
        if self.log is not None:
            self.log.write("val", step, {k: v for k, v in report.items() if not isinstance(v, list)})
        self._say(f"step {step}: {key} {score if score is None else round(score, 4)}{' (best)' if improved else ''}")
        return improved

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _save(self) -> None:
        settings = checkpoints.important_settings(self.config)
        state = {"settings": settings, "best": self.best, "seconds": self._seconds(), "num_samples": len(self.samples)}
        own_state = {"rng": ds.rng_state(), "window": self.window.state()}
        self.checkpoints.save(self.engine, state, own_state)

    def _finish(self) -> None:
        """Export the best checkpoint (the last one without validation) and write the report."""
        chosen = self.checkpoints.path(self.best["step"]) if self.best else None
        checkpoints.export(self.engine, self.processor, self.run_folder / "export", chosen)
        if self.process.is_main:
            losses = [r for r in read_log(self.run_folder / "log.jsonl") if r["kind"] == "train"][-1]
            names = [f.name for f in dataclasses.fields(type(self.config.loss)) if f.name in losses]
            report = {
                "steps": self.engine.steps,
                "effective_batch": self.effective_batch,
                "seconds": round(self._seconds(), 1),
                "best": self.best,
                "losses": {name: losses[name] for name in ("total", *names)},
            }
            split = self.config.data.val
            data = f"--data {split.annotations} --images {split.images}" if split.annotations else "--data FILE"
            command = f"python eval.py --checkpoint {self.run_folder} {data} --protocol teacher_forced"
            write_run_report(self.run_folder, report, command)
            self._say(f"done in {report['seconds'] / 60:.1f} min; {self.run_folder / 'export'} is ready:\n  {command}")

    def _say(self, text: str) -> None:
        if self.process.is_main:
            tqdm.write(text)


def _look_up(report: dict[str, Any], key: str) -> float | None:
    """A figure of the report by dotted key; ``None`` where it could not be measured."""
    value: Any = report
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"train.best_metric: the report has no figure {key!r}; it has {', '.join(report)}")
        value = value[part]
    return None if value is None else float(value)
