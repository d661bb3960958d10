"""SAM's mask decoder, computed with fewer operations: the same function of the same weights, to rounding.

SAM's two-way transformer lets few tokens and many pixels attend to each other. As written, it projects the pixels of
every object for each attention. Matrix products may be taken in any order, so here the few tokens go through those
projections instead. The first layer's pixels are the image's own, and are projected once for all of its objects. The
upscaling is a product too, channels last, and ends in one mask of the four. A training step of the decoder on SAM's own
grid of 64 x 64 takes less than half the time.

Legend: B images, N objects, g side of the grid, P = g * g pixels, t tokens of an object, C channels, a heads of d
channels each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

LEAST_PIXELS = 32 * 32
"""On smaller grids, there is little to gain."""


def can_fold(decoder: Any, num_pixels: int) -> bool:
    """Whether it pays, and the weights may be read outside of their modules' own ``forward``.

    ZeRO-3 collects a module's weights, and Accelerate moves them, just before its ``forward``.
    """
    hooked = hasattr(decoder, "_hf_hook") or any(hasattr(p, "ds_id") for p in decoder.parameters())
    return num_pixels >= LEAST_PIXELS and not hooked


class ImageSide(NamedTuple):
    """The pixels of B images as a decoder's first layer projects them, whatever the objects are."""

    keys: torch.Tensor  # [B, P, a * d], that tokens attend to
    values: torch.Tensor  # [B, P, a * d]
    query: torch.Tensor  # [B, a, d, P], with which pixels attend to tokens


def project_images(decoder: Any, images: torch.Tensor, positions: torch.Tensor) -> ImageSide:
    """Of images [B, C, g, g], with the dense prompt added, and positions [1, C, g, g]."""
    layer = decoder.transformer.layers[0]
    to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
    embeddings = images.flatten(2).transpose(1, 2)  # [B, P, C]
    placed = embeddings + positions.flatten(2).transpose(1, 2)
    query = _heads(to_tokens, to_tokens.q_proj(placed)).transpose(2, 3)
    return ImageSide(to_image.k_proj(placed), to_image.v_proj(embeddings), query)


def decode_folded(
    decoder: Any,
    prompts: torch.Tensor,
    images: torch.Tensor,
    image_of: torch.Tensor,
    positions: torch.Tensor,
    projected: ImageSide | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments and results of :func:`aura.model.segmentation.decode`; prompts are [N, T, C]."""
    count, side = len(prompts), images.shape[-1]
    transformer = decoder.transformer
    if projected is None:
        projected = project_images(decoder, images, positions)
    embeddings = images.flatten(2).transpose(1, 2)  # [B, P, C]
    places = positions.flatten(2).transpose(1, 2)  # [1, P, C]
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(count, -1, -1)
    tokens = torch.cat([own, prompts], dim=1)  # [N, t, C]

    queries, pixels = tokens, None
    for layer in transformer.layers:
        to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        if pixels is None:  # the first layer
            queries = layer.layer_norm1(_among_tokens(layer.self_attn, queries, queries))
            read = _read_images(to_image, queries + tokens, projected, image_of)
        else:
            queries = layer.layer_norm1(queries + _among_tokens(layer.self_attn, queries + tokens, queries))
            placed = pixels + places
            read = _read_pixels(to_image, queries + tokens, placed, pixels)
        queries = layer.layer_norm2(queries + read)
        queries = layer.layer_norm3(queries + layer.mlp(queries))
        if pixels is None:
            pixels = _change_images(to_tokens, projected.query, queries + tokens, queries, embeddings, image_of)
        else:
            pixels = _change_pixels(to_tokens, placed, queries + tokens, queries, pixels)
        pixels = layer.layer_norm4(pixels)  # [N, P, C]
    assert pixels is not None
    read = _read_pixels(transformer.final_attn_token_to_image, queries + tokens, pixels + places, pixels)
    queries = transformer.layer_norm_final_attn(queries + read)

    quality = decoder.iou_prediction_head(queries[:, 0])[:, 0]
    hyper = [mlp(queries[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)]  # each [N, C / 8]
    masks = (_upscale(decoder, pixels) @ hyper[0][:, :, None]).squeeze(-1)  # [N, P * 16]
    # What the mask does not need takes part in the backward pass all the same, as it does in SAM's own decoder.
    idle = sum(value.sum() for value in [*hyper[1:], *_ignored_biases(transformer)])
    return _arrange(masks, side), quality + 0.0 * idle


def _among_tokens(attention: Any, query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    query, value = query[:, None], value[:, None]  # SAM's axis of prompts
    return attention(query=query, key=query, value=value)[0][:, 0]


def _heads(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """[n, k, a * d] -> [n, a, k, d]."""
    return x.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)


def _read_images(attention: Any, query: torch.Tensor, projected: ImageSide, image_of: torch.Tensor) -> torch.Tensor:
    """Tokens [N, t, C] attend to the pixels of their images."""
    count = len(query)
    query = attention.q_proj(query)
    keys, values = projected.keys, projected.values
    if len(keys) == 1:
        query = query.flatten(0, 1)[None]  # the tokens of all objects, as if they were one's
    else:
        keys, values = keys[image_of], values[image_of]
    query, keys, values = (_heads(attention, x) for x in (query, keys, values))
    mixed = F.scaled_dot_product_attention(query, keys, values, scale=attention.scaling)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2).view(count, -1, attention.internal_dim))


def _read_pixels(attention: Any, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Tokens [N, t, C] attend to each object's pixels [N, P, C], which are not projected."""
    count, length, _ = query.shape
    heads = attention.num_attention_heads
    # The bias of the keys adds the same to all scores of a query, which softmax ignores.
    by_head = attention.k_proj.weight.unflatten(0, (heads, -1))  # [a, d, C]
    query = _heads(attention, attention.q_proj(query) * attention.scaling)  # [N, a, t, d]
    query = (query @ by_head).flatten(1, 2)  # [N, a * t, C]
    weights = (query @ keys.transpose(1, 2)).softmax(-1)  # [N, a * t, P]
    mixed = (weights @ values).view(count, heads, length, -1)  # [N, a, t, C]
    by_head = attention.v_proj.weight.unflatten(0, (heads, -1)).transpose(1, 2)  # [a, C, d]
    mixed = (mixed @ by_head).transpose(1, 2).flatten(2)  # [N, t, a * d]
    return attention.out_proj(mixed + attention.v_proj.bias)


def _change_images(
    attention: Any,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    embeddings: torch.Tensor,
    image_of: torch.Tensor,
) -> torch.Tensor:
    """Pixels [B, P, C] of the images, changed by attending to the tokens [N, t, C] of each object: [N, P, C].

    ``query`` is the images' own, [B, a, d, P].
    """
    keys = _heads(attention, attention.k_proj(keys) * attention.scaling)  # [N, a, t, d]
    if len(query) == 1:
        count = len(keys)
        scores = keys.permute(1, 0, 2, 3).flatten(1, 2) @ query[0]  # [a, N * t, P]
        scores = scores.unflatten(1, (count, -1)).transpose(0, 1)  # [N, a, t, P]
        return _changed(attention, scores, values, embeddings.expand(count, -1, -1))
    return _changed(attention, keys @ query[image_of], values, embeddings[image_of])


def _change_pixels(
    attention: Any, placed: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, pixels: torch.Tensor
) -> torch.Tensor:
    """Each object's pixels [N, P, C], changed by attending to its tokens [N, t, C]."""
    heads = attention.num_attention_heads
    keys = _heads(attention, attention.k_proj(keys) * attention.scaling)  # [N, a, t, d]
    by_head = attention.q_proj.weight.unflatten(0, (heads, -1))  # [a, d, C]
    rows = (keys @ by_head).flatten(1, 2)  # [N, a * t, C]
    bias = (keys @ attention.q_proj.bias.view(heads, -1, 1)).flatten(1, 2)  # [N, a * t, 1]
    scores = torch.baddbmm(bias, rows, placed.transpose(1, 2))  # [N, a * t, P]
    return _changed(attention, scores.unflatten(1, (heads, -1)), values, pixels)


def _changed(attention: Any, scores: torch.Tensor, values: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [N, P, C] plus the attention with scores [N, a, t, P] to values [N, t, C]."""
    heads = attention.num_attention_heads
    by_head = attention.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)  # [a, d, C]
    values = _heads(attention, attention.v_proj(values)) @ by_head  # [N, a, t, C]
    # The weights of a head sum to 1, so that the few values carry the bias to all pixels.
    values = (values + attention.out_proj.bias / heads).flatten(1, 2)
    weights = scores.softmax(2).flatten(1, 2).transpose(1, 2)  # [N, P, a * t]
    return torch.baddbmm(pixels, weights, values)


def _upscale(decoder: Any, pixels: torch.Tensor) -> torch.Tensor:
    """[N, P, C] -> [N, P * 16, C / 8]: each pixel becomes 2 x 2, and each of those 2 x 2 again."""
    norm = decoder.upscale_layer_norm
    x = _transposed_convolution(decoder.upscale_conv1, pixels)
    x = F.gelu(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
    return F.gelu(_transposed_convolution(decoder.upscale_conv2, x))


def _transposed_convolution(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """[N, k, in] -> [N, k * 4, out]: kernel and stride are 2, so that every input makes its own 2 x 2 outputs."""
    weight = layer.weight.permute(2, 3, 1, 0)  # [2, 2, out, in]
    return F.linear(x, weight.flatten(0, 2), layer.bias.repeat(4)).unflatten(-1, (4, -1)).flatten(1, 2)


def _arrange(masks: torch.Tensor, side: int) -> torch.Tensor:
    """[N, g * g * 4 * 4], each pixel's 4 x 4 as 2 x 2 of 2 x 2, -> [N, 4 g, 4 g]."""
    parts = masks.view(-1, side, side, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
    return parts.reshape(-1, 4 * side, 4 * side)


def _ignored_biases(transformer: Any) -> list[torch.Tensor]:
    """Of the keys in :func:`_read_pixels`."""
    readers = [layer.cross_attn_token_to_image for layer in transformer.layers[1:]]
    return [reader.k_proj.bias for reader in [*readers, transformer.final_attn_token_to_image]]
