"""Damages valid files of every kind that AURA reads, and holds every reader to one rule: a result or one clear error.

The error is a ``ValueError`` that names the file. Anything else is a fault: another exception, more than 5 seconds of
computing, or a message without the file's name. Hypothesis makes the damage and shrinks what it finds. Example::

    scripts/fuzz.py --num 10000 --out docs/results/bad_files.json
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import resource
import sys
import tempfile
from pathlib import Path

from aura.files import write_json
from aura.fuzz import data, models
from aura.fuzz.damage import Fault, fuzz

READERS = (*data.READERS, *models.READERS)


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 if a reader broke the rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=10_000, metavar="N", help="bad files in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another one makes other files (%(default)s)")
    parser.add_argument("--only", metavar="NAME", help="the readers whose name contains this")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the counts as JSON")
    options = parser.parse_args(argv)
    readers = [reader for reader in READERS if (options.only or "").lower() in reader.name.lower()]
    counts: dict[str, dict[str, int]] = {}
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        for reader in readers:
            try:
                taken = fuzz(reader, -(-options.num // len(readers)), Path(folder), options.seed)
            except (Fault, ExceptionGroup) as fault:  # several at once come as a group
                faults += 1
                print("FAULT", fault, *getattr(fault, "__notes__", ()), sep="\n  ", flush=True)
                continue
            counts[reader.name] = dict(taken)
            print(f"{reader.name}: {taken['read']} read, {taken['refused']} refused", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    total = sum(sum(taken.values()) for taken in counts.values())
    print(f"{total} bad files, {faults} readers with a fault, at most {peak} MiB of memory")
    if options.out:
        write_json(options.out, {"bad_files": total, "peak_mib": peak, "faults": faults, "readers": counts}, indent=1)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
