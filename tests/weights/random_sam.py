"""Random SAMs of the upstream package, small enough for a test."""

import sys
from functools import partial

import torch

SIZES = {  # image, patch, width, depth, heads, window, global layers, channels, MLP ratio
    "windows": (64, 8, 24, 3, 3, 3, (1,), 32, 2),
    "wide patches, all global": (96, 16, 32, 2, 4, 5, (0, 1), 64, 4),
}


def upstream_sam(package, size):
    """A random upstream ``Sam``; every tensor is random, also those that start at zero or one."""
    image, patch, width, depth, heads, window, global_layers, channels, ratio = size
    parts = sys.modules[package.__name__.replace("build_sam", "modeling")]
    sam = parts.Sam(
        image_encoder=parts.ImageEncoderViT(
            img_size=image, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, out_chans=channels,
            use_rel_pos=True, mlp_ratio=ratio, window_size=window, global_attn_indexes=global_layers,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        ),
        prompt_encoder=parts.PromptEncoder(
            embed_dim=channels, image_embedding_size=(image // patch,) * 2, input_image_size=(image,) * 2,
            mask_in_chans=8,
        ),
        mask_decoder=parts.MaskDecoder(
            num_multimask_outputs=3,
            transformer=parts.TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=48, num_heads=8),
            transformer_dim=channels, iou_head_depth=3, iou_head_hidden_dim=40,
        ),
    )  # fmt: skip
    for parameter in sam.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return sam.eval()
