"""Loss terms of each source, against means worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from aura.data.mixture import STRIDE
from aura.train.engine import Process
from aura.train.source_losses import SourceLosses

ONE = Process(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
TERMS = ("total", "text", "visible_bce")


def terms(*rows):
    return {name: torch.tensor(values) for name, values in zip(TERMS, zip(*rows, strict=True), strict=True)}


def test_means_are_over_the_images_that_have_the_term():
    found = SourceLosses(("photos", "talks"), TERMS)
    found.note((7, STRIDE + 7), terms((3.0, 1.0, 2.0), (5.0, 5.0, math.nan)))
    found.note((8, STRIDE + 8), terms((1.0, 0.0, 1.0), (math.inf, 7.0, math.nan)))
    found.end_step(keep=True)
    found.note((9,), terms((100.0, 100.0, 100.0)))
    found.end_step(keep=False)  # skipped
    continued = SourceLosses(found.sources, TERMS, found.state())
    photos = {"total": 2.0, "text": 0.5, "visible_bce": 1.5}
    for kept in (found, continued):
        assert kept.take(ONE) == {"photos": photos, "talks": {"total": 5.0, "text": 6.0}}
        assert kept.take(ONE) == {}


def test_other_processes_share_the_sums():
    states = []
    for value in (1.0, 4.0):
        one = SourceLosses(("a",), ("total",))
        one.note((1,), {"total": torch.tensor([value])})
        one.end_step(keep=True)
        states.append(one.state())
    for processes in (1, 4):
        shared = SourceLosses.shared(("a",), ("total",), states, processes)
        assert shared.state() == [5 / processes, 2 / processes]
        assert shared.take(ONE) == {"a": {"total": pytest.approx(2.5)}}
    before = SourceLosses.shared(("a",), ("total",), [[], []], 2)  # a checkpoint of one without sources
    assert before.take(ONE) == {}


def test_a_single_source_keeps_nothing():
    none = SourceLosses((), TERMS)
    none.end_step(keep=True)
    assert none.state() == [] and none.take(ONE) == {}
