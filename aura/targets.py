"""What the occlusion modules learn, from a pair of masks: the occlusion rate and the spatial occlusion map.

The rate is defined here and nowhere else. Functions of masks take NumPy arrays or torch tensors and answer in kind. The
module imports no torch until a soft map asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BACKGROUND, VISIBLE, OCCLUDED = 0, 1, 2
"""Classes of the spatial occlusion map (paper, section 3.3)."""


def occlusion_rate(visible: Any, amodal: Any) -> Any:
    """The hidden share of each object, :func:`rate_from_areas` of its masks.

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
    return (whole - seen) / (whole + empty)


def rate_from_areas(visible: int, amodal: int) -> float:
    """The occlusion rate ``1 - |visible| / |amodal|``, COCOA-cls's ``occlude_rate``, from two numbers of pixels.

    Returns:
        A fraction in [0, 1], rounded once: a quarter hidden is 0.25 exactly. 0 where the amodal mask is empty or the
        smaller of the two.
    """
    return max(0, amodal - visible) / amodal if amodal else 0.0


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


def soft_spatial_map(visible: Tensor, occluded: Tensor) -> Tensor:
    """The share of each class in each cell of a grid coarser than the image.

    Args:
        visible: [n, h, w] in [0, 1], the share of each cell that the visible mask covers.
        occluded: [n, h, w], the same of the amodal mask outside the visible one.

    Returns:
        [n, 3, h, w] in the order of :func:`spatial_map`'s classes; the three shares of a cell sum to 1.
    """
    import torch

    return torch.stack([(1 - visible - occluded).clamp(min=0), visible, occluded], dim=1)


def _check(visible: Any, amodal: Any) -> None:
    for name, mask in (("visible", visible), ("amodal", amodal)):
        if "bool" not in str(mask.dtype):
            raise TypeError(f"the {name} mask must be bool, got {mask.dtype}")
    if tuple(visible.shape) != tuple(amodal.shape):
        raise ValueError(f"masks differ in shape: visible {tuple(visible.shape)}, amodal {tuple(amodal.shape)}")
