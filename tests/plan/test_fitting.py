"""``train.gradient_checkpointing auto``: the largest batch of the data, and what is decided for it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from aura.config import Config, TrainSettings
from aura.data.conversations import TokenizedConversation
from aura.plan import fitting
from aura.plan.fitting import decide_recomputing, largest_workload, memory_of
from aura.plan.gpus import GIB


class FakeText:
    """Conversations are numbers: of tokens after the prefix of ten; each has two ``[SEG]``. 99 is one too long."""

    num_image_tokens = 4

    def conversation(self, length, image_id):
        if length == 99:
            raise ValueError("too long")
        ids = [*range(10), 50 + length, *range(length - 1)]
        supervised = [False] * 12 + [True] * (length - 2)
        return TokenizedConversation(length, ids, supervised, [len(ids) - 2, len(ids) - 1], [(0, 0), (0, 1)])


def sample(*lengths, size=(40, 60)):
    return SimpleNamespace(image_id=1, conversations=lengths, height=size[0], width=size[1])


def test_the_largest_batch_is_that_of_the_longest_conversations():
    config = Config(train=TrainSettings(micro_batch_size=2))
    samples = [sample(5, 6, 7, 20, 99), sample(8, 8, 8, size=(100, 50)), sample()]
    work = largest_workload(samples, SimpleNamespace(text=FakeText()), config)
    assert work.images == 2 and (work.height, work.width) == (100, 60)
    assert work.text_tokens + 4 == 10 + 20 + 7 + 6  # the three longest of the first image, behind their prefix
    assert work.answer_tokens == 18 + 5 + 4 and work.objects == 6
    every = replace(config, data=replace(config.data, conversations_per_image=None))
    assert largest_workload(samples, SimpleNamespace(text=FakeText()), every).text_tokens + 4 == 10 + 20 + 7 + 6 + 5


@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_set_stays(tiny_model, wanted):
    config = Config(train=TrainSettings(gradient_checkpointing=wanted))
    assert decide(config, tiny_model, 1)[0] is wanted


def decide(config, model, memory):
    return decide_recomputing(config, model, fitting.Workload(), processes=2, memory_bytes=memory)


def test_auto_says_what_it_decided_and_why(tiny_model):
    config = Config()
    off, said = decide(config, tiny_model, 80 * GIB)
    assert off is False and "kept for the backward pass" in said and "85% of 80.0 GiB" in said
    on, said = decide(config, tiny_model, GIB)
    assert on is True and "computed anew" in said and "GiB by the plan" in said
    assert decide(config, tiny_model, None)[0] is True


def test_the_memory_of_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=31 * GIB))
    assert memory_of(torch.device("cuda", 1), 2) == 31 * GIB
    monkeypatch.setattr(fitting, "available_bytes", lambda: 10 * GIB)
    assert memory_of(torch.device("cpu"), 2) == 5 * GIB
    monkeypatch.setattr(fitting, "available_bytes", lambda: None)
    assert memory_of(torch.device("cpu"), 2) is None
