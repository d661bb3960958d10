"""Lets a run finish its optimizer step and save before it obeys Ctrl-C or a scheduler's SIGTERM."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

ECHO = 5.0
"""Seconds in which further signals are taken as the same one: Ctrl-C reaches a process from the terminal as SIGINT and,
at once, from the ``deepspeed`` launcher as SIGTERM."""


class Interrupt:
    """Within ``with``: remembers the first SIGINT or SIGTERM in ``signal`` (0 if none came).

    One that comes later than :data:`ECHO` seconds after it acts as if there were no handler.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        # Python delivers signals to the main thread only, and refuses handlers elsewhere.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self._since = number, now
        elif now - self._since > ECHO:
            self.__exit__()
            signal.raise_signal(number)
