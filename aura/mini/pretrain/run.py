"""What both parts of the backbones' pretraining share: optimizers, a schedule bound to minutes, resume, log.

The clock is the budget: the learning rate follows the minutes spent (over all resumed sittings), so that it reaches
zero when the budget ends, however fast the machine is.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aura.files import finite, to_json, unfinished, write_text

Metrics = dict[str, float]


def learning_rate_factor(progress: float, warmup: float = 0.04) -> float:
    """Linear warm-up, then cosine to zero; ``progress`` in [0, 1] is the part of the budget that is spent."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al. 2024): fewer steps than AdamW for the same loss.

    For weights with two or more dimensions that map features to features (linear and convolution weights), not for
    embeddings or heads. The update has the size of AdamW's (0.2 x sqrt of the larger side), so both can share a rate.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(param)
                buffer = state["momentum"]
                buffer.lerp_(param.grad, 1 - group["momentum"])
                direction = param.grad.lerp(buffer, group["momentum"]).flatten(1)
                update = orthogonalise(direction).view_as(param)
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update, alpha=-group["lr"] * 0.2 * max(direction.shape) ** 0.5)


def orthogonalise(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix [m, n], roughly (singular values 0.7 to 1.2), by a quintic iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    if torch.cpu._is_avx512_bf16_supported():
        x = x.bfloat16()  # four times as fast where the processor has units for it; the result need not be exact
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.to(matrix.dtype)
    return x.T if tall else x


def build_optimizers(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.05,
    adam_only: tuple[str, ...] = (),
    slower: Mapping[str, float] | None = None,
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden weight matrices, fused AdamW for everything else.

    Args:
        module: All that is trained.
        lr: Peak rate of both.
        weight_decay: Decoupled decay of the matrices.
        adam_only: Parts of parameter names that AdamW takes although they are matrices (embeddings, heads).
        slower: Parts of parameter names, and the factor on their rate (for what was trained before).
    """
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    hidden: dict[float, list[nn.Parameter]] = {}
    other: dict[float, list[nn.Parameter]] = {}
    for name, param in module.named_parameters():
        if not param.requires_grad:
            continue
        matrix = param.ndim in (2, 4) and min(param.flatten(1).shape) > 4 and id(param) not in embeddings
        factor = next((factor for part, factor in (slower or {}).items() if part in name), 1.0)
        by_rate = hidden if matrix and not any(part in name for part in adam_only) else other
        by_rate.setdefault(factor, []).append(param)

    def groups(by_rate: dict[float, list[nn.Parameter]]) -> list[dict[str, Any]]:
        return [{"params": params, "lr": lr * factor, "peak": lr * factor} for factor, params in by_rate.items()]

    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups(other), weight_decay=0.01, fused=True)]
    if hidden:
        optimizers.append(Muon(groups(hidden), lr=lr, weight_decay=weight_decay))
    return optimizers


@dataclass
class Run:
    """One part's training: where it stands, its folder (checkpoint, log), its budget.

    Args:
        folder: Receives ``checkpoint.pt`` and ``log.jsonl``.
        module: All that is trained, throw-away heads included.
        optimizers: As from :func:`build_optimizers`.
        minutes: Budget over all sittings.
        max_steps: Ends earlier after so many optimizer steps (tests).
    """

    folder: Path
    module: nn.Module
    optimizers: list[torch.optim.Optimizer]
    minutes: float
    max_steps: int | None = None
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def progress(self) -> float:
        """Part of the budget that is spent, in [0, 1]."""
        by_time = self.seconds / (60 * self.minutes)
        by_steps = self.step / self.max_steps if self.max_steps else 0.0
        return min(1.0, max(by_time, by_steps))

    def resume(self) -> bool:
        """Continue from ``checkpoint.pt`` if it exists; says whether it did."""
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            peaks = [group["peak"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak"] = peak
        self.step, self.images, self.seconds = state["step"], state["images"], state["seconds"]
        self.history = [json.loads(line) for line in state["history"]]
        return True

    def save(self) -> None:
        """Write the checkpoint (atomically) and the log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [to_json(entry) for entry in self.history]
        state = {
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "images": self.images,
            "seconds": self.seconds,
            "history": lines,
        }
        with unfinished(self.folder / "checkpoint.pt") as partial:
            torch.save(state, partial)
        write_text(self.folder / "log.jsonl", "".join(line + "\n" for line in lines))

    def log(self, kind: str, values: Metrics) -> None:
        """Append one line to the log and print it."""
        entry = {"kind": kind, "step": self.step, "images": self.images, "minutes": round(self.seconds / 60, 2)}
        entry |= {key: round(float(value), 4) for key, value in values.items()}
        self.history.append(finite(entry))
        print(to_json(self.history[-1]), flush=True)

    def optimize(self, loss: torch.Tensor, clip: float = 1.0) -> None:
        """One optimizer step at the rate of the moment."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.module.parameters() if p.grad is not None], clip)
        factor = learning_rate_factor(self.progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
        self.step += 1


def ahead(batches: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """The same batches, made in a thread while the step before runs (the arithmetic does not hold Python's lock)."""
    waiting: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)

    def work() -> None:
        try:
            for batch in batches:
                waiting.put((batch, None))
            waiting.put((None, StopIteration()))
        except BaseException as error:  # raised again where the batch is wanted
            waiting.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    while True:
        batch, error = waiting.get()
        if isinstance(error, StopIteration):
            return
        if error is not None:
            raise error
        yield batch


def train(
    run: Run,
    batches: Iterator[Any],
    loss_function: Callable[[Any, float], tuple[torch.Tensor, Metrics]],
    *,
    images_per_batch: int,
    evaluate: Callable[[], Metrics],
    export: Callable[[], None],
    log_every: int = 25,
    evaluate_every: float = 300.0,
) -> None:
    """Spend the budget: steps, a log line now and then, an evaluation with checkpoint and export every few minutes.

    ``loss_function(batch, progress)`` gives the loss and named terms. The time of evaluations and exports counts.
    """
    run.module.train()
    clock, next_evaluation = time.monotonic() - run.seconds, run.seconds + evaluate_every
    batches = ahead(batches)
    recent: list[Metrics] = []
    while run.progress < 1:
        loss, terms = loss_function(next(batches), run.progress)
        run.optimize(loss)
        run.images += images_per_batch
        run.seconds = time.monotonic() - clock
        recent.append({"loss": float(loss.detach()), **terms})
        if run.step % log_every == 0:
            means = {key: sum(entry[key] for entry in recent) / len(recent) for key in recent[0]}
            run.log("train", means | {"images_per_second": run.images / run.seconds})
            recent = []
        if run.seconds > next_evaluation or run.progress >= 1:
            run.module.eval()
            run.log("eval", evaluate())
            run.module.train()
            export()
            run.save()
            run.seconds = time.monotonic() - clock
            next_evaluation = run.seconds + evaluate_every
