"""Between the mask decoder's grid and the image's own pixels.

SAM sees an image resized to ``geometry.resized`` and zero-padded to a square of side S; its mask decoder answers on a
coarser grid of the padded square. Both directions are linear and separable, so each is one pair of small matrices.

Legend: n masks, c classes, h w decoder grid, H W pixels of the original image, S side of SAM's square input.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from aura.types import ImageGeometry


def to_image(logits: torch.Tensor, geometry: ImageGeometry) -> torch.Tensor:
    """Logits on the decoder's grid, resampled to the original image.

    Equals SAM's own post-processing (bilinear to S x S, crop to the resized image, bilinear to the original size, both
    with ``align_corners=False``) to float32 rounding, without building the S x S map.

    Args:
        logits: [n, h, w] or [n, c, h, w], any float dtype.
        geometry: How the image lies in the padded square.

    Returns:
        float32 [n, H, W] or [n, c, H, W].
    """
    (height, width), (resized_height, resized_width) = geometry.original, geometry.resized
    rows = _upsampling(logits.shape[-2], geometry.padded, resized_height, height, logits.device)
    columns = _upsampling(logits.shape[-1], geometry.padded, resized_width, width, logits.device)
    # An outer autocast would turn the products into half precision.
    with torch.autocast(logits.device.type, enabled=False):
        return rows @ logits.float() @ columns.T


def to_decoder_grid(
    masks: torch.Tensor, geometry: ImageGeometry, grid: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the original image as soft targets on the decoder's grid.

    A cell's target is the share of its image area that the mask covers.

    Args:
        masks: bool [n, H, W].
        geometry: How the image lies in the padded square.
        grid: (h, w) of the decoder's output.

    Returns:
        targets float32 [n, h, w] in [0, 1], and valid bool [h, w]: cells whose centre lies on the
        image, not on padding.
    """
    assert tuple(masks.shape[-2:]) == tuple(geometry.original), (masks.shape, geometry)
    rows = _pooling(geometry.original[0], geometry.resized[0], geometry.padded, grid[0], masks.device)
    columns = _pooling(geometry.original[1], geometry.resized[1], geometry.padded, grid[1], masks.device)
    with torch.autocast(masks.device.type, enabled=False):
        targets = (rows @ masks.float() @ columns.T).clamp(0, 1)
    valid_rows = _centres(geometry.padded, grid[0], masks.device) < geometry.resized[0]
    valid_columns = _centres(geometry.padded, grid[1], masks.device) < geometry.resized[1]
    return targets, valid_rows[:, None] & valid_columns[None, :]


def _centres(padded: int, cells: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(cells, device=device) + 0.5) * (padded / cells)


@lru_cache(maxsize=64)
def _upsampling(cells: int, padded: int, resized: int, original: int, device: torch.device) -> torch.Tensor:
    """[original, cells]: grid -> padded side -> crop -> original, along one axis."""
    rows, weights = _bilinear_taps(resized, original, device)  # [3, original]
    columns, shares = _bilinear_taps(cells, padded, device)  # [3, padded]
    columns, shares = columns[:, rows], shares[:, rows] * weights  # [3, 3, original]
    matrix = torch.zeros(original, cells, dtype=torch.float64, device=device)
    return matrix.scatter_add_(1, columns.flatten(0, 1).T, shares.flatten(0, 1).T).float()


def _bilinear_taps(size_in: int, size_out: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Bilinear interpolation along one axis: what each output is the sum of, as int64 and float64 [3, size_out].

    The weights are those of ``F.interpolate``. It rounds them to float32 (some 1e-5 at 1024 px), so exact ones would
    agree less well with it. Data sets have thousands of image sizes, so this asks for three sums, not for a matrix: the
    inputs whose number leaves 0, 1 and 2 when divided by 3. Among three neighbours, each sum has the weight of one.
    """
    numbers, thirds = torch.arange(size_in, device=device), torch.arange(3, device=device)
    signals = (numbers % 3 == thirds[:, None]).float()  # [3, size_in]
    sums = F.interpolate(signals[None], size_out, mode="linear", align_corners=False)[0].double()  # [3, size_out]
    centres = (torch.arange(size_out, device=device, dtype=torch.float64) + 0.5) * (size_in / size_out) - 0.5
    neighbours = centres.round().long() + thirds[:, None] - 1  # [3, size_out]
    return neighbours.clamp(0, size_in - 1), sums.gather(0, neighbours % 3)


@lru_cache(maxsize=64)
def _pooling(original: int, resized: int, padded: int, cells: int, device: torch.device) -> torch.Tensor:
    """[cells, original]: share of each pixel in the mean over each cell's part of the image; 0 rows on padding."""
    # Everything in units of original pixels: a cell is a stretch of the padded side, cut off where the image ends.
    edges = torch.arange(cells + 1, dtype=torch.float64, device=device) * (padded / cells) * (original / resized)
    edges = edges.clamp(max=original)
    pixels = torch.arange(original, dtype=torch.float64, device=device)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    overlap = overlap.clamp(min=0)
    return (overlap / overlap.sum(1, keepdim=True).clamp(min=1e-9)).float()
