#!/usr/bin/env python
"""One Hugging Face folder from a checkpoint of a run: LoRA merged, tokenizer, processor and model card beside it.

    python scripts/export.py runs/aura_7b --out exports/aura_7b
    python scripts/export.py runs/aura_7b --out exports/aura_7b_lora --keep-lora --checkpoint last --dtype fp16
    python scripts/export.py runs/aura_7b --out exports/aura_7b --checkpoint runs/aura_7b/checkpoints/step_004500

Takes a checkpoint of any ZeRO stage and number of processes, and weights that zero_to_fp32.py consolidated. Needs no
GPU and holds one copy of the model. DIR appears when it is complete. Exit code 0, or 2 for what you can mend.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import json
import os
import re
import sys
from pathlib import Path

from aura.config import Config, load_config


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (train.output_dir)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--checkpoint", default="best", metavar="best|last|PATH", help="what to export (best)")
    parser.add_argument("--keep-lora", action="store_true", help="keep the adapters apart, and as DIR/adapter for peft")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), help="of the language model (default: the run's)")
    parser.add_argument("--shard-size", metavar="SIZE", help="largest weight file (5GB)")
    parser.add_argument(
        "--frozen-from", metavar="DIR", help="AURA folder, or its name on the hub, with the frozen weights: RUN/export"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export in DIR")
    options = parser.parse_args(argv)
    if options.shard_size and not re.fullmatch(r"[1-9]\d*([KMGT]I?)?B", options.shard_size, re.IGNORECASE):
        parser.error(f"--shard-size must be a size such as 5GB or 500MB, got {options.shard_size!r}")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"export.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Do what the parsed options say."""
    from transformers.utils import logging

    from aura.files import write_text
    from aura.model.configuration import DTYPES
    from aura.train import export
    from aura.train.checkpoint import SHARD_SIZE
    from aura.train.summary import model_card

    logging.disable_progress_bar()
    config = _run_config(options.run)
    export.check_out(options.out, force=options.force)
    chosen = export.choose_checkpoint(options.run, options.checkpoint)
    print(f"checkpoint: {chosen.path}")
    trained = export.read_trained(chosen.path)
    print(f"trained weights: {len(trained)} tensors, {sum(value.numel() for value in trained.values()):,} numbers")
    model, processor = export.load_trained_model(config, chosen, trained, options.frozen_from)
    del trained
    if not chosen.state:
        print(f"not checked: {chosen.path} does not tell which frozen weights it was trained on")
    if model.config.lora is not None and not options.keep_lora:
        export.merge_adapters(model)
        print("LoRA: merged")
    dtype = options.dtype or config.train.precision
    export.convert(model, DTYPES[dtype])
    report = options.run / "report.json"
    finished = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else None
    with export.new_folder(options.out, force=options.force) as folder:
        export.write_folder(model, processor, folder, shard_size=options.shard_size or SHARD_SIZE)
        card = model_card(options.run, config, step=chosen.step, model=model, dtype=dtype, report=finished)
        write_text(folder / "README.md", card)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(
        f"{options.out}: {size / 1e9:.2f} GB in {dtype}; next: python chat.py --checkpoint {options.out} --image FILE"
    )


def _run_config(folder: Path) -> Config:
    file = folder / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{file} is missing: {folder} is no run folder; give the train.output_dir of a run")
    return load_config(file)


if __name__ == "__main__":
    sys.exit(main())
