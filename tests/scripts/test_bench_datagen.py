"""The benchmark of a run does what it says, on a few images."""

import json
import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_datagen.py"


def test_every_pair_comes_once(tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    out, options = tmp_path / "figures", ["--concurrency=3", "--latency=0", f"--folder={tmp_path}"]
    assert main(["--images", "6", f"--out={out}", *options]) == 0
    [figures] = json.loads(out.with_suffix(".json").read_text())["sizes"]
    assert (figures["images"], figures["pairs"], figures["calls"]) == (6, 60, 6), "no pair fails its checks"
    assert figures["peak_mib"] >= figures["peak_mib_before"] > 10 and figures["pairs_per_second"] > 0
    assert "pairs/s" in capsys.readouterr().out
    assert main(["--images", "2", f"--out={out}", *options]) == 0
    assert [size["images"] for size in json.loads(out.with_suffix(".json").read_text())["sizes"]] == [2, 6]
    assert "| 6 | 60 | 3 | 0 |" in out.with_suffix(".md").read_text()
