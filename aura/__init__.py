"""AURA: amodal reasoning segmentation. Ask about an image; get an answer with visible and amodal masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Assistant", "__version__"]

if TYPE_CHECKING:
    from aura.chat.assistant import Assistant


def __getattr__(name: str) -> Any:
    """Load ``Assistant`` only when asked for, so that ``import aura.config`` stays free of torch."""
    if name == "Assistant":
        from aura.chat.assistant import Assistant

        return Assistant
    raise AttributeError(f"module 'aura' has no attribute {name!r}")
