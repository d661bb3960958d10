"""Tables 1 and 2 of LISA, and AURA's visible masks in them.

Lai, Tian, Chen, Li, Yuan, Liu, Jia: "LISA: Reasoning Segmentation via Large Language Model", CVPR 2024, arXiv
2308.00692. Every number is a percentage. gIoU is the mean over masks and cIoU the quotient of the sums, of the visible
masks, since these data sets have no others.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aura.evaluation.tables import Figures, Table, as_latex, as_markdown
from aura.files import write_json, write_text

CITATION = "Lai et al.: LISA: Reasoning Segmentation via Large Language Model, CVPR 2024, arXiv 2308.00692"
KEYS = {"gIoU": "giou_object", "cIoU": "ciou"}
DASH = "–"


@dataclass(frozen=True)
class LisaTable:
    """A table: ``splits`` are (name for a report, heading), each with a column for each of ``figures``.

    ``rows`` hold a number for each column; ``None`` where LISA's table has none.
    """

    number: int
    title: str
    splits: tuple[tuple[str, str], ...]
    figures: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]

    def __post_init__(self) -> None:
        width = len(self.splits) * len(self.figures)
        assert all(len(row) == width for row in self.rows.values()), f"a row of LISA's table {self.number} is too short"


LISA_TABLES: dict[str, LisaTable] = {
    "reason_seg": LisaTable(
        1,
        "Reasoning segmentation (ReasonSeg)",
        (("val", "val"), ("test_short", "test, short"), ("test_long", "test, long"), ("test", "test")),
        ("gIoU", "cIoU"),
        {
            "OVSeg": (28.5, 18.6, 18.0, 15.5, 28.7, 22.5, 26.1, 20.8),
            "GRES": (22.4, 19.9, 17.6, 15.0, 22.6, 23.8, 21.3, 22.0),
            "X-Decoder": (22.6, 17.9, 20.4, 11.6, 22.2, 17.5, 21.7, 16.3),
            "SEEM": (25.5, 21.2, 20.1, 11.5, 25.6, 20.8, 24.3, 18.7),
            "Grounded-SAM": (26.0, 14.5, 17.8, 10.8, 22.4, 18.6, 21.3, 16.4),
            "LISA-7B": (44.4, 46.0, 37.6, 34.4, 36.6, 34.7, 36.8, 34.1),
            "LISA-7B (ft)": (52.9, 54.0, 40.6, 40.6, 49.4, 51.0, 47.3, 48.4),
            "LISA-13B": (48.9, 46.9, 39.9, 43.3, 46.4, 46.5, 44.8, 45.8),
            "LISA-13B (ft)": (56.2, 62.9, 44.3, 42.0, 54.0, 54.3, 51.7, 51.1),
            "LLaVA1.5-7B + OVSeg": (38.2, 23.5, 24.2, 18.7, 44.6, 37.1, 39.7, 31.8),
            "LISA-7B-LLaVA1.5": (53.6, 52.3, 47.1, 48.5, 49.2, 48.9, 48.7, 48.8),
            "LISA-7B-LLaVA1.5 (ft)": (61.3, 62.9, 48.3, 46.3, 57.9, 59.7, 55.6, 56.9),
            "LLaVA1.5-13B + OVSeg": (37.9, 26.4, 27.1, 19.4, 46.1, 40.6, 41.5, 34.1),
            "LISA-13B-LLaVA1.5": (57.7, 60.3, 50.8, 50.0, 54.7, 50.9, 53.8, 50.8),
            "LISA-13B-LLaVA1.5 (ft)": (65.0, 72.9, 55.4, 50.6, 63.2, 65.3, 61.3, 62.2),
        },
    ),
    "refcoco": LisaTable(
        2,
        "Referring segmentation (RefCOCO, RefCOCO+, RefCOCOg)",
        (
            ("refcoco_val", "RefCOCO val"),
            ("refcoco_testA", "RefCOCO testA"),
            ("refcoco_testB", "RefCOCO testB"),
            ("refcoco+_val", "RefCOCO+ val"),
            ("refcoco+_testA", "RefCOCO+ testA"),
            ("refcoco+_testB", "RefCOCO+ testB"),
            ("refcocog_val", "RefCOCOg val (umd)"),
            ("refcocog_test", "RefCOCOg test (umd)"),
        ),
        ("cIoU",),
        {
            "MCN": (62.4, 64.2, 59.7, 50.6, 55.0, 44.7, 49.2, 49.4),
            "VLT": (67.5, 70.5, 65.2, 56.3, 61.0, 50.1, 55.0, 57.7),
            "CRIS": (70.5, 73.2, 66.1, 62.3, 68.1, 53.7, 59.9, 60.4),
            "LAVT": (72.7, 75.8, 68.8, 62.1, 68.4, 55.1, 61.2, 62.1),
            "ReLA": (73.8, 76.5, 70.2, 66.0, 71.0, 57.7, 65.0, 66.0),
            "X-Decoder": (None, None, None, None, None, None, 64.6, None),
            "SEEM": (None, None, None, None, None, None, 65.7, None),
            "LISA-7B": (74.1, 76.5, 71.1, 62.4, 67.4, 56.5, 66.4, 68.5),
            "LISA-7B (fine-tuned on ReferSeg)": (74.9, 79.1, 72.3, 65.1, 70.8, 58.1, 67.9, 70.6),
        },
    ),
}


def ours(table: LisaTable, reports: Mapping[str, Figures]) -> tuple[float | None, ...]:
    """A row of the table in percent, from reports by split; ``None`` where there is none.

    Raises:
        ValueError: A split that the table does not have, or reports under different protocols.
    """
    known = [name for name, _ in table.splits]
    if unknown := [name for name in reports if name not in known]:
        raise ValueError(f"LISA's table {table.number} has no split {unknown[0]!r}; its splits are {', '.join(known)}")
    if len(protocols := sorted({str(figures["protocol"]) for figures in reports.values()})) > 1:
        raise ValueError(f"the reports are of different protocols, {' and '.join(protocols)}; give those of one")
    nothing = {"visible": dict.fromkeys(KEYS.values())}
    found = [reports.get(name, nothing)["visible"][KEYS[key]] for name in known for key in table.figures]
    return tuple(None if value is None else 100 * value for value in found)


def beside(table: LisaTable, row: Sequence[float | None], name: str = "AURA (visible)") -> Table:
    """LISA's rows and, last, ours, with two decimals."""
    rows = [(label, *(DASH if v is None else f"{v:.1f}" for v in values)) for label, values in table.rows.items()]
    rows.append((name, *(DASH if value is None else f"{value:.2f}" for value in row)))
    groups = (("", 1), *((heading, len(table.figures)) for _, heading in table.splits))
    columns = ("Method", *table.figures * len(table.splits))
    return Table(f"LISA's Table {table.number}: {table.title}, %", groups, columns, tuple(rows))


def write(
    folder: Path, name: str, table: LisaTable, reports: Mapping[str, Figures], remarks: Sequence[str] = ()
) -> list[Path]:
    """Write ``lisa_NAME``.md, .tex, .csv and .json below ``folder``, each atomically; returns the files."""
    row = ours(table, reports)
    shown = beside(table, row)
    files = [folder / f"lisa_{name}.{suffix}" for suffix in ("md", "tex", "csv", "json")]
    lines = [*(f"- {line}" for line in remarks), "", as_markdown(shown), f"Other rows: {CITATION}.", ""]
    write_text(files[0], "\n".join(lines))
    write_text(files[1], as_latex(shown))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{split} {figure}" for split, _ in table.splits for figure in table.figures]
    writer.writerow(["method", *columns])
    writer.writerows([method, *values] for method, values in [*table.rows.items(), ("AURA (visible)", row)])
    write_text(files[2], text.getvalue())
    theirs = {method: list(values) for method, values in table.rows.items()}
    content = {"source": CITATION, "columns": columns, "lisa": theirs, "aura_visible": list(row)}
    write_json(files[3], {**content, "remarks": list(remarks)}, indent=2)
    return files
