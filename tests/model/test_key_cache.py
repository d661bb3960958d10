from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, MistralConfig
from transformers.cache_utils import DynamicLayer

from aura.model.key_cache import LEAST_ROOM, GrowingLayer, Prefix, growing_cache, keeps_all


def states(tokens: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, 2, tokens, 3)


def test_a_growing_layer_holds_what_the_library_s_holds():
    grown, plain = GrowingLayer(), DynamicLayer()

    def read(tokens: int, rows: int = 1) -> None:
        keys, values = states(tokens, rows), states(tokens, rows)
        for mine, theirs in zip(grown.update(keys, values), plain.update(keys, values), strict=True):
            assert torch.equal(mine, theirs)
        assert torch.equal(grown.keys, plain.keys) and torch.equal(grown.values, plain.values)

    for tokens in (5, 1, 1, LEAST_ROOM, 1, 200, 1):
        read(tokens)
    for layer in (grown, plain):
        layer.crop(-3)
    read(2)
    for layer in (grown, plain):
        layer.batch_repeat_interleave(3)
    for tokens in (1, 1, 100):
        read(tokens, rows=3)
    for layer in (grown, plain):
        layer.batch_select_indices(torch.tensor([2, 0]))
    read(1, rows=2)
    for layer in (grown, plain):
        layer.reset()
    assert grown.get_seq_length() == 0
    read(4)


def test_a_token_is_written_and_the_others_stay_where_they_are():
    layer = GrowingLayer()
    layer.update(states(10), states(10))
    before = layer.keys.data_ptr(), layer.values.data_ptr()
    for _ in range(LEAST_ROOM):
        layer.update(states(1), states(1))
    assert (layer.keys.data_ptr(), layer.values.data_ptr()) == before
    layer.update(states(1), states(1))
    assert (layer.keys.data_ptr(), layer.values.data_ptr()) != before


def test_a_cache_that_was_filled_in_inference_mode_goes_on_outside():
    layer = GrowingLayer()
    with torch.inference_mode():
        layer.update(states(2), states(2))
    layer.update(states(1), states(1))
    assert layer.get_seq_length() == 3


def test_caches_that_begin_with_a_prefix_do_not_touch_it(tiny_llava_config):
    config = tiny_llava_config.text_config
    first = growing_cache(config)
    for index in range(config.num_hidden_layers):
        first.update(states(4), states(4), index)
    prefix = Prefix([1, 2, 3, 4], first)
    expected = [layer.keys.clone() for layer in first.layers]
    assert prefix.num_bytes == 2 * config.num_hidden_layers * 2 * 4 * 3 * 4
    for _ in range(2):
        cache = prefix.new_cache(config)
        assert cache.get_seq_length() == 4
        for index in range(config.num_hidden_layers):
            keys = states(2)
            held, _ = cache.update(keys, states(2), index)
            assert torch.equal(held, torch.cat([expected[index], keys], dim=2))
        assert cache.get_seq_length() == 6


@pytest.mark.parametrize(("ids", "begins"), [([1, 2, 3], True), ([1, 2], False), ([1, 3, 3], False)])
def test_a_prefix_begins_longer_texts_of_the_same_tokens(ids, begins):
    assert Prefix([1, 2], DynamicCache()).begins(ids) is begins


def test_a_layer_with_a_window_is_left_to_the_library(tiny_llava_config):
    assert keeps_all(growing_cache(tiny_llava_config.text_config))
    assert keeps_all(DynamicCache(config=tiny_llava_config.text_config))
    assert not keeps_all(growing_cache(MistralConfig(num_hidden_layers=2, sliding_window=8)))
