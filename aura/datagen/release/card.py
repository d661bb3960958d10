"""The data card of a release, in Markdown: what is in it, where it comes from, how far annotators agreed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aura.datagen.settings import ExportSettings
from aura.datagen.store.agreement import Agreement
from aura.datagen.store.store import Status

COUNTS = {
    "images": "images",
    "pairs": "question-answer pairs",
    "pairs_per_image": "pairs per image",
    "conversations": "conversations",
    "objects": "annotated objects",
    "objects_per_image": "objects per image",
    "occluded_objects": "objects hidden by another annotated object",
    "categories": "categories",
    "objects_per_answer": "objects per answer",
    "distinct_questions": "distinct questions",
    "words_per_question": "words per question",
    "words_per_answer": "words per answer",
    "mean_occlusion_rate": "mean occlusion rate",
}


def data_card(
    settings: ExportSettings,
    figures: Mapping[str, Mapping[str, Any]],
    status: Status,
    agreement: Agreement,
    *,
    left_out: Mapping[str, int],
    origins: Sequence[tuple[str, str, str, int]],
    project: Mapping[str, Any],
    names: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """The card's text.

    Args:
        settings: Of the export.
        figures: Per split, as ``AmodalReasonSeg.statistics``.
        status: Of the whole project.
        agreement: Of the annotators.
        left_out: Reason -> number.
        origins: (generator, model, prompt version, pairs) of the released pairs.
        project: The project's settings.
        names: Annotator's name -> the name to show.
        notes: Remarks of the configuration.
    """
    parts = [
        f"# {settings.name} {settings.version}",
        settings.description,
        "\n".join(f"- {note}" for note in notes),
        "## Size\n\n" + _size(figures),
        "## Splits\n\n" + _splits(project),
        "## Occlusion rates\n\nObjects by occlusion rate (hidden share of the amodal mask).\n\n" + _rates(figures),
        "## Objects per answer\n\n" + _histogram(figures, "objects_per_answer_histogram", "objects", "answers"),
        "## Turns per conversation\n\n" + _histogram(figures, "turns_histogram", "turns", "conversations"),
        "## Origin\n\n" + _table(["generator", "model", "prompt version", "pairs"], [list(row) for row in origins]),
        "## Review\n\n" + _review(settings, status, agreement, names),
        "## Left out\n\n" + (_table(["", "number"], [[k, n] for k, n in sorted(left_out.items())]) or "Nothing."),
        "## Licence\n\n"
        + (settings.license or "Not stated. Pictures and annotations keep the licence of their source."),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; empty without rows. All columns but the first are numbers or short, so they stand right."""
    if not rows:
        return ""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")


def _size(figures: Mapping[str, Mapping[str, Any]]) -> str:
    totals = ("images", "pairs", "conversations", "objects", "occluded_objects")
    rows = []
    for key, words in COUNTS.items():
        values = [split[key] for split in figures.values()]
        rows.append([words, *values, sum(values) if key in totals else ""])
    return _table(["", *figures, "all"], rows)


def _splits(project: Mapping[str, Any]) -> str:
    split = project.get("split", {})
    lines = [
        f"- `{source['annotations']}`"
        + (f" ({source['layout']}): " if source.get("layout") else ": ")
        + (f"all in `{source['split']}`" if source.get("split") else "divided")
        for source in project.get("sources", [])
    ]
    for name in ("train", "test"):
        if split.get(f"{name}_list"):
            lines.append(f"- `{name}` is the list `{split[f'{name}_list']}`")
        if split.get(f"take_{name}"):
            number = split[f"take_{name}"]
            lines.append(f"- {number} images of `{name}` drawn by seed {split.get('seed')}; not a published list")
    if split.get("test_fraction"):
        lines.append(f"- {split['test_fraction']:g} of the divided images in `test`, drawn by seed {split.get('seed')}")
    lines.append("- No image is in two splits; the division was fixed when the project was made.")
    return "\n".join(lines)


def _rates(figures: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{index / 10:.1f} to {(index + 1) / 10:.1f}",
            *(split["occlusion_histogram"][index] for split in figures.values()),
        ]
        for index in range(10)
    ]
    return _table(["occlusion rate", *figures], rows)


def _histogram(figures: Mapping[str, Mapping[str, Any]], key: str, what: str, of: str) -> str:
    numbers = sorted({number for split in figures.values() for number in split[key]})
    rows = [[number, *(split[key].get(number, 0) for split in figures.values())] for number in numbers]
    return _table([f"{what} (number of {of})", *figures], rows)


def _review(settings: ExportSettings, status: Status, agreement: Agreement, names: Mapping[str, str]) -> str:
    included = (
        "Only pairs whose review is over are released."
        if settings.include == "reviewed"
        else "**Pairs that nobody has reviewed are released too**; each pair's `state` tells."
    )
    states = [[state.replace("_", " "), number] for state, number in status.pairs.items() if number]
    if not agreement.pairs:
        return (
            f"{included}\n\n" + _table(["state", "pairs"], states) + "\n\nNo pair has been judged by all its reviewers."
        )
    share = agreement.unanimous / agreement.pairs
    lines = [
        f"- {agreement.pairs} pairs judged by all their reviewers, who did not see each other's verdict; "
        f"{agreement.unanimous} alike in decision and text ({share:.1%}); the others were decided by another annotator",
        f"- Fleiss' kappa of the decisions: {_kappa(agreement.fleiss)}",
    ]
    for (one, other), (number, kappa) in agreement.cohen.items():
        if number:
            lines.append(f"- Cohen's kappa of {names[one]} and {names[other]}: {_kappa(kappa)} ({number} pairs)")
    return f"{included}\n\n" + _table(["state", "pairs"], states) + "\n\n" + "\n".join(lines)


def _kappa(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
