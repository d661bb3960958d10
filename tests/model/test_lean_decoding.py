from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

from aura.model import AuraModel
from aura.model.lean_decoding import LeanSteps, can_decode_leanly

PREFIX = [1, 10, 11, 4, 4, 4, 4, 12]


@pytest.fixture(params=["plain", "biases"])
def model(make_model, tiny_config, request) -> AuraModel:
    """Two heads share their keys; every parameter counts."""
    text = tiny_config.llava_config.text_config
    text.attention_bias = text.mlp_bias = request.param == "biases"
    model = make_model(lora=None)
    with torch.no_grad():
        for name, parameter in model.mllm.language_model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(mean=float("norm" in name), std=0.2)
        model.mllm.lm_head.weight[321] *= 3  # fond of [SEG]
    return model


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(1, 4, 24)


@torch.no_grad()
def test_lean_steps_are_the_library_s(model, features):
    caches = [model.mllm.new_cache() for _ in range(2)]
    for cache in caches:
        model.mllm(torch.tensor([PREFIX]), clip_features=features, past_key_values=cache)
    assert can_decode_leanly(model.mllm, caches[0])
    lean = LeanSteps(model.mllm, caches[0])
    for token in range(20, 320, 25):
        state = model.mllm(torch.tensor([[token]]), past_key_values=caches[1])[0, -1]
        assert torch.allclose(lean(token), state, atol=1e-5)
    for mine, other in zip(*(cache.layers for cache in caches), strict=True):
        assert torch.allclose(mine.keys, other.keys, atol=1e-5) and mine.keys.shape == other.keys.shape
        assert torch.allclose(mine.values, other.values, atol=1e-5)


@pytest.mark.parametrize("seg_state", ["before", "at"])
def test_an_answer_is_the_plain_one(model, features, seg_state, monkeypatch):
    model.config.seg_state = seg_state
    steps = []
    call = LeanSteps.__call__
    monkeypatch.setattr(LeanSteps, "__call__", lambda self, token: steps.append(token) or call(self, token))
    for first in range(20, 26):
        ids = torch.tensor([[*PREFIX, first, 30]])
        answers = []
        for model.decoding in ("plain", "auto"):
            answers.append(model.generate_answer(ids, clip_features=features, max_new_tokens=20))
        plain, lean = answers
        assert lean.token_ids == plain.token_ids and lean.pending_ids == plain.pending_ids
        assert torch.allclose(lean.seg_hidden, plain.seg_hidden, atol=1e-5)
        followup = torch.tensor([[*lean.pending_ids, 30, 31]])
        goes_on = [
            model.generate_answer(followup, past_key_values=a.past_key_values, max_new_tokens=5) for a in answers
        ]
        assert goes_on[0].token_ids == goes_on[1].token_ids
    assert len(steps) > 20


def test_models_of_another_kind_are_stepped_plainly(model, make_model):
    cache = model.mllm.new_cache()
    assert can_decode_leanly(model.mllm, cache) and can_decode_leanly(model.mllm, DynamicCache())
    assert not can_decode_leanly(model.mllm, StaticCache(model.mllm.config.text_config, max_cache_len=8))
    assert not can_decode_leanly(make_model().mllm, cache), "adapters"
    hook = model.mllm.language_model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert not can_decode_leanly(model.mllm, cache), "someone wants to see a module's call"
    hook.remove()
    model.mllm.language_model.layers[1].mlp.up_proj._hf_hook = object()
    assert not can_decode_leanly(model.mllm, cache), "weights that come and go"
    del model.mllm.language_model.layers[1].mlp.up_proj._hf_hook
    assert can_decode_leanly(model.mllm, cache)
    assert not can_decode_leanly(model.to(torch.bfloat16).mllm, cache)
    model.float().train()
    assert not can_decode_leanly(model.mllm, cache)
