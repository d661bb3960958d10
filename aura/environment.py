"""What a training process needs to know before torch and DeepSpeed are imported. Imports neither."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's mallopt parameters (malloc.h)."""


def prepare() -> None:
    """Make a plain ``python train_ds.py`` a run of one process, and keep threads and memory calm.

    A launcher (``deepspeed``, ``torchrun``) sets the variables itself; what is set already stays. Without them
    DeepSpeed would look for MPI.
    """
    if "RANK" not in os.environ:
        single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(single)
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    os.environ.setdefault("LOCAL_RANK", "0")
    # Read once, when OpenMP loads. A single process keeps OpenMP's default, a short spin between operations (a third
    # faster here than sleeping at once); several processes on one machine would take the cores from each other.
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Where bitsandbytes is installed, importing peft would make it advise a download that AURA does not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Nothing is sharded by transformers, which would list every layer for it.
    logging.getLogger("transformers.distributed.tensor_parallel").setLevel(logging.ERROR)
    if not _has_gpu():
        _keep_freed_memory()


@contextlib.contextmanager
def ctrl_c_in_one_line(program: str) -> Iterator[None]:
    """Within ``with``: Ctrl-C ends the process at once, with one line in place of a traceback from wherever it was.

    For the time in which there is nothing to save. An exception would come out of any import or C call, and some of
    them turn it into another one. Of several ranks the first speaks for all.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"\n{program}: stopped by Ctrl-C\n".encode())  # print() could be interrupted in itself
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # so that a shell's loop over commands ends too

    if threading.current_thread() is not threading.main_thread():  # Python refuses handlers there
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


NVIDIA = Path("/proc/driver/nvidia")
"""There where the kernel drives an NVIDIA GPU."""


def _has_gpu() -> bool:
    """Whether torch will compute on a GPU, as far as can be said without importing it."""
    return NVIDIA.exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")


def _keep_freed_memory() -> None:
    """Keep large freed blocks: glibc would return each to the system, and page faults take a third of a CPU step."""
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_MAX_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
