"""Three ranks of which one ends: the others end too, soon, and say who it was."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist

from aura.machine import ranks
from aura.train import peers
from aura.train.engine import Process
from aura.train.peers import watched

WORLD = 3


def rank_process(rank, port, folder, body, wait):
    """What a rank is told goes to ``folder/RANK``; what it prints, to ``folder/RANK.err``."""
    os.dup2(os.open(folder / f"{rank}.err", os.O_WRONLY | os.O_CREAT), 2)
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()})
    peers.GRACE = 0.5
    try:
        ranks.join("gloo", timedelta(seconds=wait))
        with watched(Process(rank, rank, WORLD, torch.device("cpu")), timeout_minutes=1):
            body(rank)
        ranks.stop()
    except ValueError as error:
        (folder / str(rank)).write_text(str(error))
        sys.exit(1)


def run(folder, body, wait=60):
    """(exit code, told, printed) of each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not copies of this process, in which other tests may have left a group of their own.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "aura.train.engine", "aura.train.peers"])
    processes = [context.Process(target=rank_process, args=(rank, port, folder, body, wait)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 60
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        process.kill()
        process.join()

    def read(name):
        return (folder / name).read_text() if (folder / name).is_file() else ""

    return [(p.exitcode, read(str(r)), read(f"{r}.err").strip()) for r, p in enumerate(processes)]


def meet():
    dist.all_reduce(torch.ones(1))


def sleep():
    time.sleep(60)


HOST = socket.gethostname()


# What a rank does; its number comes last.


def end_in_turn(rank):
    time.sleep(0.2 * rank)


def fail(failing, rank):
    if rank == failing:
        raise ValueError("image 3 is damaged")
    meet()


def fail_alike(rank):
    raise ValueError("no such file")


def die(dying, others, rank):
    if rank == dying:
        os.kill(os.getpid(), signal.SIGKILL)
    others()


def sleep_or_meet(rank):
    return sleep() if rank == 1 else meet()


def test_all_end_well(tmp_path):
    assert run(tmp_path, end_in_turn) == [(0, "", "")] * WORLD


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_is_told_to_all(tmp_path, failing):
    told = f"rank {failing} on {HOST} stopped: image 3 is damaged; the same command continues from the last checkpoint"
    expected = [(1, "image 3 is damaged" if rank == failing else told, "") for rank in range(WORLD)]
    assert run(tmp_path, partial(fail, failing)) == expected


@pytest.mark.parametrize("dying", [0, 1])
@pytest.mark.parametrize("others", [meet, sleep])
def test_a_death_ends_all(tmp_path, dying, others):
    told = f"rank {dying} on {HOST} has died (killed, or its machine is gone); the same command continues"
    results = run(tmp_path, partial(die, dying, others))
    for rank, (code, raised, printed) in enumerate(results):
        if rank == dying:
            assert code == -signal.SIGKILL
        else:  # in a joint act by itself, elsewhere by force
            assert code == 1 and told in (raised if others is meet else printed), results


def test_what_all_say_is_said_once(tmp_path):
    assert run(tmp_path, fail_alike) == [(1, "no such file", "")] + [(1, "", "")] * (WORLD - 1)


def test_a_rank_that_does_not_come_is_told_with_the_setting(tmp_path):
    results = run(tmp_path, sleep_or_meet, wait=1)
    assert any("a rank did not come to a joint act within 1 minutes" in told for _, told, _ in results)
    assert any("raise train.timeout_minutes" in told for _, told, _ in results)
    assert all(code == 1 for code, *_ in results)
