"""Each loss against numbers worked by hand; the criterion on batches built by hand."""

import dataclasses
import math

import pytest
import torch

from aura.config import LossSettings
from aura.losses import AuraCriterion, dice_loss, intent_loss, mask_bce, pointing_losses, spatial_loss, text_loss
from aura.types import AuraOutput, Batch, ImageGeometry, MaskOutput, SegRecord

LOG2 = math.log(2)


def logit(p):
    return math.log(p / (1 - p))


def test_bce_is_the_mean_over_the_pixels_of_each_mask():
    logits = torch.tensor([[[logit(0.8), logit(0.4)]], [[0.0, 0.0]]])
    targets = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    expected = [-(math.log(0.8) + math.log(0.6)) / 2, LOG2]
    assert mask_bce(logits, targets).tolist() == pytest.approx(expected)


def test_bce_leaves_invalid_pixels_out():
    logits = torch.tensor([[[logit(0.8), 7.0]]])
    valid = torch.tensor([[True, False]])
    assert mask_bce(logits, torch.zeros(1, 1, 2), valid).tolist() == pytest.approx([-math.log(0.2)])


def test_dice_by_hand():
    logits = torch.tensor([[[logit(0.8), logit(0.4), logit(0.5)]]])
    targets = torch.tensor([[[1, 0, 1]]], dtype=torch.bool)
    # overlap 0.8 + 0.5; sizes 1.7 and 2
    assert dice_loss(logits, targets).tolist() == pytest.approx([1 - (2 * 1.3 + 1) / (1.7 + 2 + 1)])
    valid = torch.tensor([[True, True, False]])
    assert dice_loss(logits, targets, valid).tolist() == pytest.approx([1 - (2 * 0.8 + 1) / (1.2 + 1 + 1)])


def test_dice_of_empty_masks():
    empty = torch.zeros(1, 4, 4)
    assert dice_loss(torch.full((1, 4, 4), -30.0), empty).item() == pytest.approx(0.0, abs=1e-6)
    assert dice_loss(torch.full((1, 4, 4), 30.0), empty).item() == pytest.approx(16 / 17)


def test_spatial_loss_with_classes_and_with_shares():
    logits = torch.zeros(1, 3, 1, 2)
    logits[0, :, 0, 0] = torch.tensor([math.log(1.0), math.log(2.0), math.log(5.0)])
    classes = torch.tensor([[[2, 0]]])
    assert spatial_loss(logits, classes).tolist() == pytest.approx([(-math.log(5 / 8) + math.log(3)) / 2])
    shares = torch.tensor([0.0, 0.5, 0.5]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    valid = torch.tensor([[True, False]])
    expected = -(0.5 * math.log(2 / 8) + 0.5 * math.log(5 / 8))
    assert spatial_loss(logits, shares, valid).tolist() == pytest.approx([expected])


def test_text_loss_is_the_mean_over_supervised_tokens():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    assert text_loss(logits, torch.tensor([0, 1])).item() == pytest.approx((-math.log(0.75) + LOG2) / 2)
    assert text_loss(logits, torch.tensor([0, -100])).item() == pytest.approx(-math.log(0.75))
    assert text_loss(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)).item() == 0.0


# --- the criterion ----------------------------------------------------------------------------------------------------

SIZE = 8
FULL = ImageGeometry(original=(SIZE, SIZE), resized=(SIZE, SIZE), padded=SIZE)
WIDE = ImageGeometry(original=(SIZE // 2, SIZE), resized=(SIZE // 2, SIZE), padded=SIZE)  # lower half is padding


def make_batch(geometries, masks, seg_image, seg_object, rates, known=None):
    """``masks``: per image a pair (visible, amodal) of bool [K, H, W]."""
    count = len(seg_image)
    return Batch(
        image_ids=tuple(range(len(geometries))),
        geometries=tuple(geometries),
        input_ids=torch.zeros(len(geometries), 4, dtype=torch.long),
        position_ids=torch.zeros(len(geometries), 4, dtype=torch.long),
        segment_ids=torch.zeros(len(geometries), 4, dtype=torch.long),
        target_index=torch.tensor([1]),
        target_ids=torch.tensor([0]),
        seg_index=torch.arange(count),
        seg_image=torch.tensor(seg_image, dtype=torch.long),
        seg_object=torch.tensor(seg_object, dtype=torch.long),
        occlusion_rates=torch.tensor(rates, dtype=torch.float32),
        shape_known=torch.ones(count, dtype=torch.bool) if known is None else torch.tensor(known),
        visible_masks=tuple(v for v, _ in masks),
        amodal_masks=tuple(a for _, a in masks),
        records=tuple(SegRecord(0, 0, 0, i, i) for i in range(count)),
        seg_counts=tuple(seg_image.count(image) for image in range(len(geometries))),
    )


def make_output(visible, amodal, rates=None, spatial=None, unused=None, text=None):
    unused = torch.zeros(()) if unused is None else unused
    text = torch.zeros(1, 2) if text is None else text
    return AuraOutput(MaskOutput(visible, amodal, rates, spatial), text_logits=text, unused=unused)


def left_half(height=SIZE, width=SIZE):
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[..., : width // 2] = True
    return mask


@pytest.mark.parametrize("resolution", ["image", "decoder"])
def test_every_term_of_a_batch_with_uninformed_predictions(resolution):
    visible, amodal = left_half(), torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    batch = make_batch([FULL], [(visible, amodal)], [0], [0], [0.5])
    output = make_output(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), torch.tensor([0.2]), torch.zeros(1, 3, 4, 4))
    losses = AuraCriterion(LossSettings(mask_resolution=resolution))(output, batch).as_floats()
    pixels = SIZE * SIZE if resolution == "image" else 16
    assert losses["text"] == pytest.approx(LOG2)
    assert losses["visible_bce"] == losses["amodal_bce"] == pytest.approx(LOG2)
    # overlap half of the target; sizes: half of all pixels, and the target
    assert losses["visible_dice"] == pytest.approx(1 - (pixels / 2 + 1) / (pixels + 1))
    assert losses["amodal_dice"] == pytest.approx(1 - (pixels + 1) / (1.5 * pixels + 1))
    assert losses["occlusion_rate"] == pytest.approx(0.09)
    assert losses["spatial"] == pytest.approx(math.log(3))
    total = losses.pop("total")
    assert total == pytest.approx(sum(losses.values()))


@pytest.mark.parametrize("resolution", ["image", "decoder"])
@pytest.mark.parametrize("kind", ["visible", "amodal"])
def test_one_kind_of_mask_has_exactly_its_losses(resolution, kind):
    batch = make_batch([FULL], [(left_half(), torch.ones(1, SIZE, SIZE, dtype=torch.bool))], [0], [0], [0.5])
    logits = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    criterion = AuraCriterion(LossSettings(mask_resolution=resolution))
    whole = criterion(make_output(logits, logits), batch).as_floats()
    masks = {"visible": None, "amodal": None, kind: logits}
    alone = criterion(make_output(**masks), batch).as_floats()
    other = "amodal" if kind == "visible" else "visible"
    removed = dict.fromkeys([f"{other}_bce", f"{other}_dice", "occlusion_rate", "spatial"], 0.0)
    assert alone == {
        **whole,
        **removed,
        "total": pytest.approx(whole["text"] + sum(whole[f"{kind}_{x}"] for x in ("bce", "dice"))),
    }


def test_weights_scale_the_terms():
    batch = make_batch([FULL], [(left_half(), left_half())], [0], [0], [0.0])
    output = make_output(torch.zeros(1, 4, 4), torch.ones(1, 4, 4), torch.tensor([0.5]), torch.zeros(1, 3, 4, 4))
    output |= {"asked_logits": torch.zeros(1, 3), "pointed_logits": torch.zeros(1, 4)}
    names = [f.name for f in dataclasses.fields(LossSettings) if f.name != "mask_resolution"]
    weights = {name: float(2**i) for i, name in enumerate(names)}
    losses = AuraCriterion(LossSettings(**weights))(output, batch).as_floats()
    assert losses["total"] == pytest.approx(sum(weights[name] * losses[name] for name in names))


@pytest.mark.parametrize("resolution", ["image", "decoder"])
def test_unoccluded_object_has_the_same_visible_and_amodal_loss(resolution):
    batch = make_batch([FULL], [(left_half(), left_half())], [0], [0], [0.0])
    logits = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    losses = AuraCriterion(LossSettings(mask_resolution=resolution))(make_output(logits, logits), batch).as_floats()
    assert losses["visible_bce"] == losses["amodal_bce"]
    assert losses["visible_dice"] == losses["amodal_dice"]
    assert losses["occlusion_rate"] == losses["spatial"] == 0.0


@pytest.mark.parametrize("resolution", ["image", "decoder"])
def test_padding_outside_the_image_does_not_count(resolution):
    mask = left_half(SIZE // 2, SIZE)
    batch = make_batch([WIDE], [(mask, mask)], [0], [0], [0.0])
    logits = torch.zeros(1, SIZE, SIZE)
    padded = logits.clone()
    padded[:, SIZE // 2 + 1 :] = 50.0
    criterion = AuraCriterion(LossSettings(mask_resolution=resolution))
    spatial = torch.zeros(1, 3, SIZE, SIZE)
    clean = criterion(make_output(logits, logits, spatial=spatial), batch).as_floats()
    dirty_spatial = spatial.clone()
    dirty_spatial[:, 0, SIZE // 2 + 1 :] = 50.0
    assert criterion(make_output(padded, padded, spatial=dirty_spatial), batch).as_floats() == pytest.approx(clean)


def test_objects_of_several_images_are_averaged_together_and_gathered_by_row():
    full, none = torch.ones(1, SIZE, SIZE, dtype=torch.bool), torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    first = torch.cat([none, full])
    half_full, half_none = full[:, : SIZE // 2], none[:, : SIZE // 2]
    second = torch.cat([half_full, half_none])
    batch = make_batch([FULL, WIDE], [(first, first), (second, second)], [0, 0, 1], [1, 1, 1], [0.0, 0.0, 0.0])
    probability = torch.tensor([0.9, 0.6, 0.2]).view(3, 1, 1).expand(3, 4, 4)
    losses = AuraCriterion(LossSettings())(make_output(probability.logit(), probability.logit()), batch)
    expected = -(math.log(0.9) + math.log(0.6) + math.log(0.8)) / 3
    assert losses.visible_bce.item() == pytest.approx(expected, rel=1e-5)


def test_batch_without_seg_has_text_only_and_keeps_unused_in_the_graph():
    empty = torch.zeros(0, SIZE, SIZE, dtype=torch.bool)
    batch = make_batch([FULL], [(empty, empty)], [], [], [])
    parameter = torch.ones(3, requires_grad=True)
    nothing = [torch.zeros(0, *shape, requires_grad=True) for shape in ((4, 4), (4, 4), (), (3, 4, 4))]
    output = make_output(*nothing, unused=0.0 * parameter.sum())
    losses = AuraCriterion(LossSettings())(output, batch)
    losses.total.backward()
    assert all(tensor.grad is not None for tensor in nothing)  # ZeRO 3 counts the outputs of every process
    floats = losses.as_floats()
    assert floats["total"] == floats["text"] == pytest.approx(LOG2)
    assert sum(floats.values()) == pytest.approx(2 * LOG2)
    assert parameter.grad.tolist() == [0.0, 0.0, 0.0]


def test_half_precision_logits_are_compared_in_fp32():
    batch = make_batch([FULL], [(left_half(), left_half())], [0], [0], [0.0])
    logits = torch.zeros(1, 4, 4, dtype=torch.float16, requires_grad=True)
    losses = AuraCriterion(LossSettings())(make_output(logits, logits), batch)
    assert losses.visible_bce.dtype == losses.visible_dice.dtype == losses.total.dtype == torch.float32
    losses.total.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("resolution", ["image", "decoder"])
def test_an_object_of_unknown_shape_counts_for_its_visible_mask_alone(resolution):
    torch.manual_seed(0)
    criterion = AuraCriterion(LossSettings(mask_resolution=resolution))
    seen, whole = left_half(), torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    visible, amodal = torch.randn(2, SIZE, SIZE), torch.randn(2, SIZE, SIZE)
    spatial, rates = torch.randn(2, 3, SIZE, SIZE), torch.tensor([0.2, 0.9])
    output = make_output(visible, amodal, rates, spatial)

    def batch(known):  # the placeholder of the second object's amodal mask is its visible mask
        masks = (torch.cat([seen, seen]), torch.cat([whole, seen]))
        return make_batch([FULL], [masks], [0, 0], [0, 1], [0.5, 0.0], known)

    mixed = criterion(output, batch([True, False]))
    first = criterion(
        make_output(visible[:1], amodal[:1], rates[:1], spatial[:1]),
        make_batch([FULL], [(seen, whole)], [0], [0], [0.5]),
    )
    both = criterion(output, batch([True, True]))
    for name in ("amodal_bce", "amodal_dice", "occlusion_rate", "spatial"):
        assert getattr(mixed, name).item() == pytest.approx(getattr(first, name).item()), name
        assert getattr(mixed, name).item() != pytest.approx(getattr(both, name).item()), name
    for name in ("visible_bce", "visible_dice"):
        assert getattr(mixed, name).item() == pytest.approx(getattr(both, name).item()), name
    none = criterion(output, batch([False, False]))
    assert none.amodal_bce.item() == none.amodal_dice.item() == none.occlusion_rate.item() == none.spatial.item() == 0
    assert none.total.isfinite()


@pytest.mark.parametrize("resolution", ["image", "decoder"])
def test_each_image_s_own_losses_are_those_of_the_image_alone(resolution):
    """Three images: two objects, one of unknown shape; one object of unknown shape; none."""
    torch.manual_seed(1)
    criterion = AuraCriterion(LossSettings(mask_resolution=resolution, text=2.0, spatial=0.5))
    seen, whole = left_half(), torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    wide, nothing = left_half(SIZE // 2), torch.zeros(0, SIZE, SIZE, dtype=torch.bool)
    masks = [(torch.cat([seen, seen]), torch.cat([whole, seen])), (wide, wide), (nothing, nothing)]
    known, rates = [True, False, False], [0.5, 0.0, 0.0]
    batch = make_batch([FULL, WIDE, FULL], masks, [0, 0, 1], [0, 1, 0], rates, known)
    # Tokens of the images: 2, 1, 1.
    batch = dataclasses.replace(batch, target_index=torch.tensor([1, 2, 5, 9]), target_ids=torch.tensor([0, 1, 1, 0]))
    visible, amodal = torch.randn(3, SIZE, SIZE), torch.randn(3, SIZE, SIZE)
    spatial, guesses, text = torch.randn(3, 3, SIZE, SIZE), torch.rand(3), torch.randn(4, 2)
    output = make_output(visible, amodal, guesses, spatial, text=text)
    losses, own = criterion.with_images(output, batch)
    assert losses == criterion(output, batch)
    for image, (objects, tokens) in enumerate((([0, 1], [0, 1]), ([2], [2]), ([], [3]))):
        single = make_batch(
            [batch.geometries[image]],
            [masks[image]],
            [0] * len(objects),
            list(range(len(objects))),
            [rates[n] for n in objects],
            [known[n] for n in objects],
        )
        single = dataclasses.replace(
            single, target_index=torch.arange(len(tokens)), target_ids=batch.target_ids[tokens]
        )
        chosen = (visible[objects], amodal[objects], guesses[objects], spatial[objects])
        alone = make_output(*chosen, text=text[tokens])
        expected = criterion(alone, single).as_floats()
        found = {name: value[image].item() for name, value in own.items()}
        there = {"text", "total"} | ({"visible_bce", "visible_dice"} if objects else set())
        there |= {"amodal_bce", "amodal_dice", "occlusion_rate", "spatial"} if image == 0 else set()
        assert {
            name for name, value in found.items() if not math.isnan(value)
        } == there and found.keys() == expected.keys()
        for name in there:
            assert found[name] == pytest.approx(expected[name], rel=1e-5), (image, name)
    assert not any(value.requires_grad for value in own.values())


def test_the_asked_mask_has_a_cross_entropy_of_its_own():
    batch = make_batch([FULL], [(left_half(), left_half())], [0, 0], [0, 0], [0.0, 0.0])
    logits = torch.zeros(2, 4, 4)
    plain = AuraCriterion(LossSettings())(make_output(logits, logits), batch)
    assert plain.intent is None and "intent" not in plain.as_floats()

    output = make_output(logits, logits)
    output["asked_logits"] = torch.tensor([[math.log(2.0), 0.0, 0.0], [0.0, 0.0, math.log(6.0)]])
    batch.asked = torch.tensor([0, 1])  # the visible mask with probability 1/2, the amodal one with 1/8
    losses = AuraCriterion(LossSettings(intent=0.5))(output, batch)
    assert losses.intent.item() == pytest.approx((math.log(2) + math.log(8)) / 2)
    assert losses.total.item() == pytest.approx(plain.total.item() + 0.5 * losses.intent.item())
    batch.asked = None  # both, with probabilities 1/4 and 6/8
    losses = AuraCriterion(LossSettings())(output, batch)
    assert losses.intent.item() == pytest.approx((math.log(4) - math.log(0.75)) / 2)
    assert intent_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).item() == 0


def test_a_state_should_point_at_the_tokens_that_show_its_object():
    logits = torch.tensor([[0.0, math.log(3.0), 0.0, 0.0]]).repeat(3, 1)
    shares = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0] * 4])
    expected = [math.log(2), 0.5 * math.log(2) + 0.5 * math.log(6), 0.0]
    assert pointing_losses(logits, shares).tolist() == pytest.approx(expected)


def test_the_pointing_term_reads_the_visible_mask_on_the_tokens_grid():
    """Two images of one object each, the left half of the square; one state points left, the other nowhere."""
    pair = (left_half(), torch.ones(1, SIZE, SIZE, dtype=torch.bool))
    batch = make_batch([FULL, FULL], [pair, pair], [0, 1], [0, 0], [0.5, 0.5])
    output = make_output(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4))
    criterion = AuraCriterion(LossSettings(pointing=0.5))
    plain = criterion(output, batch)
    assert plain.pointing is None
    # Tokens 0 and 2 of 2 x 2 are on the left.
    output["pointed_logits"] = torch.tensor([[math.log(3.0), 0.0, math.log(3.0), 0.0], [0.0] * 4])
    losses, own = criterion.with_images(output, batch)
    values = [math.log(8 / 3), math.log(4)]
    assert losses.pointing.item() == pytest.approx(sum(values) / 2)
    assert own["pointing"].tolist() == pytest.approx(values)
    assert losses.total.item() == pytest.approx(plain.total.item() + 0.5 * losses.pointing.item())
