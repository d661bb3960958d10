"""What the occlusion modules learn, from a pair of masks: the occlusion rate and the spatial occlusion map.

Each function takes NumPy arrays or torch tensors and answers in kind. Imports no torch.
"""

from __future__ import annotations

from typing import Any

BACKGROUND, VISIBLE, OCCLUDED = 0, 1, 2
"""Classes of the spatial occlusion map (paper, section 3.3)."""


def occlusion_rate(visible: Any, amodal: Any) -> Any:
    """The hidden share of each object: ``1 - |visible| / |amodal|``, COCOA-cls's ``occlude_rate``.

    Args:
        visible: Bool ``[..., H, W]``, within ``amodal``.
        amodal: Bool ``[..., H, W]``.

    Returns:
        Floats ``[...]`` in [0, 1]; 0 where the amodal mask is empty.
    """
    _check(visible, amodal)
    seen = visible.sum((-2, -1))
    whole = amodal.sum((-2, -1))
    empty = whole == 0
    rate = 1 - seen / (whole + empty)
    return rate * ~empty


def spatial_map(visible: Any, amodal: Any) -> Any:
    """The class of each pixel: 1 on the visible mask, 2 on the amodal mask outside it, 0 elsewhere.

    Args:
        visible: Bool ``[..., H, W]``.
        amodal: Bool ``[..., H, W]``.

    Returns:
        int64 ``[..., H, W]``. A visible pixel outside the amodal mask counts as visible.
    """
    _check(visible, amodal)
    occluded = amodal & ~visible
    return (visible + 0) * VISIBLE + (occluded + 0) * OCCLUDED


def _check(visible: Any, amodal: Any) -> None:
    for name, mask in (("visible", visible), ("amodal", amodal)):
        if "bool" not in str(mask.dtype):
            raise TypeError(f"the {name} mask must be bool, got {mask.dtype}")
    if tuple(visible.shape) != tuple(amodal.shape):
        raise ValueError(f"masks differ in shape: visible {tuple(visible.shape)}, amodal {tuple(amodal.shape)}")
