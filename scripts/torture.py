#!/usr/bin/env python
"""Kill a training again and again, at random moments, and see whether it becomes the run that nobody disturbed.

    python scripts/torture.py --kills 100 --ranks 2 --out torture -- --config configs/mini.yaml --train.steps 12

Everything after ``--`` is given to train_ds.py; the run folder and the feature cache are set here. First the run is
made once in peace. Then it is started, killed and started again with the same command until it ends, and a new one
begins, until enough kills were done. Killed are one rank, all ranks with their launcher, or the launcher alone, with
-9; or all ranks get SIGTERM. The moment is drawn too: while weights are loaded and features encoded, in a step, while a
checkpoint is written, in validation, in the export. Each finished run's losses, validations and exported weights must
equal the peaceful run's bit for bit, and nothing may hang. Results: OUT/torture.json; the exit code is 1 if anything
differed or hung. It is meant for a CPU, where sums have one order.

The processes are forked from this one, which has loaded torch and DeepSpeed, so that a start takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aura import environment

environment.command_line(__name__)

from aura.files import write_json
from aura.train.logs import read_log

VICTIMS = ("one rank", "all ranks and the launcher", "the launcher", "all ranks, by SIGTERM")
MOMENTS = ("loading", "step", "checkpoint", "validation", "export")
KILLS_A_RUN = 8
"""After so many a run may end in peace, so that it is compared."""
PATIENCE = 90.0
"""Seconds after which a process that should have ended hangs: the launcher itself allows 30."""


class Start:
    """One start of the command: a launcher that forks the ranks, and ends them all when one fails."""

    def __init__(self, argv: Sequence[str], ranks: int, output: Path) -> None:
        self.argv, self.num_ranks, self.output = argv, ranks, output
        self.launcher = psutil.Process(self._fork(self._launch))
        self._status: int | None = None

    def _fork(self, act: Callable[[], int]) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = act()
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            finally:
                os._exit(code & 255)
        return pid

    def _launch(self) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alive = {self._fork(lambda rank=rank: self._be_rank(rank, port)) for rank in range(self.num_ranks)}  # type: ignore[misc]
        worst, deadline = 0, float("inf")
        while alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                time.sleep(0.02)
            elif (code := os.waitstatus_to_exitcode(status)) and not worst:
                worst, deadline = abs(code), time.monotonic() + 30
                self._signal(alive - {pid}, signal.SIGTERM)
            alive.discard(pid)
            if time.monotonic() > deadline:
                self._signal(alive, signal.SIGKILL)
        return worst

    @staticmethod
    def _signal(pids: set[int], number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _be_rank(self, rank: int, port: int) -> int:
        import train_ds

        handle = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.num_ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in here.items()} | {"MASTER_ADDR": "127.0.0.1"})
        return train_ds.main(self.argv)

    def ranks(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return self.launcher.children()
        return []

    def status(self) -> int | None:
        """The launcher's exit code; ``None`` while it is at work."""
        if self._status is None:
            pid, status = os.waitpid(self.launcher.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def kill(self, victim: str, dice: random.Random) -> bool:
        """Returns whether every process was gone in time."""
        ranks = self.ranks()
        everything = [*ranks, *(child for rank in ranks for child in _children(rank))]
        if victim == "one rank":
            _send([dice.choice(ranks)] if ranks else [], signal.SIGKILL)
        elif victim == "all ranks, by SIGTERM":
            _send(ranks, signal.SIGTERM)
        else:
            _send([self.launcher], signal.SIGKILL)
            _send(ranks, signal.SIGKILL if victim.startswith("all") else signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while (self.status() is None or any(map(_lives, everything))) and time.monotonic() < deadline:
            time.sleep(0.02)
        alive = [process for process in everything if _lives(process)]
        _send([*alive, *([self.launcher] if self.status() is None else [])], signal.SIGKILL)
        return not alive


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def _send(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def is_moment(moment: str, run: Path, begun: float) -> bool:
    """Whether the run looks, from outside, to be in this moment; files older than ``begun`` are of an earlier start."""
    log = run / "log.jsonl"
    written = log.is_file() and log.stat().st_mtime > begun
    if moment == "loading":  # from the first file that this start has made; on the first start, that of the cache
        return (run / ".owner").is_file() and (run / ".owner").stat().st_mtime > begun and not written
    if moment == "step":
        return written and log.stat().st_size > 0
    if moment == "checkpoint":
        return any((run / "checkpoints").glob(".step_*.unfinished"))
    if moment == "validation":  # its step's losses are logged, its figures are not
        last = (read_log(log) or [{"kind": ""}])[-1] if written else {"kind": ""}
        if last["kind"] != "train":
            return False
        every = yaml.safe_load((run / "config.yaml").read_text())["train"]["validate_every"]
        return every > 0 and last["step"] % every == 0
    return (run / ".export.unfinished").exists()


def fingerprint(run: Path) -> dict[str, Any]:
    """What must be equal: every record of the log but its times, and the exported weights."""
    times = ("seconds", "samples_per_second")
    records = [{k: v for k, v in record.items() if k not in times} for record in read_log(run / "log.jsonl")]
    weights = hashlib.sha256()
    for file in sorted((run / "export").glob("*.safetensors")):
        weights.update(file.read_bytes())
    return {"records": records, "weights": weights.hexdigest()}


def torture(argv: Sequence[str], out: Path, kills: int, ranks: int, seed: int) -> dict[str, Any]:
    """Returns what was done and what came of it."""
    dice, done = random.Random(seed), Counter[tuple[str, str]]()
    hangs, different, failed = 0, [], []

    def start(run: Path) -> Start:
        own = ["--train.output_dir", str(run), "--data.feature_cache", str(run / "features")]
        return Start([*argv, *own], ranks, run.with_suffix(".txt"))

    def finish(command: Start) -> int:
        while (status := command.status()) is None:
            time.sleep(0.05)
        return status

    peaceful = out / "peaceful"
    if (code := finish(start(peaceful))) != 0:
        raise SystemExit(f"torture.py: the run itself ends with {code}; see {peaceful.with_suffix('.txt')}")
    expected = fingerprint(peaceful)
    runs = 0
    while done.total() < kills:
        run, runs = out / f"run_{runs:03d}", runs + 1
        endured = 0
        while True:
            begun = time.time()
            command = start(run)
            may_die = endured < KILLS_A_RUN and done.total() < kills
            moment, victim = dice.choice(MOMENTS), dice.choice(VICTIMS)
            while command.status() is None and not (may_die and is_moment(moment, run, begun)):
                time.sleep(0.001 if may_die else 0.05)
            time.sleep(dice.choice((0.0, dice.uniform(0, 0.3))))
            if command.status() is None:
                hangs += not command.kill(victim, dice)
                done[moment, victim] += 1
                endured += 1
                print(f"{done.total():4d} {run.name}: {victim}, {moment}", flush=True)
            elif command.status() == 0:
                break
            else:
                failed.append(f"{run.name}: exit code {command.status()} without a kill")
                break
        if fingerprint(run) != expected:
            different.append(run.name)
    return {
        "kills": done.total(),
        "runs": runs,
        "ranks": ranks,
        "seed": seed,
        "by moment and victim": {f"{moment}: {victim}": count for (moment, victim), count in sorted(done.items())},
        "hung": hangs,
        "different": different,
        "failed": failed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="torture.py", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("train", nargs=argparse.REMAINDER, help="-- and the options of train_ds.py")
    options = parser.parse_args(argv)
    if options.out.exists():
        parser.error(f"--out {options.out} exists; give a new folder")
    options.out.mkdir(parents=True)
    os.environ["WORLD_SIZE"] = str(options.ranks)  # for prepare(): several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    environment.prepare()
    # Imported once, here; a rank that is forked from this process has them.
    import deepspeed  # noqa: F401

    import aura.train.start  # noqa: F401

    given = options.train[options.train[:1] == ["--"] :]
    result = torture(given, options.out, options.kills, options.ranks, options.seed)
    write_json(options.out / "torture.json", result, indent=2)
    bad = {key: result[key] for key in ("hung", "different", "failed") if result[key]}
    print(f"{result['kills']} kills, {result['runs']} runs: {bad or 'all equal'}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
