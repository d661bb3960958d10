"""Where a page is served: the socket, taken before anything slow begins, and the names it is reached under."""

from __future__ import annotations

import ipaddress
import socket
import sys

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def names_of(host: str, *more: str) -> tuple[str, ...]:
    """The names under which a page on ``host`` may be asked for; none, which is any, where others can reach it."""
    return (*LOOPBACK_NAMES, host, *more) if is_loopback(host) else ()


def listen(host: str, port: int, remedy: str) -> socket.socket:
    """The address, taken; port 0 is any free one. Whoever connects waits until the socket is served.

    Args:
        host: A name or an address of this machine.
        port: In [0, 65535].
        remedy: How to choose another address, such as ``choose others with --host and --port``.

    Raises:
        ValueError: The address cannot be used, such as a port that another program holds.
    """
    if not 0 <= port <= 65535:  # the system would take another one, without a word
        raise ValueError(f"cannot listen on {host}, port {port} (ports end at 65535); {remedy}")
    listening = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()  # one that is only bound could be bound again
    except (OSError, UnicodeError) as error:
        if listening is not None:
            listening.close()
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot listen on {host}, port {port} ({reason}); {remedy}") from error
    return listening


def url_of(host: str, listening: socket.socket, *, https: bool = False) -> str:
    """What to open in a browser."""
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if https else 'http'}://{shown}:{listening.getsockname()[1]}/"


def warn_of_others(host: str, risk: str, advice: str) -> None:
    """One line on stderr where other machines can reach ``host``: the risk, and what would be safer."""
    if not is_loopback(host):
        print(f"warning: {host} can be reached from other machines{risk}. Safer: {advice}", file=sys.stderr)
