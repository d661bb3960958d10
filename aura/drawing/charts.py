"""Curves, scatter plots and bars as SVG, to stand in a page. The same numbers give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Text stays text (smaller, and it can be searched); ids come from their content, not from chance.
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "aura", "font.size": 9, "axes.spines.top": False}
STYLE |= {"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False}


def curves(series: Mapping[str, Sequence[tuple[float, float | None]]], *, title: str, x: str, y: str) -> str:
    """One line per name through its points (x, y); points without a finite y are left out."""

    def draw(axes: Any) -> None:
        for name, points in series.items():
            known = [(at, value) for at, value in points if value is not None and math.isfinite(value)]
            axes.plot(*zip(*known, strict=True), label=name, linewidth=1.4, marker="." if len(known) < 40 else "")
        axes.legend()

    series = {name: points for name, points in series.items() if any(_is_number(value) for _, value in points)}
    return _svg(draw, title, x, y) if series else ""


def scatter(points: Sequence[tuple[float, float]], *, title: str, x: str, y: str) -> str:
    """Points in the unit square, with its diagonal."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        # As a picture within the SVG: thousands of points would weigh megabytes.
        axes.scatter(*zip(*points, strict=True), s=8, alpha=0.35, linewidths=0, rasterized=True)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")

    return _svg(draw, title, x, y) if points else ""


def bars(labels: Sequence[str], series: Mapping[str, Sequence[float | None]], *, title: str, x: str, y: str) -> str:
    """Bars side by side: for each label one of each name; none where the value is ``None``."""

    def draw(axes: Any) -> None:
        width = 0.8 / len(series)
        for number, (name, values) in enumerate(series.items()):
            places = [place - 0.4 + (number + 0.5) * width for place in range(len(labels))]
            axes.bar(places, [math.nan if value is None else value for value in values], width, label=name)
        axes.set_xticks(range(len(labels)), labels)
        axes.legend()

    known = any(_is_number(value) for values in series.values() for value in values)
    return _svg(draw, title, x, y) if known else ""


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _svg(draw: Any, title: str, x: str, y: str) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        # A dollar sign would start a formula.
        axes.set_title(title.replace("$", r"\$"))
        axes.set(xlabel=x, ylabel=y)
        text = StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
