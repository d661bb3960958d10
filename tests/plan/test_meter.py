"""Clocks and memory of a GPU, whose calls are counted by hand here."""

import runpy
from pathlib import Path

import pytest
import torch

from aura.data.collate import collate
from aura.plan import meter
from aura.plan.meter import Meter, peak_bytes, seconds

CUDA = torch.device("cuda", 0)


@pytest.fixture
def calls(monkeypatch):
    made = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: made.append("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: made.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 3 * meter.GIB)
    return made


def test_a_gpu_is_waited_for_on_both_sides_of_the_clock(calls):
    taken = seconds(lambda: calls.append("task"), repeat=2, device=CUDA, warm_up=2)
    assert calls == ["task"] * 2 + ["wait", "task", "wait"] * 2 and taken >= 0
    calls.clear()
    seconds(lambda: None, repeat=3)
    assert not calls


def test_the_meter_waits_and_reads_the_gpu_s_memory(calls):
    metered = Meter(CUDA)
    metered.start("part")
    metered.stop("part", torch.ones(2, 3))
    assert calls == ["wait", "reset", "wait"]
    (row,) = metered.rows
    assert row.peak_gib == 3.0 and row.output == "2x3" and row.finite
    assert 0 < peak_bytes() != peak_bytes(CUDA)


def test_bench_speed_stays_on_the_batch_s_device(make_sample):
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "bench_speed.py"))
    batch = collate([make_sample([[6], [4]])])
    moved = script["supervised_everywhere"](batch.to("meta"))
    assert {value.device.type for value in (moved.target_index, moved.target_ids)} == {"meta"}
    everywhere = script["supervised_everywhere"](batch)
    assert len(everywhere.target_ids) == batch.input_ids.numel()
    assert everywhere.target_ids[batch.target_index].tolist() == batch.target_ids.tolist()
    assert (everywhere.target_ids >= 0).sum() == len(batch.target_ids)
