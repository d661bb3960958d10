"""A run folder belongs to one run at a time, and is one folder for all machines of the run.

Its file ``.owner`` is locked by the first rank. The system takes the lock back when that process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from aura.machine import ranks

OWNER = ".owner"

PATIENCE = 5.0
"""Seconds in which a lock may still come free: what a killed run has forked dies a moment after it."""

SIGHT = 30.0
"""Seconds in which a new file must come into sight on another machine: network file systems remember what was not."""


@contextlib.contextmanager
def owned(folder: str | Path) -> Iterator[None]:
    """Within ``with``: the run folder is made, is this run's alone, and every rank can write in it. All ranks call it.

    Raises:
        ValueError: Another run is at work in it, it cannot be written, or the machines do not share it.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        token, host = ranks.from_first(lambda: (stack.enter_context(_locked(folder)), socket.gethostname()))
        problems = [problem for problem in ranks.gather(_problem(folder, token, host)) if problem]
        if problems:
            raise ValueError(problems[0])
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[str]:
    """The lock, held; and the token that stands in its file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(_unwritable(folder, error)) from error
    with os.fdopen(handle, "r+", encoding="utf-8") as file:
        _lock(file.fileno(), folder)
        token = secrets.token_hex(8)
        facts = {"token": token, "pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T %z")}
        try:
            file.truncate()
            file.write(json.dumps(facts) + "\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise ValueError(_unwritable(folder, error)) from error
        yield token


def _lock(handle: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                warnings.warn(
                    f"the file system of {folder} knows no locks ({error.strerror}); nothing keeps a second run from "
                    "the same folder",
                    stacklevel=2,
                )
                return
        if time.monotonic() > deadline:
            raise ValueError(
                f"{folder} is the folder of a run that is at work{_owner(folder)}; wait for it or stop it, or choose "
                "another --train.output_dir"
            )
        time.sleep(0.1)


def _owner(folder: Path) -> str:
    try:
        facts = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f" (process {facts['pid']} on {facts['host']} since {facts['since']})"
    except (OSError, ValueError, KeyError):
        return ""


def _problem(folder: Path, token: str, host: str) -> str | None:
    """What is wrong with the folder as this rank sees it."""
    deadline = time.monotonic() + SIGHT
    while not _shows(folder, token):
        if time.monotonic() > deadline:
            return (
                f"{folder.absolute()} on {socket.gethostname()} is not the folder that rank 0 on {host} writes to; put "
                "train.output_dir on a disk that all machines share, at the same path"
            )
        time.sleep(0.2)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return _unwritable(folder, error)


def _shows(folder: Path, token: str) -> bool:
    try:
        list(folder.iterdir())  # makes a network file system look again
        return token in (folder / OWNER).read_text(encoding="utf-8")
    except OSError:
        return False


def _unwritable(folder: Path, error: OSError) -> str:
    return (
        f"the run folder {folder} cannot be written on {socket.gethostname()} ({error.strerror}); choose another "
        "--train.output_dir"
    )
