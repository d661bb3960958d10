"""Reports as tables in the paper's layout: terminal, Markdown, LaTeX (booktabs), CSV.

Every function takes ``reports``: a name for each method, run or ablation, and its figures as in ``report.json``. So one
table can hold this model, its ablations and any other method scored from a prediction file. Shares and IoUs are shown
in percent; a dash stands where there was nothing to measure.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from aura.config import GiouOver

Figures = Mapping[str, Any]
REFERENCE = "amodal := predicted visible"


@dataclass(frozen=True)
class Table:
    """Cells as text. ``groups`` are (heading, number of columns) from left to right and cover all ``columns``."""

    title: str
    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        width = len(self.columns)
        assert sum(span for _, span in self.groups) == width and all(len(row) == width for row in self.rows)


def percent(value: float | None) -> str:
    """A fraction as percent with two decimals."""
    return "–" if value is None else f"{100 * value:.2f}"


def main_table(reports: Mapping[str, Figures], giou: GiouOver = "image") -> Table:
    """The paper's Table 1: amodal and visible gIoU and cIoU, each with its reference line."""
    rows, key = [], f"giou_{giou}"
    for name, figures in reports.items():
        for label, amodal in ((name, figures["amodal"]), (f"  {REFERENCE}", figures["amodal_from_visible"])):
            cells = (
                amodal[key],
                amodal["ciou"],
                figures["visible"][key],
                figures["visible"]["ciou"],
            )
            rows.append((label, figures["protocol"], *map(percent, cells)))
    sizes = {
        f"{f['num_images']} images, {f['num_answers']} answers, {f['num_objects']} objects" for f in reports.values()
    }
    return Table(
        f"Amodal reasoning segmentation, %, gIoU over {giou}s (" + " / ".join(sorted(sizes)) + ")",
        (("", 2), ("Amodal", 2), ("Visible", 2)),
        ("Method", "Protocol", "gIoU", "cIoU", "gIoU", "cIoU"),
        tuple(rows),
    )


def region_table(reports: Mapping[str, Figures]) -> Table:
    """The invisible region, the occlusion rate, and how well-formed the answers are."""
    rows = [
        (
            name,
            figures["protocol"],
            percent(figures["invisible"]["giou_object"]),
            percent(figures["invisible"]["ciou"]),
            str(figures["invisible"]["num_objects"]),
            percent(figures["occlusion_rate_mae"]),
            percent(figures["seg_count_accuracy"]),
            percent(figures["visible_outside_amodal"]),
        )
        for name, figures in reports.items()
    ]
    return Table(
        "Invisible region (gIoU over objects) and consistency, %",
        (("", 2), ("Invisible region", 3), ("Occlusion rate", 1), ("[SEG] count", 1), ("Visible", 1)),
        ("Method", "Protocol", "gIoU", "cIoU", "objects", "mean abs. error", "correct", "outside amodal"),
        tuple(rows),
    )


def average_table(reports: Mapping[str, Figures]) -> Table:
    """The same gIoU averaged over objects, over answers, and over images."""
    kinds = ("giou_object", "giou_answer", "giou_image")
    rows = [
        (name, figures["protocol"], *(percent(figures[r][k]) for r in ("amodal", "visible") for k in kinds))
        for name, figures in reports.items()
    ]
    per = ("object", "answer", "image")
    return Table(
        "gIoU averaged per object, answer and image, %",
        (("", 2), ("Amodal gIoU per", 3), ("Visible gIoU per", 3)),
        ("Method", "Protocol", *per, *per),
        tuple(rows),
    )


def occlusion_table(reports: Mapping[str, Figures]) -> Table:
    """gIoU by the object's true occlusion rate."""
    rows = []
    for name, figures in reports.items():
        for bucket in figures["by_occlusion"]:
            keys = ("amodal_giou", "visible_giou", "invisible_giou", "amodal_from_visible_giou")
            cells = (percent(bucket[key]) for key in keys)
            rows.append((name, figures["protocol"], range_label(bucket), str(bucket["num_objects"]), *cells))
    return Table(
        "gIoU by occlusion (over objects), %",
        (("", 2), ("Occlusion", 2), ("gIoU", 4)),
        ("Method", "Protocol", "rate", "objects", "amodal", "visible", "invisible", "visible as amodal"),
        tuple(rows),
    )


def range_label(bucket: Mapping[str, Any]) -> str:
    """``0 %`` or ``25-50 %``; the lower edge is excluded, the upper included."""
    return "0 %" if bucket["to"] == 0 else f"{100 * bucket['above']:g}-{100 * bucket['to']:g} %"


def overview_table(reports: Mapping[str, Figures]) -> Table:
    """One row per report with the figures that a reader compares first; the reports may be of different data."""
    rows = []
    for name, figures in reports.items():
        gious = (figures[region]["giou_object"] for region in ("visible", "amodal", "amodal_from_visible", "invisible"))
        counts = (figures[key] for key in ("num_images", "num_objects"))
        accuracy = percent(figures["seg_count_accuracy"])
        rows.append((name, figures["protocol"], *map(str, counts), *map(percent, gious), accuracy))
    return Table(
        "gIoU per object, %",
        (("", 2), ("", 2), ("gIoU", 4), ("[SEG] count", 1)),
        ("Method", "Protocol", "images", "objects", "visible", "amodal", REFERENCE, "invisible", "correct"),
        tuple(rows),
    )


def no_target_table(reports: Mapping[str, Figures]) -> Table | None:
    """GRES's accuracies; ``None`` where no report has an answer without an object."""
    rows = [
        (name, figures["protocol"], str(found["num_answers"]), percent(found["n_acc"]), percent(found["t_acc"]))
        for name, figures in reports.items()
        if (found := figures.get("no_target"))
    ]
    if not rows:
        return None
    return Table(
        "Answers that mark nothing, %",
        (("", 2), ("No target", 2), ("Target", 1)),
        ("Method", "Protocol", "answers", "N-acc", "T-acc"),
        tuple(rows),
    )


def asked_table(reports: Mapping[str, Figures]) -> Table | None:
    """How often the asked mask is known; ``None`` where no report has a question that means one kind alone."""
    keys = ("accuracy", "accuracy_visible", "accuracy_amodal", "accuracy_both", "most_common")
    rows = [
        (name, figures["protocol"], str(found["num_objects"]), *(percent(found[key]) for key in keys))
        for name, figures in reports.items()
        if (found := figures.get("asked"))
    ]
    if not rows:
        return None
    return Table(
        "Which mask is asked for, % of objects",
        (("", 2), ("", 1), ("Correct, of", 4), ("", 1)),
        ("Method", "Protocol", "objects", "all", "visible", "amodal", "both", "always the commonest"),
        tuple(rows),
    )


def all_tables(reports: Mapping[str, Figures], giou: GiouOver = "image") -> list[Table]:
    """Every table of ``reports``, the paper's first; ``giou`` is what its gIoU is the mean over."""
    makers = (region_table, average_table, occlusion_table, no_target_table, asked_table)
    found = (make(reports) for make in makers)
    return [main_table(reports, giou), *(table for table in found if table is not None)]


def _numeric(table: Table, column: int) -> bool:
    return all(_NUMBER.fullmatch(row[column]) for row in table.rows)


_NUMBER = re.compile(r"–|[+-]?[\d.]+( ± [\d.]+)?")


def as_rich(table: Table, *, ruled: bool = True) -> RichTable:
    """For a :class:`rich.console.Console`; the heading of a group stands over its first column.

    ``ruled`` puts a line between methods.
    """
    result = RichTable(title=table.title, title_justify="left", title_style="bold", header_style="bold")
    starts = dict(zip(accumulate((span for _, span in table.groups), initial=0), table.groups, strict=False))
    for number, column in enumerate(table.columns):
        group = starts[number][0] if number in starts else ""
        justify = "right" if _numeric(table, number) else "left"
        result.add_column(f"{group}\n{column}", justify=justify, no_wrap=number < 2)  # type: ignore[arg-type]
    previous = None
    for row in table.rows:
        if ruled and previous is not None and not row[0].startswith("  ") and row[0] != previous:
            result.add_section()
        result.add_row(*(cell.replace("[", "\\[") for cell in row), style="dim" if row[0].startswith("  ") else "")
        previous = row[0]
    return result


def show(reports: Mapping[str, Figures], console: Console | None = None, giou: GiouOver = "image") -> None:
    """Print every table to the terminal. Narrow terminals and files get the width the tables need."""
    console = console or Console()
    tables = [as_rich(table) for table in all_tables(reports, giou)]
    wide = Console(width=1000)
    needed = max(wide.measure(table).maximum for table in tables)
    if not console.is_terminal:
        console.width = max(console.width, needed)
    for table in tables:
        console.print(table)
        console.print()


def as_markdown(table: Table) -> str:
    """A GitHub table; the group's name is put before each of its columns."""
    headings = [
        f"{group} {column}".strip()
        for (group, span), start in zip(table.groups, accumulate((s for _, s in table.groups), initial=0), strict=False)
        for column in table.columns[start : start + span]
    ]
    rules = ["---:" if _numeric(table, i) else "---" for i in range(len(table.columns))]
    lines = [headings, rules, *([cell.strip() for cell in row] for row in table.rows)]
    return f"### {table.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def as_latex(table: Table) -> str:
    r"""A ``table`` environment for ``\usepackage{booktabs}``."""
    ends = list(accumulate(span for _, span in table.groups))
    heads, rules = [], []
    for (group, span), end in zip(table.groups, ends, strict=True):
        heads.append(rf"\multicolumn{{{span}}}{{c}}{{{_escape(group)}}}" if group else " & " * (span - 1))
        rules += [rf"\cmidrule(lr){{{end - span + 1}-{end}}}"] if group else []
    body = [" & ".join(_escape(cell) for cell in row) + r" \\" for row in table.rows]
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{_escape(table.title)}.}}",
        rf"\begin{{tabular}}{{{''.join('r' if _numeric(table, i) else 'l' for i in range(len(table.columns)))}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        " ".join(rules),
        " & ".join(_escape(column) for column in table.columns) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "–": "--",
        "±": r"$\pm$",
        "[": "{[}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    | {mark: f"\\{mark}" for mark in "&%$#_{}"}
)


def _escape(text: str) -> str:
    return (r"\quad " if text.startswith("  ") else "") + text.strip().translate(_LATEX)


def as_csv(reports: Mapping[str, Figures]) -> str:
    """One row per report and one column per figure, as fractions, for spreadsheets and scripts."""
    rows = [{"method": name, **flatten(figures)} for name, figures in reports.items()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flatten(figures: Figures) -> dict[str, Any]:
    """Dotted keys, for example ``amodal.giou_object`` and ``by_occlusion.25-50.amodal_giou``."""
    flat: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": v for inner, v in value.items()}
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for bucket in value:
                label = range_label(bucket).removesuffix(" %")
                flat |= {f"{key}.{label}.{k}": v for k, v in bucket.items() if k not in ("above", "to")}
        else:
            flat[key] = value
    return flat
