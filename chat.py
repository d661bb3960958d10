"""Talk with AURA about an image: ``python chat.py --checkpoint runs/mini --image photo.jpg`` (see docs/chat.md)."""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="chat.py", description="Ask AURA about an image.")
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="run or export folder, or OWNER/NAME on the hub"
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="what to talk about; asked for if not given")
    parser.add_argument("--ask", action="append", metavar="QUESTION", help="ask and leave; repeat it for more rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object per answer, the rest on stderr")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where overlays go (default runs/chat/DATE-TIME)")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the first GPU, else the CPU)")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the language model (default: what suits)")
    parser.add_argument("--device-map", choices=("auto",), help="spread the model over all GPUs")
    parser.add_argument("--quantize", choices=("none", "int8", "int4"), default="none", help="of the language model")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)")
    args = parser.parse_args(argv)
    if args.ask and args.image is None:
        parser.error("--ask needs --image FILE")
    if not args.ask and sys.stdin is None:
        parser.error("there is no stdin to read questions from; give them with --ask")
    if args.max_new_tokens < 1:
        parser.error(f"--max-new-tokens must be positive, got {args.max_new_tokens}")
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file; give a folder")
    args.out = args.out or Path("runs/chat") / time.strftime("%Y%m%d-%H%M%S")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 2 for what the user can mend (with one line on stderr), or 130 after Ctrl-C."""
    args = parse(argv)
    environment.prepare()
    try:
        from aura.data.photos import open_photo

        if args.image is not None:
            open_photo(args.image)  # a large model takes minutes to load; a wrong file name should not
        from transformers.utils import logging

        from aura.chat.assistant import Assistant
        from aura.chat.terminal import Terminal

        logging.disable_progress_bar()
        if sys.stderr.isatty():
            print(f"loading {args.checkpoint} ...", file=sys.stderr)
        assistant = Assistant.from_pretrained(
            args.checkpoint,
            args.device,
            args.dtype,
            quantize=args.quantize,
            device_map=args.device_map,
            max_new_tokens=args.max_new_tokens,
        )
        terminal = Terminal(assistant, args.out, as_json=args.json, image=args.image)
        return terminal.ask_all(args.ask) if args.ask else terminal.talk()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; Python would complain
        return 0
    except (ValueError, OSError) as error:
        print(f"chat.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nchat.py: stopped by Ctrl-C", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
