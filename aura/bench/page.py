"""``performance.json``, ``performance.md`` and its charts: what each benchmark wrote, side by side.

A section is what one benchmark found: ``{"title", "machine", "made_by", "about", "tables": [{"title", "head", "rows"}],
"charts": [{"file", "title", "x", "y", "series"}]}``, where a chart's series are lists of points by name. A benchmark
replaces its own section and leaves the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aura.drawing.charts import curves
from aura.files import write_json, write_text

INTRODUCTION = """# What the network costs, the plain way and ours

Random weights, one image, made-up questions of 64 tokens with one object each; masks at the image's size. *Plain*: the
image is encoded at every step, each question is a sequence of its own, all positions get logits, SAM's modules compute
as transformers wrote them, and generation keeps no keys. *Ours*: what AURA does. *Cached*: with the image's features
from the cache besides. All compute the same numbers, which is checked.

CPU seconds are the steadier figure where cores are shared with other work; the ratios are theirs. On a GPU they are the
clock's. Memory is the peak of a process that does nothing else, twice the step.

| size | SAM | language model |
|---|---|---|
| mini | of the mini benchmark, 192 px | of the mini benchmark |
| small | ViT-B, 1024 px | 4 layers of 256 |
| medium | 8 layers of 192, 1024 px | 12 layers of 768 |
"""


def put(out: Path, name: str, section: Mapping[str, Any]) -> None:
    """Write a section into ``out.json`` and make ``out.md`` and its charts anew.

    Args:
        out: Without an ending; charts go into a folder of this name.
        name: Of the section.
        section: As the module says.
    """
    file = out.with_suffix(".json")
    sections = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    sections[name] = rounded(dict(section))
    write_json(file, sections, indent=1)
    for chart in section.get("charts", ()):
        picture = curves(chart["series"], title=chart["title"], x=chart["x"], y=chart["y"])
        write_text(out / f"{chart['file']}.svg", picture)
    write_text(out.with_suffix(".md"), as_markdown(sections, out.name))


def as_markdown(sections: Mapping[str, Any], folder: str) -> str:
    parts = [INTRODUCTION]
    for section in sections.values():
        parts.append(f"## {section['title']}\n\nMade by `{section['made_by']}` on {section['machine']}.")
        if section.get("about"):
            parts.append(section["about"])
        for table in section.get("tables", ()):
            parts.append(f"**{table['title']}**\n\n{_table(table['head'], table['rows'])}")
        parts += [f"![{chart['title']}]({folder}/{chart['file']}.svg)" for chart in section.get("charts", ())]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [" | ".join(head), "|".join(["---"] + ["--:"] * (len(head) - 1))]
    lines += [" | ".join(_cell(value) for value in row) for row in rows]
    return "\n".join(f"| {line} |" if number != 1 else f"|{line}|" for number, line in enumerate(lines))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def rounded(value: Any) -> Any:
    """Floats with four digits, through lists and mappings."""
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


# --- the tables of one comparison -------------------------------------------------------------------------------------


def tables(rows: Sequence[Mapping[str, Any]], modes: Sequence[str], what: str) -> list[dict[str, Any]]:
    """Seconds with ratios, memory where it was measured, and the parts, of rows of :func:`measure.compare`."""
    plain, others = modes[0], modes[1:]
    head = ["size", "questions", *(f"{mode} s (CPU s)" for mode in modes), *(f"plain / {mode}" for mode in others)]
    seconds = [
        [
            row["size"],
            row["conversations"],
            *(f"{row[mode]['seconds']:.3g} ({row[mode]['cpu_seconds']:.3g})" for mode in modes),
            *(f"{row[plain]['cpu_seconds'] / row[mode]['cpu_seconds']:.1f}x" for mode in others),
        ]
        for row in rows
    ]
    found = [{"title": f"{what}: seconds", "head": head, "rows": seconds}]
    measured = [row for row in rows if "peak_gib" in row[plain]]
    if measured:
        head = ["size", "questions", *(f"{mode} GiB" for mode in modes), *(f"{mode} / plain" for mode in others)]
        memory = [
            [
                row["size"],
                row["conversations"],
                *(f"{row[mode]['peak_gib']:.2f}" for mode in modes),
                *(f"{row[mode]['peak_gib'] / row[plain]['peak_gib']:.2f}" for mode in others),
            ]
            for row in measured
        ]
        found.append({"title": f"{what}: peak memory", "head": head, "rows": memory})
    names = list(dict.fromkeys(name for row in rows for mode in modes for name in row[mode]["parts"]))
    parts = [
        [row["size"], row["conversations"], mode, *(_share(row[mode]["parts"].get(name)) for name in names)]
        for row in rows
        for mode in modes
    ]
    found.append({"title": f"{what}: CPU seconds by part", "head": ["size", "questions", "way", *names], "rows": parts})
    return found


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def chart(
    rows: Sequence[Mapping[str, Any]], modes: Sequence[str], against: str, *, file: str, title: str, x: str
) -> dict[str, Any]:
    """CPU seconds of each mode against one of the rows' fields."""
    series = {mode: [[float(row[against]), row[mode]["cpu_seconds"]] for row in rows] for mode in modes}
    return {"file": file, "title": title, "x": x, "y": "CPU seconds", "series": series}
