"""Two machines train together, one dies, and the run goes on: two network namespaces, DeepSpeed's own launch."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from aura.train.logs import read_log

ROOT = Path(__file__).resolve().parents[2]
NODES = {"auranode0": "10.77.31.1", "auranode1": "10.77.31.2"}
PATIENCE = 600


def ip(*command):
    subprocess.run(["ip", *command], check=True, capture_output=True, timeout=60)


def on(node, *command):
    """``command`` on a machine: its own network, its own name."""
    return ["ip", "netns", "exec", node, "unshare", "--uts", "sh", "-c", f'hostname {node}; exec "$@"', "sh", *command]


@pytest.fixture
def machines():
    """Two network namespaces with a cable between them, which know each other by name."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need Linux, root and iproute2")
    first, second = NODES
    names = "127.0.0.1 localhost\n" + "".join(f"{address} {node}\n" for node, address in NODES.items())
    try:
        try:
            for node in NODES:
                hosts = Path("/etc/netns") / node / "hosts"  # `ip netns exec` lays it over /etc/hosts
                hosts.parent.mkdir(parents=True, exist_ok=True)
                hosts.write_text(names)
                ip("netns", "add", node)
                ip("-n", node, "link", "set", "lo", "up")
            ip("-n", first, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", second)
            for node, address in NODES.items():
                ip("-n", node, "address", "add", f"{address}/24", "dev", "cable")
                ip("-n", node, "link", "set", "cable", "up")
            subprocess.run(on(first, "true"), check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield
    finally:
        for node in NODES:
            subprocess.run(["ip", "netns", "delete", node], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns") / node, ignore_errors=True)


@pytest.fixture
def launch(machines, tiny_run, tmp_path):
    """Start the tiny run on both machines: with pdsh from the first where it is installed, else on each by hand."""
    started = []
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{node} slots=1\n" for node in NODES))
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    ours = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{ssh.parent}:{Path(sys.executable).parent}:{environment['PATH']}"

    def start(command):
        output = (tmp_path / f"output{len(started)}").open("w+")
        options = {"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, **options)
        started.append((process, output))

    def run(*options):
        started.clear()
        deepspeed = [sys.executable, "-m", "deepspeed.launcher.runner", f"--hostfile={hostfile}"]
        run = ["train_ds.py", f"--config={tiny_run}", *options]
        if shutil.which("pdsh"):
            start(on("auranode0", *deepspeed, *run))
        else:
            by_hand = ["--no_ssh", f"--master_addr={NODES['auranode0']}"]
            for number, node in enumerate(NODES):
                start(on(node, *deepspeed, *by_hand, f"--node_rank={number}", *run))
        return started

    yield run
    for process, _ in started:
        for each in [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []:
            each.kill()
        process.wait()


SSH = """#!/bin/sh
# ssh to another network namespace: options, then the machine, then the command.
while :; do case "$1" in -o|-p|-l) shift 2;; -*) shift;; *) break;; esac; done
node=$1; shift
exec ip netns exec "$node" unshare --uts sh -c "hostname $node; $*"
"""


def told(started):
    text = ""
    for _, output in started:
        output.seek(0)
        text += output.read()
    return text


def rank(number, config):
    """The process of a rank: the child of the launcher on that machine."""
    for process in psutil.process_iter(["cmdline", "environ", "ppid"]):
        line, variables = process.info["cmdline"] or [], process.info["environ"] or {}
        mine = f"--config={config}" in line and variables.get("RANK") == str(number)
        if mine and "deepspeed.launcher.launch" in psutil.Process(process.info["ppid"]).cmdline():
            return process
    raise AssertionError(f"rank {number} is not at work")


def test_two_machines_train_together_and_go_on_after_one_died(launch, tiny_run, tmp_path):
    run, options = tmp_path / "run", ("--train.steps", "100000", "--data.num_workers", "1")

    def wait_for_step(step, started):
        deadline = time.monotonic() + PATIENCE
        while not any(record["step"] >= step for record in read_log(run / "log.jsonl")):
            assert time.monotonic() < deadline and all(process.poll() is None for process, _ in started), told(started)
            time.sleep(0.05)

    started = launch(*options)
    wait_for_step(3, started)
    rank(1, tiny_run).kill()
    assert all(process.wait(60) for process, _ in started)  # none ends with 0
    text = told(started)
    assert "train_ds.py: rank 1 on auranode1 has died" in text and "the same command continues" in text, text
    assert "Traceback" not in text, text

    started = launch(*options)
    done = int((run / "checkpoints" / "latest").read_text()[5:])
    wait_for_step(done + 3, started)
    rank(1, tiny_run).send_signal(signal.SIGTERM)  # both stop after the same step
    assert all(process.wait(60) for process, _ in started)
    text = told(started)
    assert f"continuing {run}/checkpoints/step_{done:06d}" in text and "stopped by signal 15 after step" in text, text
    steps = [record["step"] for record in read_log(run / "log.jsonl")]
    assert steps == list(range(1, int((run / "checkpoints" / "latest").read_text()[5:]) + 1))
