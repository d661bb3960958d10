"""Functions of many objects, computed some objects at a time so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils.checkpoint import checkpoint

Rows = dict[str, torch.Tensor]
"""Tensors by name, each with one row per object."""


def in_chunks(function: Callable[..., Rows], rows: Sequence[torch.Tensor | None], size: int) -> Rows:
    """``function(*rows)``, at most ``size`` objects at a time.

    Up to ``size`` objects take just that call. Of more, the last ``size`` are computed as ever. Those before them are
    computed in chunks that keep nothing for the backward pass, which computes them again. So only one chunk's
    intermediate results are in memory at a time, and as little as possible is computed twice.

    Args:
        function: Of tensors like ``rows``; it treats each object by itself and draws no random numbers.
        rows: Tensors [N, ...], or ``None``, which stays ``None``.
        size: Most objects of a chunk.
    """
    count = next(len(tensor) for tensor in rows if tensor is not None)
    if count <= size:
        return function(*rows)
    sizes = [min(size, count - size - start) for start in range(0, count - size, size)] + [size]
    pieces = [[None] * len(sizes) if tensor is None else torch.split(tensor, sizes) for tensor in rows]
    chunks = list(zip(*pieces, strict=True))
    parts: list[Rows] = []
    for chunk in chunks[:-1]:
        if torch.is_grad_enabled():
            parts.append(checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(function(*chunk))
    parts.append(function(*chunks[-1]))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
