import numpy as np
import pytest
import torch

from aura.targets import occlusion_rate, rate_from_areas, soft_spatial_map, spatial_map

AMODAL = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
VISIBLE = np.array([[1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)


def kinds():
    return [np.asarray, torch.from_numpy]


@pytest.mark.parametrize("make", kinds())
def test_rate_is_the_hidden_share(make):
    assert float(occlusion_rate(make(VISIBLE), make(AMODAL))) == pytest.approx(0.75)
    assert float(occlusion_rate(make(AMODAL), make(AMODAL))) == 0.0
    assert float(occlusion_rate(make(np.zeros_like(AMODAL)), make(AMODAL))) == 1.0


@pytest.mark.parametrize("make", kinds())
def test_rate_of_an_empty_object_is_zero(make):
    empty = np.zeros((2, 2, 4), dtype=bool)
    assert occlusion_rate(make(empty), make(empty)).tolist() == [0.0, 0.0]


def test_rate_from_areas_is_rounded_once():
    assert rate_from_areas(75, 100) == 0.25
    assert rate_from_areas(4, 5) == 0.2  # 1 - 4 / 5 is a little less
    assert (rate_from_areas(0, 8), rate_from_areas(0, 0), rate_from_areas(9, 8)) == (1.0, 0.0, 0.0)
    assert rate_from_areas(1, 4) == occlusion_rate(VISIBLE, AMODAL)


@pytest.mark.parametrize("make", kinds())
def test_rates_of_several_objects(make):
    rates = occlusion_rate(make(np.stack([VISIBLE, AMODAL])), make(np.stack([AMODAL, AMODAL])))
    assert rates.tolist() == pytest.approx([0.75, 0.0])


@pytest.mark.parametrize("make", kinds())
def test_map_marks_visible_1_and_occluded_2(make):
    classes = spatial_map(make(VISIBLE), make(AMODAL))
    assert classes.tolist() == [[1, 2, 2, 2], [0, 0, 0, 0]]
    assert str(classes.dtype).endswith("int64")


def test_visible_pixels_outside_the_amodal_mask_are_visible():
    assert spatial_map(AMODAL, VISIBLE).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_the_soft_map_holds_the_share_of_each_class():
    visible = torch.tensor([[[0.25, 0.0], [1.0, 0.0]]])
    occluded = torch.tensor([[[0.5, 0.0], [0.0, 1.0]]])
    expected = [[[[0.25, 1.0], [0.0, 0.0]], [[0.25, 0.0], [1.0, 0.0]], [[0.5, 0.0], [0.0, 1.0]]]]
    assert soft_spatial_map(visible, occluded).tolist() == expected


def test_on_cells_of_one_pixel_the_soft_map_is_the_map():
    visible, amodal = torch.from_numpy(VISIBLE)[None], torch.from_numpy(AMODAL)[None]
    soft = soft_spatial_map(visible.float(), (amodal & ~visible).float())
    assert torch.equal(soft.argmax(1), spatial_map(visible, amodal))


def test_wrong_input_is_refused():
    with pytest.raises(TypeError, match="visible mask must be bool"):
        occlusion_rate(VISIBLE.astype(float), AMODAL)
    with pytest.raises(ValueError, match="differ in shape"):
        spatial_map(VISIBLE[:1], AMODAL)
