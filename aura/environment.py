"""What a process needs to know before torch and DeepSpeed are imported: streams, Ctrl-C, threads. Imports neither."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's mallopt parameters (malloc.h)."""


def prepare() -> None:
    """Make a plain ``python train_ds.py`` a run of one process, and keep threads and memory calm.

    A launcher (``deepspeed``, ``torchrun``) sets the variables itself; what is set already stays. Without them
    DeepSpeed would look for MPI.
    """
    if "RANK" not in os.environ:
        single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(single)
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    os.environ.setdefault("LOCAL_RANK", "0")
    # Read once, when OpenMP loads. A single process keeps OpenMP's default, a short spin between operations (a third
    # faster here than sleeping at once); several processes on one machine would take the cores from each other.
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    if not _has_gpu():
        _keep_freed_memory()


def quiet_libraries() -> None:
    """Keep back what libraries say about things that no user of AURA can mend."""
    # Where bitsandbytes is installed, importing peft would make it advise a download that AURA does not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Nothing is sharded by transformers, which would list every layer for it.
    logging.getLogger("transformers.distributed.tensor_parallel").setLevel(logging.ERROR)


GRACE = 1.5
"""Seconds between the line about Ctrl-C and the end, should threads or other processes still be waited for."""


def command_line(name: str) -> None:
    """What every script calls before its other imports: Ctrl-C is one line, and no letter ends the command.

    Ctrl-C raises ``KeyboardInterrupt``, so that half-written files are removed, and then ends the process by SIGINT;
    among imports, where there is nothing to save, it does so at once. Letters that the output's encoding lacks are
    written as ``\\xe9``.

    Args:
        name: The script's ``__name__``. Nothing is done where it is imported, and in a worker process, which imports
            the script again, Ctrl-C ends it without a word.
    """
    if name not in ("__main__", "__mp_main__"):
        return
    quiet_libraries()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None if it was closed
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, such as below nohup
        return
    if name == "__mp_main__":
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        return
    _speak_of_interrupts(Path(sys.argv[0]).name)


def _speak_of_interrupts(program: str) -> None:
    process = os.getpid()
    uncaught_before, unraisable_before = sys.excepthook, sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process or _is_importing(frame):
            _end(program, process)
        raise KeyboardInterrupt

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not _comes_of_interrupt(error):
            uncaught_before(kind, error, trace)
            return
        if not isinstance(error, KeyboardInterrupt):  # a library has made another one of it
            _end(program, process)
        # Python now clears up, and ends by SIGINT itself.
        _say_stopped(program)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        late = threading.Timer(GRACE, os.kill, (process, signal.SIGINT))
        late.daemon = True
        late.start()

    def unraisable(problem: sys.UnraisableHookArgs) -> None:
        if issubclass(problem.exc_type, KeyboardInterrupt):  # it fell into a callback or __del__, and would be lost
            _end(program, process)
        unraisable_before(problem)

    signal.signal(signal.SIGINT, interrupt)
    sys.excepthook, sys.unraisablehook = uncaught, unraisable


@contextlib.contextmanager
def ctrl_c_in_one_line(program: str) -> Iterator[None]:
    """Within ``with``: Ctrl-C ends the process at once, with one line in place of a traceback from wherever it was.

    For the time in which there is nothing to save. An exception would come out of any import or C call, and some of
    them turn it into another one.
    """
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        _end(program, process)

    if threading.current_thread() is not threading.main_thread():  # Python refuses handlers there
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(program: str, process: int) -> NoReturn:
    """Die by SIGINT, so that a shell's loop over commands ends too; a fork of ``process`` does so without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getpid() == process:
        _say_stopped(program)
        with contextlib.suppress(Exception):  # closed, or interrupted while it wrote
            sys.stdout.flush()
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("SIGINT is blocked")


def _say_stopped(program: str) -> None:
    """One line on stderr; of several ranks the first speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(2, f"\n{program}: stopped by Ctrl-C\n".encode())  # print() could be interrupted in itself


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _comes_of_interrupt(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


NVIDIA = Path("/proc/driver/nvidia")
"""There where the kernel drives an NVIDIA GPU."""


def _has_gpu() -> bool:
    """Whether torch will compute on a GPU, as far as can be said without importing it."""
    return NVIDIA.exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")


def _keep_freed_memory() -> None:
    """Keep large freed blocks: glibc would return each to the system, and page faults take a third of a CPU step."""
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_MAX_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
