"""The sweep behind the paper's tables, with fake training and evaluation commands: found, done, killed, continued."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aura.config import load_config, to_yaml
from aura.evaluation.report import Report
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.sources import AnnotatedImage
from aura.masks import encode_rle
from aura.reproduction.forms import FORM_TABLES
from aura.reproduction.paper import TABLES
from aura.types import AmodalObject, Conversation, Turn

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "reproduce_table.py"
main = runpy.run_path(str(SCRIPT))["main"]

TRAIN = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--train.output_dir") + 1])
here = folder.parent.parent
with (here / "calls").open("a") as file:
    print("train", folder.parent.name, sys.argv[sys.argv.index("--train.seed") + 1], file=file)
if (here / "broken").exists() and folder.parent.name == (here / "broken").read_text():
    sys.exit("train_ds.py: the annotations do not exist")
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
(folder / "checkpoints" / "latest").write_text("step_000002")
if (here / "slow").exists():
    (here / "slow").write_text(str(os.getpid()))
    time.sleep(60)
(folder / "export").mkdir()
(folder / "export" / "config.json").write_text("{}")
(folder / "report.json").write_text(json.dumps({"steps": 4, "effective_batch": 8, "seconds": 90.0}))
"""
# Each variant scores 40 and, for its place in a list, some points more; seeds 0, 1, 2 differ by 0, 2, 4 points.
EVAL = """
import json, sys
from pathlib import Path
folder, out = (Path(sys.argv[sys.argv.index(key) + 1]) for key in ("--checkpoint", "--out"))
here, name = folder.parent.parent, folder.parent.name
with (here / "calls").open("a") as file:
    print("eval", name, file=file)
figures = json.loads((here / "figures.json").read_text())
variants = ["baseline", "only_condition", "only_spatial", "aura"]
score = 0.4 + 0.01 * (variants.index(name) if name in variants else 0) + 0.02 * int(folder.name.split("_")[1])
for kind in ("amodal", "visible"):
    figures[kind] = dict.fromkeys(figures[kind], None if name.startswith("lisa") and kind not in name else score)
    if figures[kind]["giou_object"] is not None:  # LISA's reducer gives other numbers than the paper's words
        figures[kind]["giou_object"] += 0.1
out.mkdir(parents=True)
(out / "report.json").write_text(json.dumps(figures))
"""
PAPER = """
VRSP 15.18 16.55 17.41 19.75; C2F-Seg 18.62 18.25 19.12 20.31; SD-Amodal 20.87 20.09 21.52 23.10; LISA 23.05 22.87
24.39 26.81; LLM-Seg 24.62 23.06 25.19 27.94; GSVA 42.30 42.87 47.01 48.22; OMG-LLaVA 43.92 44.21 49.41 49.38; GLaMM
45.75 46.82 49.93 54.14; PSALM 46.81 47.03 50.64 55.19; Baseline 43.55 43.92 48.96 48.63; AURA 47.76 47.32 51.31 55.38
| neither 43.55 43.92 48.96 48.63; E_OC_only 44.86 44.07 49.57 49.10; E_SO_only 46.95 45.60 50.68 53.72; E_OC_and_E_SO
47.76 47.32 51.31 55.38
| without_LoRA 20.84 21.03 25.43 27.95; with_LoRA 47.76 47.32 51.31 55.38
| LLaVA-7B 47.76 47.32 51.31 55.38; LLaVA-13B 49.41 49.74 54.13 57.97; LLaVA-Llama2-13B 52.34 52.95 58.42 60.21
| SAM_ViT-B_(93.7M) 42.85 42.76 46.92 50.12; SAM_ViT-L_(312M) 45.23 45.31 49.18 53.71; SAM_ViT-H_(641M) 47.76 47.32
51.31 55.38
"""


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A folder for runs, with what the fake commands need."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    (folder / "eval.py").write_text(EVAL)
    (folder / "figures.json").write_text(json.dumps(Report("teacher_forced", (), ()).as_dict()))
    return folder


def arguments(runs: Path, *more: str) -> list[str]:
    launchers = [f"--{key}={sys.executable} {runs / name}" for key, name in
                 (("launcher", "train.py"), ("eval-launcher", "eval.py"))]  # fmt: skip
    return ["--mini", "--runs", str(runs), *launchers, *more]


def calls(runs: Path) -> list[str]:
    path = runs / "calls"
    return path.read_text().splitlines() if path.is_file() else []


def test_a_sweep_trains_evaluates_and_shows_mean_and_spread_beside_the_paper(runs, capsys):
    assert main(arguments(runs, "--table", "2", "--seeds", "0,1,2")) == 0
    printed = capsys.readouterr().out
    line = r"\[1/12\] baseline, seed 0: trained in \d+ s, evaluated in \d+ s; amodal gIoU 40\.00, amodal cIoU 40\.00"
    assert re.search(line, printed)
    assert "[12/12] aura, seed 2: " in printed
    variants = ["baseline", "only_condition", "only_spatial", "aura"]
    expected = [line for seed in range(3) for name in variants for line in (f"train {name} {seed}", f"eval {name}")]
    assert calls(runs) == expected

    table = (runs / "table2_mini.md").read_text()
    assert "| neither | 3 | 43.55 | 42.00 ± 2.00 | -1.55 |" in table
    assert "| E_OC and E_SO | 3 | 47.76 | 45.00 ± 2.00 | -2.76 |" in table
    # Seeds are compared in pairs: each gains exactly 3 points.
    assert "| E_OC and E_SO | +4.21 | +3.00 ± 0.00 |" in table
    assert "4 optimizer steps of 8 images; 1.5 minutes" in table and "arXiv 2503.10225" in table
    assert "compare changes between rows" in table and "not finished" not in table
    rows = list(csv.DictReader((runs / "table2_mini.csv").read_text().splitlines()))
    assert len(rows) == 16
    assert rows[0] == {
        "method": "neither", "figure": "amodal_giou", "paper": "43.5500", "mean": "42.0000", "std": "2.0000",
        "difference": "-1.5500", "runs": "3", "values": "40.0000 42.0000 44.0000",
    }  # fmt: skip
    stored = json.loads((runs / "table2_mini.json").read_text())
    assert stored["rows"][3]["paper"]["visible_ciou"] == 55.38
    assert [run["seed"] for run in stored["rows"][3]["runs"]] == [0, 1, 2]
    assert stored["rows"][1]["layers"] == {"only_condition": ["ablation/only_condition.yaml"]}
    latex = (runs / "table2_mini.tex").read_text()
    assert r"42.00 $\pm$ 2.00" in latex and r"E\_OC only" in latex

    # What gIoU is the mean over is a way to show what is there.
    assert "gIoU over images, mini benchmark" in table
    assert "| neither | 42.00 ± 2.00 | 42.00 ± 2.00 | 52.00 ± 2.00 | 42.00 ± 2.00 |" in table
    assert main(arguments(runs, "--table", "2", "--seeds", "0,1,2", "--giou", "object")) == 0
    assert "seed 0: trained before, evaluated before; amodal gIoU 50.00, amodal cIoU 40.00" in capsys.readouterr().out
    table = (runs / "table2_mini.md").read_text()
    assert "gIoU over objects" in table and "| neither | 3 | 43.55 | 52.00 ± 2.00 | +8.45 | 43.92 | 42.00 " in table
    assert json.loads((runs / "table2_mini.json").read_text())["giou"] == "object"

    # All is there: nothing runs again, and another table finds what it shares.
    assert main(arguments(runs, "--table", "2")) == 0
    assert "trained before, evaluated before" in capsys.readouterr().out
    assert calls(runs) == expected
    assert main(arguments(runs, "--table", "3", "--seeds", "0")) == 0
    assert calls(runs) == [*expected, "train no_lora 0", "eval no_lora"]


def test_a_changed_export_is_evaluated_again(runs, capsys):
    again = arguments(runs, "--table", "3", "--seeds", "0")
    assert main(again) == 0
    export = runs / "aura" / "seed_0" / "export" / "config.json"
    later = time.time() + 5
    os.utime(export, (later, later))
    (runs / "eval.py").write_text(EVAL.replace("out.mkdir(parents=True)", "").replace("0.4 +", "0.5 +"))
    assert main(again) == 1, "the report is still older than the export: said, not passed over"
    assert "aura, seed 0: the evaluation wrote no report" in (runs / "table3_mini.md").read_text()
    os.utime(export, (later - 10, later - 10))
    assert main(again) == 0
    assert "| with LoRA | 1 | 47.76 | 53.00 | +5.24 |" in (runs / "table3_mini.md").read_text()


def test_lisa_s_two_trainings_make_one_row(runs, capsys):
    assert main(arguments(runs, "--table", "1", "--seeds", "0,1")) == 0
    table = (runs / "table1_mini.md").read_text()
    assert "| LISA | 2 | 23.05 | 41.00 ± 1.41 | +17.95 | 22.87 | 41.00 ± 1.41 |" in table
    assert "| GLaMM | – | 45.75 | – | – |" in table
    assert "- LISA: one [SEG] an answer, for the object it names first (section 5.2); its other objects count" in table
    assert {line.split()[1] for line in calls(runs)} == {"lisa_visible", "lisa_amodal", "baseline", "aura"}


def test_a_failed_run_is_told_and_the_others_are_done(runs, capsys):
    (runs / "broken").write_text("only_spatial")
    assert main(arguments(runs, "--table", "2", "--seeds", "0")) == 1
    printed = capsys.readouterr().out
    log = runs / "only_spatial" / "seed_0" / "train.log"
    assert (
        f"[3/4] only_spatial, seed 0: FAILED, exit code 1: train_ds.py: the annotations do not exist (see {log})"
        in printed
    )
    table = (runs / "table2_mini.md").read_text()
    assert "| E_SO only | – | 46.95 | – | – |" in table and "not finished: only_spatial, seed 0" in table
    (runs / "broken").unlink()
    assert main(arguments(runs, "--table", "2", "--seeds", "0")) == 0
    assert calls(runs)[-2:] == ["train only_spatial 0", "eval only_spatial"]


# As deepspeed's: it starts the training, and does not wait for it to end when a signal comes.
LAUNCHER = """
import signal, subprocess, sys
process = subprocess.Popen([sys.executable, *sys.argv[1:]])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
sys.exit(process.wait())
"""


def start(runs: Path, *more: str) -> tuple[subprocess.Popen, int]:
    """A sweep whose first training hangs; the sweep, and the training's process id."""
    slow = runs / "slow"
    slow.write_text("")
    command = [sys.executable, str(SCRIPT), *arguments(runs, "--table", "3", "--seeds", "0", *more)]
    sweep = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while not slow.read_text():
        assert sweep.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return sweep, int(slow.read_text())


def test_a_killed_sweep_continues_and_does_not_train_beside_its_orphan(runs, capsys):
    sweep, training = start(runs)
    sweep.kill()
    sweep.wait()
    (runs / "slow").unlink()
    assert main(arguments(runs, "--table", "3", "--seeds", "0")) == 1
    assert "no_lora, seed 0: FAILED, another process works in" in capsys.readouterr().out
    os.kill(training, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while main(arguments(runs, "--table", "3", "--seeds", "0")) != 0:  # the lock goes when the process has gone
        assert time.monotonic() < deadline
    printed = capsys.readouterr().out
    assert "[1/2] no_lora, seed 0: continued and trained in" in printed
    assert "aura, seed 0: trained before" in printed
    assert [line for line in calls(runs) if line.startswith("train")] == [
        "train no_lora 0",
        "train aura 0",
        "train no_lora 0",
    ]


def test_sigterm_stops_the_training_behind_its_launcher_and_shows_what_there_is(runs):
    (runs / "launcher.py").write_text(LAUNCHER)
    saving = "signal.signal(15, lambda *_: (time.sleep(0.5), (here / 'saved').touch(), sys.exit(143)))"
    lines = TRAIN.replace("import json", "import json, signal").splitlines()
    (runs / "train.py").write_text("\n".join([*lines[:5], saving, *lines[5:]]))
    sweep, training = start(runs, "--launcher", f"{sys.executable} {runs / 'launcher.py'} {runs / 'train.py'}")
    sweep.terminate()
    printed = sweep.communicate(timeout=30)[0]
    assert sweep.returncode == 128 + signal.SIGTERM
    assert (runs / "saved").is_file(), "the sweep waits until the training has saved its checkpoint"
    assert "stopped by signal 15; the same command continues" in printed and "not finished: no_lora, seed 0" in printed
    with pytest.raises(ProcessLookupError):
        os.kill(training, 0)


PAIR = """
deadline = time.monotonic() + 30
while not all((here / name).is_file() for name in ("no_lora_0", "aura_0")):
    (here / (folder.parent.name + "_0")).write_text(os.environ["OMP_NUM_THREADS"])
    assert time.monotonic() < deadline, "the other run does not start before this one has ended"
    time.sleep(0.02)
"""


def test_two_runs_at_once_share_the_cores(runs, monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (runs / "train.py").write_text(TRAIN.replace('(folder / "export").mkdir()', PAIR + '(folder / "export").mkdir()'))
    assert main(arguments(runs, "--table", "3", "--seeds", "0", "--jobs", "2")) == 0
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert (runs / "aura_0").read_text() == (runs / "no_lora_0").read_text() == str(threads)
    printed = capsys.readouterr().out
    assert "[1/2] no_lora, seed 0: trained in" in printed and "[2/2] aura, seed 0: trained in" in printed


def test_a_signal_reaches_all_that_run_at_once_and_starts_nothing_more(runs):
    sweep, training = start(runs, "--seeds", "0,1", "--jobs", "2")
    while len(calls(runs)) < 2:
        time.sleep(0.02)
    sweep.terminate()
    printed = sweep.communicate(timeout=30)[0]
    assert sweep.returncode == 128 + signal.SIGTERM and "FAILED" not in printed
    assert sorted(calls(runs)) == ["train aura 0", "train no_lora 0"]
    with pytest.raises(ProcessLookupError):
        os.kill(training, 0)


def test_runs_at_once_need_a_launcher_of_one_process(runs, capsys):
    assert main([*arguments(runs, "--table", "2", "--jobs", "2"), "--launcher", "deepspeed --num_gpus 1"]) == 2
    assert "would meet on one port" in capsys.readouterr().err


def test_found_trains_nothing(runs, capsys):
    assert main(arguments(runs, "--table", "2", "--found")) == 0
    assert calls(runs) == [] and "| neither | – | 43.55 | – | – |" in (runs / "table2_mini.md").read_text()


def test_dry_run_prints_the_commands_in_order_and_runs_nothing(runs, capsys, tmp_path):
    layer = tmp_path / "mine.yaml"
    layer.write_text("train: {steps: 450}\n")
    options = ["--runs", str(runs), "--table", "4", "--dry-run", "--launcher", "deepspeed --hostfile hosts.txt"]
    assert main([*options, "--config", str(layer), "--eval-launcher", "torchrun --nproc-per-node 2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::3] == ["# aura, seed 0", "# mllm_13b, seed 0", "# mllm_llama2_13b, seed 0"]
    assert lines[4] == (
        "deepspeed --hostfile hosts.txt train_ds.py --config configs/aura_7b.yaml --config configs/mllm/13b.yaml "
        f"--config {layer} --train.output_dir {runs}/mllm_13b/seed_0 --train.seed 0"
    )
    assert lines[5].startswith(f"torchrun --nproc-per-node 2 eval.py --checkpoint {runs}/mllm_13b/seed_0 --data data/")
    assert calls(runs) == []


def test_another_training_s_folder_is_refused_before_anything_runs(runs, capsys):
    folder = runs / "aura" / "seed_1"
    folder.mkdir(parents=True)
    stored = load_config("configs/mini.yaml", "configs/sweep_mini.yaml")
    steps = stored.train.steps
    text = to_yaml(stored).replace(f"  steps: {steps}", "  steps: 300").replace("seed: 0", "seed: 1")
    (folder / "config.yaml").write_text(text)
    assert main(arguments(runs, "--table", "2", "--seeds", "0,1")) == 2
    error = capsys.readouterr().err
    assert f"aura/seed_1 was trained with other settings: train.steps 300, not {steps}. Delete it" in error
    assert error.count("\n") == 1 and calls(runs) == []
    (folder / "config.yaml").write_text(
        text.replace("  steps: 300", f"  steps: {steps}").replace("log_every: 20", "log_every: 5")
    )
    assert main(arguments(runs, "--table", "2", "--seeds", "0,1", "--dry-run")) == 0


SIZE = (20, 30)


def test_other_methods_are_scored_from_their_prediction_files(runs, tmp_path, capsys):
    whole, seen = np.zeros((2, *SIZE), bool)
    whole[:10, :10], seen[:10, :5] = True, True
    bus = AmodalObject(7, "bus", encode_rle(seen), encode_rle(whole), 0.5)
    images = [AnnotatedImage(1, "1.jpg", *SIZE, (bus,), {"id": 1})]
    talk = Conversation(3, (Turn("What is there?", "A bus [SEG].", (7,)),))
    data = AmodalReasonSeg.build(images, {1: [talk]}, source=tmp_path / "test.json").save()
    for kind in ("visible", "amodal"):  # the visible mask in both places: right once, half once
        row = {"conversation_id": 3, "turn": 0, "index": 0, kind: encode_rle(seen)}
        (tmp_path / f"{kind}.json").write_text(json.dumps([row]))
    files = [f"--predictions={name}={tmp_path / kind}.json" for name, kind in
             (("C2F-Seg", "visible"), ("C2F-Seg", "amodal"), ("Mine", "amodal"))]  # fmt: skip
    options = arguments(runs, "--table", "1", "--found", "--data", str(data))
    assert main([*options, *files]) == 0
    table = (runs / "table1_mini.md").read_text()
    assert "| C2F-Seg | 1 | 18.62 | 50.00 | +31.38 | 18.25 | 50.00 | +31.75 | 19.12 | 100.00 |" in table
    assert "| Mine | 1 | – | 50.00 | – | – | 50.00 | – | – | – | – |" in table
    capsys.readouterr()
    assert main([*options, files[0], files[0]]) == 2
    assert "both reports have visible masks" in capsys.readouterr().err
    assert main([*options, "--predictions", "x"]) == 2
    assert "NAME=FILE" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["4", "5"])
def test_the_mini_benchmark_cannot_make_tables_4_and_5(table, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--table", table, "--mini"])
    assert stop.value.code == 2
    assert "the mini benchmark has one language model and one SAM" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["--seeds", "0,0"], ["--seeds", "a"], ["--table", "6"], ["--limit", "0"], ["--jobs", "0"]]
)
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--table", "2", *wrong])
    assert stop.value.code == 2


def test_it_must_start_in_the_clone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--table", "2"]) == 2
    assert "start it in the clone's folder" in capsys.readouterr().err


def test_other_forms_of_the_occlusion_modules_stand_under_table_2(runs, capsys):
    assert main(arguments(runs, "--table", "condition_forms", "--seeds", "0")) == 0
    shown = capsys.readouterr().out
    assert "Table 2, forms of E_OC: Occlusion modules" in shown and "nan" not in shown
    table = (runs / "condition_forms_mini.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.split("###")[1].splitlines() if line.startswith("| ")][2:]
    own = [f"E_OC ({form}) {rest}" for form in ("scaled", "film", "token") for rest in ("only", "and E_SO")]
    assert rows == ["neither", "E_OC only", "E_SO only", "E_OC and E_SO", *own]
    # The reference has 40, what is no row of the paper has 40 too, and no number beside it.
    assert "| E_OC (film) and E_SO | – | +0.00 |" in table
    found = {path.name for path in runs.iterdir() if path.is_dir()}
    assert found == {"baseline", "only_condition", "only_spatial", "aura"} | {
        f"{only}condition_{form}" for form in ("scaled", "film", "token") for only in ("only_", "")
    }
    assert main(arguments(runs, "--table", "spatial_forms", "--seeds", "0", "--dry-run")) == 0
    planned = capsys.readouterr().out
    assert "# baseline, seed 0: finished" in planned  # the shared rows are those of the other table
    alone = "--config configs/ablation/only_spatial.yaml --config configs/forms/spatial_features.yaml"
    assert alone in planned and "only_spatial_features/seed_0" in planned


def test_the_paper_s_numbers_and_their_layers():
    for number, part in enumerate(PAPER.replace("\n", " ").split("|"), start=1):
        rows = {name: tuple(map(float, scores)) for name, *scores in map(str.split, part.split(";"))}
        assert {row.name.replace(" ", "_"): tuple(row.paper) for row in TABLES[number].rows} == rows
        assert TABLES[number].reference in {row.name for row in TABLES[number].rows}
    for table in FORM_TABLES.values():
        assert len(table.variants) == 10 and table.rows[:4] == TABLES[2].rows
    for table in (*TABLES.values(), *FORM_TABLES.values()):
        assert all((ROOT / "configs" / layer).is_file() for variant in table.variants for layer in variant.layers)
