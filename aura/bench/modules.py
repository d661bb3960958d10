"""Single modules of the network the plain way and ours: CPU seconds, or a GPU's seconds of the clock."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from typing import Any

import torch

from aura.bench.work import Laps, plainly
from aura.model import AuraModel, segmentation
from aura.model.tiled_attention import TiledAttention

OBJECTS = 11


def alone(model: AuraModel, size: str, *, repeat: int = 2) -> dict[str, Any]:
    """A table of the modules that are computed another way than transformers computes them, of one image."""
    rows = []
    for name, task in tasks(model).items():
        taken = {}
        for way in (plainly, contextlib.nullcontext):
            times = []
            for _ in range(1 + repeat):  # the first warms up
                laps = Laps(model.device)
                with way():
                    task()
                laps.lap(name)
                times.append(laps.parts[name])
            taken[way] = statistics.median(times[1:])
        plain, ours = taken.values()
        rows.append([name, f"{plain:.3g}", f"{ours:.3g}", f"{plain / ours:.1f}x"])
    return {"title": f"Modules alone, {size}: CPU seconds", "head": ["module", "plain", "ours", "ratio"], "rows": rows}


def tasks(model: AuraModel) -> dict[str, Callable[[], None]]:
    """What is timed, by name; SAM's attention only where it is tiled."""
    decoder, device = model.visible_decoder, model.device
    assert decoder is not None and model.spatial_occlusion is not None
    channels, side = model.config.prompt_hidden_size, model.prompt_encoder.sam.image_embedding_size[0]
    where = torch.randn(1, channels, side, side, device=device), torch.zeros(OBJECTS, dtype=torch.long, device=device)
    prompts = torch.randn(OBJECTS, channels, device=device, requires_grad=True)
    maps = torch.randn(2, OBJECTS, 4 * side, 4 * side, device=device, requires_grad=True)
    positions = model.prompt_encoder.image_positions()

    def decode() -> None:
        masks, quality = segmentation.decode(decoder, prompts, *where, positions)
        (masks.sum() + quality.sum()).backward()

    def map_occlusion() -> None:
        assert model.spatial_occlusion is not None
        model.spatial_occlusion(*maps).square().sum().backward()

    found: dict[str, Callable[[], None]] = {
        f"a mask decoder, {OBJECTS} objects, both ways": decode,
        f"E_SO, {OBJECTS} objects, both ways": map_occlusion,
    }
    tiled = [module for module in model.image_encoder.modules() if isinstance(module, TiledAttention)]
    if tiled:
        pixels = torch.randn(1, side, side, tiled[0].proj.in_features, device=device)

        @torch.no_grad()
        def attend() -> None:
            tiled[0](pixels)

        found["SAM's global attention, one layer"] = attend
    return found
