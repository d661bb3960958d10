"""``train.autocast``: what multiplies in bf16, and what it leaves as it is."""

import pytest
import torch

from aura.data.collate import collate
from aura.model import folded_decoder


def test_products_in_bf16_leave_weights_and_answers_as_they_are(make_model, make_sample):
    model, batch = make_model(), collate([make_sample([[8], [8]])])
    model.train()
    exact = model(batch)
    model.mllm.autocast = True
    rounded = model(batch)
    for name in ("text_logits", "visible_logits", "amodal_logits"):
        one, other = getattr(exact, name).float(), getattr(rounded, name).float()
        assert not torch.equal(one, other) and (one - other).abs().max() < 0.05 * one.abs().max(), name
    assert rounded.amodal_logits.dtype == torch.float32
    (rounded.text_logits.float().sum() + rounded.amodal_logits.sum()).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.mllm.lora_parameters())
    with torch.no_grad():
        answering = model.eval()(batch).text_logits
        model.mllm.autocast = False
        assert torch.equal(answering, model(batch).text_logits)


@pytest.mark.parametrize("objects", [2, 11])
def test_large_masks_are_drawn_in_bf16_in_training_alone(make_model, monkeypatch, objects):
    monkeypatch.setattr(folded_decoder, "LEAST_PIXELS", 1)
    model = make_model().train()
    monkeypatch.setattr(model, "_objects_at_once", lambda grid: 4)
    images, places = torch.randn(2, 32, 8, 8), torch.arange(objects) % 2
    products = []
    hooked = model.visible_decoder.output_hypernetworks_mlps[0]
    hooked.register_forward_hook(lambda module, inputs, output: products.append(output.dtype))

    def drawn(autocast):
        model.mllm.autocast = autocast
        model.zero_grad()
        states = torch.randn(objects, 32, generator=torch.Generator().manual_seed(0))
        masks = model.decode_masks(states, images, places)
        if model.training:
            names = ("visible_logits", "amodal_logits", "spatial_logits")
            sum(getattr(masks, name).square().mean() for name in names).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and "decoder" in n}
        return {name: value for name, value in masks.items() if value is not None}, gradients

    (exact, exact_gradients), (rounded, gradients) = drawn(False), drawn(True)
    assert products[0] == torch.float32 and products[-1] == torch.bfloat16
    for name, one in exact.items():
        assert rounded[name].dtype == torch.float32
        assert (one - rounded[name]).abs().max() < 0.05 * one.abs().max(), name
    assert not torch.equal(exact["amodal_logits"], rounded["amodal_logits"])
    assert torch.equal(exact["occlusion_rate"], rounded["occlusion_rate"])  # the heads stay in fp32
    assert gradients.keys() == exact_gradients.keys() and len(gradients) > 20
    for one, other in ([torch.cat([g.flatten() for g in found.values()]) for found in (exact_gradients, gradients)],):
        assert torch.cosine_similarity(one, other, dim=0) > 0.99
    model.eval()
    with torch.no_grad():
        assert torch.equal(drawn(True)[0]["amodal_logits"], drawn(False)[0]["amodal_logits"])
