import pytest
import torch
import torch.nn.functional as F

from aura import geometry as geometry_module
from aura.geometry import to_decoder_grid, to_image
from aura.types import ImageGeometry

GEOMETRIES = [
    (ImageGeometry((480, 640), (768, 1024), 1024), (256, 256)),
    (ImageGeometry((333, 127), (1024, 391), 1024), (256, 256)),  # odd, portrait
    (ImageGeometry((37, 53), (45, 64), 64), (32, 32)),  # enlarged
    (ImageGeometry((2001, 1499), (128, 96), 128), (64, 64)),  # reduced
    (ImageGeometry((64, 64), (64, 64), 64), (32, 32)),
]


def reference(logits: torch.Tensor, geometry: ImageGeometry) -> torch.Tensor:
    side, (height, width) = geometry.padded, geometry.resized
    large = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
    return F.interpolate(large[..., :height, :width], geometry.original, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(("geometry", "grid"), GEOMETRIES)
def test_to_image_equals_sams_two_interpolations(geometry, grid):
    logits = torch.randn(2, 3, *grid)
    expected = reference(logits, geometry)
    assert (to_image(logits, geometry) - expected).abs().max() < 4e-6
    assert (to_image(logits[:, 0], geometry) - expected[:, 0]).abs().max() < 4e-6
    assert (to_image(logits[:, 0].half(), geometry)).dtype == torch.float32


def test_to_image_is_equal_to_rounding():
    geometry, grid = GEOMETRIES[0]
    logits = torch.rand(1, 1, *grid)  # as in trials: values of about 1
    assert (to_image(logits, geometry) - reference(logits, geometry)).abs().max() < 7e-7


def test_to_image_has_gradients_and_no_masks_are_fine():
    geometry, grid = GEOMETRIES[2]
    logits = torch.randn(1, *grid, requires_grad=True)
    to_image(logits, geometry).sum().backward()
    assert logits.grad.abs().sum() > 0
    assert to_image(torch.zeros(0, *grid), geometry).shape == (0, 37, 53)


@pytest.mark.parametrize(("geometry", "grid"), GEOMETRIES)
def test_decoder_grid_keeps_area_and_place(geometry, grid):
    height, width = geometry.original
    masks = torch.zeros(3, height, width, dtype=torch.bool)
    masks[0] = True
    masks[1, : height // 2, : width // 3] = True
    targets, valid = to_decoder_grid(masks, geometry, grid)
    assert targets.dtype == torch.float32 and targets.shape == (3, *grid)
    assert targets.min() >= 0 and targets.max() <= 1
    rows, columns = (round(r * g / geometry.padded) for r, g in zip(geometry.resized, grid, strict=True))
    assert valid.sum() == rows * columns and valid[:rows, :columns].all()
    assert torch.allclose(targets[0][valid], torch.ones(()))
    assert not targets[2].any()
    share = targets[1][valid].mean()
    assert share == pytest.approx(masks[1].float().mean().item(), abs=1.5 / min(rows, columns))
    back = to_image(targets, geometry)[1] > 0.5
    union = (back | masks[1]).sum()
    assert (back & masks[1]).sum() / union > 0.85


def test_decoder_grid_by_hand():
    # 4 x 4 image, not resized, in an 8 px square on a 4 x 4 grid: each cell covers 2 x 2 pixels, half is padding.
    geometry = ImageGeometry((4, 4), (4, 4), 8)
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 2:, 2:] = True
    targets, valid = to_decoder_grid(masks, geometry, (4, 4))
    expected = torch.zeros(4, 4)
    expected[0, 0], expected[1, 1] = 0.25, 1.0
    assert torch.equal(targets[0], expected)
    assert valid.tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2


def dense_bilinear(size_in: int, size_out: int) -> torch.Tensor:
    return F.interpolate(torch.eye(size_in)[None], size_out, mode="linear", align_corners=False)[0].T


@pytest.mark.parametrize("size_in", [1, 2, 3, 5, 64, 683, 1024])
@pytest.mark.parametrize("size_out", [1, 2, 7, 256, 427, 640, 2001])
def test_taps_are_the_weights_of_interpolate(size_in, size_out):
    index, weights = geometry_module._bilinear_taps(size_in, size_out, torch.device("cpu"))
    matrix = torch.zeros(size_out, size_in, dtype=torch.float64)
    matrix.scatter_add_(1, index.T, weights.T)
    assert torch.equal(matrix.float(), dense_bilinear(size_in, size_out))


@pytest.mark.parametrize(("resized", "original"), [(768, 480), (1024, 640), (683, 427), (391, 127), (1024, 2001)])
def test_one_matrix_stands_for_both_interpolations(resized, original):
    found = geometry_module._upsampling(256, 1024, resized, original, torch.device("cpu"))
    whole = dense_bilinear(resized, original).double() @ dense_bilinear(256, 1024).double()[:resized]
    assert torch.equal(found, whole.float())


def test_many_sizes_take_little_memory_and_work(monkeypatch):
    """Thousands of sizes pass through; a fixed number of matrices stays, and none is built from a dense product."""
    geometry_module._upsampling.cache_clear()
    monkeypatch.setattr(torch, "eye", None)
    for height in range(300, 500):
        to_image(torch.zeros(1, 16, 16), ImageGeometry((height, 640), (round(height * 1.6), 1024), 1024))
    assert geometry_module._upsampling.cache_info().currsize == 64


def test_matrices_are_made_on_their_device():
    matrix = geometry_module._upsampling(16, 64, 43, 40, torch.device("meta"))
    assert matrix.device.type == "meta" and matrix.shape == (40, 16)
    assert geometry_module._pooling(40, 43, 64, 16, torch.device("meta")).device.type == "meta"
