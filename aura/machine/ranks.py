"""Several processes that share one work, through ``torch.distributed``; one process needs none of it.

How they find each other, with one clear sentence where they do not, and how objects travel between them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

MEETING = timedelta(minutes=10)
"""How long ranks wait at the start for one that has not come."""

WAIT = timedelta(days=1)
"""How long ranks of an evaluation wait for the slowest: generation may take hours, and they meet once."""

_objects: dist.ProcessGroup | None = None
"""The group for objects; ``None`` is the default group."""


def start(device: str | None = None, wait: timedelta = WAIT) -> str | None:
    """Join the other processes where a launcher such as ``torchrun`` started several.

    Args:
        device: What the user asked for.
        wait: How long a rank waits for the others in one joint act.

    Returns:
        This process's device: with several processes a GPU of its own, where there are GPUs, else ``device``.

    Raises:
        ValueError: The port is in use, or a rank did not come.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return device
    if device in (None, "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
        join("nccl", wait)
    else:
        join("gloo", wait)
    return device


def join(backend: str, wait: timedelta) -> None:
    """Join the other processes, which the environment (``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``, ...) names.

    Args:
        backend: ``nccl`` or ``gloo``.
        wait: How long a rank waits for the others in one joint act.

    Raises:
        ValueError: The port is in use, or a rank did not come within :data:`MEETING`.
    """
    global _objects
    if dist.is_initialized():
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world == 1:  # nobody to meet, no port to take
        store: dist.Store = dist.HashStore()
    else:
        try:
            store, rank, world = next(dist.rendezvous("env://", timeout=MEETING))
        except (dist.DistError, RuntimeError) as error:
            raise ValueError(_not_met(rank, world, str(error))) from error
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
    # NCCL would copy objects to the GPU, and keep it busy while a rank waits.
    _objects = dist.new_group(backend="gloo", timeout=wait) if backend != "gloo" and world > 1 else None


def _not_met(rank: int, world: int, told: str) -> str:
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if "EADDRINUSE" in told or "address already in use" in told:
        return (
            f"port {port} of this machine is in use, most likely by another training; take another one: "
            f"deepspeed --master_port {int(port or 0) + 1} ... (torchrun: --master-port)"
        )
    minutes = int(MEETING.total_seconds() / 60)
    if rank == 0:
        return (
            f"not all {world} ranks came to {address}:{port} within {minutes} minutes; look at the other machines' "
            "output, and whether they reach this address (--master_addr)"
        )
    first_line = (told.strip().splitlines() or [""])[0]
    return (
        f"rank {rank} did not reach rank 0 at {address}:{port} within {minutes} minutes ({first_line[:200]}); look at "
        "rank 0's output, and whether this machine reaches that address (--master_addr)"
    )


def stop() -> None:
    """Leave the other processes, if there are any."""
    global _objects
    _objects = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's number and the number of processes: (0, 1) without ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def wait() -> None:
    """Return when every process has come here."""
    if rank_and_world()[1] > 1:
        dist.barrier(group=_objects)


def gather(value: T) -> list[T]:
    """The values (picklable) of all ranks in their order, on every rank."""
    _, world = rank_and_world()
    if world == 1:
        return [value]
    parts: list[T] = [value] * world
    dist.all_gather_object(parts, value, group=_objects)
    return parts


def from_first(make: Callable[[], T]) -> T:
    """On every rank what ``make`` returns (picklable) or raises (``ValueError``, ``OSError`` as one) on the first."""
    rank, world = rank_and_world()
    if world == 1:
        return make()
    made: list[T | ValueError | None] = [None]
    if rank == 0:
        try:
            made = [make()]
        except (ValueError, OSError) as error:
            made = [ValueError(str(error))]
    dist.broadcast_object_list(made, src=0, group=_objects)
    (value,) = made
    if isinstance(value, ValueError):
        raise value
    return value  # type: ignore[return-value]
