#!/usr/bin/env python
"""Kill what AURA does, again and again, at random moments, and see whether it becomes what nobody disturbed.

    python scripts/torture.py --kills 100 --out torture -- --config configs/mini.yaml --train.steps 12

Everything after ``--`` is given to train_ds.py; its run folder and feature cache are set here. The kinds (``--only``):

training            ranks, one or all, or their launcher; while weights are loaded, in a step, a checkpoint, a
                    validation, the export; losses and exported weights must be equal to the last bit
cache               four processes that build the feature cache; no stored image is lost, and all are equal
generation_offline  two processes of build_dataset.py generate
generation_openai   the same with a service on this machine; no answer is lost, nothing is paid twice
generation_openai_batch   one process with its batch endpoint
review              the review server, while three people work; no acknowledged verdict or draft is lost

Each is done once in peace. Then the same command is started, killed with -9 or SIGTERM and started again until it ends,
and a new one begins, until enough kills were done. Each end must equal the peaceful one, and nothing may hang. Results:
OUT/torture.json; the exit code is 1 if anything differed, hung or was lost. It is meant for a CPU, where sums have one
order. The processes are forked from this one, which has loaded torch and DeepSpeed, so that a start takes seconds.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aura import environment

environment.command_line(__name__)

from aura.files import write_json

SHARES = {
    "training": 5,
    "cache": 3,
    "generation_offline": 3,
    "generation_openai": 3,
    "generation_openai_batch": 3,
    "review": 3,
}
"""Kinds, and how many of the kills each gets, in proportion."""
NEED_A_MODEL = ("training", "cache")


def divide(kills: int, kinds: Sequence[str]) -> dict[str, int]:
    """Kills of each kind: at least one, and ``kills`` in all where that many do."""
    total = sum(SHARES[kind] for kind in kinds)
    given = {kind: max(1, kills * SHARES[kind] // total) for kind in kinds}
    for kind in list(kinds)[: max(0, kills - sum(given.values()))]:
        given[kind] += 1
    return given


def torture(options: argparse.Namespace, train: Sequence[str]) -> dict[str, Any]:
    """Returns what was done and what came of it."""
    # Imported once, here; whatever is forked from this process has them.
    import deepspeed  # noqa: F401

    import aura.datagen.review.app
    import aura.datagen.service.batch
    import aura.datagen.service.client
    import aura.train.start  # noqa: F401
    from aura.torture import training
    from aura.torture.cache import CacheKind
    from aura.torture.endure import Findings, Kind, endure
    from aura.torture.generation import GenerationKind
    from aura.torture.review import ReviewKind

    def say(line: str) -> None:
        print(line, flush=True)

    out, size = options.out, options.size
    kinds: dict[str, Callable[[], Kind]] = {
        "cache": lambda: CacheKind(train, 8 * size),
        "generation_offline": lambda: GenerationKind("offline", out, 2 * size),
        "generation_openai": lambda: GenerationKind("openai", out, size),
        "generation_openai_batch": lambda: GenerationKind("openai-batch", out, size),
        "review": lambda: ReviewKind(out, max(1, size // 5)),
    }
    found: dict[str, Findings] = {}
    for kind, kills in divide(options.kills, options.only).items():
        dice = random.Random(f"{options.seed} {kind}")
        if kind == "training":
            found[kind] = training.torture(train, out, kills, options.ranks, dice, say)
        else:
            found[kind] = endure(kinds[kind](), out, kills, dice, say)
    return {
        "kills": sum(one.killed.total() for one in found.values()),
        "runs": sum(one.runs for one in found.values()),
        "ranks": options.ranks,
        "seed": options.seed,
        **{key: {kind: one.bad[key] for kind, one in found.items() if key in one.bad} for key in BAD},
        "kinds": {kind: one.as_dict() for kind, one in found.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


BAD = ("hung", "different", "failed", "lost")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="torture.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="in all (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=SHARES, default=list(SHARES), metavar="KIND", help="these kinds")
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="of the training (%(default)s)")
    parser.add_argument("--size", type=int, default=30, metavar="N", help="images for a service (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other moments and victims (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    options, train = parser.parse_args(given[:cut]), given[cut + 1 :]
    if options.out.exists():
        parser.error(f"--out {options.out} exists; give a new folder")
    if not train and (needing := [kind for kind in options.only if kind in NEED_A_MODEL]):
        parser.error(f"{', '.join(needing)} need a model: add -- and the options of train_ds.py, or see --only")
    options.out = options.out.absolute()
    options.out.mkdir(parents=True)
    os.environ["WORLD_SIZE"] = str(options.ranks)  # for prepare(): several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    environment.prepare()
    result = torture(options, train)
    write_json(options.out / "torture.json", result, indent=2)
    bad = {key: result[key] for key in BAD if result[key]}
    print(f"{result['kills']} kills, {result['runs']} runs: {bad or 'all equal'}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
