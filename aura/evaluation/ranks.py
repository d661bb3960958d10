"""Several processes that share one evaluation, through ``torch.distributed``; one process needs none of it."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def start(device: str | None = None) -> str | None:
    """Join the other processes where a launcher such as ``torchrun`` started several.

    Args:
        device: What the user asked for.

    Returns:
        This process's device: with several processes a GPU of its own, where there are GPUs, else ``device``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return device
    if device in (None, "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")
    return device


def stop() -> None:
    """Leave the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's number and the number of processes: (0, 1) without ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(value: T) -> list[T]:
    """The values (picklable) of all ranks in their order, on every rank."""
    _, world = rank_and_world()
    if world == 1:
        return [value]
    parts: list[T] = [value] * world
    dist.all_gather_object(parts, value)
    return parts
