"""The loop: a command is started, killed at a random moment and started again until it ends; the end is compared."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aura.torture.processes import Command, lives, send

KILLS_A_RUN = 8
"""After so many a run may end in peace, so that it is compared."""
EARLY = 0.2
"""The share of kills before anything was done, while programs load."""
TRIES = 3
"""Runs in a row that may end before they could be killed, and are not counted."""


@dataclass
class Findings:
    """What was done to one kind of work, and what came of it."""

    kind: str
    killed: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    hung: int = 0
    different: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def bad(self) -> dict[str, Any]:
        """What should be empty and is not."""
        found = {"hung": self.hung, "different": self.different, "failed": self.failed, "lost": self.lost}
        return {key: value for key, value in found.items() if value}

    def as_dict(self) -> dict[str, Any]:
        return {
            "kills": self.killed.total(),
            "runs": self.runs,
            "killed": dict(sorted(self.killed.items())),
            "hung": self.hung,
            "different": self.different,
            "failed": self.failed,
            "lost": self.lost,
        }


class Kind(Protocol):
    """A kind of work whose processes are killed."""

    name: str
    victims: tuple[str, ...]

    def new(self, run: Path) -> None:
        """Lay out what the command finds in ``run``, which exists."""

    def start(self, run: Path) -> Command:
        """The same command each time."""

    def trace(self, run: Path) -> Path:
        """The file that changes when something is done."""

    def result(self, run: Path) -> Any:
        """What must be equal at the end."""

    def lost(self, run: Path) -> list[str]:
        """What was acknowledged and is not there, or was paid twice; asked after every kill."""

    def close(self) -> None:
        """End whatever else was started for it."""


def endure(kind: Kind, out: Path, kills: int, dice: random.Random, say: Callable[[str], None]) -> Findings:
    """Kill ``kind``'s processes ``kills`` times.

    Raises:
        SystemExit: It fails even in peace.
    """
    found = Findings(kind.name)
    commands: list[Command] = []

    def begin(run: Path) -> Command:
        commands.append(kind.start(run))
        return commands[-1]

    def new(name: str) -> Path:
        run = out / kind.name / name
        run.mkdir(parents=True)
        kind.new(run)
        return run

    try:
        peaceful, begun = new("peaceful"), time.time()
        command = begin(peaceful)
        _wait_for_work(command, kind.trace(peaceful), begun)
        at_work = time.time()
        _wait(command, float("inf"))
        if (code := command.over()) != 0:
            raise SystemExit(f"torture.py: {kind.name} itself ends with {code}; see {peaceful / 'output.txt'}")
        loading, working = at_work - begun, time.time() - at_work
        expected = kind.result(peaceful)
        found.lost += [f"peaceful: {one}" for one in kind.lost(peaceful)]
        while found.killed.total() < kills:
            run = new(f"run_{found.runs:03d}")
            found.runs += 1
            endured = 0
            while True:
                begun = time.time()
                command = begin(run)
                if not (endured < KILLS_A_RUN and found.killed.total() < kills):
                    _wait(command, float("inf"))
                elif dice.random() < EARLY:
                    _wait(command, dice.uniform(0, loading))
                else:
                    _wait_for_work(command, kind.trace(run), begun)
                    _wait(command, dice.uniform(0, working))
                if (code := command.over()) is not None:
                    if code != 0:
                        found.failed.append(f"{run.name}: exit code {code} without a kill")
                    break
                victim = dice.choice(kind.victims)
                found.hung += not command.kill(victim, dice)
                found.killed[victim] += 1
                found.lost += [f"{run.name}: {one}" for one in kind.lost(run)]
                endured += 1
                say(f"{found.killed.total():4d} {kind.name} {run.name}: {victim}")
            found.lost += [f"{run.name}: {one}" for one in kind.lost(run)]
            if kind.result(run) != expected:
                found.different.append(run.name)
            if found.runs > TRIES * (kills + 1):
                found.failed.append("it ends before it can be killed; give it more to do")
                break
    finally:
        for command in commands:
            send([one for one in command.processes if lives(one)], signal.SIGKILL)
        kind.close()
    return found


def _wait_for_work(command: Command, trace: Path, begun: float) -> None:
    """Until the command has done something, or is over."""
    while command.over() is None and not (trace.is_file() and trace.stat().st_mtime > begun):
        time.sleep(0.002)


def _wait(command: Command, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while command.over() is None and time.monotonic() < deadline:
        time.sleep(0.005)
