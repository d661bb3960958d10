"""The process that runs sections: ``python -m aura.gpucheck.worker JOB``, started by :mod:`aura.gpucheck.runner`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aura import environment
from aura.gpucheck.findings import Findings, NotPossible
from aura.gpucheck.sections import BY_NUMBER, Section

LEFT_OVER = 1.5 * 2**30
"""Bytes on the GPU after a section's clearing, beyond which a new process is the cleaner start."""
GO_ON_ANEW = 3
"""Exit code of a process that leaves the rest to a new one."""


class OutOfTime(BaseException):
    """The section's deadline. No ``Exception``, so that nothing between takes it for an error of its own."""


def main(job: dict[str, Any]) -> int:
    environment.prepare()
    from transformers.utils import logging

    from aura.gpucheck.lab import Lab

    logging.disable_progress_bar()
    os.set_inheritable(job["pipe"], False)
    pipe = os.fdopen(job["pipe"], "w", encoding="utf-8", buffering=1)

    def say(event: str, **rest: Any) -> None:
        pipe.write(json.dumps({"event": event, **rest}, allow_nan=False) + "\n")
        pipe.flush()

    with Lab(tiny=job["scale"] == "tiny", out=Path(job["out"])) as lab, pipe:
        say("hello", facts=lab.facts())
        sections = [BY_NUMBER[number] for number in job["sections"]]
        for section, following in zip(sections, [*sections[1:], None], strict=True):
            number, left = section.number, job["end"] - time.time()
            if left < section.least and not lab.tiny:
                reason = f"{max(0, left):.0f} s were left, it takes at least {section.least}"
                say("end", section=number, verdict="skipped", seconds=0, rest={"error": reason})
                continue
            deadline = min(section.deadline, max(5.0, left))
            say("begin", section=number, deadline=deadline)
            say("end", section=number, **run_section(section, lab, deadline))
            keep = following is not None and following.keeps_large
            lab.clear(keep_large=keep)
            if following is not None and not lab.is_sound(float("inf") if keep else LEFT_OVER):
                return GO_ON_ANEW
    return 0


def run_section(section: Section, lab: Any, deadline: float) -> dict[str, Any]:
    """Verdict, seconds and the rest of the section's record, whatever becomes of it."""
    findings, error, verdict = Findings(on_gpu=lab.device.type == "cuda"), "", ""
    began = time.perf_counter()
    try:
        with time_limit(deadline):
            section.function(lab, findings)
    except OutOfTime:
        verdict, error = "late", f"it was stopped after {deadline:.0f} s"
    except NotPossible as reason:
        verdict, error = "skipped", str(reason)
    except KeyboardInterrupt:
        raise
    except BaseException as failure:
        verdict, error = "error", "".join(traceback.format_exception(failure, limit=-8))[-4000:]
        traceback.clear_frames(failure.__traceback__)  # they hold tensors
    if findings.disproved and verdict != "error":
        verdict = "disproved"
    rest: dict[str, Any] = {"facts": findings.facts, "checks": findings.checks}
    if error:
        rest["error"] = error
    return {"verdict": verdict or "proved", "seconds": time.perf_counter() - began, "rest": rest}


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the block after so many seconds, as soon as Python has the word."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
