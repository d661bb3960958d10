"""A training step, and the evaluation of an image, the plain way and ours.

The plain way, as most code for such models does it: SAM and CLIP encode the image at every step; each question is a
sequence of its own, which repeats the image's tokens; all positions get logits; SAM's modules compute as transformers
wrote them; generation reads the whole sequence again for each token. Ours: questions share a prefix, logits where they
are asked for, folded decoders, tiled attention, a cache of keys; and, ``cached``, the image's features from before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal
from unittest import mock

import torch

from aura import losses as losses_module
from aura.bench import sizes
from aura.config import LossSettings
from aura.data.processor import ProcessedSample
from aura.losses import AuraCriterion
from aura.model import AuraModel, folded_decoder, occlusion, tiled_attention
from aura.model import aura as aura_module
from aura.model.readout import decode_answers, read_masks
from aura.plan.meter import synchronize
from aura.types import AuraOutput, Batch, ImageFeatures

Mode = Literal["plain", "ours", "cached", "bf16"]
MODES: tuple[Mode, ...] = ("plain", "ours", "cached")
TRAIN_MODES: tuple[Mode, ...] = (*MODES, "bf16")
"""``bf16`` is ``cached`` under ``train.autocast: bf16``, whose results are rounded."""


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """SAM's modules as transformers wrote them, and nothing computed anew to save memory."""
    with contextlib.ExitStack() as changes:
        for module, name in (
            (folded_decoder, "LEAST_PIXELS"),
            (tiled_attention, "LEAST_PIXELS"),
            (tiled_attention, "TILE_BYTES"),
            (occlusion, "LEAST_PIXELS"),
            (aura_module, "OBJECTS_AT_ONCE"),
            (losses_module, "PIXELS_AT_ONCE"),
        ):
            changes.enter_context(mock.patch.object(module, name, sys.maxsize))
        yield


class Laps:
    """What each part took, one after the other: CPU seconds, or a GPU's seconds of the clock."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts = device, dict[str, float]()
        self._last = self._now()

    def _now(self) -> float:
        synchronize(self.device)
        return time.process_time() if self.device.type == "cpu" else time.perf_counter()

    def lap(self, part: str) -> None:
        """What came since the last lap was ``part``."""
        now = self._now()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now


class Work:
    """One image with its questions, in one way.

    Args:
        model: On its device.
        sample: The image, with pixels.
        mode: Which way.
        features: The image's, which ``cached`` starts from.
    """

    def __init__(self, model: AuraModel, sample: ProcessedSample, mode: Mode, features: ImageFeatures) -> None:
        self.model, self.mode, self.device = model, mode, model.device
        self.geometry = sample.geometry
        self.criterion = AuraCriterion(LossSettings())
        self.optimizer: torch.optim.Optimizer | None = None
        batch = everywhere(sizes.separate(sample)) if mode == "plain" else sizes.packed(sample)
        self.batch = batch.to(self.device)
        pixels = (sample.sam_pixels, sample.clip_pixels)
        self._pixels = tuple(x[None].to(self.device) for x in pixels if x is not None)
        self._kept = features if mode in ("cached", "bf16") else None
        self.prompts = [c.input_ids[: c.target_mask.index(True)] for c in sample.conversations]  # of each answer

    def _way(self) -> contextlib.AbstractContextManager[None]:
        return plainly() if self.mode == "plain" else contextlib.nullcontext()

    def _encode(self, laps: Laps) -> ImageFeatures:
        sam_pixels, clip_pixels = self._pixels
        with torch.no_grad():
            sam = self.model.encode_sam(sam_pixels)
            laps.lap("SAM's encoder")
            clip = self.model.mllm.encode_images(clip_pixels)
            laps.lap("CLIP")
        return ImageFeatures(sam, clip)

    def _features(self, laps: Laps) -> ImageFeatures:
        return self._encode(laps) if self._kept is None else self._kept

    def _forward(self, laps: Laps) -> tuple[AuraOutput, Batch]:
        batch = sizes.with_features(self.batch, self._features(laps))
        with _lap_after(self.model, laps):
            output = self.model(batch)
        laps.lap("masks")
        return output, batch

    def train_step(self) -> tuple[float, dict[str, float]]:
        """The loss, and what the parts of the step took."""
        self.model.train()
        self.model.mllm.autocast = self.mode == "bf16"
        if self.optimizer is None:
            parameters = [p for _, p in self.model.trainable_parameters()]
            self.optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
        laps = Laps(self.device)
        with self._way():
            output, batch = self._forward(laps)
            total = self.criterion(output, batch).total
            laps.lap("losses")
            total.backward()
            laps.lap("backward: language model")
            self.optimizer.step()
            self.optimizer.zero_grad()
            laps.lap("optimizer")
        return float(total.detach()), laps.parts

    @torch.no_grad()
    def read(self) -> tuple[float, dict[str, float]]:
        """Masks for the true answers, at the image's size: their summed pixels, and what the parts took."""
        self.model.eval()
        laps = Laps(self.device)
        with self._way():
            output, batch = self._forward(laps)
            output.text_logits.argmax(-1).tolist()
            pairs = list(read_masks(output, range(len(batch.seg_index)), self.geometry))
            laps.lap("masks at the image's size")
        found = [mask for pair in pairs for mask in (pair.visible, pair.amodal) if mask is not None]
        return float(sum(int(mask.sum()) for mask in found)), laps.parts

    @torch.no_grad()
    def write(self, tokens: int) -> tuple[float, dict[str, float]]:
        """Answers of ``tokens`` tokens with one mask each: the number of tokens, and what the parts took."""
        self.model.eval()
        laps = Laps(self.device)
        with self._way():
            features = self._features(laps)
            if self.mode == "plain":
                written = [self._write_alone(prompt, features, tokens) for prompt in self.prompts]
            else:
                answers = self.model.generate_answers(
                    self.prompts, clip_features=features.clip_features, max_new_tokens=tokens
                )
                written = [list(answer.token_ids) for answer in answers]
            laps.lap("generation")
            hidden = self.model.config.llava_config.text_config.hidden_size
            states = torch.ones(len(written), hidden, device=self.device)
            list(decode_answers(self.model, states, features, self.geometry))
            laps.lap("masks at the image's size")
        return float(sum(map(len, written))), laps.parts

    def _write_alone(self, prompt: list[int], features: ImageFeatures, tokens: int) -> list[int]:
        """Greedily, without a cache of keys."""
        mllm, ids = self.model.mllm, list(prompt)
        while len(ids) < len(prompt) + tokens and ids[-1] != self.model.config.eos_token_id:
            hidden = mllm(torch.tensor([ids], device=self.device), clip_features=features.clip_features)
            ids.append(int(mllm.logits(hidden[0, -1]).argmax()))
        return ids[len(prompt) :]


def everywhere(batch: Batch) -> Batch:
    """The same text targets, with logits asked for at every position."""
    index = torch.arange(batch.input_ids.numel())
    targets = torch.full_like(index, -100)
    targets[batch.target_index] = batch.target_ids
    return dataclasses.replace(batch, target_index=index, target_ids=targets)


@contextlib.contextmanager
def _lap_after(model: AuraModel, laps: Laps) -> Iterator[None]:
    """Laps after the language model, after its head, and in the backward pass where the former's turn comes."""

    def read(_: Any, __: Any, output: Any) -> None:
        laps.lap("language model")
        states = output.last_hidden_state
        if states.requires_grad:
            states.register_hook(lambda _: laps.lap("backward: masks and logits"))

    hooks = [
        model.mllm.language_model.register_forward_hook(read),
        model.mllm.lm_head.register_forward_hook(lambda *_: laps.lap("logits")),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
