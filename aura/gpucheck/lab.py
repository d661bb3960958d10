"""What the sections of a check share: the device, the large model with its engine, the ceilings of the hardware."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from aura.config import Config, Precision, TrainSettings
from aura.gpucheck import models
from aura.gpucheck.findings import NotPossible
from aura.machine.devices import has_bf16
from aura.model import AuraModel
from aura.model.configuration import DTYPES
from aura.plan import Workload, make_plan
from aura.plan.estimate import Plan
from aura.plan.gpus import GIB
from aura.plan.meter import seconds
from aura.train import engine as ds

LIBRARIES = ("torch", "transformers", "deepspeed", "peft", "bitsandbytes")


@dataclass
class Large:
    """AURA-7B under DeepSpeed."""

    model: AuraModel
    engine: ds.Engine
    config: Config


class Lab:
    """Where a check runs.

    Args:
        tiny: Rehearse with models that a CPU can afford.
        out: Folder of the results; a folder for what comes and goes is made in the system's.
    """

    def __init__(self, *, tiny: bool, out: Path) -> None:
        self.tiny, self.out = tiny, out
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self.folder = Path(tempfile.mkdtemp(prefix="check_gpu_"))
        self._ceilings: dict[torch.dtype, float] = {}
        self._large: Large | None = None
        self._process: ds.Process | None = None

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(Exception):
            ds.stop_process()
        shutil.rmtree(self.folder, ignore_errors=True)

    def facts(self) -> dict[str, Any]:
        """The machine and the libraries, as the report's head."""
        device = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        facts: dict[str, Any] = {}
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
            total = torch.cuda.get_device_properties(self.device).total_memory / GIB
            capability = ".".join(map(str, torch.cuda.get_device_capability(self.device)))
            facts = {"memory": f"{total:.1f} GiB", "compute capability": capability, "CUDA": torch.version.cuda}
        versions = {}
        for name in LIBRARIES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
        return {"device": device, **facts, "Python": platform.python_version(), "cores": os.cpu_count(), **versions}

    # --- what the hardware has ----------------------------------------------------------------------------------------

    @property
    def half(self) -> Precision:
        """The half precision that the device has: bf16 where it can."""
        return "bf16" if has_bf16(self.device) else "fp16"

    def product_tflops(self, dtype: torch.dtype) -> float:
        """TFLOP/s of a large product of random matrices, the ceiling of this device in this precision."""
        if dtype not in self._ceilings:
            side = 256 if self.tiny else 8192
            a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
            taken = seconds(lambda: a @ b, repeat=5, device=self.device, warm_up=3)
            self._ceilings[dtype] = 2 * side**3 / taken / 1e12
        return self._ceilings[dtype]

    # --- engines ------------------------------------------------------------------------------------------------------

    def process(self, settings: TrainSettings) -> ds.Process:
        """This process as a run of one; joined once."""
        if self._process is None:
            on_cpu = self.device.type != "cuda"  # where a run in fp16 is refused, and a rehearsal is not
            self._process = ds.start_process(self.settings("fp32") if on_cpu else settings)
        return self._process

    def settings(self, precision: Precision, **changes: Any) -> TrainSettings:
        """Those of a short run on one GPU."""
        values = {"steps": 1000, "warmup_steps": 2, "accumulation": 1, "lr": 1e-4, "output_dir": str(self.folder)}
        return TrainSettings(**{**values, "precision": precision, **changes})

    def require(self, plan: Plan) -> None:
        """Raise :class:`NotPossible` where the plan says that this GPU is too small."""
        if self.device.type == "cuda":
            have, need = torch.cuda.get_device_properties(self.device).total_memory, plan.memory().total
            if need > have:
                raise NotPossible(f"by the plan this needs {need / GIB:.1f} GiB, and the GPU has {have / GIB:.1f}")

    def large(self) -> Large:
        """AURA-7B in the device's half precision under DeepSpeed, made where it is not there."""
        if self._large is None:
            settings = self.settings(self.half)
            self.require(make_plan(Config(train=settings), models.architecture(tiny=self.tiny), work=Workload()))
            model = models.random_model(models.architecture(tiny=self.tiny), DTYPES[self.half], self.device)
            model.train()
            engine = ds.Engine(model, settings, self.process(settings))
            self._large = Large(model, engine, Config(train=settings))
        return self._large

    # --- between sections ---------------------------------------------------------------------------------------------

    def drop_large(self) -> None:
        """Free the large model and its engine."""
        if self._large is not None:
            release(self._large.engine)
            self._large = None
        gc.collect()

    def clear(self, *, keep_large: bool) -> None:
        """Free what a section left behind; all that fails here is no failure of the section."""
        if not keep_large:
            self.drop_large()
        with contextlib.suppress(Exception):
            for file in self.folder.iterdir():
                if not file.name.startswith("mini_"):  # scenes, which a later section uses again
                    shutil.rmtree(file, ignore_errors=True)
        gc.collect()
        if self.device.type == "cuda":
            with contextlib.suppress(Exception):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

    def is_sound(self, left_over: float) -> bool:
        """Whether the GPU still answers, and little of its memory is held."""
        if self.device.type != "cuda":
            return True
        try:
            answers = float(torch.ones(8, device=self.device).sum()) == 8.0
            torch.cuda.synchronize()
            return answers and torch.cuda.memory_allocated() <= left_over
        except Exception:  # an error of a kernel stays with the process
            return False


def release(engine: ds.Engine) -> None:
    """Take DeepSpeed's hooks off its parameters, so that the model and the optimizer can go."""
    with contextlib.suppress(Exception):
        engine._engine.destroy()
    engine.__dict__.clear()
