"""Do the runs of a table, one after the other or some at once; what was done before is not done again."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from aura.reproduction.paper import Scores
from aura.reproduction.runs import Run, in_shell

Say = Callable[[str], None]

SAVING = 300.0
"""Seconds that a training told to stop has for its last step and its checkpoint."""


class Stopped(Exception):
    """A signal came; ``code`` is the program's exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}; the same command continues")
        self.code = 128 + number


def sweep(runs: Sequence[Run], say: Say = print, jobs: int = 1) -> list[str]:
    """Train and evaluate what is not trained and evaluated yet.

    Output of the commands goes into ``train.log`` and ``eval.log`` of each run folder. A run that fails does not keep
    the others from being done.

    Args:
        runs: In the order to do them.
        say: Takes one line per run.
        jobs: So many at once, each with its share of the cores.

    Returns:
        One line per failure.

    Raises:
        Stopped: On SIGINT or SIGTERM. The running commands and all they started get the signal (training then saves a
            checkpoint), and have ended. Repeated signals are passed on as well.
        ValueError: A run folder holds a training with other settings. Found before anything is started.
    """
    for run in runs:
        run.check()
    failures = []
    with _Commands(jobs).listening() as commands, ThreadPoolExecutor(jobs) as pool:
        places = {pool.submit(_complete, run, commands): number for number, run in enumerate(runs, start=1)}
        for done in as_completed(places):
            run = runs[places[done] - 1]
            place = f"[{places[done]}/{len(runs)}] {run.name}: "
            try:
                say(place + done.result())
            except Stopped:
                continue  # the others stop too, and are waited for
            except (_Failed, ValueError) as error:
                failures.append(f"{run.name}: {error}")
                say(f"{place}FAILED, {error}")
    if commands.received:
        raise Stopped(commands.received)
    return failures


def dry_run(runs: Sequence[Run], say: Say = print) -> None:
    """Print the commands in the order in which :func:`sweep` would run them; errors as there."""
    for run in runs:
        run.check()
        say(f"# {run.name}{': finished' if run.is_evaluated else ''}")
        for command, done in ((run.train_command(), run.is_trained), (run.eval_command(), run.is_evaluated)):
            say(("# done: " if done else "") + in_shell(command))


def _complete(run: Run, commands: _Commands) -> str:
    """Do what is missing of one run; returns what there is to say about it."""
    parts = []
    if commands.received:
        raise Stopped(commands.received)
    with _alone(run.folder) as lock:
        if run.is_trained:
            parts.append("trained before")
        else:
            continued = (run.folder / "checkpoints" / "latest").is_file()
            seconds = commands.execute(run.train_command(), run.folder / "train.log", lock)
            if not run.is_trained:
                raise _Failed(f"the training ended without an export; see {run.folder / 'train.log'}")
            parts.append(f"{'continued and ' if continued else ''}trained in {_time(seconds)}")
        if run.is_evaluated:
            parts.append("evaluated before")
        else:
            seconds = commands.execute(run.eval_command(), run.folder / "eval.log", lock)
            if not run.is_evaluated:
                raise _Failed(f"the evaluation wrote no report; see {run.folder / 'eval.log'}")
            parts.append(f"evaluated in {_time(seconds)}")
    figures = run.figures()
    assert figures is not None
    keys = {"giou": f"giou_{run.setting.giou}", "ciou": "ciou"}
    found = {f"{kind}_{name}": figures[kind][key] for kind in ("amodal", "visible") for name, key in keys.items()}
    shown = [f"{key.replace('_giou', ' gIoU').replace('_ciou', ' cIoU')} {100 * found[key]:.2f}"
             for key in Scores._fields if found[key] is not None]  # fmt: skip
    return f"{', '.join(parts)}; {', '.join(shown)}"


class _Failed(Exception):
    pass


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Hold the run folder; a file descriptor that holds it in another process, too, as long as that lives."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _Failed(f"another process works in {folder}; wait for it or end it, then start again") from None
        yield file.fileno()


class _Commands:
    """The commands that run now, each in a thread; a signal to this process goes to all of them."""

    def __init__(self, jobs: int) -> None:
        self.received = 0
        self._groups: set[int] = set()
        self._environment = dict(os.environ)
        if jobs > 1:
            self._environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))

    @contextmanager
    def listening(self) -> Iterator[_Commands]:
        """In the main thread: signals are passed on, not obeyed."""
        before = {number: signal.signal(number, self._forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        for group in tuple(self._groups):
            _signal(group, number)

    def execute(self, command: Sequence[str], log: Path, lock: int) -> float:
        """Run one command, its output appended to ``log``; returns the seconds it took."""
        if self.received:
            raise Stopped(self.received)
        started = time.monotonic()
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n$ {in_shell(command)}\n")
            file.flush()
            try:
                # The run folder's lock goes to the command: a training that outlived a killed sweep still holds it. A
                # group of its own (start_new_session) lets signals reach the training itself, which deepspeed's
                # launcher leaves behind when it is told to stop.
                process = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=self._environment,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            except OSError as error:
                raise _Failed(f"{command[0]}: {error.strerror}") from None
        self._groups.add(process.pid)
        try:
            if self.received:  # it came while the command was started
                _signal(process.pid, self.received)
            code = process.wait()
            # The launcher may be gone while the training still saves its checkpoint.
            deadline = time.monotonic() + SAVING
            while self.received and _is_alive(process.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            self._groups.discard(process.pid)
        if self.received:
            raise Stopped(self.received)
        if code != 0:
            raise _Failed(f"exit code {code}: {_last_words(log)} (see {log})")
        return time.monotonic() - started


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _is_alive(group: int) -> bool:
    """Whether the process group has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _last_words(log: Path) -> str:
    """The last line of a log that says something."""
    with log.open(encoding="utf-8", errors="replace") as file:
        lines = deque((line.strip() for line in file if line.strip()), maxlen=30)
    told = [line for line in lines if line.startswith(("train_ds.py:", "eval.py:")) or "Error" in line]
    return (told or list(lines))[-1][:300]


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
