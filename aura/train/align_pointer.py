"""What a new pointer (``model.pointing``) is told before the first step: which image tokens show the object of a state.

The language model is read as it came: at a ``[SEG]`` it knows the name it has just written, and the aligned projector
makes that name's likeness of image tokens. To compare the two is learnt in seconds.

Legend: N ``[SEG]`` objects, T image tokens, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from tqdm import tqdm

from aura.losses import pointing_losses, token_shares
from aura.model import AuraModel
from aura.types import Batch

POINTER_IMAGES = 600
"""Images whose ``[SEG]`` states it learns from: the more, the better it points on images that it has not seen."""
PASSES = 8
LR = 1e-3
WEIGHT_DECAY = 0.1
SHOWN = 0.25
"""Share of a token's square from which on it counts as showing the object."""


class _Seen(NamedTuple):
    states: torch.Tensor  # [N, H], as the pointer reads them
    tokens: torch.Tensor  # [B, T, H]
    image_of: torch.Tensor  # [N]
    shares: torch.Tensor  # [N, T]

    def to(self, device: torch.device) -> _Seen:
        return _Seen(*(tensor.to(device) for tensor in self))


def align_pointer(model: AuraModel, batches: Iterable[Batch], *, quiet: bool = False) -> float:
    """Train the pointer alone on the ``[SEG]`` states of ``batches``; everything else stays as it is.

    Returns:
        The share of the states that point at their object, in the last pass; NaN without any.
    """
    pointer = model.prompt_encoder.pointer
    assert pointer is not None
    seen = _see(model, batches, quiet)
    optimizer = torch.optim.AdamW(pointer.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    steps, step, hits = PASSES * len(seen), 0, []
    for number in tqdm(range(PASSES), desc="aligning the pointer", disable=quiet):
        for one in (kept.to(model.device) for kept in seen):
            logits = pointer.compare(one.states, one.tokens, one.image_of)
            for group in optimizer.param_groups:
                group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / steps))
            pointing_losses(logits, one.shares).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if number == PASSES - 1:
                hits.append(_hits(logits, one))
    return _mean(hits)


@torch.no_grad()
def share_pointed(model: AuraModel, batches: Iterable[Batch], *, quiet: bool = False) -> float:
    """The share of the ``[SEG]`` states of ``batches`` that point at their object; NaN without any."""
    pointer = model.prompt_encoder.pointer
    assert pointer is not None
    seen = _see(model, batches, quiet)
    kept = (one.to(model.device) for one in seen)
    return _mean([_hits(pointer.compare(one.states, one.tokens, one.image_of), one) for one in kept])


@torch.no_grad()
def _see(model: AuraModel, batches: Iterable[Batch], quiet: bool) -> list[_Seen]:
    """What the pointer reads of each batch that has objects; it waits in the host's memory."""
    was_training = model.training
    model.eval()
    found = []
    for batch in tqdm(batches, desc="[SEG] states to point", disable=quiet):
        if not batch.records:
            continue
        batch = batch.to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.mllm.autocast):
            _, states, clip = model.read(batch)
        tokens = model.image_tokens(clip)
        assert tokens is not None
        shares = token_shares(batch, math.isqrt(tokens.shape[1]))
        seen = _Seen(model.prompt_encoder.rescaled(states), tokens, batch.seg_image, shares)
        found.append(seen.to(torch.device("cpu")))
    model.train(was_training)
    return found


def _hits(logits: torch.Tensor, seen: _Seen) -> torch.Tensor:
    """1 for each state whose best token shows its object, else 0: [N]."""
    return (seen.shares.gather(1, logits.argmax(1, keepdim=True)) > SHOWN).float()[:, 0]


def _mean(parts: list[torch.Tensor]) -> float:
    return float(torch.cat(parts).mean()) if parts else math.nan
