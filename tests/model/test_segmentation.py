"""SAM's parts as AURA calls them, against the upstream segment-anything package with equal weights."""

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import SamModel

from aura.model import folded_decoder, segmentation
from aura.model.segmentation import PromptEncoder, Rescaling

RENAMES = [
    ("iou_prediction_head.layers.0", "iou_prediction_head.proj_in"),
    ("iou_prediction_head.layers.1", "iou_prediction_head.layers.0"),
    ("iou_prediction_head.layers.2", "iou_prediction_head.proj_out"),
    ("output_upscaling.0", "upscale_conv1"),
    ("output_upscaling.1", "upscale_layer_norm"),
    ("output_upscaling.3", "upscale_conv2"),
    ("mask_downscaling.0", "mask_embed.conv1"),
    ("mask_downscaling.1", "mask_embed.layer_norm1"),
    ("mask_downscaling.3", "mask_embed.conv2"),
    ("mask_downscaling.4", "mask_embed.layer_norm2"),
    ("mask_downscaling.6", "mask_embed.conv3"),
    ("point_embeddings", "point_embed"),
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    ("image_encoder", "vision_encoder"),
    ("neck.0", "neck.conv1"),
    ("neck.1", "neck.layer_norm1"),
    ("neck.2", "neck.conv2"),
    ("neck.3", "neck.layer_norm2"),
    ("patch_embed.proj", "patch_embed.projection"),
    (".norm", ".layer_norm"),
    ("blocks", "layers"),
]


def renamed(name: str) -> str:
    for old, new in RENAMES:
        name = name.replace(old, new)
    if "output_hypernetworks_mlps" in name:
        for old, new in (("layers.0", "proj_in"), ("layers.1", "layers.0"), ("layers.2", "proj_out")):
            if old in name:
                return name.replace(old, new)
    return name


@pytest.fixture
def upstream(monkeypatch):
    """A small upstream ``Sam`` of the sizes of ``tiny_sam_config``, random."""
    spec = importlib.util.find_spec("segment_anything")
    if spec is None:
        pytest.skip("segment-anything is not installed (requirements-dev.txt)")
    package = types.ModuleType("segment_anything")  # its own __init__ needs torchvision
    package.__path__ = [str(Path(spec.origin).parent)]
    for name in [n for n in sys.modules if n.split(".")[0] == "segment_anything"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "segment_anything", package)
    parts = importlib.import_module("segment_anything.modeling")
    sam = parts.Sam(
        image_encoder=parts.ImageEncoderViT(
            img_size=64, patch_size=8, embed_dim=16, depth=2, num_heads=2, out_chans=32, use_rel_pos=True,
            mlp_ratio=2, window_size=3, global_attn_indexes=[1], norm_layer=lambda n: torch.nn.LayerNorm(n, eps=1e-6),
        ),
        prompt_encoder=parts.PromptEncoder(
            embed_dim=32, image_embedding_size=(8, 8), input_image_size=(64, 64), mask_in_chans=8
        ),
        mask_decoder=parts.MaskDecoder(
            num_multimask_outputs=3,
            transformer=parts.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=4),
            transformer_dim=32, iou_head_depth=3, iou_head_hidden_dim=32,
        ),
    )  # fmt: skip
    for parameter in sam.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    yield sam.eval()
    for name in [n for n in sys.modules if n.startswith("segment_anything.")]:
        del sys.modules[name]


@pytest.fixture
def twin(upstream, tiny_sam_config) -> SamModel:
    """The transformers model with upstream's weights."""
    sam = SamModel(tiny_sam_config).eval()
    state = {renamed(name): value for name, value in upstream.state_dict().items()}
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    sam.load_state_dict(state)
    return sam


@torch.no_grad()
def test_encoder_equals_upstream(upstream, twin):
    pixels = torch.randn(2, 3, 64, 64)
    ours = twin.vision_encoder(pixels).last_hidden_state
    assert (ours - upstream.image_encoder(pixels)).abs().max() < 1e-4


@pytest.mark.parametrize("least_pixels", [1, 65])  # folded, and as SAM's own decoder computes it
@torch.no_grad()
def test_decoding_equals_upstream(upstream, twin, least_pixels, monkeypatch):
    """N prompts over three images in one call, against upstream's one call per image."""
    monkeypatch.setattr(folded_decoder, "LEAST_PIXELS", least_pixels)
    encoder = PromptEncoder(24, twin.prompt_encoder)
    (prompts, _), embeddings = encoder(torch.randn(5, 24)), torch.randn(3, 32, 8, 8)
    image = torch.tensor([0, 0, 1, 2, 2])
    masks, quality = segmentation.decode(
        twin.mask_decoder, prompts, embeddings + encoder.dense(), image, encoder.image_positions()
    )
    assert masks.shape == (5, 32, 32) and quality.shape == (5,)
    position = upstream.prompt_encoder.get_dense_pe()
    assert (encoder.image_positions() - position).abs().max() < 1e-5
    for index in range(3):
        mine = image == index
        dense = upstream.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(int(mine.sum()), -1, 8, 8)
        expected, expected_quality = upstream.mask_decoder(
            image_embeddings=embeddings[index : index + 1],
            image_pe=position,
            sparse_prompt_embeddings=prompts[mine][:, None],
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        assert expected.abs().max() > 0.1
        assert (masks[mine] - expected[:, 0]).abs().max() < 1e-4 * max(1, expected.abs().max())
        assert (quality[mine] - expected_quality[:, 0]).abs().max() < 1e-4 * max(1, expected_quality.abs().max())


@pytest.mark.parametrize("shape", [(5, 32), (5, 2, 32)], ids=["one prompt", "two prompts"])
@pytest.mark.parametrize("num_images", [1, 3])
def test_the_folded_decoder_is_the_decoder(twin, num_images, shape, monkeypatch):
    """Masks, quality, and the gradients of prompts and weights; every weight takes part in the backward pass."""
    decoder = twin.mask_decoder
    images, positions = torch.randn(num_images, 32, 8, 8), torch.randn(1, 32, 8, 8)
    image_of = torch.arange(5) * num_images // 5
    found = []
    for least in (65, 1):
        monkeypatch.setattr(folded_decoder, "LEAST_PIXELS", least)
        assert folded_decoder.can_fold(decoder, 64) == (least == 1)
        prompts = torch.randn(shape, generator=torch.Generator().manual_seed(3), requires_grad=True)
        masks, quality = segmentation.decode(decoder, prompts, images, image_of, positions)
        decoder.zero_grad()
        ((masks * torch.linspace(-1, 1, 32)).sum() + quality.sum()).backward()
        gradients = {name: p.grad.clone() for name, p in decoder.named_parameters()}
        found.append({"masks": masks, "quality": quality, "prompts": prompts.grad, **gradients})
    one, other = found
    assert one.keys() == other.keys() and len(one) > 50
    for name, value in one.items():
        scale = max(1.0, value.abs().max().item())
        assert (value - other[name]).abs().max() < 1e-5 * scale, name


@pytest.mark.parametrize("num_images", [1, 3])
def test_the_folded_decoder_under_autocast_is_as_good_as_the_decoder(twin, num_images, monkeypatch):
    decoder, positions = twin.mask_decoder, torch.randn(1, 32, 8, 8)
    prompts, images, image_of = torch.randn(5, 32), torch.randn(num_images, 32, 8, 8), torch.arange(5) * num_images // 5
    exact, _ = segmentation.decode(decoder, prompts, images, image_of, positions)
    apart = []
    for least in (65, 1):
        monkeypatch.setattr(folded_decoder, "LEAST_PIXELS", least)
        decoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            masks, quality = segmentation.decode(decoder, prompts, images, image_of, positions)
        (masks.float().sum() + quality.float().sum()).backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in decoder.parameters())
        apart.append((masks.float() - exact).abs().max())
    assert 0 < apart[1] < 2 * apart[0]


def test_weights_that_come_and_go_are_not_folded(twin):
    decoder = twin.mask_decoder
    assert folded_decoder.can_fold(decoder, 4096)
    decoder._hf_hook = "moves the weights"
    assert not folded_decoder.can_fold(decoder, 4096)
    del decoder._hf_hook
    decoder.iou_token.weight.ds_id = 0
    assert not folded_decoder.can_fold(decoder, 4096)


def test_rescaled_states_have_mean_zero_and_deviation_one(twin):
    states = 3 + 7 * torch.randn(200, 24) * torch.linspace(0.1, 4, 24)
    encoder = PromptEncoder(24, twin.prompt_encoder, rescale=True)
    plain = PromptEncoder(24, twin.prompt_encoder)
    plain.projection.load_state_dict(encoder.projection.state_dict())
    assert encoder.rescaling.is_new
    torch.testing.assert_close(encoder(states)[0], plain(states)[0], atol=0, rtol=0)
    encoder.rescaling.standardize(states)
    assert not encoder.rescaling.is_new
    expected = (states - states.mean(0)) / states.std(0)
    torch.testing.assert_close(encoder.rescaling(states), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder(states)[0], plain(expected)[0], atol=1e-5, rtol=1e-5)


def test_states_of_a_single_object_or_all_alike_are_rescaled_to_finite_ones():
    for states in (torch.randn(1, 8), torch.ones(5, 8)):
        rescaling = Rescaling(8)
        rescaling.standardize(states)
        assert rescaling(states).isfinite().all()
