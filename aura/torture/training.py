"""A training that is killed: one rank, all ranks, their launcher; in any moment from loading to the export."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from aura.torture.endure import KILLS_A_RUN, Findings
from aura.torture.processes import PATIENCE, children, fork, lives, program, send
from aura.train.logs import read_log

VICTIMS = ("one rank", "all ranks and the launcher", "the launcher", "all ranks, by SIGTERM")
MOMENTS = ("loading", "step", "checkpoint", "validation", "export")


class Launch:
    """One start of the command: a launcher that forks the ranks, and ends them all when one fails."""

    def __init__(self, argv: Sequence[str], ranks: int, output: Path) -> None:
        self.argv, self.num_ranks, self.output = argv, ranks, output
        self.launcher = psutil.Process(fork(self._launch, output))
        self._status: int | None = None

    def _launch(self) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alive = {fork(lambda rank=rank: self._be_rank(rank, port)) for rank in range(self.num_ranks)}  # type: ignore[misc]
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
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.num_ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in here.items()} | {"MASTER_ADDR": "127.0.0.1"})
        return program("train_ds.py", self.argv)()

    def status(self) -> int | None:
        """The launcher's exit code; ``None`` while it is at work."""
        if self._status is None:
            pid, status = os.waitpid(self.launcher.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def kill(self, victim: str, dice: random.Random) -> bool:
        """Returns whether every process was gone in time."""
        ranks = children(self.launcher)
        everything = [*ranks, *(child for rank in ranks for child in children(rank, recursive=True))]
        if victim == "one rank":
            send([dice.choice(ranks)] if ranks else [], signal.SIGKILL)
        elif victim == "all ranks, by SIGTERM":
            send(ranks, signal.SIGTERM)
        else:
            send([self.launcher], signal.SIGKILL)
            send(ranks, signal.SIGKILL if victim.startswith("all") else signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while (self.status() is None or any(map(lives, everything))) and time.monotonic() < deadline:
            time.sleep(0.02)
        alive = [process for process in everything if lives(process)]
        send([*alive, *([self.launcher] if self.status() is None else [])], signal.SIGKILL)
        return not alive


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


def torture(
    argv: Sequence[str], out: Path, kills: int, ranks: int, dice: random.Random, say: Callable[[str], None]
) -> Findings:
    """Kill a training ``kills`` times; ``argv`` are the options of train_ds.py."""
    found = Findings("training")
    out = out / found.kind
    out.mkdir()

    def start(run: Path) -> Launch:
        own = ["--train.output_dir", str(run), "--data.feature_cache", str(run / "features")]
        return Launch([*argv, *own], ranks, run.with_suffix(".txt"))

    def finish(command: Launch) -> int:
        while (status := command.status()) is None:
            time.sleep(0.05)
        return status

    peaceful = out / "peaceful"
    if (code := finish(start(peaceful))) != 0:
        raise SystemExit(f"torture.py: the run itself ends with {code}; see {peaceful.with_suffix('.txt')}")
    expected = fingerprint(peaceful)
    while found.killed.total() < kills:
        run = out / f"run_{found.runs:03d}"
        found.runs += 1
        endured = 0
        while True:
            begun = time.time()
            command = start(run)
            may_die = endured < KILLS_A_RUN and found.killed.total() < kills
            moment, victim = dice.choice(MOMENTS), dice.choice(VICTIMS)
            while command.status() is None and not (may_die and is_moment(moment, run, begun)):
                time.sleep(0.001 if may_die else 0.05)
            time.sleep(dice.choice((0.0, dice.uniform(0, 0.3))))
            if command.status() is None:
                found.hung += not command.kill(victim, dice)
                found.killed[f"{moment}: {victim}"] += 1
                endured += 1
                say(f"{found.killed.total():4d} training {run.name}: {victim}, {moment}")
            elif command.status() == 0:
                break
            else:
                found.failed.append(f"{run.name}: exit code {command.status()} without a kill")
                break
        if fingerprint(run) != expected:
            found.different.append(run.name)
    return found
