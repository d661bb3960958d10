"""A small part of scripts/torture.py: a run of two ranks is killed at random moments and becomes the same run."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "torture.py"


def test_a_run_endures_kills(tiny_run, tmp_path):
    out = tmp_path / "torture"
    options = ["--kills", "4", "--seed", "3", "--out", str(out), "--", f"--config={tiny_run}"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run([sys.executable, SCRIPT, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((out / "torture.json").read_text())
    assert result["kills"] == 4 and not result["hung"] and not result["different"]
