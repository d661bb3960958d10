"""What DeepSpeed stores of a run is pickled: whether opening it could run what somebody else has put in."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

DEEPSPEED_CLASSES = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""What a DeepSpeed checkpoint may hold besides tensors and plain values; anything else could run when it is opened."""


def refuse_code(checkpoint: Path, remedy: str = "") -> None:
    """See that opening a checkpoint folder runs no code: DeepSpeed unpickles its files as they are.

    Only tensors, plain values and DeepSpeed's own records may be in them. ``remedy`` ends the message.

    Raises:
        ValueError: A file holds something else, or is damaged.
    """
    end = f"; {remedy}" if remedy else ""
    for file in sorted(checkpoint.glob("*.pt")):
        try:
            strangers = set(torch.serialization.get_unsafe_globals_in_checkpoint(str(file))) - DEEPSPEED_CLASSES
        except (RuntimeError, ValueError, OSError, pickle.UnpicklingError, EOFError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{file} is damaged or cut off ({reason}){end}") from error
        if strangers:
            raise ValueError(
                f"{file} is not opened: besides weights it holds {', '.join(sorted(strangers))}, which could run "
                f"code{end}"
            )
