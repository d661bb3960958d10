"""A small part of scripts/torture.py: everything is killed at random moments, and becomes what it would have been."""

import json
import os
import subprocess
import sys
from pathlib import Path

KINDS = {"training", "cache", "generation_offline", "generation_openai", "generation_openai_batch", "review"}
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "torture.py"


def test_everything_endures_kills(tiny_run, tmp_path):
    out = tmp_path / "torture"
    options = ["--kills", "6", "--seed", "3", "--size", "6", "--out", str(out), "--", f"--config={tiny_run}"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run([sys.executable, SCRIPT, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((out / "torture.json").read_text())
    assert result["kills"] == 6 and set(result["kinds"]) == KINDS
    assert not any(result[key] for key in ("hung", "different", "failed", "lost"))
