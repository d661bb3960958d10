"""Runs the sections in a process of its own, so that nothing one of them does can stop the next. Imports no torch.

The process says on a pipe which section it begins and what it found. Where it dies, hangs beyond a section's deadline,
or reports that the GPU no longer answers, the section is recorded and a new process goes on with the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aura.gpucheck.report import Report
from aura.gpucheck.sections import BY_NUMBER

ROOT = Path(__file__).resolve().parents[2]
GRACE = 15.0
"""Seconds after its deadline in which a section may still end by itself."""
START = 180.0
"""Seconds that a process may take to import everything."""


class Worker:
    """The process that runs ``numbers``, one after the other."""

    def __init__(self, numbers: Sequence[int], scale: str, out: Path, end: float) -> None:
        reading, writing = os.pipe()
        job = {"sections": list(numbers), "scale": scale, "out": str(out), "end": end, "pipe": writing}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with (out / "gpu.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "aura.gpucheck.worker", json.dumps(job)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                env=environment,
                start_new_session=True,
            )
        os.close(writing)
        self.pipe, self._buffer = reading, b""
        self.limit = time.time() + START

    def events(self) -> Iterator[dict[str, Any]]:
        """What the process says, until it ends.

        Raises:
            TimeoutError: It said nothing until :attr:`limit`.
        """
        while True:
            while b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                yield json.loads(line)
            if not select.select([self.pipe], [], [], max(0.0, self.limit - time.time()))[0]:
                raise TimeoutError
            chunk = os.read(self.pipe, 1 << 16)
            if not chunk:
                return
            self._buffer += chunk

    def end(self) -> int:
        """Wait a moment, then kill what is left of it; returns the exit code, negative for a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        os.close(self.pipe)
        return self.process.wait()


def run(
    numbers: Sequence[int], *, scale: str, out: Path, seconds: float, on_record: Callable[[dict[str, Any]], None]
) -> Report:
    """Run the sections within ``seconds``; every one of them gets a record."""
    report = Report(out, {"scale": scale})
    report.begin()
    end, pending = time.time() + seconds, list(numbers)

    def record(number: int, verdict: str, taken: float = 0.0, **rest: Any) -> None:
        pending.remove(number)
        title = BY_NUMBER[number].title
        line = {"section": number, "title": title, "verdict": verdict, "seconds": round(taken, 1), **rest}
        report.add(line)
        on_record(line)

    with _terminated_is_interrupted():
        while pending:
            before = len(pending)
            started = _one_process(pending, scale, out, end, report, record)
            if len(pending) < before:
                continue
            for number in list(pending[: 1 if started else None]):  # without its libraries no process will start
                record(number, "error", error=f"the process ended before the section began: {_last_line(out)}")
    return report


def _one_process(
    pending: list[int], scale: str, out: Path, end: float, report: Report, record: Callable[..., None]
) -> bool:
    """Run what is pending until the process ends, and say of a section in which it ended that it did.

    Returns:
        Whether the process came to tell what machine it is on.
    """
    running: int | None = None
    started = False
    began = time.time()
    worker, why = Worker(pending, scale, out, end), ""
    try:
        for event in worker.events():
            if event["event"] == "hello":
                report.facts |= event["facts"]
                started = True
            elif event["event"] == "begin":
                running, began = event["section"], time.time()
                worker.limit = began + event["deadline"] + GRACE
            else:
                record(event["section"], event["verdict"], event["seconds"], **event["rest"])
                running, worker.limit = None, time.time() + START
    except TimeoutError:
        why = "it did not answer within its deadline and was killed"
        worker.process.kill()
    finally:
        code = worker.end()
    if running is not None:
        taken = time.time() - began
        if why:
            record(running, "late", taken, error=why)
        else:
            record(running, "error", taken, error=f"the process died ({_named(code)}): {_last_line(out)}")
    return started


def _last_line(out: Path) -> str:
    log = out / "gpu.log"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip()[-300:] for line in reversed(lines) if line.strip()), "it said nothing")


def _named(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """A time limit's SIGTERM ends the check as Ctrl-C does: the process is killed, what was recorded stays."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
