"""What tests of work in other threads share."""

from __future__ import annotations

import threading
import time

TIMEOUT = 10
"""Seconds that nothing here should ever take."""


def nobody_works() -> bool:
    """Whether the threads of :mod:`aura.machine.beside` end, within the moment that one takes after its last task."""
    for _ in range(TIMEOUT * 100):
        if not any(thread.name == "aura-beside" for thread in threading.enumerate()):
            return True
        time.sleep(0.01)
    return False
