"""``RUN/report.html`` and ``RUN/report.md``: a run in curves and tables, all from files in the run folder.

- ``log.jsonl``: losses, learning rate, validation figures;
- ``report.json``: how a finished run ended;
- ``validation/step_000500/``: a whole report of each validation, and its best and worst answers;
- ``eval/``: reports of ``eval.py --out RUN/eval``.

Every part that is not there yet is left out.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aura.config import OPTIONAL_TERMS
from aura.drawing import charts
from aura.evaluation import tables
from aura.evaluation.report import read_figures
from aura.files import read_text, write_text
from aura.losses import OBJECT_TERMS
from aura.train.logs import read_log
from aura.train.summary import report_lines

TERMS = ("text", *OBJECT_TERMS, *OPTIONAL_TERMS)
NUM_EXAMPLES = 5
CSS = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "svg,img{max-width:100%;height:auto}figure{display:inline-block;margin:0 1rem 1rem 0;vertical-align:top;"
    "max-width:36rem}table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #ddd;padding:.2rem .6rem;"
    "text-align:left;vertical-align:top}td.n{text-align:right}"
)


def pictures_of(run: Path, step: int) -> Path:
    """Where the validation after optimizer step ``step`` leaves its report."""
    return run / "validation" / f"step_{step:06d}"


def try_to_write_page(run: Path) -> None:
    """:func:`write_page`, where a failure is said and stops nothing: the training is done, and its export is safe."""
    try:
        write_page(run)
    except Exception as error:  # whatever it is, it is only about pictures
        tqdm.write(f"WARNING: {run / 'report.html'} was not written: {type(error).__name__}: {error}")


def write_page(run: Path) -> list[Path]:
    """Write ``report.html`` (self-contained) and ``report.md`` of a run, finished or not; returns both paths.

    Raises:
        ValueError: The folder holds no log, or a file in it is damaged.
    """
    records = read_log(run / "log.jsonl")
    train = [record for record in records if record["kind"] == "train"]
    if not train:
        raise ValueError(f"{run} has no log.jsonl with a training step; give the folder of a run")
    path = run / "report.json"
    report = json.loads(read_text(path)) if path.is_file() else None
    val = [record for record in records if record["kind"] == "val"]
    evaluations = _evaluations(run, val, report)
    lines = report_lines(run, report) if report else _lines_so_far(run, train[-1])
    for table in _figure_tables(val, evaluations):
        lines += ["", _as_markdown(table)]
    html = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{escape(run.name)}</title><style>{CSS}</style>',
        *_facts(run, train[-1], report),
        "<h2>Training</h2>",
        *map(_figure, _training_charts(train, val)),
        *map(_html_table, _figure_tables(val, evaluations)),
    ]
    for name, folder in evaluations.items():
        rows = _objects(folder)
        best, worst = _extremes(rows)
        html += [f"<h2>{escape(name)}</h2>", *map(_figure, _evaluation_charts(folder, rows))]
        for title, examples in (("Best answers", best), ("Worst answers", worst)):
            table = _example_table(f"{title} ({name})", examples)
            html += [_html_table(table)] if examples else []
            lines += ["", _as_markdown(table)] if examples else []
        for title in ("best", "worst"):
            html += _picture(folder / f"{title}.jpg", f"{title} answers: picture, truth, prediction")
    written = [run / "report.html", run / "report.md"]
    write_text(written[0], "\n".join([*html, "</html>"]) + "\n")
    write_text(written[1], "\n".join(lines) + "\n")
    return written


# --- what the folder holds --------------------------------------------------------------------------------------------


def _evaluations(run: Path, val: Sequence[Mapping[str, Any]], report: Mapping[str, Any] | None) -> dict[str, Path]:
    """Folders of whole reports by name: of the exported checkpoint's validation, else the last, and of ``eval/``."""
    steps = [record["step"] for record in val if (pictures_of(run, record["step"]) / "report.json").is_file()]
    best: Any = (report.get("best") or {}).get("step") if report else None
    found: dict[str, Path] = {}
    if steps:
        step = best if best in steps else steps[-1]
        found[f"Validation after step {step}"] = pictures_of(run, step)
    for path in sorted((run / "eval").rglob("report.json")):
        found[f"Evaluation {path.parent.relative_to(run).as_posix()}"] = path.parent
    return found


def _objects(folder: Path) -> list[dict[str, Any]]:
    path = folder / "objects.jsonl"
    try:
        return [json.loads(line) for line in path.open(encoding="utf-8")] if path.is_file() else []
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _extremes(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The objects of highest and of lowest IoU: of the amodal mask, or of the visible one where there is no other."""
    key = "amodal_iou" if any(row.get("amodal_iou") is not None for row in rows) else "visible_iou"
    ranked = sorted((row for row in rows if row.get(key) is not None), key=lambda row: -row[key])
    half = min(NUM_EXAMPLES, -(-len(ranked) // 2))
    return ranked[:half], ranked[half:][::-1][:NUM_EXAMPLES]


# --- charts and tables ------------------------------------------------------------------------------------------------


def _training_charts(train: Sequence[Mapping[str, Any]], val: Sequence[Mapping[str, Any]]) -> list[str]:
    def over_steps(records: Sequence[Mapping[str, Any]], *path: str) -> list[tuple[float, float | None]]:
        points = []
        for record in records:
            value: Any = record
            for part in path:
                value = value.get(part) if isinstance(value, Mapping) else None
            points.append((record["step"], value))
        return points

    regions = ("amodal", "visible", "invisible", "amodal_from_visible")
    step = "optimizer step"
    shown = [
        charts.curves({"total": over_steps(train, "total")}, title="Loss (Eq. 4)", x=step, y="loss"),
        charts.curves({name: over_steps(train, name) for name in TERMS}, title="Loss terms", x=step, y="loss"),
    ]
    for source in dict.fromkeys(name for record in train for name in record.get("sources", {})):
        terms = {name: over_steps(train, "sources", source, name) for name in ("total", *TERMS)}
        shown.append(charts.curves(terms, title=f"Losses of {source}", x=step, y="loss"))
    for key, name in (("giou_object", "gIoU (over objects)"), ("ciou", "cIoU")):
        series = {region.replace("_", " "): over_steps(val, region, key) for region in regions}
        shown.append(charts.curves(series, title=f"{name} in validation", x=step, y=name))
    return shown


def _evaluation_charts(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    buckets = read_figures(folder)["by_occlusion"]
    kinds = {"amodal": "amodal_giou", "visible": "visible_giou", "visible taken as amodal": "amodal_from_visible_giou"}
    rates = [(row.get("true_occlusion_rate"), row.get("predicted_occlusion_rate")) for row in rows]
    return [
        charts.bars(
            [f"{tables.range_label(bucket)}\n({bucket['num_objects']})" for bucket in buckets],
            {name: [bucket[key] for bucket in buckets] for name, key in kinds.items()},
            title="IoU by occlusion",
            x="true occlusion rate (objects)",
            y="mean IoU",
        ),
        charts.scatter(
            [(true, guess) for true, guess in rates if true is not None and guess is not None],
            title="Occlusion rate of each object",
            x="true",
            y="predicted",
        ),
    ]


def _figure_tables(val: Sequence[Mapping[str, Any]], evaluations: Mapping[str, Path]) -> list[tables.Table]:
    found = []
    if val:
        columns = [(region, key) for region in ("amodal", "visible", "invisible") for key in ("giou_object", "ciou")]
        rows = [(str(v["step"]), *(tables.percent(v[region][key]) for region, key in columns)) for v in val]
        groups = (("", 1), ("Amodal", 2), ("Visible", 2), ("Invisible region", 2))
        found.append(
            tables.Table("Validation, gIoU over objects, %", groups, ("step", *("gIoU", "cIoU") * 3), tuple(rows))
        )
    if figures := {name: read_figures(folder) for name, folder in evaluations.items()}:
        found += [tables.region_table(figures), tables.occlusion_table(figures)]
    return found


def _example_table(title: str, rows: Sequence[Mapping[str, Any]]) -> tables.Table:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    names = ("image_id", "category", "question", "answer")
    figures = ("amodal_iou", "visible_iou", "true_occlusion_rate", "predicted_occlusion_rate")
    # An answer that was read, not written, has no text of its own.
    texts = [{**row, "answer": row.get("answer") or row.get("true_answer")} for row in rows]
    cells = [(*(str(row.get(n) or "–") for n in names), *(number(row.get(n)) for n in figures)) for row in texts]
    columns = ("image", "category", "question", "answer", "amodal IoU", "visible IoU", "true rate", "predicted rate")
    return tables.Table(title, (("", len(columns)),), columns, tuple(cells))


def _as_markdown(table: tables.Table) -> str:
    """What users and models wrote may hold a bar or a line break, which would end a cell."""
    rows = tuple(tuple(" ".join(cell.split()).replace("|", "\\|") for cell in row) for row in table.rows)
    return tables.as_markdown(dataclasses.replace(table, rows=rows)).rstrip()


# --- HTML -------------------------------------------------------------------------------------------------------------


def _lines_so_far(run: Path, last: Mapping[str, Any]) -> list[str]:
    total = last["total"]
    return [f"# {run.name}", "", f"- at optimizer step {last['step']}, loss {'–' if total is None else f'{total:.4f}'}"]


def _facts(run: Path, last: Mapping[str, Any], report: Mapping[str, Any] | None) -> list[str]:
    lines = report_lines(run, report) if report else _lines_so_far(run, last)
    items = [f"<li>{escape(line[2:].replace('`', ''))}</li>" for line in lines if line.startswith("- ")]
    return [f"<h1>{escape(run.name)}</h1>", "<ul>", *items, "</ul>"]


def _figure(svg: str) -> str:
    return f"<figure>{svg}</figure>" if svg else ""


def _html_table(table: tables.Table) -> str:
    spans = "".join(f'<th colspan="{span}">{escape(name)}</th>' for name, span in table.groups)
    head = f"<tr>{spans}</tr>" if any(name for name, _ in table.groups) else ""
    head += "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in table.columns) + "</tr>"
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<h3>{escape(table.title)}</h3><table>{head}{body}</table>"


def _picture(path: Path, title: str) -> list[str]:
    if not path.is_file():
        return []
    data = base64.b64encode(path.read_bytes()).decode()
    return [f"<h3>{escape(title)}</h3>", f'<img alt="{escape(title)}" src="data:image/jpeg;base64,{data}">']
