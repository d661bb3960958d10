"""Processes to kill: forked from this one, which has loaded torch, so that a start takes a fraction of a second."""

from __future__ import annotations

import contextlib
import os
import random
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
"""Seconds after which a process that should have ended hangs: the launcher itself allows 30."""

Act = Callable[[], int]
"""What a process does; returns its exit code."""


def fork(act: Act, output: Path | None = None) -> int:
    """The pid of a process that does ``act``; what it prints is added to the file ``output``."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if output is not None:
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
        code = act()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 255)


def program(path: str, arguments: Sequence[str]) -> Act:
    """One of AURA's programs, such as ``scripts/review.py``, as a user starts it."""

    def act() -> int:
        # Not as __main__: Ctrl-C and streams are this process's.
        code = runpy.run_path(str(ROOT / path))["main"](list(arguments))
        return int(code or 0)

    return act


def children(process: psutil.Process, *, recursive: bool = False) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=recursive)
    return []


def send(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


class Command:
    """One start of a command by several processes that work side by side."""

    VICTIMS: tuple[str, ...] = ("one process", "all processes", "all processes, by SIGTERM")

    def __init__(self, acts: Sequence[Act], output: Path) -> None:
        self.processes = [psutil.Process(fork(act, output)) for act in acts]
        self._codes: dict[int, int] = {}

    def over(self) -> int | None:
        """The worst exit code; ``None`` while a process is at work."""
        for pid in [process.pid for process in self.processes if process.pid not in self._codes]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._codes[pid] = os.waitstatus_to_exitcode(status)
        return None if len(self._codes) < len(self.processes) else max(map(abs, self._codes.values()))

    def kill(self, victim: str, dice: random.Random) -> bool:
        """Kill, and wait until all is over; returns whether that was so in time."""
        alive = [process for process in self.processes if process.pid not in self._codes]
        if victim == "one process":
            alive = [dice.choice(alive)] if alive else []
        send(alive, signal.SIGTERM if victim.endswith("SIGTERM") else signal.SIGKILL)
        return self._end()

    def _end(self) -> bool:
        everything = [*self.processes, *(child for one in self.processes for child in children(one, recursive=True))]
        deadline = time.monotonic() + PATIENCE
        while (self.over() is None or any(map(lives, everything))) and time.monotonic() < deadline:
            time.sleep(0.02)
        alive = [process for process in everything if lives(process)]
        send(alive, signal.SIGKILL)
        return not alive
