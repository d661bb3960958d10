"""``train.deterministic``: the same numbers again, bit for bit, on the same machine and libraries."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within ``with``, if ``wanted``: no operation adds in an order of chance, and none multiplies in TF32.

    Enter it before the process touches its GPU: cuBLAS reads its variable once.

    Raises:
        ValueError: An operation was reached that has no deterministic form, with its name.
    """
    if not wanted:
        yield
        return
    # Of the two values that torch accepts, the one of more memory (24 MiB) and less waiting.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn: Any = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    convolutions = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest")
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise ValueError(
            f"train.deterministic: {str(error).strip().splitlines()[0]} Set it to false, or leave out what asks for "
            "this operation"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.set_float32_matmul_precision(before[1])
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = convolutions
