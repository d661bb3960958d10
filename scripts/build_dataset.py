#!/usr/bin/env python
"""Make a reviewed AmodalReasonSeg data set from amodal annotations: one command per step.

    python scripts/build_dataset.py init     --config configs/datagen/mini.yaml
    python scripts/build_dataset.py generate --config configs/datagen/mini.yaml
    python scripts/build_dataset.py status   --config configs/datagen/mini.yaml --json
    python scripts/build_dataset.py check    --config configs/datagen/mini.yaml
    python scripts/build_dataset.py review   --config configs/datagen/mini.yaml
    python scripts/build_dataset.py export   --config configs/datagen/mini.yaml

Every step may be stopped or killed and started again. Settings of the YAML are overridden by dotted options, such as
--generator.seed 3. Exit code 0: done; 1: done in part (images failed, or the run was stopped); 2: a mistake to correct.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import asyncio
import dataclasses
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from aura.datagen.generate import Books, Run, RunSummary
from aura.datagen.project import checks_of, init_project, open_project, recheck, recipe_of, run_settings_of
from aura.datagen.records import GenerationRequest
from aura.datagen.report import status_report
from aura.datagen.settings import Commands, ProjectSettings, api_settings, run_command
from aura.datagen.store.store import Status, Store

if TYPE_CHECKING:
    from aura.datagen.service.settings import ApiSettings

PROG = "build_dataset.py"
CONSOLE = Console(highlight=False)


def main(arguments: list[str] | None = None) -> int:
    return run_command(PROG, __doc__, COMMANDS, sys.argv[1:] if arguments is None else arguments)


# --- init -------------------------------------------------------------------------------------------------------------


def init(settings: ProjectSettings, options: Namespace) -> int:
    """Make the project."""
    with _bar("images") as bar:
        task = bar.add_task("images", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        summary = init_project(settings, progress=show)
    for source, layout in zip(settings.sources, summary.layouts, strict=True):
        _say(f"{source.annotations}: laid out as in {layout}")
    splits = ", ".join(f"{number} {name}" for name, number in sorted(summary.splits.items(), reverse=True))
    _say(f"{settings.database}: {splits} images ({summary.added} new)")
    left_out = {
        "without objects": summary.without_objects,
        "in no list": summary.not_listed,
        "beyond the number to take": summary.not_taken,
    }
    for reason, number in left_out.items():
        if number:
            _say(f"left out: {number} images {reason}")
    for warning in summary.warnings:
        CONSOLE.print(Text(f"note: {warning}", style="yellow"), soft_wrap=True)
    return 0


# --- generate ---------------------------------------------------------------------------------------------------------


def add_generate_options(parser: ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the estimate and three prompts, send nothing")
    parser.add_argument("--max-cost", type=float, help="stop before all runs of the project cost more than this")
    parser.add_argument("--limit", type=int, help="take at most so many jobs")
    parser.add_argument("--export-jsonl", metavar="DIR", help="send nothing; write the requests as batch files")
    parser.add_argument("--import-jsonl", nargs="+", metavar="FILE", help="send nothing; read a batch runner's answers")
    parser.add_argument("--retry-failed", action="store_true", help="try images again that failed for good")


def generate(settings: ProjectSettings, options: Namespace) -> int:
    """Ask the generator about every image that has no pairs yet."""
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be positive, got {options.limit}")
    if options.max_cost is not None:
        api = {**settings.generator.api, "max_cost": options.max_cost}
        settings = dataclasses.replace(settings, generator=dataclasses.replace(settings.generator, api=api))
    if sum(map(bool, (options.dry_run, options.export_jsonl, options.import_jsonl))) > 1:
        raise ValueError("give one of --dry-run, --export-jsonl and --import-jsonl at a time")
    with open_project(settings) as store:
        if options.dry_run:
            return _dry_run(store, settings, options.limit)
        if options.retry_failed:
            _say(f"{store.jobs.retry_failed()} failed images are tried again")
        if options.export_jsonl:
            return _export_jsonl(store, settings, options)
        if options.import_jsonl:
            summary = _import_jsonl(store, settings, options.import_jsonl)
        else:
            summary = asyncio.run(_generate(store, settings, options.limit))
        status = store.status()
        if summary.stopped:
            CONSOLE.print(Text(f"stopped: {summary.stopped}", style="yellow"), soft_wrap=True)
        _say(
            f"{summary.answered} jobs answered, {summary.pairs} pairs, {summary.sent_back} sent back once, "
            f"{summary.retried} tries failed, cost {summary.cost:.4f}"
        )
        for image_id, reason, detail in store.jobs.failures(5):
            CONSOLE.print(Text(f"image {image_id} failed: {reason}: {detail}", style="red"), soft_wrap=True)
        if status.images["failed"]:
            _say(f"{status.images['failed']} images failed in all; generate --retry-failed tries them again")
        if options.import_jsonl and status.images["pending"]:
            _say(f"{status.images['pending']} images wait for an answer; generate --export-jsonl writes their requests")
    in_part = summary.stopped or status.images["failed"] or (options.import_jsonl and status.images["pending"])
    return 1 if in_part else 0


async def _generate(store: Store, settings: ProjectSettings, limit: int | None) -> RunSummary:
    from aura.datagen.generators import make_generator

    kind = settings.generator.kind
    generator = make_generator(
        kind,
        None if kind == "offline" else api_settings(settings.generator.api),
        seed=settings.generator.seed,
        intents=settings.generator.intents,
        folder=settings.database.parent,
        spent=store.cost(),
    )
    status = store.status()
    with _bar("images") as bar:
        task = bar.add_task("images", completed=status.images["generated"], total=store.images.count())

        def show(summary: RunSummary) -> None:
            text = f"{summary.pairs} pairs, cost {summary.cost:.2f}"
            bar.update(task, completed=status.images["generated"] + summary.finished, description=text)

        run = Run(
            store,
            generator,
            recipe_of(settings),
            check=checks_of(settings),
            settings=run_settings_of(settings, max_images=limit),
            progress=show,
        )
        try:
            return await run.until_interrupted()
        finally:
            await generator.close()


def _export_jsonl(store: Store, settings: ProjectSettings, options: Namespace) -> int:
    """Write what a run would ask as files for a batch runner."""
    api = _api_of(settings)
    if options.max_cost is not None:
        raise ValueError("--max-cost cannot hold back a runner of your own; leave it out, and see --dry-run")
    from aura.datagen.service.jsonl import export_jsonl

    with _bar("requests") as bar:
        files, failures = export_jsonl(bar.track(_requests(store, settings, options.limit)), options.export_jsonl, api)
    for failure in failures[:5]:
        CONSOLE.print(Text(f"image {failure.image_id}: {failure.reason}: {failure.detail}", style="red"))
    if failures:
        _say(f"{len(failures)} images were left out")
    if not files:
        _say("there is nothing to ask")
        return 1 if failures else 0
    _say(f"the requests are in {files[0]}" + (f" to {files[-1].name}" if len(files) > 1 else ""))
    _say("give the answers to generate --import-jsonl; images without one are asked about again by the next export")
    return 1 if failures else 0


def _import_jsonl(store: Store, settings: ProjectSettings, paths: list[str]) -> RunSummary:
    """Take the answers of a batch runner as if they had just come."""
    api = _api_of(settings)
    from aura.datagen.service.jsonl import import_jsonl

    recipe = recipe_of(settings)
    with _bar("answers") as bar:
        books = Books(store, check=checks_of(settings), settings=run_settings_of(settings))
        for path in paths:
            answers = import_jsonl(path, store.jobs.waiting(recipe), api)
            for request, came in bar.track(answers, description=Path(path).name):
                books.settle_waiting(request, came, recipe)
    return books.summary


def _api_of(settings: ProjectSettings) -> ApiSettings:
    if settings.generator.kind == "offline":
        raise ValueError("the offline generator asks nobody; set generator.kind to openai-batch, and the model")
    return api_settings(settings.generator.api)


def _dry_run(store: Store, settings: ProjectSettings, limit: int | None) -> int:
    if settings.generator.kind == "offline":
        _say(f"{store.status().images['pending']} images; the offline generator sends nothing and costs nothing")
        return 0
    from aura.datagen.service.estimates import dry_run

    estimate, prompts = dry_run(
        _requests(store, settings, limit),
        api_settings(settings.generator.api),
        batch=settings.generator.kind == "openai-batch",
    )
    for number, prompt in enumerate(prompts, start=1):
        CONSOLE.rule(f"prompt {number}")
        print(prompt.shown())
    CONSOLE.rule("estimate")
    _say(f"{estimate}; nothing was sent")
    return 0


def _requests(store: Store, settings: ProjectSettings, limit: int | None) -> Iterator[GenerationRequest]:
    """What a run would ask now about each image that waits."""
    return islice(store.jobs.waiting(recipe_of(settings)), limit)


# --- check and status -------------------------------------------------------------------------------------------------


def check(settings: ProjectSettings, options: Namespace) -> int:
    """Run the checks again over the pairs in review."""
    with open_project(settings) as store, _bar("images") as bar:
        task = bar.add_task("images", total=store.images.count())
        changed = recheck(store, settings, lambda done: bar.update(task, completed=done))
        status = store.status()
    _say(f"{changed} pairs have other problems than before; {status.flagged} pairs in review have any")
    for code, number in status.problems.items():
        _say(f"  {number:6d} {code}")
    return 0


def add_status_options(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def status(settings: ProjectSettings, options: Namespace) -> int:
    """How far the project is."""
    with open_project(settings) as store:
        figures, report = store.status(), status_report(store)
        failures = store.jobs.failures(5)
    if options.json:
        print(json.dumps(report, indent=1))
        return 0
    CONSOLE.print(_status_table(figures))
    if report["annotators"]:
        table = Table("annotator", "judged", "decided", "waiting", title="review")
        for person in report["annotators"]:
            name = person["name"] if person["active"] else f"{person['name']} (inactive)"
            table.add_row(Text(name), *(str(person[key]) for key in ("judged", "decided", "waiting")))
        CONSOLE.print(table)
    for obstacle in report["obstacles"]:
        CONSOLE.print(Text(f"note: {obstacle}", style="yellow"), soft_wrap=True)
    agreed = report["agreement"]
    if agreed["pairs"]:
        kappa = _kappa(agreed["fleiss_kappa"])
        _say(f"{agreed['unanimous']} of {agreed['pairs']} pairs judged alike; Fleiss' kappa {kappa}")
        for both in agreed["cohen_kappa"]:
            one, other = both["annotators"]
            _say(f"Cohen's kappa of {one} and {other}: {_kappa(both['kappa'])} ({both['pairs']} pairs)")
    for image_id, reason, detail in failures:
        CONSOLE.print(Text(f"image {image_id} failed: {reason}: {detail}", style="red"), soft_wrap=True)
    return 0


def _status_table(figures: Status) -> Table:
    table = Table(title="project", show_header=False)
    table.add_column()
    table.add_column(justify="right")

    def section(title: str, rows: dict[str, Any]) -> None:
        if rows:
            table.add_section()
            table.add_row(Text(title, style="bold"), "")
        for key, value in rows.items():
            table.add_row(f"  {key.replace('_', ' ')}", f"{value:.4f}" if isinstance(value, float) else str(value))

    section("images", {**figures.images, "in progress now": figures.in_progress})
    section("splits", figures.splits)
    section("pairs", {**figures.pairs, "in review with problems": figures.flagged, "disputed": figures.disputed})
    section("problems found by the checks", figures.problems)
    section("calls", figures.calls)
    section("why images failed", figures.reasons)
    section("why calls failed", figures.retries)
    section(
        "cost", {"input_tokens": figures.input_tokens, "output_tokens": figures.output_tokens, "cost": figures.cost}
    )
    if figures.in_doubt:
        section("calls cut off by a killed process, perhaps charged", {"calls": figures.in_doubt})
    return table


def _kappa(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


# --- review and export ------------------------------------------------------------------------------------------------


def review(settings: ProjectSettings, options: Namespace) -> int:
    """Start the review web app."""
    try:
        from aura.datagen.review.app import serve
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the review app needs the Python package {error.name!r}; install it with: pip install -r requirements.txt"
        ) from error
    with open_project(settings) as store:
        serve(store, settings)
    return 0


def add_export_options(parser: ArgumentParser) -> None:
    parser.add_argument("--no-validate", action="store_true", help="do not check the written files record by record")


def export(settings: ProjectSettings, options: Namespace) -> int:
    """Write a version of the data set."""
    from aura.datagen.release.export import export_release

    with open_project(settings) as store, _bar("images") as bar:
        task = bar.add_task("images", total=None)
        release = export_release(
            store,
            settings.export,
            notes=settings.notes,
            validate=not options.no_validate,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    if release.unchanged:
        _say(f"{release.folder} is up to date")
        return 0
    for split, figures in release.figures.items():
        _say(f"{split}: {figures['images']} images, {figures['pairs']} pairs, {figures['objects']} objects")
    for reason, number in release.left_out.items():
        if number:
            _say(f"left out: {number} {reason}")
    _say(f"written to {release.folder}; the data card is {release.folder / 'DATA_CARD.md'}")
    return 0


# --- the rest ---------------------------------------------------------------------------------------------------------


def _no_options(parser: ArgumentParser) -> None:
    del parser


COMMANDS: Commands = {
    "init": (init, _no_options, "read the annotations, divide them into splits, make the project"),
    "generate": (generate, add_generate_options, "have question-answer pairs written for every image"),
    "check": (check, _no_options, "check all pairs in review again"),
    "status": (status, add_status_options, "show progress, cost and failures"),
    "review": (review, _no_options, "start the review web app"),
    "export": (export, add_export_options, "write the reviewed data set"),
}


def _bar(what: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=CONSOLE,
        transient=True,
        disable=not CONSOLE.is_terminal,
    )


def _say(text: str) -> None:
    CONSOLE.print(Text(text), soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(main())
