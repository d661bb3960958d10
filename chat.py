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

from aura.chat.options import Parser, load


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="chat.py", description="Ask AURA about an image.")
    parser.add_model()
    parser.add_argument("--image", type=Path, metavar="FILE", help="what to talk about; asked for if not given")
    parser.add_argument("--ask", action="append", metavar="QUESTION", help="ask and leave; repeat it for more rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object per answer, the rest on stderr")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where overlays go (default runs/chat/DATE-TIME)")
    args = parser.parse_args(argv)
    parser.check_model(args)
    if args.ask and args.image is None:
        parser.error("--ask needs --image FILE")
    if not args.ask and sys.stdin is None:
        parser.error("there is no stdin to read questions from; give them with --ask")
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
        from aura.chat.terminal import Terminal

        terminal = Terminal(load(args), args.out, as_json=args.json, image=args.image)
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
