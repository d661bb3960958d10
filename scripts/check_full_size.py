#!/usr/bin/env python
"""AURA-7B with SAM ViT-H at its true size, once, on a CPU: shapes, finiteness, seconds and memory of every part.

    python scripts/check_full_size.py --out docs/results/full_size

The weights are random, so the answer means nothing; what is shown is that the whole model exists, fits and computes.
The language model is held in bf16 and each of its linear layers is cast to fp32 as it runs; CLIP, SAM, adapters and
heads are fp32: 17 GiB. One image and one question whose answer has two [SEG] go through the real processor and the
model's own forward pass. Exit code 0: all is finite and of the right shape; 1: something is not; 2: it cannot run here.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import contextlib
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from transformers import LlavaForConditionalGeneration, SamModel
from transformers.initialization import no_init_weights

from aura.config import LossSettings, ModelSettings
from aura.data.collate import collate
from aura.data.photos import open_photo
from aura.data.processor import Processor
from aura.data.tokenization import load_tokenizer
from aura.files import write_json, write_text
from aura.geometry import to_image
from aura.losses import AuraCriterion
from aura.masks import encode_rle
from aura.model import AuraConfig, AuraModel
from aura.model.quantize import cast_as_it_runs
from aura.plan import describe
from aura.plan.architectures import tiny_architecture
from aura.plan.meter import GIB, Meter, Row, available_bytes
from aura.targets import occlusion_rate
from aura.types import AmodalObject, Batch, Conversation, Sample, Turn

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "data/mini_assets/backbones/llava"
QUESTION = "What could I ride here, and what is in the way?"
ANSWER = "You could ride the bicycle [SEG], and the bench [SEG] is in the way."
PATTERN = 1_048_583  # a prime, so that no two rows of a matrix are alike


# --- the model --------------------------------------------------------------------------------------------------------


def architecture(scale: str) -> AuraConfig:
    """The 7B model with SAM ViT-H, or one of the same kind that a test can afford."""
    return describe(ModelSettings(), mllm="7b", sam="vit_h")[0] if scale == "full" else tiny_architecture()


def build(config: AuraConfig, processor: Processor) -> AuraModel:
    """The model with random weights; no weight ever exists twice."""
    llava_config = config.llava_config
    # The released vocabulary; a tokenizer with fewer tokens leaves rows unused, as padding does.
    text = llava_config.text_config
    text.vocab_size = max(text.vocab_size, len(processor.text.tokenizer))
    llava_config.image_token_index = processor.text.image_token_id
    config.seg_token_id, config.eos_token_id = processor.text.seg_token_id, processor.text.eos_token_id
    with no_init_weights():  # allocated, never written: the pattern is the first to touch it
        text.dtype, llava_config.vision_config.dtype = torch.bfloat16, torch.float32
        with default_dtype(torch.bfloat16):
            llava: Any = LlavaForConditionalGeneration._from_config(llava_config, attn_implementation="sdpa")
        for part in (llava.model.vision_tower, llava.model.multi_modal_projector):
            part.to(torch.float32)
        sam: Any = SamModel._from_config(config.sam_config, attn_implementation="sdpa")
        model = AuraModel(config, llava=llava, sam=sam)
    for parameter in model.mllm.lora_parameters():
        parameter.data = parameter.data.float()
    fill(model)
    cast_as_it_runs(model.mllm.language_model)
    cast_as_it_runs(model.mllm.lm_head)
    return model.eval()


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Norms to 1, biases to 0, all else to one repeated pattern of normal numbers, scaled to keep activations alike."""
    pattern = torch.randn(PATTERN, generator=torch.Generator().manual_seed(0))
    start = 0
    for name, parameter in track(list(model.named_parameters()), "filling weights", transient=True):
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1 and "norm" in name:
            parameter.fill_(1)
        else:
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            scaled = (pattern * (0.02 if "embed" in name else fan_in**-0.5)).to(parameter.dtype)
            flat = parameter.view(-1)
            while len(flat):
                length = min(len(flat), PATTERN - start)
                flat[:length] = scaled[start : start + length]
                flat, start = flat[length:], (start + length) % PATTERN


# --- the run ----------------------------------------------------------------------------------------------------------


def make_image(height: int = 768, width: int = 1024) -> Image.Image:
    """A picture with something in it: two boxes on a gradient."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    for box, colour in zip(boxes(height, width), ((200, 60, 40), (40, 90, 200)), strict=True):
        pixels[box] = colour
    return Image.fromarray(pixels.astype(np.uint8))


def boxes(height: int, width: int) -> list[tuple[slice, slice]]:
    rows, columns = slice(height // 4, 3 * height // 4), slice(width // 8, width // 2)
    return [(rows, columns), (slice(height // 2, 7 * height // 8), slice(width // 3, 7 * width // 8))]


def make_batch(processor: Processor, picture: Image.Image, path: Path) -> Batch:
    """The picture with two objects, the second before the first, and one question about both."""
    height, width = picture.height, picture.width
    whole = [np.zeros((height, width), dtype=bool) for _ in range(2)]
    for mask, box in zip(whole, boxes(height, width), strict=True):
        mask[box] = True
    seen = [whole[0] & ~whole[1], whole[1]]
    objects = tuple(
        AmodalObject(i, name, encode_rle(v), encode_rle(a), float(occlusion_rate(v, a)))
        for i, (name, v, a) in enumerate(zip(("bicycle", "bench"), seen, whole, strict=True), start=1)
    )
    conversation = Conversation(1, (Turn(QUESTION, ANSWER, (1, 2)),))
    return collate([processor(Sample(1, path, height, width, objects, (conversation,)))])


@torch.no_grad()
def measure(model: AuraModel, batch: Batch, meter: Meter) -> None:
    """One forward pass as teacher-forced evaluation makes it, then masks at the image's size, and losses."""
    parts: dict[str, Any] = {
        "SAM encoder": model.image_encoder,
        "CLIP tower": model.mllm.vision_tower,
        "projector": model.mllm.projector,
        "language model": model.mllm.language_model,
        "language model head": model.mllm.lm_head,
        "prompt encoder": model.prompt_encoder,
        "visible decoder": model.visible_decoder,
        "occlusion condition encoder": model.occlusion_condition,
        "amodal decoder": model.amodal_decoder,
        "spatial occlusion encoder": model.spatial_occlusion,
    }
    for part, module in parts.items():
        meter.watch(part, module)
    meter.start("whole forward pass")
    output = model(batch)
    values = [output.text_logits, output.visible_logits, output.amodal_logits, output.occlusion_rate]
    meter.stop("whole forward pass", [*values, output.spatial_logits], model)

    meter.start("masks at the image's size")
    masks = [to_image(logits, batch.geometries[0]) for logits in (output.visible_logits, output.amodal_logits)]
    meter.stop("masks at the image's size", masks)
    meter.start("losses")
    losses = AuraCriterion(LossSettings())(output, batch)
    meter.stop("losses", list(vars(losses).values()))

    height, width = batch.geometries[0].original
    assert all(mask.shape == (2, height, width) for mask in masks), "one mask of each kind per [SEG]"
    assert output.text_logits.shape == (len(batch.target_ids), model.config.get_text_config().vocab_size)


def table_of(meter: Meter, title: str) -> Table:
    table = Table("part", title=title)
    for heading in ("parameters", "held in", "output", "finite", "seconds", "peak GiB"):
        table.add_column(heading, justify="left" if heading in ("held in", "output") else "right")
    for row in meter.rows:
        table.add_row(*cells(row), style=None if row.finite else "bold red")
    return table


def cells(row: Row) -> list[str]:
    parameters = f"{row.parameters:,}" if row.parameters else ""
    finite = "yes" if row.finite else "NO"
    return [row.part, parameters, row.dtypes, row.output, finite, f"{row.seconds:.2f}", f"{row.peak_gib:.2f}"]


def as_markdown(meter: Meter, facts: dict[str, Any]) -> str:
    headings = ["part", "parameters", "held in", "output", "finite", "seconds", "peak GiB"]
    lines = [
        "# AURA-7B with SAM ViT-H at full size" if facts["scale"] == "full" else "# A check at tiny size",
        "",
        "Made by `scripts/check_full_size.py`: random weights, real architecture and processor, one image, one "
        "question whose answer has two `[SEG]`. A part's peak is the process's largest memory while it ran.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "| " + " | ".join(headings) + " |",
        "|---|--:|---|---|---|--:|--:|",
        *("| " + " | ".join(cells(row)) + " |" for row in meter.rows),
    ]
    return "\n".join(lines) + "\n"


def run(options: argparse.Namespace, console: Console) -> bool:
    """Build, run, print, write; whether all is finite."""
    config = architecture(options.scale)
    need = 19 * GIB if options.scale == "full" else 0
    have = available_bytes()
    if have is not None and have < need and not options.force:
        raise ValueError(
            f"this needs {need / GIB:.0f} GiB of memory and {have / GIB:.1f} are free; stop something else, or try "
            "anyway with --force"
        )
    picture = make_image() if options.image is None else open_photo(options.image)
    processor = Processor(
        load_tokenizer(options.tokenizer),
        sam_image_size=config.sam_config.vision_config.image_size,
        clip_image_size=config.llava_config.vision_config.image_size,
        num_image_tokens=config.num_image_tokens,
        use_im_start_end=True,
    )
    meter, began = Meter(), time.perf_counter()
    meter.start("building")
    model = build(config, processor)
    meter.stop("building", [], model)
    with temporary_picture(picture) as path:
        batch = make_batch(processor, picture, path)
    console.print(f"{batch.input_ids.shape[1]} tokens, [SEG] at {batch.seg_index.tolist()}; running ...")
    measure(model, batch, meter)

    facts = {
        "scale": options.scale,
        "image": f"{picture.width} x {picture.height}, {'generated' if options.image is None else 'a photograph'}",
        "tokens": batch.input_ids.shape[1],
        "vocabulary": f"{config.get_text_config().vocab_size} rows, tokenizer of {len(processor.text.tokenizer)}",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "weights": f"{sum(p.nbytes for p in model.parameters()) / GIB:.2f} GiB",
        "all of it": f"{time.perf_counter() - began:.0f} s, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"torch {torch.__version__}",
        "everything finite": all(row.finite for row in meter.rows),
    }
    console.print(table_of(meter, f"AURA, {options.scale} size"))
    for name, value in facts.items():
        console.print(f"{name}: {value}", highlight=False)
    if options.out is not None:
        write_json(options.out.with_suffix(".json"), {**facts, "parts": [asdict(row) for row in meter.rows]}, indent=2)
        write_text(options.out.with_suffix(".md"), as_markdown(meter, facts))
    return all(row.finite for row in meter.rows)


@contextlib.contextmanager
def temporary_picture(picture: Image.Image) -> Iterator[Path]:
    """A file, which is what a data set's record points to."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        picture.save(path)
        yield path


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if all is finite, 1 if not, 2 for what the user can mend (with one line on stderr)."""
    parser = argparse.ArgumentParser(
        prog="check_full_size.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="tiny: the same path in a second")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a photograph (default: a generated picture)")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, metavar="DIR", help="Llama's, if it is here")
    parser.add_argument("--out", type=Path, metavar="PATH", help="write PATH.json and PATH.md")
    parser.add_argument("--force", action="store_true", help="run even if memory seems short")
    options = parser.parse_args(argv)
    environment.prepare()
    try:
        return 0 if run(options, Console(width=max(Console().width, 140))) else 1
    except (ValueError, OSError) as error:
        print(f"check_full_size.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
