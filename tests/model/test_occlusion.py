"""E_OC and E_SO in each form against values worked by hand; E_SO with its channels last against itself."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aura.config import ConditionForm, LossSettings, SpatialForm
from aura.data.collate import collate
from aura.losses import AuraCriterion
from aura.model import occlusion
from aura.model.occlusion import OcclusionConditionEncoder, SpatialOcclusionEncoder, ZeroConv2d, ZeroLinear


@pytest.mark.parametrize("count", [1, 3])
def test_channels_last_changes_neither_values_nor_gradients(count, monkeypatch):
    encoder = SpatialOcclusionEncoder()
    torch.nn.init.normal_(encoder.conv_out.weight)
    found, layouts = [], []
    encoder.conv_mid.register_forward_pre_hook(lambda _, args: layouts.append(args[0].stride(1)))
    for least in (10**9, 1):
        monkeypatch.setattr(occlusion, "LEAST_PIXELS", least)
        maps = torch.randn(2, count, 24, 20, generator=torch.Generator().manual_seed(1), requires_grad=True)
        encoder.zero_grad()
        logits = encoder(*maps)
        (logits.softmax(1) * torch.linspace(-1, 1, 20)).sum().backward()
        found.append({"logits": logits, "maps": maps.grad} | {n: p.grad for n, p in encoder.named_parameters()})
    assert layouts == [24 * 20, 1]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=1e-5, msg=name)


# --- E_OC -------------------------------------------------------------------------------------------------------------


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


@pytest.mark.parametrize("form", get_args(ConditionForm))
def test_every_form_of_e_oc_starts_from_the_model_without_it(form):
    encoder = OcclusionConditionEncoder(6, form)
    refined = torch.randn(3, 6)
    aware, rates = encoder(refined)
    assert rates.shape == (3,) and ((rates > 0) & (rates < 1)).all()
    if form == "token":
        assert aware.shape == (3, 2, 6) and torch.equal(aware[:, 0], refined) and not aware[:, 1].any()
    else:
        assert torch.equal(aware, refined)
    (aware.square().sum() + rates.sum()).backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_forms_of_e_oc_by_hand():
    """C = 2, e_r = (1, -2), hidden (gelu(1), gelu(-2)); the last layer is (3, 4) and its bias (0.5, -0.5)."""
    hidden = gelu(1.0), gelu(-2.0)
    found = 3 * hidden[0] + 0.5, 4 * hidden[1] - 0.5
    shifts = hidden[1] + 1.0, hidden[0] + 2.0  # of film: the second half of its last layer
    expected = {
        "residual": [1 + found[0], -2 + found[1]],
        "scaled": [1 + 10 * found[0], -2 + 0.1 * found[1]],
        "film": [(1 + found[0]) * 1 + shifts[0], (1 + found[1]) * -2 + shifts[1]],
        "token": [[1.0, -2.0], [found[0], found[1]]],
    }
    for form, values in expected.items():
        encoder = OcclusionConditionEncoder(2, form)
        with torch.no_grad():
            encoder.linear_in.weight.copy_(torch.eye(2))
            encoder.linear_in.bias.zero_()
            weight, bias = [[3.0, 0.0], [0.0, 4.0]], [0.5, -0.5]
            if form == "film":
                weight, bias = [*weight, [0.0, 1.0], [1.0, 0.0]], [*bias, 1.0, 2.0]
            encoder.linear_out.weight.copy_(torch.tensor(weight))
            encoder.linear_out.bias.copy_(torch.tensor(bias))
            encoder.rate.weight.copy_(torch.tensor([[1.0, 2.0]]))
            encoder.rate.bias.zero_()
            if form == "scaled":
                encoder.scale.weight.copy_(torch.tensor([10.0, 0.1]))
        aware, rates = encoder(torch.tensor([[1.0, -2.0]]))
        torch.testing.assert_close(aware[0], torch.tensor(values), msg=form)
        read = values[1] if form == "token" else values
        assert rates.item() == pytest.approx(1 / (1 + math.exp(-read[0] - 2 * read[1])), rel=1e-5)


def test_the_present_forms_are_as_they_were_bit_for_bit():
    """The same names, the same random draws, the same sums as modules written out."""
    torch.manual_seed(0)
    linear_in, linear_out, rate = nn.Linear(8, 8), ZeroLinear(8, 8), nn.Linear(8, 1)
    conv_in, conv_mid = nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    conv_out = ZeroConv2d(16, 3, 1)
    torch.manual_seed(0)
    condition, spatial = OcclusionConditionEncoder(8), SpatialOcclusionEncoder()
    layers = ("linear_in", "linear_out", "rate", "conv_in", "conv_mid", "conv_out")
    names = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert {*condition.state_dict(), *spatial.state_dict()} == names
    refined, visible, amodal = torch.randn(3, 8), torch.randn(2, 12, 12), torch.randn(2, 12, 12)
    with torch.no_grad():
        for layer in (linear_out, condition.linear_out, conv_out, spatial.conv_out):
            layer.weight.fill_(0.25)
    aware = refined + linear_out(F.gelu(linear_in(refined)))
    assert all(map(torch.equal, condition(refined), (aware, rate(aware).squeeze(-1).sigmoid())))
    implied = torch.stack([F.logsigmoid(-amodal), visible, F.logsigmoid(amodal)], dim=1)
    features = F.gelu(conv_mid(F.gelu(conv_in(torch.stack([visible, amodal], dim=1).sigmoid()))))
    assert torch.equal(spatial(visible, amodal), implied + conv_out(features))


# --- E_SO -------------------------------------------------------------------------------------------------------------


def implied_map(visible: torch.Tensor, amodal: torch.Tensor) -> torch.Tensor:
    """Probabilities of background, visible, occluded."""
    v, a = visible.sigmoid(), amodal.sigmoid()
    return torch.stack([(1 - v) * (1 - a), v, (1 - v) * a], dim=1)


@pytest.mark.parametrize("form", get_args(SpatialForm))
def test_every_form_of_e_so_starts_as_the_implied_map(form):
    encoder = SpatialOcclusionEncoder(form=form, image_channels=5)
    visible, amodal, images = torch.randn(3, 8, 8), torch.randn(3, 8, 8), torch.randn(2, 5, 2, 2)
    logits = encoder(visible, amodal, images, torch.tensor([0, 1, 1]))
    if form == "image":
        visible, amodal = (
            F.interpolate(maps[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]
            for maps in (visible, amodal)
        )
    assert logits.shape == (3, 3, *visible.shape[-2:])
    torch.testing.assert_close(logits.softmax(1), implied_map(visible, amodal), atol=1e-5, rtol=1e-5)


def test_image_features_reach_the_map_of_their_own_image():
    encoder = SpatialOcclusionEncoder(channels=1, form="features", image_channels=2)
    with torch.no_grad():
        for name, value in {
            **{"conv_in.weight": 0.0, "conv_in.bias": 0.0, "conv_mid.weight": 0.0, "conv_mid.bias": 0.0},
            **{"conv_image.weight": 1.0, "conv_image.bias": 0.5, "conv_out.weight": 1.0},
        }.items():
            encoder.get_parameter(name).fill_(value)
        encoder.conv_mid.weight[0, 0, 1, 1] = 1.0  # the middle alone: it passes on what it reads
    images = torch.zeros(2, 2, 1, 1)
    images[1, 0], images[1, 1] = 2.0, -0.5  # the second image adds 2 - 0.5 to the bias
    logits = encoder(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), images, torch.tensor([1, 0]))
    added = logits - torch.tensor([-math.log(2), 0.0, -math.log(2)]).view(1, 3, 1, 1)
    for number, read in enumerate((2.0, 0.5)):
        torch.testing.assert_close(added[number], torch.full((3, 4, 4), gelu(gelu(read))))


def test_a_detached_stack_gives_the_decoders_the_implied_map_s_gradient_alone():
    def gradients(form: str, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        encoder = SpatialOcclusionEncoder(form=form)
        nn.init.constant_(encoder.conv_out.weight, weight)
        visible, amodal = (torch.randn(1, 6, 6, requires_grad=True) for _ in range(2))
        (encoder(visible, amodal) * torch.linspace(-1, 2, 6)).sum().backward()
        assert (encoder.conv_in.weight.grad.any()) == (weight != 0)  # the stack itself learns
        return visible.grad, amodal.grad

    alone = gradients("decoder", 0.0)
    assert all(map(torch.equal, gradients("detached", 0.7), alone))
    assert not any(map(torch.equal, gradients("decoder", 0.7), alone))


@pytest.mark.parametrize("resolution", ["image", "decoder"])
def test_a_fine_map_is_compared_at_both_resolutions(make_model, make_sample, resolution):
    batch = collate([make_sample([[8], [6]])])
    model = make_model(spatial_form="image")
    output = model(batch)
    assert output.spatial_logits.shape[-2:] == (128, 128) and output.visible_logits.shape[-2:] == (32, 32)
    losses = AuraCriterion(LossSettings(mask_resolution=resolution))(output, batch)
    assert 0 < losses.spatial.item() < 10 and losses.total.isfinite()
