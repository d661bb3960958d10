"""Section on what the economies gain: a training step and an evaluation, the plain way and ours."""

from __future__ import annotations

from aura.bench import measure
from aura.bench.work import MODES
from aura.gpucheck.findings import Findings
from aura.gpucheck.lab import Lab


def plain_against_ours(lab: Lab, found: Findings) -> None:
    """Milliseconds and ratios at the size ``medium``; the ways must compute the same."""
    size = "tiny" if lab.tiny else "medium"
    model = measure.model_of(size, lab.device)
    for task in ("train", "read"):
        for questions in (3, 11):
            row = measure.compare(model, size, task, repeat=2, conversations=questions)
            figures = {f"{mode}_ms": 1e3 * row[mode]["seconds"] for mode in MODES}
            gains = {f"plain / {mode}": row["plain"]["seconds"] / row[mode]["seconds"] for mode in MODES[1:]}
            found.fact(**{f"{task}, {questions} questions": {**figures, **gains}})
            found.at_most(f"{task}, {questions} questions: all ways compute the same", row["apart"], measure.SAME)
