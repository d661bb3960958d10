"""``scripts/check_gpu.py``: one section in its own process; CI rehearses all of them."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_gpu.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def test_a_section_runs_in_its_own_process_and_is_recorded(tmp_path):
    done = run("--scale", "tiny", "--only", "5,10", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [section["section"] for section in written["sections"]] == [5, 10]
    assert {section["verdict"] for section in written["sections"]} == {"proved"}
    assert written["scale"] == "tiny" and written["torch"] and written["device"]
    assert written["sections"][1]["facts"]["objects"] == 10
    assert (tmp_path / "out" / "gpu.jsonl").read_text().count("\n") == 2
    assert "forty [SEG]" in (tmp_path / "out" / "gpu.md").read_text()


def test_options_that_are_wrong(tmp_path):
    done = run("--only", "4,99")
    assert done.returncode == 2 and "numbers of sections" in done.stderr
    (tmp_path / "file").touch()
    done = run("--out", tmp_path / "file")
    assert done.returncode == 2 and "is a file" in done.stderr
