"""What feeds the training loop: batches in a fixed order.

Batches are made by loader processes (``data.num_workers``). Those obey nobody but their run: Ctrl-C and SIGTERM, which
reach them too, are for the run to obey; and they end when it ends, however it ends. What one of them fails at travels
as a value, since torch would pass on a traceback of many lines, or, where shared memory is full, nothing at all.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from aura.config import Config, DataSettings
from aura.data.collate import collate, without_objects
from aura.data.dataset import AuraDataset, EpochSampler, Key
from aura.data.feature_cache import FeatureCache
from aura.data.processor import Processor
from aura.train.engine import Process
from aura.types import Batch, Sample

PR_SET_PDEATHSIG = 1
"""Linux's prctl option (linux/prctl.h): the signal that a process gets when its parent dies."""

SIGNALS = {signal.SIGINT, signal.SIGTERM}


def batches(
    samples: Sequence[Sample],
    processor: Processor,
    config: Config,
    process: Process,
    cache: FeatureCache | None,
    *,
    start: int = 0,
) -> Generator[Batch, None, None]:
    """Endless batches of this process; those after ``start`` micro-steps do not depend on where a run was stopped.

    Close it to end its loader processes.

    Raises:
        ValueError: A record cannot be loaded (named), or the loader processes cannot do their work.
    """
    data, train = config.data, config.train
    dataset = AuraDataset(
        samples, processor, conversations_per_image=data.conversations_per_image, seed=train.seed, cache=cache
    )
    rank, world, batch = process.rank, process.world_size, train.micro_batch_size
    sampler = EpochSampler(
        len(dataset), batch, seed=train.seed, rank=rank, world=world, start=start, schedule=dataset.schedule()
    )
    keys: Iterable[list[Key]] = sampler
    if train.overfit_one_batch:
        keys = itertools.cycle([sampler.keys(micro_step) for micro_step in range(train.accumulation)])
    maker = _BatchMaker(dataset, with_objects=config.asks_for_objects)
    if data.num_workers == 0:
        yield from map(maker.make, keys)
    else:
        yield from _from_workers(maker, keys, data, process)


@dataclass(frozen=True)
class _Failure:
    """What a loader process met in place of a batch."""

    message: str
    is_bug: bool = False

    def error(self) -> Exception:
        return RuntimeError(self.message) if self.is_bug else ValueError(self.message)


class _BatchMaker(Dataset[Batch]):
    """Batches by their keys; in a loader process a :class:`_Failure` where there can be none."""

    def __init__(self, dataset: AuraDataset, *, with_objects: bool = True) -> None:
        self.dataset, self.with_objects = dataset, with_objects

    def make(self, keys: Sequence[Key]) -> Batch:
        try:
            batch = collate(self.dataset.__getitems__(keys))
            return batch if self.with_objects else without_objects(batch)
        except Exception as error:
            records = [self.dataset.record(key) for key in keys]
            told = str(error)
            if not any(f"image {record.image_id}" in told for record in records):
                names = ", ".join(f"image {record.image_id} ({record.image_path})" for record in records)
                if isinstance(error, ValueError | OSError | MemoryError):
                    raise ValueError(f"{names}: {told or type(error).__name__}") from error
                error.add_note(f"while loading {names}")
            raise

    def __getitems__(self, keys: Sequence[Key]) -> Batch | _Failure:
        try:
            batch = self.make(keys)
        except ValueError as error:
            return _Failure(" ".join(str(error).split()))
        except Exception:
            return _Failure(f"a loader process failed:\n{traceback.format_exc()}", is_bug=True)
        try:
            # Left to torch, this happens in a thread whose errors nobody sees.
            for tensor in batch.tensors():
                if tensor.numel():
                    tensor.share_memory_()
        except (RuntimeError, OSError) as error:
            return _Failure(_want_of_shared_memory(" ".join(str(error).split())))
        return batch


def _want_of_shared_memory(told: str) -> str:
    size = shutil.disk_usage("/dev/shm").total >> 20 if Path("/dev/shm").is_dir() else 0
    return (
        f"a loader process cannot hand over its batch in shared memory ({told}; /dev/shm holds {size} MiB). Give it "
        "more (docker run --shm-size 8g), or pass --data.num_workers 0"
    )


def _from_workers(
    maker: _BatchMaker, keys: Iterable[list[Key]], data: DataSettings, process: Process
) -> Generator[Batch, None, None]:
    on_gpu = process.device.type == "cuda"
    loader = DataLoader(
        maker,
        batch_sampler=keys,  # type: ignore[arg-type]
        collate_fn=_as_it_is,
        num_workers=data.num_workers,
        prefetch_factor=data.prefetch,
        pin_memory=on_gpu,
        worker_init_fn=_start_worker,
        # A process that uses CUDA has threads whose locks a fork would copy in whatever state they are.
        multiprocessing_context="spawn" if on_gpu else "fork",
        # A generator of its own: the loader draws a number when it starts, which would shift the model's dropout.
        generator=torch.Generator(),
    )
    with _workers_of(loader) as (stream, workers):
        while True:
            try:
                made = next(stream)
            except (RuntimeError, OSError, EOFError) as error:
                raise ValueError(_why(workers, error)) from error
            if isinstance(made, _Failure):
                raise made.error()
            yield made


class _Ending:
    """torch's event that tells workers to end, without its lock: one killed while it held that would stop the run."""

    def __init__(self, event: Any) -> None:
        self._flag = event._flag  # a semaphore: 1 once it is set

    def is_set(self) -> bool:
        if not self._flag.acquire(False):
            return False
        self._flag.release()
        return True

    def set(self) -> None:
        self._flag.acquire(False)
        self._flag.release()


@contextlib.contextmanager
def _workers_of(loader: DataLoader[Any]) -> Iterator[tuple[Iterator[Any], list[BaseProcess]]]:
    """A started loader and its processes, which are gone afterwards."""
    before = set(multiprocessing.active_children())
    if loader.multiprocessing_context.get_start_method() == "spawn":
        resource_tracker.ensure_running()  # started on the way, it would unblock the signals
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited: no worker is killed before it ignores them
    try:
        stream = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    workers: list[BaseProcess] = [child for child in multiprocessing.active_children() if child not in before]
    torch_stream: Any = stream
    # torch's handler of SIGCHLD would raise from whatever line the run has come to, and from the join below: it shall
    # not watch these workers. next() finds a dead one by itself.
    signal_handling._remove_worker_pids(id(stream))
    torch_stream._worker_pids_set = False
    torch_stream._workers_done_event = _Ending(torch_stream._workers_done_event)

    def end() -> None:
        for worker in workers:
            worker.kill()  # they ignore anything less, and have nothing to lose
        for worker in workers:
            worker.join()

    atexit.register(end)  # where the generator is never closed, multiprocessing would wait for them
    try:
        yield stream, workers
    finally:
        end()
        atexit.unregister(end)


def _start_worker(_: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    parent = multiprocessing.parent_process()
    if sys.platform.startswith("linux") and parent is not None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it died before
            os._exit(1)


def _as_it_is(made: Any) -> Any:
    return made


def _why(workers: Sequence[BaseProcess], error: Exception) -> str:
    """Why no batch comes, from how the loader processes ended."""
    dying = connection.wait([worker.sentinel for worker in workers], timeout=1)  # pipes break first, then it is dead
    for worker in workers:
        worker.join(1.0 if worker.sentinel in dying else 0.0)
    ends = {worker.exitcode for worker in workers if worker.exitcode is not None}
    if -signal.SIGBUS in ends:
        return _want_of_shared_memory("it was killed by SIGBUS")
    if -signal.SIGKILL in ends:
        return (
            "a loader process was killed, most likely by the system for want of memory (dmesg tells); "
            "lower --data.num_workers"
        )
    told = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"the loader processes ended ({told}; exit codes {sorted(ends)}); --data.num_workers 0 shows the cause"
