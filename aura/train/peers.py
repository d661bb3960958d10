"""A rank learns at once that another has ended, and ends too, with one sentence.

Left alone, gloo would come back from the next joint act with a traceback, and NCCL not at all until its time-out. So
every rank holds a connection to the first, and its last word on it is why it ends. The system closes a dead process's
connection, however it died; that of a machine which is gone stops answering. No thread has to be scheduled for that:
Python may be held for minutes by a library that loads or writes weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from aura.machine import ranks
from aura.train.engine import Process

GRACE = 5.0
"""Seconds in which a rank may leave a joint act by itself after another has ended."""

LEAVE = 30.0
"""Seconds in which a rank that has failed must be gone: leaving NCCL can wait for the others too."""

SILENCE = (15, 5, 5)
"""Seconds of silence until the other machine is asked for a sign of life, seconds between questions, questions."""

GO_ON = "; the same command continues from the last checkpoint"


@contextlib.contextmanager
def watched(process: Process, timeout_minutes: float) -> Iterator[None]:
    """Within ``with``: the end of another rank ends this one. All ranks call it.

    Raises:
        ValueError: Another rank has failed or died; or one did not come to a joint act in time.
    """
    if process.world_size == 1:
        yield
        return
    peers = Peers(process)
    try:
        yield
    except BaseException as error:
        own = isinstance(error, ValueError | FloatingPointError | OSError) or not isinstance(error, Exception)
        # A failed joint act is the echo of somebody's end, whose reason is on its way.
        note = None if own and process.is_main else peers.note(1.0 if own else GRACE)
        peers.close(_first_line(error))
        _be_gone_soon()
        if own and note is not None and note.endswith(_first_line(error) + GO_ON):
            raise SystemExit(1) from error  # the first rank has said it
        if not own and note is not None:
            raise ValueError(note) from error
        if not own and "timed out" in str(error).lower():
            raise ValueError(
                f"a rank did not come to a joint act within {timeout_minutes} minutes ({_first_line(error)}); look at "
                "what it does, or raise train.timeout_minutes"
            ) from error
        raise
    peers.close(None)


class Peers:
    """This rank's connections: to the first rank, or, on the first, to all others."""

    def __init__(self, process: Process) -> None:
        self._rank = process.rank
        self._lock = threading.Lock()
        self._note: str | None = None
        self._noted, self._closed = threading.Event(), threading.Event()
        self._connections: list[socket.socket] = []
        host = socket.gethostname()
        server = _server() if process.is_main else None
        port = server.getsockname()[1] if server else 0
        port, secret, first = ranks.from_first(lambda: (port, secrets.token_hex(8), host))
        if server is None:
            self._connect(port, {"secret": secret, "rank": process.rank, "host": host})
            self._listen(self._connections[0], f"rank 0 on {first}")
        else:
            with server:
                self._accept(server, process.world_size - 1, secret)
        ranks.wait()

    def _connect(self, port: int, hello: dict[str, object]) -> None:
        address = os.environ["MASTER_ADDR"]
        try:
            connection = socket.create_connection((address, port), timeout=60)
        except OSError as error:
            raise ValueError(
                f"rank {self._rank} does not reach rank 0 at {address}:{port} ({error}); ports above 1023 must be open "
                "between the machines"
            ) from error
        _keep_alive(connection)
        self._connections.append(connection)
        _send(connection, hello)

    def _accept(self, server: socket.socket, count: int, secret: str) -> None:
        server.settimeout(60)
        while len(self._connections) < count:
            try:
                connection, _ = server.accept()
                connection.settimeout(60)
                hello = json.loads(connection.makefile("r", encoding="utf-8").readline())
            except TimeoutError as error:
                raise ValueError("not all ranks reach rank 0; ports above 1023 must be open between them") from error
            except (OSError, ValueError):
                continue  # a stranger at the port
            if isinstance(hello, dict) and hello.get("secret") == secret:
                _keep_alive(connection)
                self._connections.append(connection)
                self._listen(connection, f"rank {hello['rank']} on {hello['host']}")

    def _listen(self, connection: socket.socket, name: str) -> None:
        connection.settimeout(None)

        def listen() -> None:
            try:
                line = connection.makefile("r", encoding="utf-8").readline()
            except OSError:
                line = ""
            if self._closed.is_set():
                return
            if not line:
                self._tell(f"{name} has died (killed, or its machine is gone){GO_ON}")
                return
            word = json.loads(line)
            if word["why"] is not None:
                self._tell(word["why"] if word["passed_on"] else f"{name} stopped: {word['why']}{GO_ON}")

        threading.Thread(target=listen, daemon=True).start()

    def _tell(self, note: str) -> None:
        with self._lock:
            if self._note is not None:
                return
            self._note = note
        if self._rank == 0:
            for connection in self._connections:
                _send(connection, {"why": note, "passed_on": True})
        self._noted.set()
        if not self._closed.wait(GRACE):
            _end(note)

    def note(self, seconds: float) -> str | None:
        """Why another rank has ended, if that is known within ``seconds``."""
        self._noted.wait(seconds)
        return self._note

    def close(self, why: str | None) -> None:
        """Say that this rank ends, and why (``None``: its work is done)."""
        self._closed.set()
        for connection in self._connections:
            _send(connection, {"why": why, "passed_on": False})
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), SILENCE, strict=True):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(connection: socket.socket, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # who is gone needs no word
        connection.sendall(json.dumps(message).encode() + b"\n")


def _end(note: str) -> None:
    os.write(2, f"\n{Path(sys.argv[0]).name}: {note}\n".encode())
    os._exit(1)


def _be_gone_soon() -> None:
    def leave() -> None:
        time.sleep(LEAVE)
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
