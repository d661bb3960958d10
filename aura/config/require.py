"""How settings check themselves."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """ValueError with ``message`` where a setting does not fit."""
    if not condition:
        raise ValueError(message)
