"""What the runs of a table found, beside the paper's numbers, in every format."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args

from rich.console import Console

from aura.config import GiouOver
from aura.evaluation.report import combine
from aura.evaluation.tables import Figures, Table, as_latex, as_markdown, as_rich, flatten
from aura.files import write_json, write_text
from aura.reproduction.paper import CITATION, NOT_IN_PAPER, PaperRow, PaperTable
from aura.reproduction.runs import Run

METRICS = {
    "amodal_giou": ("Amodal gIoU", "amodal.giou_{giou}"),
    "amodal_ciou": ("Amodal cIoU", "amodal.ciou"),
    "visible_giou": ("Visible gIoU", "visible.giou_{giou}"),
    "visible_ciou": ("Visible cIoU", "visible.ciou"),
}
"""The paper's four figures: heading, and key in a flat report with what gIoU is the mean over left open."""
MORE = {
    "amodal := visible gIoU": "amodal_from_visible.giou_{giou}",
    "invisible gIoU (objects)": "invisible.giou_object",
    "invisible cIoU": "invisible.ciou",
    "occlusion rate error": "occlusion_rate_mae",
    "[SEG] count correct": "seg_count_accuracy",
}
SOMETIMES = (
    {"N-acc": "no_target.n_acc", "T-acc": "no_target.t_acc"},
    {"asked mask known": "asked.accuracy"},
)
"""Only of data with answers that have no object, and only of data with questions that mean one kind of mask."""
DASH = "–"


@dataclass(frozen=True)
class Result:
    """A row's figures, flat, by seed; those of a prediction file have the seed ``None``."""

    row: PaperRow
    figures: Mapping[int | None, Mapping[str, Any]]
    runs: tuple[Run, ...] = ()

    def values(self, key: str, giou: GiouOver = "image") -> dict[int | None, float]:
        """One figure in percent, by seed; seeds that could not measure it are left out. ``giou`` stands in ``key``."""
        key = key.format(giou=giou)
        return {seed: 100 * found[key] for seed, found in self.figures.items() if found.get(key) is not None}


def collect(table: PaperTable, runs: Sequence[Run], predictions: Mapping[str, Figures]) -> list[Result]:
    """The result of every row, from finished runs and prediction files.

    Args:
        table: Which one.
        runs: Of all its variants and seeds; unfinished ones are passed over.
        predictions: Figures of other methods by the name of their row; new names become new rows.

    Raises:
        ValueError: A damaged report, or reports that are not of the same data.
    """
    results = []
    for row in table.rows:
        mine = tuple(run for run in runs if run.variant in row.variants and run.is_evaluated)
        found: dict[int | None, Mapping[str, Any]] = {}
        for seed in dict.fromkeys(run.seed for run in mine):
            reports = [figures for run in mine if run.seed == seed and (figures := run.figures()) is not None]
            found[seed] = flatten(reports[0] if len(reports) == 1 else combine(*reports))
        if row.name in predictions:
            found, mine = {None: flatten(predictions[row.name])}, ()
        results.append(Result(row, found, mine))
    known = {row.name for row in table.rows}
    results += [
        Result(PaperRow(name, NOT_IN_PAPER), {None: flatten(figures)})
        for name, figures in predictions.items()
        if name not in known
    ]
    sizes = {
        tuple(found[key] for key in ("protocol", "num_images", "num_answers", "num_objects"))
        for result in results
        for found in result.figures.values()
    }
    if len(sizes) > 1:
        raise ValueError(f"the rows were evaluated on different data: {', '.join(map(str, sorted(sizes)))}")
    return results


def spread(values: Sequence[float], signed: bool = False) -> str:
    """Mean, and the sample's standard deviation where there is more than one value."""
    if not values:
        return DASH
    mean = f"{fmean(values):+.2f}" if signed else f"{fmean(values):.2f}"
    return f"{mean} ± {stdev(values):.2f}" if len(values) > 1 else mean


def beside(table: PaperTable, results: Sequence[Result], note: str = "", giou: GiouOver = "image") -> Table:
    """Each figure three times: the paper's, ours (mean and spread over seeds), and the difference of the means."""
    rows = []
    for result in results:
        cells = [result.row.name, str(len(result.figures)) if result.figures else DASH]
        for metric, (_, key) in METRICS.items():
            paper, ours = getattr(result.row.paper, metric), list(result.values(key, giou).values())
            in_paper = paper == paper  # NaN: the paper does not have this row
            difference = f"{fmean(ours) - paper:+.2f}" if ours and in_paper else DASH
            cells += [f"{paper:.2f}" if in_paper else DASH, spread(ours), difference]
        rows.append(tuple(cells))
    return Table(
        f"Table {table.number}: {table.title}, %, gIoU over {giou}s{note}",
        (("", 2), *((heading, 3) for heading, _ in METRICS.values())),
        ("Method", "runs", *("paper", "ours", "diff") * len(METRICS)),
        tuple(rows),
    )


def changes(table: PaperTable, results: Sequence[Result], note: str = "", giou: GiouOver = "image") -> Table:
    """What each row of ours gains over the reference row, seed by seed, and what it gains in the paper."""
    reference = next(result for result in results if result.row.name == table.reference)
    rows = []
    for result in results:
        if result is reference or not result.row.variants:
            continue
        cells = [result.row.name]
        for metric, (_, key) in METRICS.items():
            before, after = (row.values(key, giou) for row in (reference, result))
            ours = [after[seed] - before[seed] for seed in after if seed in before]
            paper = getattr(result.row.paper, metric) - getattr(reference.row.paper, metric)
            cells += [f"{paper:+.2f}" if paper == paper else DASH, spread(ours, signed=True)]
        rows.append(tuple(cells))
    return Table(
        f"Table {table.number}: change against {table.reference!r}, points, gIoU over {giou}s{note}",
        (("", 1), *((heading, 2) for heading, _ in METRICS.values())),
        ("Method", *("paper", "ours") * len(METRICS)),
        tuple(rows),
    )


def more(table: PaperTable, results: Sequence[Result], note: str = "", giou: GiouOver = "image") -> Table:
    """Figures that the paper does not have: of our rows, mean and spread over seeds."""
    shown = dict(MORE)
    for columns in SOMETIMES:
        if any(result.values(key) for result in results for key in columns.values()):
            shown |= columns
    rows = tuple(
        (result.row.name, *(spread(list(result.values(key, giou).values())) for key in shown.values()))
        for result in results
        if result.figures
    )
    title = f"Table {table.number}: more figures, %, gIoU over {giou}s{note}"
    return Table(title, (("", 1 + len(shown)),), ("Method", *shown), rows)


def averages(table: PaperTable, results: Sequence[Result], note: str = "") -> Table:
    """gIoU as the mean over images (the paper's words), over answers, and over objects (LISA's code)."""
    keys = [f"{kind}.giou_{over}" for kind in ("amodal", "visible") for over in get_args(GiouOver)]
    rows = tuple(
        (result.row.name, *(spread(list(result.values(key).values())) for key in keys))
        for result in results
        if result.figures
    )
    over = tuple(f"over {name}s" for name in get_args(GiouOver))
    title = f"Table {table.number}: gIoU over images, answers and objects, %{note}"
    return Table(title, (("", 1), ("Amodal gIoU", 3), ("Visible gIoU", 3)), ("Method", *over, *over), rows)


def all_tables(table: PaperTable, results: Sequence[Result], note: str = "", giou: GiouOver = "image") -> list[Table]:
    """Every table there is something to say in; ``giou`` is what gIoU is the mean over in all but the last."""
    tables = [make(table, results, note, giou) for make in (beside, changes, more)]
    tables.append(averages(table, results, note))
    return [tables[0], *(found for found in tables[1:] if found.rows)]


def show(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print tables; narrow terminals and files get the width they need."""
    console = console or Console()
    rich = [as_rich(table, ruled=False) for table in tables]
    if not console.is_terminal:
        console.width = max(console.width, *(Console(width=1000).measure(table).maximum for table in rich))
    for table in rich:
        console.print(table)
        console.print()


def write(
    stem: Path,
    table: PaperTable,
    results: Sequence[Result],
    *,
    note: str,
    remarks: Sequence[str] = (),
    giou: GiouOver = "image",
) -> list[Path]:
    """Write ``stem``.md, .tex, .csv and .json, each atomically; returns the files."""
    tables = all_tables(table, results, note, giou)
    lines = [f"# Table {table.number}: {table.title}{note}", "", *(f"- {line}" for line in remarks), ""]
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("md", "tex", "csv", "json")]
    write_text(files[0], "\n".join(lines) + "\n" + "\n".join(map(as_markdown, tables)) + f"\nPaper: {CITATION}.\n")
    write_text(files[1], "\n".join(map(as_latex, tables)))
    write_text(files[2], as_csv(results, giou))
    write_json(files[3], as_json(table, results, remarks, giou), indent=2)
    return files


def remarks(results: Sequence[Result]) -> list[str]:
    """How the numbers came about: data, protocol, seeds, steps, time, settings; and which runs are missing."""
    found = next((figures for result in results for figures in result.figures.values()), None)
    runs = list(dict.fromkeys(run for result in results for run in result.runs))
    if found is None or not runs:
        return []
    setting, facts = runs[0].setting, [run.facts() for run in runs]
    seeds = sorted({run.seed for run in runs})
    minutes = [fact["seconds"] / 60 for fact in facts]
    lines = [
        f"{setting.data.name}: {found['num_images']} images, {found['num_answers']} answers, {found['num_objects']} "
        f"objects; protocol {found['protocol']}",
        f"{len(runs)} runs, seeds {', '.join(map(str, seeds))}: ± is the standard deviation over seeds"
        if len(seeds) > 1
        else f"{len(runs)} runs, seed {seeds[0]}: one seed shows no spread",
        f"{_one_or_range([fact['steps'] for fact in facts])} optimizer steps of "
        f"{_one_or_range([fact['effective_batch'] for fact in facts])} images; "
        f"{_one_or_range(minutes, '.1f')} minutes of training per run",
        f"settings: {' + '.join(map(str, (*setting.base, *setting.extra)))}, and for each row its layer",
    ]
    notes = [f"{result.row.name}: {result.row.note}" for result in results if result.runs and result.row.note]
    return lines + notes


def _one_or_range(values: Sequence[float], form: str = "") -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def as_csv(results: Sequence[Result], giou: GiouOver = "image") -> str:
    """One line per row and figure: the paper's, ours, the difference, and the value of every seed; in percent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "figure", "paper", "mean", "std", "difference", "runs", "values"])
    for result in results:
        for metric, (_, key) in METRICS.items():
            values, paper = list(result.values(key, giou).values()), getattr(result.row.paper, metric)
            mean = fmean(values) if values else None
            numbers = [
                None if paper != paper else paper,
                mean,
                stdev(values) if len(values) > 1 else None,
                None if mean is None or paper != paper else mean - paper,
            ]
            cells = ["" if number is None else f"{number:.4f}" for number in numbers]
            every = " ".join(f"{value:.4f}" for value in values)
            writer.writerow([result.row.name, metric, *cells, len(values), every])
    return text.getvalue()


def as_json(
    table: PaperTable, results: Sequence[Result], remarks: Sequence[str] = (), giou: GiouOver = "image"
) -> dict[str, Any]:
    """Everything: per row the paper's numbers (percent), the layers, and all figures (fractions) of every seed."""
    rows = []
    for result in results:
        paper = result.row.paper._asdict() if result.row.paper.amodal_giou == result.row.paper.amodal_giou else None
        seeds = [{"seed": seed, **figures} for seed, figures in result.figures.items()]
        layers = {variant.name: list(variant.layers) for variant in result.row.variants}
        rows.append({"method": result.row.name, "paper": paper, "layers": layers, "runs": seeds})
    head = {"table": table.number, "title": table.title, "source": CITATION, "giou": giou, "remarks": list(remarks)}
    return {**head, "reference": table.reference, "rows": rows}
