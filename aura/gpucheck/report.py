"""The record of a check: a JSON line for each section at once, and the table in ``gpu.md`` and ``gpu.json``."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from aura.files import write_json, write_text

STYLES = {"proved": "green", "disproved": "bold red", "error": "bold red", "late": "yellow", "skipped": "dim"}
"""A section's verdicts: all claims held; one did not; it broke; it ran out of time; it was not begun."""


@dataclass
class Report:
    """Everything that was seen, written as it comes.

    Args:
        out: Folder for ``gpu.jsonl``, ``gpu.json`` and ``gpu.md``.
        facts: The scale, and what the machine says of itself.
    """

    out: Path
    facts: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)

    def begin(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        for name in ("gpu.jsonl", "gpu.log"):
            (self.out / name).write_text("", encoding="utf-8")

    def add(self, record: dict[str, Any]) -> None:
        """Append the line and flush it, and bring the table up to date: whatever comes next, this is kept."""
        self.records.append(record)
        with (self.out / "gpu.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        write_json(self.out / "gpu.json", {**self.facts, "sections": self.records}, indent=1)
        write_text(self.out / "gpu.md", self.as_markdown())

    @property
    def exit_code(self) -> int:
        """1 if something was disproved or broke, else 0."""
        return int(any(record["verdict"] in ("disproved", "error") for record in self.records))

    def as_table(self) -> Table:
        table = Table(
            "", "section", "verdict", "s", title=f"{self.facts.get('device', '?')}, {self.facts['scale']} size"
        )
        table.add_column("what was seen", overflow="fold")
        for record in self.records:
            verdict = Text(record["verdict"], style=STYLES[record["verdict"]])
            cells = (str(record["section"]), record["title"], verdict, f"{record['seconds']:.0f}")
            table.add_row(*cells, Text("\n".join(lines_of(record))))
        return table

    def as_markdown(self) -> str:
        lines = [
            f"# AURA on {self.facts.get('device', 'an unknown device')}",
            "",
            f"Made by `scripts/check_gpu.py`, {self.facts['scale']} size; random 7B weights, real sizes. Every claim "
            "is followed by what was seen and what was wanted.",
            "",
            *(f"- {name}: {value}" for name, value in self.facts.items()),
            "",
            "| | section | verdict | s | what was seen |",
            "|--:|---|---|--:|---|",
        ]
        for record in self.records:
            seen = "<br>".join(lines_of(record)).replace("|", "/")
            lines.append(
                f"| {record['section']} | {record['title']} | {record['verdict']} | {record['seconds']:.0f} | {seen} |"
            )
        return "\n".join(lines) + "\n"


def lines_of(record: dict[str, Any]) -> list[str]:
    """What a reader wants of a record: what failed, then claims, then facts."""
    marks = {True: "yes", False: "NO", None: "not judged"}
    checks = sorted(record.get("checks", []), key=lambda check: check["holds"] is not False)
    lines = [f"{marks[c['holds']]}: {c['claim']} (seen {c['seen']}, wanted {c['wanted']})" for c in checks]
    if record.get("error"):
        lines.insert(0, record["error"].strip().splitlines()[-1])
    return lines + [f"{name}: {_plain(value)}" for name, value in record.get("facts", {}).items()]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)
