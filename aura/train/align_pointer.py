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

POINTER_IMAGES = 160
"""Images whose ``[SEG]`` states it learns from."""
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


def align_pointer(model: AuraModel, batches: Iterable[Batch], *, quiet: bool = False) -> float:
    """Train the pointer alone on the ``[SEG]`` states of ``batches``; everything else stays as it is.

    Returns:
        The share of the states that point at their object, in the last pass; NaN without any.
    """
    pointer = model.prompt_encoder.pointer
    assert pointer is not None
    was_training = model.training
    model.eval()
    seen = [_see(model, batch.to(model.device)) for batch in tqdm(batches, desc="[SEG] states to point", disable=quiet)]
    seen = [one for one in seen if len(one.states)]
    optimizer = torch.optim.AdamW(pointer.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    steps, step, hits = PASSES * len(seen), 0, [torch.zeros(0, device=model.device)]
    for number in tqdm(range(PASSES), desc="aligning the pointer", disable=quiet):
        for one in seen:
            logits = pointer.compare(one.states, one.tokens, one.image_of)
            for group in optimizer.param_groups:
                group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / steps))
            pointing_losses(logits, one.shares).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if number == PASSES - 1:
                hits.append((one.shares.gather(1, logits.argmax(1, keepdim=True)) > SHOWN).float()[:, 0])
    model.train(was_training)
    return float(torch.cat(hits).mean())


@torch.no_grad()
def _see(model: AuraModel, batch: Batch) -> _Seen:
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.mllm.autocast):
        _, states, clip = model.read(batch)
    tokens = model.image_tokens(clip)
    assert tokens is not None
    return _Seen(
        model.prompt_encoder.rescaled(states),
        tokens,
        batch.seg_image,
        token_shares(batch, math.isqrt(tokens.shape[1])),
    )
