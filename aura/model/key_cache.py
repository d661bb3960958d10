"""Keys and values of the tokens that a language model has read: with room to grow, and kept where texts begin alike.

Legend: B rows, a heads, L tokens, d channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

LEAST_ROOM = 64
"""Tokens. The room is at least so large, and a quarter of what is held."""


class GrowingLayer(DynamicLayer):
    """A layer's keys and values [B, a, L, d], with free places behind them.

    The library's layer copies all it holds for every new token. Here a token is written behind the others, and all is
    copied when the room is used up.
    """

    _rooms: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        used = held + key_states.shape[-2]
        if self._rooms is None or not (self._fills(used, 0) and self._fills(used, 1)):
            self._move(held, used, key_states, value_states)
        assert self._rooms is not None
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, held:used] = states
        self.keys, self.values = (room[:, :, :used] for room in self._rooms)
        return self.keys, self.values

    def _fills(self, used: int, which: int) -> bool:
        """Whether what is held still lies in its room, which some of the library's methods leave, and has places."""
        assert self._rooms is not None
        held, room = (self.keys, self.values)[which], self._rooms[which]
        assert held is not None
        return held.data_ptr() == room.data_ptr() and len(held) == len(room) and used <= room.shape[2]

    def _move(self, held: int, used: int, *states: torch.Tensor) -> None:
        places = used + max(LEAST_ROOM, used // 4)
        rooms = []
        for old, new in zip((self.keys, self.values), states, strict=True):
            with torch.inference_mode(False):  # the next tokens may come outside of the caller's inference mode
                room = new.new_empty(*new.shape[:2], places, new.shape[3])
            if held:
                assert old is not None
                room[:, :, :held] = old
            rooms.append(room)
        self._rooms = rooms[0], rooms[1]

    def reset(self) -> None:
        self._rooms = None
        super().reset()


class Prefix:
    """The keys and values of the first L tokens of texts, to begin any number of caches with.

    Args:
        token_ids: The L tokens.
        cache: Which holds them alone. The prefix keeps copies, without the room behind.
    """

    def __init__(self, token_ids: list[int], cache: Cache) -> None:
        self.token_ids = token_ids
        layers: list[Any] = cache.layers
        self._held = [(layer.keys.clone(), layer.values.clone()) for layer in layers]

    def __len__(self) -> int:
        return len(self.token_ids)

    def begins(self, token_ids: list[int]) -> bool:
        """Whether these are its tokens and at least one more."""
        return len(token_ids) > len(self) and token_ids[: len(self)] == self.token_ids

    def new_cache(self, config: PreTrainedConfig) -> Cache:
        """A cache that holds the prefix. What is read into it leaves the prefix as it is: growing layers move first."""
        cache = growing_cache(config)
        layers: list[Any] = cache.layers
        for layer, (keys, values) in zip(layers, self._held, strict=True):
            layer.dtype, layer.device = keys.dtype, keys.device
            layer.keys, layer.values, layer.is_initialized = keys, values, True
        return cache

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for pair in self._held for tensor in pair)


def growing_cache(config: PreTrainedConfig) -> Cache:
    """An empty cache for a language model; layers with a window stay the library's own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keeps_all(cache: Cache) -> bool:
    """Whether every layer holds the keys of all tokens, so that its first ones can be taken for a prefix."""
    return all(type(layer) in (DynamicLayer, GrowingLayer) for layer in cache.layers)
