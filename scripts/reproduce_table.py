"""Reproduce a table of the paper: train and evaluate its rows, print them beside the paper's numbers.

    python scripts/reproduce_table.py --table 2 --mini                 the mini benchmark, three seeds
    python scripts/reproduce_table.py --table 1 --predictions C2F-Seg=theirs.json
    python scripts/reproduce_table.py --table 4 --launcher "deepspeed --hostfile hosts.txt" --dry-run
    python scripts/reproduce_table.py --table reason_seg --report val=runs/aura_7b/reason_seg_val

--table condition_forms and --table spatial_forms are Table 2 with other forms of E_OC and of E_SO, where the paper is
silent.
--table reason_seg and --table refcoco are LISA's tables 1 and 2: they train nothing and put the reports of eval.py, one
for each split, under LISA's rows.

Start it in the clone's folder. A sweep that was stopped goes on with the same command: finished runs are found, an
unfinished one continues from its checkpoint. Rows that tables share are trained once. See docs/reproduce.md.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from aura.config import GiouOver, Protocol
from aura.evaluation.report import combine, read_figures
from aura.evaluation.scoring import load_predictions, score
from aura.evaluation.tables import Figures
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.reproduction import lisa, results
from aura.reproduction.forms import FORM_TABLES
from aura.reproduction.lisa import LISA_TABLES
from aura.reproduction.paper import TABLES
from aura.reproduction.runs import CONFIGS, Run, Setting, plan
from aura.reproduction.sweep import Stopped, dry_run, sweep

TRAINED = {**dict(sorted(TABLES.items())), **FORM_TABLES}
NO_MINI = "the mini benchmark has one language model and one SAM; tables 4 and 5 compare several, so leave out --mini"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="reproduce_table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=_table, required=True, choices=[*TRAINED, *LISA_TABLES])
    parser.add_argument("--mini", action="store_true", help="on the mini benchmark, at small size")
    parser.add_argument("--seeds", type=_seeds, help="such as 0,1,2 (default: 0; with --mini 0,1,2)")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="run folders (runs/tables or runs/tables_mini)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the table's files (default: --runs)")
    parser.add_argument(
        "--config", type=Path, action="append", default=[], metavar="FILE", help="layer over every run; repeatable"
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="AmodalReasonSeg file to evaluate on")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of its images")
    parser.add_argument("--protocol", choices=get_args(Protocol), default="teacher_forced")
    parser.add_argument(
        "--giou",
        choices=get_args(GiouOver),
        default="image",
        help="what gIoU is the mean over (image: the paper's words)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate the first N images only")
    parser.add_argument("--launcher", help='before train_ds.py, such as "deepspeed --hostfile hosts.txt"')
    parser.add_argument("--eval-launcher", help='before eval.py, such as "torchrun --nproc-per-node 2"')
    parser.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="masks of another method, scored as a row; repeatable, two of one NAME and one kind of mask each make one",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at once, each with its share of the cores; for CPUs"
    )
    parser.add_argument(
        "--report",
        action="append",
        default=[],
        metavar="SPLIT=DIR",
        help="of LISA's tables: a report.json or its folder, as of val, test, test_short, refcoco_testA; repeatable",
    )
    parser.add_argument("--found", action="store_true", help="train nothing, show what is finished")
    parser.add_argument("--dry-run", action="store_true", help="print the commands in their order")
    options = parser.parse_args(argv)
    if options.mini and options.table in (4, 5):
        parser.exit(2, f"{parser.prog}: {NO_MINI}\n")
    if options.report and options.table not in LISA_TABLES:
        parser.error(f"--report is for the tables {' and '.join(LISA_TABLES)}")
    for key in ("limit", "jobs"):
        if (value := getattr(options, key)) is not None and value < 1:
            parser.error(f"--{key} must be positive, got {value}")
    return options


def _table(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _seeds(text: str) -> list[int]:
    seeds = [int(part) for part in text.split(",")]
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"give different seeds from 0 on, such as 0,1,2, not {text}")
    return seeds


def setting_of(options: argparse.Namespace) -> Setting:
    """ValueError where something is missing."""
    if not (CONFIGS / "aura_7b.yaml").is_file() or not Path("train_ds.py").is_file():
        raise ValueError("start it in the clone's folder, where train_ds.py and configs/ lie")
    deepspeed = "deepspeed" if shutil.which("deepspeed") else str(Path(sys.executable).with_name("deepspeed"))
    if options.mini:  # one process needs no launcher
        base, launcher = (CONFIGS / "mini.yaml", CONFIGS / "sweep_mini.yaml"), shlex.quote(sys.executable)
        folder, data, images = "runs/tables_mini", "data/mini/mini_test.json", Path("data/mini/images/test")
    else:
        base, launcher = (CONFIGS / "aura_7b.yaml",), deepspeed
        folder, data, images = "runs/tables", "data/amodal_reason_seg/0.1/test.json", None
    launcher = shlex.split(options.launcher or launcher)
    if options.jobs > 1 and Path(launcher[0]).name in ("deepspeed", "torchrun"):
        raise ValueError(
            f"--jobs {options.jobs} starts trainings side by side, and those of {launcher[0]} would meet on one port "
            "and the same GPUs; leave out --jobs, or give --launcher python"
        )
    return Setting(
        runs=options.runs or Path(folder),
        base=base,
        data=options.data or Path(data),
        images=options.images or (images if options.data is None else None),
        extra=tuple(options.config),
        protocol=options.protocol,
        giou=options.giou,
        launcher=tuple(launcher),
        eval_launcher=tuple(shlex.split(options.eval_launcher or shlex.quote(sys.executable))),
        limit=options.limit,
    )


def score_predictions(options: argparse.Namespace, setting: Setting) -> dict[str, Figures]:
    """Figures of the prediction files by method; ValueError names what is wrong."""
    figures: dict[str, Figures] = {}
    for entry in options.predictions:
        name, separator, path = entry.partition("=")
        if not separator:
            raise ValueError(f"--predictions takes NAME=FILE, got {entry!r}")
        dataset = AmodalReasonSeg.load(setting.data, setting.images)
        samples = [sample for sample in dataset if sample.conversations][: setting.limit]
        found = score(samples, load_predictions(path), protocol=setting.protocol, name=name).as_dict()
        figures[name] = combine(figures[name], found) if name in figures else found
    return figures


def show_lisa(options: argparse.Namespace) -> None:
    """One of LISA's tables, with our reports below; ValueError names what is wrong."""
    table, reports = LISA_TABLES[options.table], {}
    for entry in options.report:
        split, separator, path = entry.partition("=")
        if not separator or split in reports:
            raise ValueError(f"--report takes SPLIT=DIR, each split once, got {entry!r}")
        reports[split] = read_figures(path)
    results.show([lisa.beside(table, lisa.ours(table, reports))])
    remarks = [
        f"{split}: {found['num_images']} images, {found['num_objects']} masks, {found['protocol']}"
        for split, found in reports.items()
    ]
    for line in remarks:
        print(line)
    if reports:
        files = lisa.write(options.out or options.runs or Path("runs/tables"), options.table, table, reports, remarks)
        print("written:", ", ".join(map(str, files)))


def report(options: argparse.Namespace, runs: list[Run], figures: dict[str, Figures], failures: list[str]) -> None:
    table, note = TRAINED[options.table], ", mini benchmark" if options.mini else ""
    found = results.collect(table, runs, figures)
    results.show(results.all_tables(table, found, note, options.giou))
    remarks = results.remarks(found)
    if options.mini:
        remarks.append(
            "The mini benchmark is not AmodalReasonSeg and its model not LLaVA-7B: compare changes between rows, not "
            "numbers with the paper's."
        )
    missing = [run.name for run in runs if not run.is_evaluated]
    remarks += [f"not finished: {'; '.join(missing)}"] if missing else []
    remarks += [f"failed: {failure}" for failure in failures]
    name = f"table{options.table}" if options.table in TABLES else options.table
    stem = (options.out or runs[0].setting.runs) / f"{name}{'_mini' if options.mini else ''}"
    files = results.write(stem, table, found, note=note, remarks=remarks, giou=options.giou)
    for line in remarks:
        print(line)
    print("written:", ", ".join(map(str, files)))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; 1 if a run failed; 2 for what the user can mend; 128 + the signal that stopped it."""
    options = parse(argv)
    try:
        if options.table in LISA_TABLES:
            show_lisa(options)
            return 0
        setting = setting_of(options)
        seeds = options.seeds or ([0, 1, 2] if options.mini else [0])
        runs = plan(TRAINED[options.table].variants, seeds, setting)
        if options.dry_run:
            dry_run(runs)
            return 0
        figures = score_predictions(options, setting)
        failures, code = [], 0
        if not options.found:
            try:
                failures = sweep(runs, say=lambda line: print(line, flush=True), jobs=options.jobs)
            except Stopped as stop:
                print(f"reproduce_table.py: {stop}", file=sys.stderr)
                code = stop.code
        report(options, runs, figures, failures)
    except (ValueError, OSError) as error:
        print(f"reproduce_table.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return code or int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
