"""The options that the chat in the terminal and the chat in the browser share: which model, where, and how."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from aura.chat.assistant import Assistant


class Parser(argparse.ArgumentParser):
    """What is wrong is told in one line; knows the options of a model."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def add_model(self) -> None:
        """Add the options that :func:`load` reads."""
        group = self.add_argument_group("model")
        group.add_argument(
            "--checkpoint", required=True, metavar="DIR", help="run or export folder, or OWNER/NAME on the hub"
        )
        group.add_argument("--device", help="such as cpu or cuda:0 (default: the first GPU, else the CPU)")
        group.add_argument(
            "--dtype", choices=("fp32", "bf16", "fp16"), help="of the language model (default: what suits)"
        )
        group.add_argument("--device-map", choices=("auto",), help="spread the model over all GPUs")
        group.add_argument("--quantize", choices=("none", "int8", "int4"), default="none", help="of the language model")
        group.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)")

    def check_model(self, args: argparse.Namespace) -> None:
        """Leave with exit code 2 where a value cannot be meant."""
        if args.max_new_tokens < 1:
            self.error(f"--max-new-tokens must be positive, got {args.max_new_tokens}")


def load(args: argparse.Namespace) -> Assistant:
    """The model that the options ask for; errors as of :meth:`aura.chat.assistant.Assistant.from_pretrained`."""
    from transformers.utils import logging

    from aura.chat.assistant import Assistant

    logging.disable_progress_bar()
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"loading {args.checkpoint} ...", file=sys.stderr)
    return Assistant.from_pretrained(
        args.checkpoint,
        args.device,
        args.dtype,
        quantize=args.quantize,
        device_map=args.device_map,
        max_new_tokens=args.max_new_tokens,
    )
