"""What AURA's economies gain on this machine, as ratios of seconds: packing, sparse logits, caches.

    python scripts/bench_speed.py --checkpoint runs/mini --data data/mini/mini_test.json --images data/mini/images/test

Every pair of timings computes the same numbers two ways, on the GPU if there is one (--device chooses). Nothing here
is a test: times depend on the machine.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import dataclasses
import platform
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from aura.chat.assistant import Assistant
from aura.config import LossSettings
from aura.data.collate import collate
from aura.evaluation.evaluate import answer_starts
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.losses import AuraCriterion
from aura.plan.meter import seconds
from aura.types import Batch, ImageFeatures, Sample


class Bench:
    """The comparisons, on the first ``num`` images of a data set."""

    def __init__(self, assistant: Assistant, samples: Sequence[Sample]) -> None:
        self.model, self.processor, self.samples = assistant.model, assistant.processor, samples
        self.criterion, self.device = AuraCriterion(LossSettings()), assistant.model.device
        images = [self.processor.image(sample.image_path) for sample in samples]
        self.pixels = [tuple(p[None].to(self.device) for p in (i.sam_pixels, i.clip_pixels)) for i in images]
        self.features = [self.model.encode_images(*pixels) for pixels in self.pixels]

    def batches(self, *, packed: bool) -> list[Batch]:
        """One batch per image, or one per conversation."""
        pairs = zip(self.samples, self.features, strict=True)
        if packed:
            batches = [collate([self.processor(sample, features)]) for sample, features in pairs]
        else:
            batches = [
                collate([self.processor(sample, features, [conversation])])
                for sample, features in pairs
                for conversation in sample.conversations
            ]
        return [batch.to(self.device) for batch in batches]

    def language_step(self, batches: Sequence[Batch], *, all_logits: bool = False) -> None:
        """Forward and backward of the language model and the text loss."""
        for batch in batches:
            batch = supervised_everywhere(batch) if all_logits else batch
            output = self.model(batch)
            torch.nn.functional.cross_entropy(output.text_logits, batch.target_ids).backward()
            self.model.zero_grad()

    def train_step(self, batches: Sequence[Batch], *, encode: bool) -> None:
        """Forward, losses and backward, with cached or with fresh image features."""
        for batch, pixels in zip(batches, self.pixels, strict=True):
            if encode:
                fresh: ImageFeatures = self.model.encode_images(*pixels)
                batch = dataclasses.replace(
                    batch, sam_embeddings=fresh.sam_embeddings, clip_features=fresh.clip_features
                )
            self.criterion(self.model(batch), batch).total.backward()
            self.model.zero_grad()

    def prompts(self) -> list[list[list[int]]]:
        """For each image, the prompt of every conversation's first answer."""
        return [
            [
                tokens.input_ids[: answer_starts(tokens)[0]]
                for tokens in (self.processor.text.conversation(c, sample.image_id) for c in sample.conversations)
            ]
            for sample in self.samples
        ]

    def generate_together(self) -> None:
        for prompts, features in zip(self.prompts(), self.features, strict=True):
            self.model.generate_answers(prompts, clip_features=features.clip_features)

    def generate_alone(self) -> None:
        for prompts, features in zip(self.prompts(), self.features, strict=True):
            for prompt in prompts:
                self.model.generate_answer(self._ids(prompt), clip_features=features.clip_features)

    @torch.no_grad()
    def generate_without_cache(self) -> None:
        """What a loop over full forward passes costs: every token reads the whole conversation again."""
        mllm, end = self.model.mllm, self.model.config.eos_token_id
        for prompts, features in zip(self.prompts(), self.features, strict=True):
            for prompt in prompts:
                ids = list(prompt)
                while ids[-1] != end and len(ids) < len(prompt) + 256:
                    hidden = mllm(self._ids(ids), clip_features=features.clip_features)
                    ids.append(int(mllm.lm_head(hidden[0, -1]).argmax()))

    def _ids(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor([tokens], device=self.device)


def supervised_everywhere(batch: Batch) -> Batch:
    """The same text targets, with logits asked for at every position."""
    everywhere = torch.arange(batch.input_ids.numel(), device=batch.input_ids.device)
    targets = torch.full_like(everywhere, -100)
    targets[batch.target_index] = batch.target_ids
    return dataclasses.replace(batch, target_index=everywhere, target_ids=targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="run or export folder")
    parser.add_argument("--data", required=True, metavar="FILE", help="AmodalReasonSeg JSON")
    parser.add_argument("--images", metavar="DIR", help="folder of its images (default: as the file says)")
    parser.add_argument("--num", type=int, default=4, metavar="N", help="images (4)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="timings of which the median counts (5)")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the first GPU, else the CPU)")
    options = parser.parse_args()
    environment.prepare()

    logging.disable_progress_bar()
    data = AmodalReasonSeg.load(options.data, options.images)
    assistant = Assistant.from_pretrained(options.checkpoint, options.device)
    bench = Bench(assistant, [data[i] for i in range(min(options.num, len(data)))])
    packed, separate = bench.batches(packed=True), bench.batches(packed=False)
    comparisons: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        (
            "shared prefix: forward pass, backward of the text loss",
            lambda: bench.language_step(separate),
            lambda: bench.language_step(packed),
        ),
        (
            "text logits where supervised only",
            lambda: bench.language_step(packed, all_logits=True),
            lambda: bench.language_step(packed),
        ),
        (
            "cached image features: a training step",
            lambda: bench.train_step(packed, encode=True),
            lambda: bench.train_step(packed, encode=False),
        ),
        ("key-value cache: answers one by one", bench.generate_without_cache, bench.generate_alone),
        ("all answers about an image together", bench.generate_alone, bench.generate_together),
    ]
    table = Table(
        "what", "without (s)", "with (s)", "ratio", title=f"{len(bench.samples)} images, {_machine(bench.device)}"
    )
    for name, slow, fast in comparisons:
        before, after = (seconds(task, repeat=options.repeat, device=bench.device) for task in (slow, fast))
        table.add_row(name, f"{before:.2f}", f"{after:.2f}", f"{before / after:.1f}x")
    Console().print(table)


def _machine(device: torch.device) -> str:
    where = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    return f"{where}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
