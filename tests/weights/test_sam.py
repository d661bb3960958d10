"""Official SAM files become models that equal the upstream package in every part."""

import os
import sys

import pytest
import torch
from PIL import Image
from transformers import SamModel

from aura.data.images import sam_pixels
from aura.geometry import to_image
from aura.model import segmentation
from aura.model.segmentation import PromptEncoder
from aura.weights import load_sam
from aura.weights.sam import VARIANTS, sam_config, upstream_name
from tests.weights.random_sam import SIZES, upstream_sam

OFFICIAL = {  # tensors, parameters: docs/formats.md, SAM
    "vit_h": ("ViT-H", 594, 641_090_608),
    "vit_l": ("ViT-L", 482, 312_342_832),
    "vit_b": ("ViT-B", 314, 93_735_472),
}


@pytest.fixture(params=SIZES)
def pair(request, segment_anything, tmp_path):
    """Upstream's model, and ours read from its file."""
    upstream = upstream_sam(segment_anything, SIZES[request.param])
    torch.save(upstream.state_dict(), tmp_path / "sam.pth")
    ours, report = load_sam(tmp_path / "sam.pth", dtype=torch.float32)
    assert not report.missing and not report.unexpected and report.loaded == len(upstream.state_dict()) + 1
    return upstream, ours


def close(ours, theirs, tolerance=1e-4):
    scale = max(1.0, float(theirs.abs().max()))
    assert ours.shape == theirs.shape and theirs.abs().max() > 0.05
    assert (ours - theirs).abs().max() < tolerance * scale


# --- parity -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_image_encoder_equals_upstream(pair):
    upstream, ours = pair
    side = ours.config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side)
    close(ours.vision_encoder(pixels).last_hidden_state, upstream.image_encoder(pixels))


@torch.no_grad()
def test_prompt_encoder_equals_upstream(pair):
    upstream, ours = pair
    side = ours.config.vision_config.image_size
    points, labels = torch.rand(5, 3, 2) * side, torch.randint(0, 2, (5, 3))
    boxes = torch.rand(5, 4) * side
    masks = torch.randn(5, 1, *upstream.prompt_encoder.mask_input_size)

    sparse, dense = ours.prompt_encoder(points[:, None], labels[:, None], None, None)
    their_sparse, their_dense = upstream.prompt_encoder(points=(points, labels), boxes=None, masks=None)
    close(sparse[:, 0], their_sparse)
    close(dense, their_dense)
    sparse, _ = ours.prompt_encoder(None, None, boxes[:, None], None)
    close(sparse[:, 0], upstream.prompt_encoder(points=None, boxes=boxes, masks=None)[0])
    sparse, dense = ours.prompt_encoder(points[:, None], labels[:, None], boxes[:, None], masks)
    their_sparse, their_dense = upstream.prompt_encoder(points=(points, labels), boxes=boxes, masks=masks)
    close(sparse[:, 0], their_sparse)
    close(dense, their_dense)
    close(PromptEncoder(8, ours.prompt_encoder).image_positions(), upstream.prompt_encoder.get_dense_pe())
    assert torch.equal(
        ours.shared_image_embedding.positional_embedding, ours.prompt_encoder.shared_embedding.positional_embedding
    )


@torch.no_grad()
@pytest.mark.parametrize("multimask", [False, True])
def test_mask_decoder_equals_upstream(pair, multimask):
    upstream, ours = pair
    channels, grid = ours.config.mask_decoder_config.hidden_size, upstream.prompt_encoder.image_embedding_size
    embedding, prompts = torch.randn(1, channels, *grid), torch.randn(4, 2, channels)
    position, dense = upstream.prompt_encoder.get_dense_pe(), torch.randn(1, channels, *grid)
    their_masks, their_quality = upstream.mask_decoder(
        image_embeddings=embedding, image_pe=position, sparse_prompt_embeddings=prompts,
        dense_prompt_embeddings=dense.expand(4, -1, -1, -1), multimask_output=multimask,
    )  # fmt: skip
    masks, quality = ours.mask_decoder(
        image_embeddings=embedding, image_positional_embeddings=position, sparse_prompt_embeddings=prompts[None],
        dense_prompt_embeddings=dense, multimask_output=multimask,
    )  # fmt: skip
    close(masks[0], their_masks)
    close(quality[0], their_quality)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(40, 60), (70, 31), (64, 64)])
def test_an_image_becomes_equal_masks_at_its_own_size(pair, shape):
    """From uint8 pixels through every part to the original size, against upstream's own ``preprocess`` and on."""
    upstream, ours = pair
    side = ours.config.vision_config.image_size
    image = Image.fromarray(torch.randint(0, 256, (*shape, 3), dtype=torch.uint8).numpy())
    pixels, geometry = sam_pixels(image, side)
    resized = torch.as_tensor(_resize(image, geometry.resized)).permute(2, 0, 1)[None].float()
    close(pixels[None], upstream.preprocess(resized), 1e-6)

    embedding = upstream.image_encoder(upstream.preprocess(resized))
    box = torch.tensor([[3.0, 5.0, 30.0, 28.0]])
    sparse, dense = upstream.prompt_encoder(points=None, boxes=box, masks=None)
    low, _ = upstream.mask_decoder(
        image_embeddings=embedding, image_pe=upstream.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True,
    )  # fmt: skip
    theirs = upstream.postprocess_masks(low, input_size=geometry.resized, original_size=geometry.original)

    output = ours(pixels[None], input_boxes=box[None], multimask_output=True)
    close(output.pred_masks[0, 0], low[0])
    close(to_image(output.pred_masks[0, 0], geometry), theirs[0])


def _resize(image, size):
    from numpy import asarray

    return asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def full_size_pair(package, tmp_path):
    """Upstream's ViT-B at 1024 px, random, and ours from its file."""
    with torch.device("meta"):
        upstream = package.sam_model_registry["vit_b"]()
    upstream.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in upstream.state_dict().items():
        one = name.endswith("weight") and ("norm" in name or "neck.1" in name or "neck.3" in name)
        spread = 0.2 if name.startswith("mask_decoder") else 0.05
        tensor.uniform_(-spread, spread, generator=generator).add_(float(one))
    torch.save(upstream.state_dict(), tmp_path / "sam_vit_b.pth")
    ours, report = load_sam(tmp_path / "sam_vit_b.pth", dtype=torch.float32)
    (tmp_path / "sam_vit_b.pth").unlink()
    assert report.source.endswith("(ViT-B)") and report.loaded == 315
    return upstream, ours


@torch.no_grad()
def test_full_size_vit_b_equals_upstream_layer_by_layer(segment_anything, tmp_path):
    """1024 px and real widths: patches, a windowed layer, a global one, the neck, and one mask at 480 x 640.

    All twelve layers take a minute; ``AURA_SLOW_TESTS=1`` runs them, below.
    """
    upstream, ours = full_size_pair(segment_anything, tmp_path)
    pixels = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))
    encoder, theirs = ours.vision_encoder, upstream.image_encoder
    state = encoder.patch_embed(pixels) + encoder.pos_embed
    close(state, theirs.patch_embed(pixels) + theirs.pos_embed)
    assert [layer.window_size for layer in encoder.layers] == [block.window_size for block in theirs.blocks]
    for index in (3, 5):
        after = theirs.blocks[index](state)
        close(encoder.layers[index](state), after)
        state = after
    embedding = theirs.neck(state.permute(0, 3, 1, 2))
    close(encoder.neck(state), embedding)

    prompt = 0.1 * torch.randn(1, 256)
    dense, position = ours.prompt_encoder(None, None, None, None)[1], upstream.prompt_encoder.get_dense_pe()
    low, _ = upstream.mask_decoder(
        image_embeddings=embedding, image_pe=position, sparse_prompt_embeddings=prompt[:, None],
        dense_prompt_embeddings=upstream.prompt_encoder(points=None, boxes=None, masks=None)[1],
        multimask_output=False,
    )  # fmt: skip
    positions = PromptEncoder(8, ours.prompt_encoder).image_positions()
    masks, _ = segmentation.decode(
        ours.mask_decoder, prompt, embedding + dense, torch.zeros(1, dtype=torch.int64), positions
    )
    close(masks, low[:, 0])
    _, geometry = sam_pixels(Image.new("RGB", (640, 480)), 1024)
    expected = upstream.postprocess_masks(low, input_size=geometry.resized, original_size=(480, 640))
    close(to_image(masks, geometry), expected[:, 0])


@pytest.mark.skipif("AURA_SLOW_TESTS" not in os.environ, reason="a minute; set AURA_SLOW_TESTS=1")
@torch.no_grad()
def test_full_size_vit_b_encoder_equals_upstream(segment_anything, tmp_path):
    upstream, ours = full_size_pair(segment_anything, tmp_path)
    pixels = torch.randn(1, 3, 1024, 1024)
    close(ours.vision_encoder(pixels).last_hidden_state, upstream.image_encoder(pixels))


# --- names and sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", OFFICIAL)
def test_official_variants_map_exactly(segment_anything, variant):
    name, tensors, parameters = OFFICIAL[variant]
    with torch.device("meta"):
        upstream = segment_anything.sam_model_registry[variant]()
    shapes = {key: tuple(value.shape) for key, value in upstream.state_dict().items()}
    assert len(shapes) == tensors and sum(p.numel() for p in upstream.parameters()) == parameters
    config, found = sam_config(shapes, "test")
    assert found == name
    with torch.device("meta"):
        ours = SamModel(config)
    assert {upstream_name(key): tuple(value.shape) for key, value in ours.state_dict().items()} == shapes
    assert len(ours.state_dict()) == tensors + 1
    # The positional matrix is a buffer there, and twice a parameter (counted once) here.
    matrix = ours.prompt_encoder.shared_embedding.positional_embedding.numel()
    assert sum(p.numel() for p in set(ours.parameters())) - matrix * _copies(ours) == parameters
    layers = [layer.window_size for layer in ours.vision_encoder.layers]
    assert layers == [block.window_size for block in upstream.image_encoder.blocks]
    assert ours.vision_encoder.layers[0].attn.num_attention_heads == upstream.image_encoder.blocks[0].attn.num_heads
    transformer = upstream.mask_decoder.transformer
    assert ours.mask_decoder.transformer.layers[0].self_attn.num_attention_heads == transformer.num_heads
    assert ours.mask_decoder.transformer.layers[0].layer_norm1.eps == transformer.layers[0].norm1.eps
    assert ours.prompt_encoder.input_image_size == upstream.image_encoder.img_size == 1024


def _copies(model):
    return sum("positional_embedding" in name for name, _ in model.named_parameters())


def test_every_tensor_is_where_upstream_has_it(pair):
    upstream, ours = pair
    expected = upstream.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[upstream_name(name)]), name


def test_a_variant_at_another_image_size(segment_anything):
    """Fine-tuned encoders keep their width; the grid says what they look at."""
    with torch.device("meta"):
        encoder = sys.modules["segment_anything.modeling"].ImageEncoderViT(
            img_size=512, embed_dim=768, depth=12, num_heads=12, out_chans=256, use_rel_pos=True, window_size=14,
            global_attn_indexes=VARIANTS[768].global_layers,
        )  # fmt: skip
        upstream = segment_anything.sam_model_registry["vit_b"]()
    shapes = {key: tuple(value.shape) for key, value in upstream.state_dict().items()}
    shapes |= {f"image_encoder.{key}": tuple(value.shape) for key, value in encoder.state_dict().items()}
    config, variant = sam_config(shapes, "test")
    assert variant == "ViT-B" and config.vision_config.image_size == config.prompt_encoder_config.image_size == 512
    with torch.device("meta"):
        ours = SamModel(config)
    assert {upstream_name(key): tuple(value.shape) for key, value in ours.state_dict().items()} == shapes
