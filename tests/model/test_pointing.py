"""[SEG] states that point at image tokens: the attention, SAM's prompts for places, and where it all goes through."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aura.data.collate import collate
from aura.model import AuraConfig, AuraModel
from aura.model.pointing import Pointer, point_prompts
from aura.types import ImageFeatures


def test_prompts_are_those_that_sam_makes_of_points_at_the_centres(tiny_model):
    sam = tiny_model.prompt_encoder.sam
    size = sam.input_image_size
    side = 4
    prompts = point_prompts(sam, side)
    for place, (row, column) in enumerate(np.ndindex(side, side)):
        # SAM takes coordinates of pixels, whose centre is half a pixel further.
        point = torch.tensor([[[[(column + 0.5) / side * size - 0.5, (row + 0.5) / side * size - 0.5]]]])
        expected = sam(point, torch.ones(1, 1, 1, dtype=torch.int64), None, None)[0][0, 0, 0]
        assert torch.allclose(prompts[place], expected, atol=1e-5)


@torch.no_grad()
def test_a_new_pointer_attends_to_all_alike():
    pointer = Pointer(8)
    assert pointer.is_new
    _, logits = pointer(torch.randn(3, 8), torch.randn(2, 9, 8), torch.tensor([1, 0, 1]), torch.randn(9, 6))
    assert not logits.any()


@torch.no_grad()
def test_attention_against_numpy():
    pointer, codes = Pointer(8), torch.randn(9, 6)
    for parameter in pointer.query.parameters():
        parameter.normal_(std=0.2)
    states, tokens, image_of = torch.randn(3, 8), torch.randn(2, 9, 8), torch.tensor([1, 0, 1])
    prompts, logits = pointer(states, tokens, image_of, codes)

    def layer(linear, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x @ linear.weight.numpy().T

    for n in range(3):
        query = layer(pointer.query, states[n].numpy()) + pointer.query.bias.numpy()
        found = layer(pointer.key, tokens[image_of[n]].numpy()) @ query / 16
        share = np.exp(found - found.max())
        assert np.allclose(logits[n], found, atol=1e-5)
        assert np.allclose(prompts[n], share / share.sum() @ codes.numpy(), atol=1e-5)


def test_masks_train_the_pointer_and_what_it_reads(make_model, make_sample):
    model = make_model(pointing=True, train_projector=True)
    output = model(collate([make_sample([[8], [6]], seg=2)]))
    assert output.pointed_logits.shape == (4, model.config.num_image_tokens)
    output.visible_logits.square().sum().backward()
    pointer = model.prompt_encoder.pointer
    assert pointer.query.weight.grad.any() and pointer.key.weight.grad.any()
    assert model.mllm.projector.linear_1.weight.grad.any()
    assert not any(p.grad is not None and p.grad.any() for p in model.mllm.lora_parameters())
    output = model(collate([make_sample([[8], [6]], seg=2)]))
    (
        output.unused + sum(v.sum() for v in (output.text_logits, output.spatial_logits, output.occlusion_rate))
    ).backward()
    assert not [name for name, p in model.trainable_parameters() if p.grad is None]
    names = {name for name, _ in model.trainable_parameters()}
    assert {f"prompt_encoder.pointer.{name}" for name in ("query.weight", "query.bias", "key.weight")} <= names
    model.zero_grad(set_to_none=True)
    none = model(collate([make_sample([[8]], seg=0)]))
    assert none.pointed_logits.shape == (0, model.config.num_image_tokens)
    none.unused.backward()
    assert pointer.query.weight.grad is not None and not pointer.query.weight.grad.any()


@torch.no_grad()
def test_a_canvas_holds_the_tokens(make_model, make_sample):
    model = make_model(pointing=True)
    batch = collate([make_sample([[8]], seg=2)])
    features: ImageFeatures = model.encode_images(batch.sam_pixels, batch.clip_pixels)
    canvas = model.canvas(features.sam_embeddings, features.clip_features)
    assert canvas.num_bytes == canvas._replace(tokens=None).num_bytes + canvas.tokens.nbytes
    states, image = torch.randn(2, 32), torch.zeros(2, dtype=torch.int64)
    drawn = model.decode_masks(states, canvas, image)
    direct = model.decode_masks(states, features.sam_embeddings, image, features.clip_features)
    assert torch.allclose(drawn.visible_logits, direct.visible_logits, atol=1e-5)
    other = model.decode_masks(states, features.sam_embeddings, image, features.clip_features.flip(1))
    assert not torch.equal(other.visible_logits, direct.visible_logits)
    assert torch.allclose(other.pointed_logits, direct.pointed_logits.flip(1), atol=1e-5)


def test_an_export_keeps_it(make_model, tmp_path):
    model = make_model(pointing=True, lora=None)
    pointer = model.prompt_encoder.pointer
    assert not pointer.is_new
    model.save_pretrained(tmp_path)
    again = AuraModel.from_pretrained(tmp_path)
    assert again.config.pointing
    assert torch.equal(again.prompt_encoder.pointer.key.weight, pointer.key.weight)
    assert torch.equal(again.prompt_encoder.pointer.query.weight, pointer.query.weight)


def test_a_class_token_is_no_place(tiny_config):
    llava = tiny_config.llava_config
    llava.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="pointing is at patches"):
        AuraConfig(llava_config=llava, sam_config=tiny_config.sam_config, pointing=True)
