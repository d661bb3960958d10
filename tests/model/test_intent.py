"""The head that tells which mask is asked for."""

from __future__ import annotations

import torch

from aura.data.collate import collate
from aura.model.intent import IntentHead
from aura.model.readout import read_masks
from aura.types import ASKED, ImageGeometry


def test_it_starts_undecided_and_is_linear_in_normalised_states():
    head = IntentHead(8)
    states = torch.randn(5, 8)
    assert not head(states).any()
    with torch.no_grad():
        head.linear.weight.normal_()
        head.linear.bias.normal_()
    normal = (states - states.mean(1, keepdim=True)) / (states.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(head(states), normal @ head.linear.weight.T + head.linear.bias, atol=1e-5)
    assert torch.allclose(head(100 * states), head(states), atol=1e-3)


def test_every_seg_gets_logits_also_where_there_is_none(make_model, make_sample):
    model = make_model(intent=True)
    output = model(collate([make_sample([[8], [6]], seg=2)]))
    assert output.asked_logits.shape == (4, 3)
    output.asked_logits[:, 1].sum().backward()
    assert model.intent.linear.weight.grad[1].any()
    none = model(collate([make_sample([[8]], seg=0)]))
    assert none.asked_logits.shape == (0, 3)
    model.zero_grad(set_to_none=True)
    none.unused.backward()
    assert model.intent.linear.weight.grad is not None and not model.intent.linear.weight.grad.any()


def test_half_precision_states_are_read_in_full(make_model):
    head = make_model(intent=True).intent
    states = torch.randn(3, 32)
    assert head(states.bfloat16()).dtype == torch.float32


def test_the_likeliest_kind_goes_with_the_masks(make_model, make_sample):
    output = make_model(intent=True)(collate([make_sample([[8]], seg=3)]))
    output["asked_logits"] = torch.eye(3)
    pairs = read_masks(output, range(3), ImageGeometry((40, 60), (43, 64), 64))
    assert [pair.asked for pair in pairs] == list(ASKED)
    output["asked_logits"] = None
    assert next(iter(read_masks(output, [0], ImageGeometry((40, 60), (43, 64), 64)))).asked is None
