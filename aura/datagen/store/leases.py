"""The name under which a process takes work, and whether the process behind a name is known to have died."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def own_name() -> str:
    """``host/space/pid/start``: no two processes ever share one, even if the machine gives a pid out again."""
    pid = os.getpid()
    return "/".join((socket.gethostname().replace("/", "_"), _process_space(), str(pid), _start_of(pid)))


def is_dead(name: str) -> bool:
    """Whether the process of that name has surely ended; ``False`` for one of another machine or container."""
    parts = name.split("/")
    if len(parts) != 4 or parts[:2] != own_name().split("/")[:2] or not parts[2].isdigit():
        return False
    pid = int(parts[2])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return bool(parts[3]) and _start_of(pid) != parts[3]


def _process_space() -> str:
    """Containers number their processes anew; where the kernel cannot tell them apart the host's name has to do."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty where that cannot be asked."""
    try:
        # The command's name, in brackets, may hold spaces; what follows it does not. A zombie has ended.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return ""
