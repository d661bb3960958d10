"""The only file that knows DeepSpeed: its set-up, its configuration, one optimizer step, its checkpoints."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import logging
import math
import os
import shutil
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aura import environment
from aura.config import REDUCE_BUCKET, TrainSettings
from aura.machine import ranks
from aura.machine.devices import check_bf16, check_build
from aura.model.quantize import unpacked
from aura.train.loss_scale import LossScale
from aura.train.stored import refuse_code

CPU_BUCKET = 20_000_000
"""As :data:`aura.config.REDUCE_BUCKET`, on a CPU, where what is trained is far smaller."""


@dataclass(frozen=True)
class Process:
    """This process among all of the run, and the device it computes on."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start_process(settings: TrainSettings) -> Process:
    """Join the run's processes; call once, before the model is built.

    Raises:
        ValueError: The ranks do not find each other; fp16 without a GPU; a GPU without bf16 units for bf16, or one that
            this torch has no code for.
    """
    environment.prepare()
    has_gpu = torch.cuda.is_available()
    if not has_gpu and settings.precision == "fp16":
        raise ValueError("fp16 needs a GPU and there is none here; pass --train.precision fp32")
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = _import_deepspeed()
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
        check_build(device)
        if "bf16" in (settings.precision, settings.autocast):
            check_bf16(device, "pass --train.precision fp16 and leave --train.autocast off")
    backend = "nccl" if has_gpu else "gloo"
    # DeepSpeed's own start knows one time-out for meeting and for working, and lets tracebacks through.
    ranks.join(backend, timedelta(minutes=settings.timeout_minutes))
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    rank, world_size = ranks.rank_and_world()
    return Process(rank=rank, local_rank=local_rank, world_size=world_size, device=device)


def uses_autocast(settings: TrainSettings, process: Process) -> bool:
    """Whether the language model multiplies in bf16 (``train.autocast``)."""
    if settings.autocast == "auto":
        # Elsewhere bf16 products are emulated.
        return process.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return settings.autocast == "bf16"


def _import_deepspeed() -> Any:
    import deepspeed

    library = logging.getLogger("DeepSpeed")
    library.setLevel(logging.WARNING)
    library.addFilter(_is_news)
    if not torch.cuda.is_available():
        # An empty table of compiled operators: on a CPU the shared-memory one would compile for minutes, and probing
        # for the others starts compilers too.
        deepspeed.ops.__compatible_ops__ = collections.defaultdict(bool)
    return deepspeed


def _is_news(record: logging.LogRecord) -> bool:
    # Said at every start, and of no consequence: DeepSpeed asks its own scheduler too early.
    return "learning rate from scheduler before it has started" not in record.getMessage()


def deepspeed_config(settings: TrainSettings, *, world_size: int, device_type: str) -> dict[str, Any]:
    """DeepSpeed's configuration for these settings: the one of LISA, with what the settings change.

    The scheduler counts optimizer steps; with warm-up W the first two steps run at lr 0 and the peak is step W + 2.

    DeepSpeed is told of no half precision: it would cast every parameter. What is trained is in fp32, the rest in the
    precision it comes in (:mod:`aura.model.precision`), and the loss scale is :class:`Engine`'s.
    """
    micro, accumulation = settings.micro_batch_size, settings.accumulation
    bucket = REDUCE_BUCKET if device_type == "cuda" else CPU_BUCKET
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro * accumulation * world_size,
        "gradient_clipping": settings.grad_clip,
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "total_num_steps": settings.steps,
                "warmup_min_lr": 0.0,
                "warmup_max_lr": settings.lr,
                "warmup_num_steps": max(1, settings.warmup_steps),
                "warmup_type": "linear",
            },
        },
        "zero_optimization": {
            "stage": settings.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": device_type == "cuda",
            "reduce_scatter": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": sys.maxsize,
        # It would make every micro-batch wait for the GPU.
        "timers": {"throughput": {"enabled": False}},
    }
    if settings.offload_optimizer:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": device_type == "cuda"}
    return config


class PlainAdamW(torch.optim.AdamW):
    """AdamW for ZeRO 0, whose ``overflow`` DeepSpeed reads as it reads that of its own optimizers."""

    overflow = False
    """The gradients are not finite: the next step changes nothing."""

    def step(self, closure: Any = None) -> Any:
        return None if self.overflow else super().step(closure)


class Engine:
    """A model under DeepSpeed: forward, backward, step; save and load.

    In fp16 the loss is scaled. A step whose gradients overflow is skipped by all processes alike: weights, schedule and
    :attr:`steps` stay as they were, and the scale falls.

    Args:
        model: Its trainable parameters (``requires_grad``) are optimised; they are in fp32.
        settings: The training settings.
        process: From :func:`start_process`.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, process: Process) -> None:
        deepspeed = _import_deepspeed()
        self.process = process
        self.zero_stage = settings.zero_stage
        self.scaler = LossScale() if settings.precision == "fp16" else None
        self._max_skipped = settings.max_skipped_steps
        self._grad_norm: float | None = None
        trainable = [p for p in model.parameters() if p.requires_grad]
        if not trainable:
            raise ValueError("the model has no trainable parameter")
        assert all(p.dtype == torch.float32 for p in trainable), "trained weights are fp32: see aura.model.precision"
        # torch's fused AdamW runs on CPU and GPU alike and never compiles; DeepSpeed's own would.
        kind = torch.optim.AdamW if self.zero_stage else PlainAdamW
        optimizer = kind(
            trainable, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        config = deepspeed_config(settings, world_size=process.world_size, device_type=process.device.type)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

    @property
    def module(self) -> nn.Module:
        """The model itself, on its device and in its precision."""
        return self._engine.module

    @property
    def steps(self) -> int:
        """Optimizer steps done, without those that were skipped."""
        return self.attempts - self.skipped_steps

    @property
    def attempts(self) -> int:
        """Optimizer steps done or skipped: so many times ``accumulation`` micro-batches were read."""
        return int(self._engine.global_steps)

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps skipped so far, since their gradients overflowed."""
        return int(self._engine.skipped_steps)

    @property
    def lr(self) -> float:
        """The learning rate of the next optimizer step."""
        return float(self._engine.optimizer.param_groups[0]["lr"])

    @property
    def grad_norm(self) -> float | None:
        """The norm of the last optimizer step's gradients before clipping; ``None`` before the first step.

        Not finite if that step was skipped.
        """
        return self._grad_norm

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one micro-batch (DeepSpeed divides by the accumulation count)."""
        if self.scaler is not None and self.zero_stage == 0:
            loss = loss * self.scaler.scale
        elif self.scaler is not None:
            self._engine.optimizer.override_loss_scale(self.scaler.scale)
        self._engine.backward(loss)

    def step(self) -> bool:
        """End a micro-batch; every ``accumulation``-th call is an optimizer step.

        Returns:
            Whether that step was skipped (fp16 alone); false in between.

        Raises:
            FloatingPointError: The gradients are not finite; in fp16: not for ``max_skipped_steps`` in a row.
        """
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return False
        if self.zero_stage == 0:
            self._measure_and_unscale()
        self._engine.step()
        if self.zero_stage > 0:
            self._grad_norm = float(self._engine.get_global_grad_norm())
        skipped = not self._engine.was_step_applied()
        if self.scaler is not None:
            self.scaler.update(skipped)
            if self.scaler.overflows_in_a_row >= self._max_skipped:
                raise FloatingPointError(
                    f"the gradients were not finite {self._max_skipped} times in a row after optimizer step "
                    f"{self.steps}, and the loss scale is down to {self.scaler.scale:g}; lower --train.lr, or train "
                    "in bf16 where the GPU has it. The last checkpoint is good"
                )
        elif skipped:
            raise FloatingPointError(
                f"the gradients are not finite in optimizer step {self.steps + 1}, though the loss was; lower "
                "--train.lr. The last checkpoint is good"
            )
        return skipped

    def _measure_and_unscale(self) -> None:
        """What ZeRO does by itself: the norm, true gradients, and no step where they are not finite."""
        grads = [p.grad for p in self.module.parameters() if p.grad is not None]
        if self.scaler is not None:
            torch._foreach_mul_(grads, 1 / self.scaler.scale)
        self._grad_norm = float(torch.nn.utils.get_total_norm(grads))
        self._engine.optimizer.overflow = not math.isfinite(self._grad_norm)

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def save(self, folder: Path, tag: str) -> None:
        """Write ``folder/tag``: trainable weights, optimizer, scheduler. All processes call it together."""
        own = {} if self.scaler is None else {"loss_scale": self.scaler.state()}
        self._engine.save_checkpoint(
            str(folder), tag=tag, client_state=own, save_latest=False, exclude_frozen_parameters=True
        )
        wait_for_all(self.process)

    def load(self, folder: Path, tag: str, *, resharded: bool = False) -> None:
        """Read what :meth:`save` wrote, under the same ZeRO stage. All processes call it together.

        Args:
            folder: As it was saved.
            tag: Likewise.
            resharded: Another number of processes wrote it. Under ZeRO each holds a part; the parts are put together
                first, in a hidden folder beside it that goes again.

        Raises:
            ValueError: The files are damaged, could run code, or do not fit this model.
        """
        where = Path(folder) / tag
        together = resharded and self.zero_stage > 0
        try:
            refuse_code(where)
            if together:
                tag = self._put_together(where)
            self._engine._config.load_universal_checkpoint = together
            path, own = self._engine.load_checkpoint(str(folder), tag=tag, custom_load_fn=self._load_weights)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise ValueError(
                f"{where} cannot be loaded ({reason}); "
                "choose another checkpoint with --train.resume PATH, or start anew with another --train.output_dir"
            ) from error
        if path is None:
            raise ValueError(f"{where} holds no checkpoint; choose another with --train.resume PATH")
        if self.scaler is not None and "loss_scale" in own:
            self.scaler.load(own["loss_scale"])
        if together:
            wait_for_all(self.process)
            if self.process.is_main:
                shutil.rmtree(folder / tag)
                (folder / "latest_universal").unlink(missing_ok=True)

    def _put_together(self, checkpoint: Path) -> str:
        """The tag of a checkpoint of the same weights that any number of processes can read (DeepSpeed's universal)."""
        whole = checkpoint.with_name(f".{checkpoint.name}.whole.unfinished")  # a leftover goes with those of saving
        if self.process.is_main:
            from deepspeed.checkpoint import ds_to_universal

            shutil.rmtree(whole, ignore_errors=True)
            settings = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
            asked = argparse.Namespace(
                input_folder=str(checkpoint), output_folder=str(whole), inject_missing_state=True, **settings
            )
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                ds_to_universal.main(asked)
        wait_for_all(self.process)
        return whole.name

    def _load_weights(self, src: dict[str, Tensor], dst: nn.Module) -> None:
        """Frozen weights are not in a checkpoint, so loading is not strict; but every trainable one must be there."""
        result = dst.load_state_dict(src, strict=False)
        if self.zero_stage == 3:  # the weights come from the ZeRO shards, whose count DeepSpeed checks
            return
        trainable = {name for name, parameter in dst.named_parameters() if parameter.requires_grad}
        missing, extra = sorted(trainable & set(result.missing_keys)), result.unexpected_keys
        if missing or extra:
            raise ValueError(f"it is of another model: it lacks {missing[:3]} and has {extra[:3]} besides")

    def full_state_dict(self) -> dict[str, Tensor] | None:
        """Every weight and buffer, on the main process only (others get ``None``). All processes call it together.

        Quantised weights come as the numbers they stand for.
        """
        if self.zero_stage == 3:
            state = self._engine._zero3_consolidated_16bit_state_dict()
        else:
            state = self.module.state_dict()
        if not self.process.is_main:
            return None
        state.update(unpacked(self.module, next(p for p in self.module.parameters() if p.requires_grad).dtype))
        return state


def trained_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The trainable weights (fp32) and buffers of a checkpoint folder, on CPU, for any ZeRO stage and process count."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    refuse_code(checkpoint, "take a checkpoint that train_ds.py wrote")
    if any(checkpoint.glob("*optim_states.pt")):
        return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), checkpoint.name)
    return torch.load(checkpoint / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)["module"]


def mean_over_processes(values: list[float], process: Process) -> list[float]:
    """The mean of each value over all processes, in fp64."""
    if process.world_size == 1:
        return values
    # NCCL and gloo both know fp64.
    tensor = torch.tensor(values, dtype=torch.float64, device=process.device)
    torch.distributed.all_reduce(tensor)
    return (tensor / process.world_size).tolist()


def largest_over_processes(value: int, process: Process) -> int:
    """The largest value of any process."""
    if process.world_size == 1:
        return value
    tensor = torch.tensor(value, device=process.device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return int(tensor)


def wait_for_all(process: Process) -> None:
    """Return when every process has come here."""
    if process.world_size > 1:
        ranks.wait()


def stop_process() -> None:
    """Leave the run's process group, and have DeepSpeed let go of it: another run in this process makes its own."""
    if (comm := _import_deepspeed().comm).is_initialized():
        comm.destroy_process_group()
    ranks.stop()
