"""Losses and gradients are finite for whatever masks and however many objects a batch holds."""

import dataclasses
import math

import pytest
import torch

from aura.config import LossSettings
from aura.data.collate import collate
from aura.losses import AuraCriterion
from aura.targets import occlusion_rate
from aura.types import AuraOutput, Batch, ImageGeometry, MaskOutput, SegRecord

SIZE = 16
GEOMETRIES = {
    "square": ImageGeometry((SIZE, SIZE), (SIZE, SIZE), SIZE),
    "one pixel": ImageGeometry((1, 1), (SIZE, SIZE), SIZE),
    "strip": ImageGeometry((3, 400), (1, SIZE), SIZE),  # one row of the decoder's grid, most of it padding
}


def masks_of(geometry):
    """Pairs (visible, amodal) of every degenerate kind: bool [K, H, W] each."""
    empty = torch.zeros(geometry.original, dtype=torch.bool)
    full, pixel = ~empty, empty.clone()
    pixel[-1, -1] = True
    pairs = [(empty, empty), (full, full), (pixel, pixel), (empty, full), (pixel, full), (empty, pixel)]
    visible, amodal = zip(*pairs, strict=True)
    return torch.stack(visible), torch.stack(amodal)


def batch_of(geometry, visible, amodal, objects):
    count = len(objects)
    rates = occlusion_rate(visible, amodal)[objects]
    return Batch(
        image_ids=(0,),
        geometries=(geometry,),
        input_ids=torch.zeros(1, 4, dtype=torch.long),
        position_ids=torch.zeros(1, 4, dtype=torch.long),
        segment_ids=torch.zeros(1, 4, dtype=torch.long),
        target_index=torch.tensor([1]),
        target_ids=torch.tensor([0]),
        seg_index=torch.arange(count),
        seg_image=torch.zeros(count, dtype=torch.long),
        seg_object=objects,
        occlusion_rates=rates.float(),
        shape_known=torch.ones(count, dtype=torch.bool),
        visible_masks=(visible,),
        amodal_masks=(amodal,),
        records=tuple(SegRecord(0, 0, 0, i, i) for i in range(count)),
        seg_counts=(count,),
    )


def finite_losses(output, batch, resolution="image"):
    losses = AuraCriterion(LossSettings(mask_resolution=resolution))(output, batch)
    losses.total.backward()
    assert all(math.isfinite(value) for value in losses.as_floats().values()), losses.as_floats()
    return losses.as_floats()


@pytest.mark.parametrize("resolution", ["image", "decoder"])
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("logit", [0.0, 1e4, -1e4, 1e30])
def test_degenerate_masks_against_predictions_of_any_certainty(resolution, name, logit):
    geometry = GEOMETRIES[name]
    visible, amodal = masks_of(geometry)
    for target in range(len(visible)):
        batch = batch_of(geometry, visible, amodal, torch.tensor([target]))
        maps = torch.full((2, 1, 4, 4), logit, requires_grad=True)
        spatial = torch.full((1, 3, 4, 4), -abs(logit)).index_fill(1, torch.tensor([0]), abs(logit)).requires_grad_()
        rates = torch.tensor([float(logit > 0)], requires_grad=True)
        output = AuraOutput(
            MaskOutput(maps[0], maps[1], rates, spatial), text_logits=torch.zeros(1, 2), unused=torch.zeros(())
        )
        losses = finite_losses(output, batch, resolution)
        for tensor in (maps, spatial, rates):
            assert tensor.grad.isfinite().all()
        assert 0 <= losses["visible_dice"] <= 1 and 0 <= losses["amodal_dice"] <= 1


@pytest.mark.parametrize("resolution", ["image", "decoder"])
def test_a_thousand_objects_have_the_mean_of_their_losses(resolution, monkeypatch):
    geometry = GEOMETRIES["square"]
    visible, amodal = masks_of(geometry)
    objects = torch.arange(1000) % len(visible)
    batch = batch_of(geometry, visible, amodal, objects)
    maps = torch.randn(2, 1000, 4, 4, requires_grad=True)
    spatial, rates = torch.randn(1000, 3, 4, 4), torch.rand(1000)

    def losses_of():
        maps.grad = None
        output = MaskOutput(maps[0], maps[1], rates, spatial)
        return finite_losses(
            AuraOutput(output, text_logits=torch.zeros(1, 2), unused=torch.zeros(())), batch, resolution
        )

    whole, gradient = losses_of(), maps.grad
    monkeypatch.setattr("aura.losses.PIXELS_AT_ONCE", 48 * SIZE * SIZE)
    chunked = losses_of()
    assert chunked == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(maps.grad, gradient)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["empty", "full", "one pixel"])
def test_the_model_s_gradients_for_degenerate_masks(make_model, make_sample, kind):
    model, sample = make_model().train(), make_sample([[8], [6]], seg=2)
    for masks in (sample.visible_masks, sample.amodal_masks):
        masks[:] = kind == "full"
        masks[:, 3, 3] |= kind == "one pixel"
    batch = collate([sample])
    finite_losses(model(batch), batch)
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in model.trainable_parameters())


def test_the_model_s_gradients_for_a_thousand_objects(tiny_config, make_model, make_sample):
    for part in (tiny_config.sam_config.vision_config, tiny_config.sam_config.prompt_encoder_config):
        part.image_size = 16  # a grid of 2 x 2, so that a thousand objects take a moment
    tiny_config.sam_config.prompt_encoder_config.image_embedding_size = 2
    model = make_model().train()
    sample = make_sample([[60]] * 20, seg=50)
    small = ImageGeometry((40, 60), (11, 16), 16)
    batch = collate([dataclasses.replace(sample, geometry=small, sam_pixels=torch.randn(3, 16, 16))])
    assert len(batch.seg_image) == 1000
    finite_losses(model(batch), batch, "decoder")
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in model.trainable_parameters())
