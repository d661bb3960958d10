"""SAM's attention in tiles against transformers' own, with the same weights."""

import copy

import pytest
import torch
from transformers import SamModel
from transformers.models.sam.modeling_sam import SamVisionSdpaAttention

from aura.model import tiled_attention
from aura.model.tiled_attention import TiledAttention, attend_in_tiles


@pytest.fixture
def attention(tiny_sam_config) -> SamVisionSdpaAttention:
    """Over a grid of 8 x 8, with positions that matter."""
    attention = SamVisionSdpaAttention(tiny_sam_config.vision_config, window_size=0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return attention


@pytest.fixture(params=["rows", "a pixel", "all"])
def tiles(request, monkeypatch):
    """Tiles of three rows (24 pixels), of one pixel or row, and one tile of all."""
    monkeypatch.setattr(tiled_attention, "LEAST_PIXELS", 1)
    row = 2 * 2 * 8 * 64 * 4  # bytes of 2 images, 2 heads
    monkeypatch.setattr(tiled_attention, "TILE_BYTES", {"rows": 3 * row, "a pixel": 1, "all": 2**30}[request.param])
    monkeypatch.setattr(tiled_attention, "TILE_SCORES", {"rows": 24 * 64, "a pixel": 1, "all": 2**30}[request.param])


@pytest.mark.usefixtures("tiles")
def test_values_of_several_images_are_those_of_transformers(attention):
    pixels = torch.randn(2, 8, 8, 16)
    with torch.no_grad():
        expected = attention(pixels)[0]
        here, nothing = TiledAttention(attention)(pixels)
    assert nothing is None and expected.abs().max() > 0.1
    torch.testing.assert_close(here, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("tiles")
def test_gradients_are_those_of_transformers(attention):
    own = TiledAttention(copy.deepcopy(attention))
    found = []
    for module in (attention, own):
        pixels = torch.randn(2, 8, 8, 16, generator=torch.Generator().manual_seed(5), requires_grad=True)
        (module(pixels)[0] * torch.linspace(-1, 1, 16)).sum().backward()
        found.append({"pixels": pixels.grad, **{name: p.grad for name, p in module.named_parameters()}})
    one, other = found
    assert one.keys() == other.keys() and len(one) == 7
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_bf16_is_as_good_as_that_of_transformers(attention, weights):
    """As weights of an encoder held so, and by autocast."""
    pixels = torch.randn(2, 8, 8, 16)
    with torch.no_grad():
        exact = attention(pixels)[0]
        attention, pixels = attention.to(weights), pixels.to(weights)
        with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
            theirs, ours = attention(pixels)[0], TiledAttention(attention)(pixels)[0]
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert (ours - exact).abs().max() <= 1.5 * (theirs - exact).abs().max()


def test_positions_of_another_size_are_resampled_as_in_transformers(attention):
    pixels = torch.randn(1, 5, 7, 16)
    with torch.no_grad():
        torch.testing.assert_close(TiledAttention(attention)(pixels)[0], attention(pixels)[0], atol=1e-6, rtol=1e-5)


def test_global_layers_alone_are_changed_and_names_stay(tiny_sam_config):
    sam = SamModel(tiny_sam_config).eval()
    plain, names = copy.deepcopy(sam), list(sam.state_dict())
    attend_in_tiles(sam.vision_encoder)
    kinds = [isinstance(layer.attn, TiledAttention) for layer in sam.vision_encoder.layers]
    assert kinds == [False, True] and list(sam.state_dict()) == names
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(sam.vision_encoder(pixels)[0], plain.vision_encoder(pixels)[0], atol=1e-6, rtol=1e-5)
    attend_in_tiles(sam.vision_encoder)  # once more changes nothing
    assert not isinstance(sam.vision_encoder.layers[1].attn.qkv, TiledAttention)


def test_attention_without_positions_stays(tiny_sam_config):
    tiny_sam_config.vision_config.use_rel_pos = False
    sam = SamModel(tiny_sam_config)
    attend_in_tiles(sam.vision_encoder)
    assert not any(isinstance(module, TiledAttention) for module in sam.modules())
