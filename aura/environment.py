"""What a training process needs to know before torch and DeepSpeed are imported. Imports neither."""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import sys

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
    _keep_freed_memory()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _keep_freed_memory() -> None:
    """Keep large freed blocks: glibc would return each to the system, and page faults take a third of a CPU step."""
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_MAX_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
