"""The result of an evaluation: every object's score, the figures computed from them, and the files they go into."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from aura.config import GiouOver, Protocol
from aura.evaluation import tables
from aura.evaluation.metrics import AnswerScore, ObjectScore, summarise
from aura.evaluation.tables import Figures
from aura.files import to_json, write_json, write_text


@dataclass(frozen=True)
class Report:
    """What one method scored on one data set under one protocol.

    ``name`` is the method's row in tables. The figures are computed once, from the scores alone.
    """

    protocol: Protocol
    objects: tuple[ObjectScore, ...]
    answers: tuple[AnswerScore, ...]
    name: str = "AURA"

    @staticmethod
    def merge(protocol: Protocol, parts: Iterable[Report], name: str = "AURA") -> Report:
        """One report of disjoint parts of a data set, in the data set's order of ids whatever the parts' order."""
        parts = list(parts)
        objects = sorted(
            (o for part in parts for o in part.objects),
            key=lambda o: (
                o.record.image_id,
                o.record.conversation_id,
                o.record.turn,
                o.status == "extra",
                o.record.index,
            ),
        )
        answers = sorted(
            (a for part in parts for a in part.answers), key=lambda a: (a.image_id, a.conversation_id, a.turn)
        )
        keys = [(a.conversation_id, a.turn) for a in answers]
        assert len(keys) == len(set(keys)), "an answer was scored twice"
        return Report(protocol, tuple(objects), tuple(answers), name)

    @cached_property
    def _figures(self) -> dict[str, Any]:
        return {"protocol": self.protocol, **summarise(self.objects, self.answers)}

    def as_dict(self) -> dict[str, Any]:
        """The figures as written to ``report.json``: fractions in [0, 1], ``None`` where nothing could be measured."""
        return json.loads(json.dumps(self._figures))  # type: ignore[no-any-return]

    def tables(self) -> list[tables.Table]:
        """The tables of this report alone."""
        return tables.all_tables({self.name: self.as_dict()})

    def show(self, console: Console | None = None) -> None:
        """Print the tables."""
        tables.show({self.name: self.as_dict()}, console)

    def write(self, out_dir: str | Path, beside: Mapping[str, Figures] | None = None, giou: GiouOver = "image") -> None:
        """Write report.json, report.md, report.tex, report.csv and objects.jsonl, each atomically.

        ``beside`` are named figures of other methods that stand above this one in the .md, .tex and .csv tables.
        ``giou`` is what the gIoU of the first table is the mean over; the others stand in the third.
        """
        out_dir = Path(out_dir)
        write_tables(out_dir, {**(beside or {}), self.name: self.as_dict()}, giou)
        write_text(out_dir / "objects.jsonl", "".join(to_json(row) + "\n" for row in self.object_rows()))
        # Last, so that a report.json means that all files are there.
        write_json(out_dir / "report.json", self.as_dict(), indent=2)

    def object_rows(self) -> Iterable[dict[str, Any]]:
        """One flat record per object (true or extra), with the question and both answers where they are known.

        Where some question means one kind of mask, ``asked`` and ``predicted_asked`` stand in every record.
        """
        answers = {(a.conversation_id, a.turn): a for a in self.answers}
        for score in self.objects:
            answer = answers[score.record.conversation_id, score.record.turn]
            texts = {"question": answer.question, "true_answer": answer.true_text, "answer": answer.predicted_text}
            asked = {"asked": score.true_asked, "predicted_asked": score.predicted_asked}
            told = asked if "asked" in self._figures else {}
            yield {"protocol": self.protocol, **score.as_dict(), **told, **texts}


def write_tables(out_dir: str | Path, reports: Mapping[str, Figures], giou: GiouOver = "image") -> None:
    """Write report.md, report.tex and report.csv of one or several named reports (figures as in ``report.json``)."""
    every = tables.all_tables(reports, giou)
    write_text(Path(out_dir) / "report.md", "\n".join(map(tables.as_markdown, every)))
    write_text(Path(out_dir) / "report.tex", "\n".join(map(tables.as_latex, every)))
    write_text(Path(out_dir) / "report.csv", tables.as_csv(reports))


def read_figures(path: str | Path) -> dict[str, Any]:
    """The figures of a ``report.json`` or of the folder that holds one.

    Raises:
        ValueError: The file is missing or is no report.
    """
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; give a report.json or a folder that holds one") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    figures = figures if isinstance(figures, dict) else {}
    needed = ("protocol", "visible", "amodal", "invisible", "amodal_from_visible", "by_occlusion")
    missing = [key for key in needed if key not in figures]
    if missing:
        raise ValueError(f"{path} is no report: {', '.join(missing)} missing; write it with eval.py")
    return figures


def combine(first: Figures, second: Figures) -> dict[str, Any]:
    """The figures of a method that was trained twice, once for each kind of mask, as one report.

    Each figure comes from the one that could measure it. What both measured and not alike, such as
    ``seg_count_accuracy``, is no figure of the two together and becomes ``None``.

    Args:
        first: Of one kind of mask (figures as in ``report.json``).
        second: Of the other kind, on the same data under the same protocol.

    Raises:
        ValueError: They are of different data or protocols, or of the same kind of mask.
    """
    same = ("protocol", "num_images", "num_answers", "num_objects")
    different = [key for key in same if first.get(key) != second.get(key)]
    if different:
        values = ", ".join(f"{key} {first.get(key)} and {second.get(key)}" for key in different)
        raise ValueError(f"two reports make one row only on the same data under the same protocol; they have {values}")
    for kind in ("visible", "amodal"):
        found = [report[kind]["giou_object"] is not None for report in (first, second)]
        if all(found) and first["num_objects"]:
            raise ValueError(f"both reports have {kind} masks; two reports make one row where each has the other kind")
    merged: dict[str, Any] = _fill(first, second)
    return merged


def _fill(first: Any, second: Any) -> Any:
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, Mapping):
        return {key: _fill(first.get(key), second.get(key)) for key in dict.fromkeys((*first, *second))}
    if isinstance(first, list):
        return [_fill(a, b) for a, b in zip(first, second, strict=True)]
    return first if first == second else None
