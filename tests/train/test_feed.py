"""Batches from loader processes: the same as without them, and clear words for whatever ends one."""

import dataclasses
import multiprocessing
import os
import pickle
import signal
import time
from contextlib import closing
from itertools import islice
from multiprocessing import connection
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from aura.config import Config, DataSettings, TrainSettings
from aura.data.processor import Processor
from aura.masks import encode_rle
from aura.train import feed
from aura.train.engine import Process
from aura.train.feed import batches
from aura.types import AmodalObject, Conversation, Sample, Turn

SIZE = 32
ALONE = Process(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def processor(tiny_tokenizer):
    return Processor(tiny_tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4)


@pytest.fixture
def samples(tmp_path):
    made = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((SIZE, SIZE, 3), 40 * number, dtype=np.uint8)).save(path)
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        mask[number : number + 9, 3:20] = True
        thing = AmodalObject(1, "thing", encode_rle(mask), encode_rle(mask), 0.0)
        talk = Conversation(number, (Turn("What?", "It [SEG].", (1,)),))
        made.append(Sample(number, path, SIZE, SIZE, (thing,), (talk,)))
    return made


def config(workers):
    return Config(data=DataSettings(num_workers=workers), train=TrainSettings(micro_batch_size=2))


def take(count, samples, processor, workers, process=ALONE):
    with closing(batches(samples, processor, config(workers), process, None)) as stream:
        return list(islice(stream, count))


def same(one, other):
    assert one.image_ids == other.image_ids and one.records == other.records
    return all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


def test_loader_processes_change_nothing(samples, processor):
    before = {child.pid for child in multiprocessing.active_children()}  # those of earlier tests
    alone, others = (take(3, samples, processor, workers) for workers in (0, 2))
    for one, other in zip(alone, others, strict=True):
        assert same(one, other)
    assert {child.pid for child in multiprocessing.active_children()} <= before


def test_a_dead_loader_process_interrupts_nothing(samples, processor):
    """torch's handler of SIGCHLD, which any other loader has set for good, raises wherever the run has come to."""
    before = set(multiprocessing.active_children())
    signal_handling._set_SIGCHLD_handler()
    with closing(batches(samples, processor, config(1), ALONE, None)) as stream:
        next(stream)
        (worker,) = set(multiprocessing.active_children()) - before
        os.kill(worker.pid, signal.SIGKILL)
        connection.wait([worker.sentinel])
        time.sleep(0.1)  # the signal comes here, and not when the end of the run asks for it
    assert worker.exitcode == -signal.SIGKILL


def test_beside_a_gpu_loader_processes_are_started_anew(samples, processor, monkeypatch):
    asked = {}

    class Loader(DataLoader):
        def __init__(self, dataset, **options):
            asked.update(options)
            again = pickle.loads(pickle.dumps(dataset))  # as the new processes get it; starting them takes seconds
            super().__init__(again, **{**options, "multiprocessing_context": "fork", "pin_memory": False})

    monkeypatch.setattr(feed, "DataLoader", Loader)
    (batch,) = take(1, samples, processor, 1, dataclasses.replace(ALONE, device=torch.device("cuda")))
    assert same(batch, *take(1, samples, processor, 0))
    assert asked["multiprocessing_context"] == "spawn" and asked["pin_memory"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_one_line_that_names_it(samples, processor, workers):
    path: Path = samples[2].image_path
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"^image 2: .*2\.png cannot be decoded .*$") as caught:
        take(2, samples, processor, workers)
    assert "\n" not in str(caught.value)


class Failing(Processor):
    error: Exception

    def __call__(self, *_):
        raise self.error


@pytest.mark.parametrize("workers", [0, 1])
def test_every_failure_names_its_records(samples, processor, workers):
    failing = Failing(processor.text.tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4)
    failing.error = MemoryError()
    with pytest.raises(ValueError, match=r"image \d \(.*\d\.png\), image \d .*: MemoryError"):
        take(1, samples, failing, workers)
    failing.error = KeyError("row")  # a bug of ours: with its traceback
    with pytest.raises((KeyError, RuntimeError)) as caught:
        take(1, samples, failing, workers)
    assert "while loading image" in "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def test_want_of_shared_memory_ends_the_wait(samples, processor, monkeypatch):
    def full(_):
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(ValueError, match=r"shared memory .*No space left.*--shm-size 8g.*num_workers 0"):
        take(1, samples, processor, 1)


def newest_child():
    """The loader's process; earlier tests may have left others."""
    return max(multiprocessing.active_children(), key=lambda child: child.pid)


def test_a_worker_killed_with_the_lock_of_the_end_does_not_stop_the_run():
    event = multiprocessing.get_context("fork").Event()
    event._cond.acquire()  # as a worker does each time it looks whether it should end
    ending = feed._Ending(event)
    assert not ending.is_set()
    ending.set()
    ending.set()
    assert ending.is_set()
    event._cond.release()
    assert event.is_set()


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGKILL, "want of memory"), (signal.SIGBUS, "shared memory"), (signal.SIGUSR1, "-10")]
)
def test_a_killed_loader_process_ends_the_wait(samples, processor, number, told):
    with closing(batches(samples, processor, config(1), ALONE, None)) as stream:
        next(stream)
        worker = newest_child()
        os.kill(worker.pid, number)
        with pytest.raises(ValueError, match=told):
            list(islice(stream, 9))


def test_loader_processes_ignore_what_is_for_the_run(samples, processor):
    with closing(batches(samples, processor, config(1), ALONE, None)) as stream:
        next(stream)
        worker = newest_child()
        for number in feed.SIGNALS:
            os.kill(worker.pid, number)
        list(islice(stream, 9))
        assert worker.is_alive()
    assert not worker.is_alive()


def test_loader_processes_die_with_a_run_that_is_killed(samples, processor):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def run():
        with closing(batches(samples, processor, config(2), ALONE, None)) as stream:
            next(stream)
            theirs.send([worker.pid for worker in multiprocessing.active_children()])
            time.sleep(60)

    run = context.Process(target=run)
    run.start()
    workers = [psutil.Process(pid) for pid in ours.recv()]
    assert len(workers) == 2
    run.kill()
    run.join()
    # Where nobody collects dead orphans they stay as zombies.
    deadline = time.monotonic() + 30
    while any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
