"""Image and conversations to tensors; used by training, evaluation and chat alike."""

from __future__ import annotations

from aura.data.images import clip_pixels, load_image, sam_geometry, sam_pixels

__all__ = ["clip_pixels", "load_image", "sam_geometry", "sam_pixels"]
