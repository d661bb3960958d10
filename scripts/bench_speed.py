"""What AURA's economies gain on this machine, as ratios of seconds: packing, sparse logits, caches.

    python scripts/bench_speed.py --checkpoint runs/mini --data data/mini/mini_test.json --images data/mini/images/test

Every pair of timings computes the same numbers two ways. Nothing here is a test: times depend on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import time
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
from aura.types import Batch, ImageFeatures, Sample


def seconds(task: Callable[[], object], repeat: int) -> float:
    """Median over ``repeat`` runs, after one to warm up."""
    task()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Bench:
    """The comparisons, on the first ``num`` images of a data set."""

    def __init__(self, assistant: Assistant, samples: Sequence[Sample]) -> None:
        self.model, self.processor, self.samples = assistant.model, assistant.processor, samples
        self.criterion = AuraCriterion(LossSettings())
        images = [self.processor.image(sample.image_path) for sample in samples]
        self.pixels = [(i.sam_pixels[None], i.clip_pixels[None]) for i in images]
        self.features = [self.model.encode_images(*pixels) for pixels in self.pixels]

    def batches(self, *, packed: bool) -> list[Batch]:
        """One batch per image, or one per conversation."""
        pairs = zip(self.samples, self.features, strict=True)
        if packed:
            return [collate([self.processor(sample, features)]) for sample, features in pairs]
        return [
            collate([self.processor(sample, features, [conversation])])
            for sample, features in pairs
            for conversation in sample.conversations
        ]

    def language_step(self, batches: Sequence[Batch], *, all_logits: bool = False) -> None:
        """Forward and backward of the language model and the text loss."""
        for batch in batches:
            if all_logits:
                everywhere = torch.arange(batch.input_ids.numel())
                targets = torch.full_like(everywhere, -100)
                targets[batch.target_index] = batch.target_ids
                batch = dataclasses.replace(batch, target_index=everywhere, target_ids=targets)
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
                for tokens in (self.processor.conversation(c, sample.image_id) for c in sample.conversations)
            ]
            for sample in self.samples
        ]

    def generate_together(self) -> None:
        for prompts, features in zip(self.prompts(), self.features, strict=True):
            self.model.generate_answers(prompts, clip_features=features.clip_features)

    def generate_alone(self) -> None:
        for prompts, features in zip(self.prompts(), self.features, strict=True):
            for prompt in prompts:
                self.model.generate_answer(torch.tensor([prompt]), clip_features=features.clip_features)

    @torch.no_grad()
    def generate_without_cache(self) -> None:
        """What a loop over full forward passes costs: every token reads the whole conversation again."""
        mllm, end = self.model.mllm, self.model.config.eos_token_id
        for prompts, features in zip(self.prompts(), self.features, strict=True):
            for prompt in prompts:
                ids = list(prompt)
                while ids[-1] != end and len(ids) < len(prompt) + 256:
                    hidden = mllm(torch.tensor([ids]), clip_features=features.clip_features)
                    ids.append(int(mllm.lm_head(hidden[0, -1]).argmax()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="run or export folder")
    parser.add_argument("--data", required=True, metavar="FILE", help="AmodalReasonSeg JSON")
    parser.add_argument("--images", metavar="DIR", help="folder of its images (default: as the file says)")
    parser.add_argument("--num", type=int, default=4, metavar="N", help="images (4)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="timings of which the median counts (5)")
    options = parser.parse_args()

    logging.disable_progress_bar()
    data = AmodalReasonSeg.load(options.data, options.images)
    bench = Bench(Assistant.from_pretrained(options.checkpoint), [data[i] for i in range(min(options.num, len(data)))])
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
    table = Table("what", "without (s)", "with (s)", "ratio", title=f"{len(bench.samples)} images, {_machine()}")
    for name, slow, fast in comparisons:
        before, after = seconds(slow, options.repeat), seconds(fast, options.repeat)
        table.add_row(name, f"{before:.2f}", f"{after:.2f}", f"{before / after:.1f}x")
    Console().print(table)


def _machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    main()
