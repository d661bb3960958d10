"""``train_ds.py`` as users start it: killed and continued, and on two processes of which one sees no ``[SEG]``."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from aura.data.dataset import EpochSampler
from aura.train.logs import read_log

SCRIPT = Path(__file__).resolve().parents[2] / "train_ds.py"
WITHOUT_SEG = {0, 2, 4}
"""Images of the tiny run."""


# Starting takes seconds on a quiet machine; a busy one must not make a test fail.
PATIENCE = 600


STARTED: list[subprocess.Popen] = []


@pytest.fixture
def config(tiny_run):
    return tiny_run


@pytest.fixture(autouse=True)
def no_process_survives():
    yield
    for process in STARTED:
        process.kill()
    STARTED.clear()


def start(config, *options, rank=None, world=1, port=None, **popen):
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    environment |= {"OMP_NUM_THREADS": "1"}
    if rank is not None:
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(SCRIPT), f"--config={config}", *options]
    STARTED.append(
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen)
    )
    return STARTED[-1]


def finish(process):
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output[-3000:]


def wait_until(process, happened):
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def losses(run):
    return {r["step"]: (r["total"], r["grad_norm"], r["lr"]) for r in read_log(run / "log.jsonl")}


def test_killed_run_continues_as_if_nothing_had_happened(config, tmp_path):
    whole = start(config, "--train.output_dir", str(tmp_path / "whole"))
    killed = start(config, "--data.feature_cache", str(tmp_path / "other"))
    wait_until(killed, lambda: (tmp_path / "run" / "checkpoints" / "latest").is_file())
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    finish(whole)
    finish(start(config))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    steps = [r["step"] for r in read_log(tmp_path / "run" / "log.jsonl")]
    assert steps == list(range(1, 9))


def test_loader_processes_leave_a_signal_to_the_run(config, tmp_path):
    options = ("--data.num_workers", "2", "--train.steps", "100000", "--train.checkpoint_every", "0")
    log, latest = (tmp_path / "run" / name for name in ("log.jsonl", "checkpoints/latest"))
    stopped = start(config, *options, start_new_session=True)
    wait_until(stopped, lambda: len(read_log(log)) > 2)
    os.killpg(stopped.pid, signal.SIGTERM)  # the launcher does so to every process below it, the deepest first
    output, _ = stopped.communicate(timeout=30)
    assert stopped.returncode == 128 + signal.SIGTERM, output[-3000:]
    assert latest.is_file() and "Traceback" not in output and "stopped by signal 15 after step" in output


def test_ctrl_c_while_loading_is_one_line(config):
    process = start(config)
    # Somewhere among the imports; the deepest frames of a traceback would be of a library.
    wait_until(process, lambda: any("torch" in m.path for m in psutil.Process(process.pid).memory_maps()))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGINT and output.split("\n") == ["", "train_ds.py: stopped by Ctrl-C", ""]


@pytest.mark.parametrize(("stage", "precision"), [(2, "bf16"), (3, "fp32")])
def test_two_processes_of_which_one_has_no_seg(config, tmp_path, stage, precision):
    seen = [
        [bool({i for _, i in EpochSampler(6, 1, rank=r, world=2).keys(s)} & WITHOUT_SEG) for s in range(3)]
        for r in (0, 1)
    ]
    assert any(a != b for a, b in zip(*seen, strict=True))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--train.zero_stage", str(stage), "--train.steps", "3", "--train.precision", precision)
    for process in [start(config, *options, rank=rank, world=2, port=port) for rank in (0, 1)]:
        finish(process)
    run = tmp_path / "run"
    assert json.loads((run / "report.json").read_text())["effective_batch"] == 2
    assert [r["step"] for r in read_log(run / "log.jsonl")] == [1, 2, 3]
    main = runpy.run_path(str(SCRIPT.parent / "scripts" / "export.py"))["main"]
    assert main([str(run), "--out", str(tmp_path / "out"), "--keep-lora"]) == 0
    files = [path.relative_to(run / "export") for path in (run / "export").rglob("*") if path.is_file()]
    assert Path("model.safetensors") in files
    assert all((run / "export" / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in files)


def test_what_does_not_fit_is_one_line(config):
    process = start(config, "--model.sam", "nowhere")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "train_ds.py: model.sam" in output and "Traceback" not in output
