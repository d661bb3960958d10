"""A run folder is one run's at a time, can be written, and is the same one on all machines."""

import os
import signal
import subprocess
import sys

import pytest

from aura.machine import ranks
from aura.train import owner
from aura.train.owner import OWNER, owned


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(owner, "PATIENCE", 0.1)
    monkeypatch.setattr(owner, "SIGHT", 0.1)


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    run = tmp_path / "runs" / "a"
    told = rf"runs/a is .* \(process {os.getpid()} on .*--train.output_dir"
    with owned(run), pytest.raises(ValueError, match=told), owned(run):
        pass
    with owned(run):
        pass


def test_death_gives_the_folder_back(tmp_path):
    code = f"from aura.train.owner import owned\nwith owned({str(tmp_path)!r}): print('in', flush=True); input()"
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"in\n"
    with pytest.raises(ValueError, match=f"process {first.pid}"), owned(tmp_path):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with owned(tmp_path):
        pass


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    told = r"file/run cannot be written .*Not a directory.*--train.output_dir"
    with pytest.raises(ValueError, match=told), owned(tmp_path / "file" / "run"):
        pass


def test_machines_that_do_not_share_the_folder(tmp_path, monkeypatch):
    (tmp_path / OWNER).write_text('{"token": "of another run"}')
    monkeypatch.setattr(ranks, "from_first", lambda make: ("of the first rank", "node0"))
    told = r"is not the folder that rank 0 on node0 writes to; .*at the same path"
    with pytest.raises(ValueError, match=told), owned(tmp_path):
        pass
