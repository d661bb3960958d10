#!/usr/bin/env python
"""The people who review a project, and the web app they use.

    python scripts/review.py add-annotator Ada Grace Edsger --config configs/datagen/mini.yaml
    python scripts/review.py list                           --config configs/datagen/mini.yaml
    python scripts/review.py new-token Ada                  --config configs/datagen/mini.yaml
    python scripts/review.py deactivate Ada                 --config configs/datagen/mini.yaml
    python scripts/review.py serve                          --config configs/datagen/mini.yaml --review.port 8001

A token is printed once and kept only as a hash; whoever has lost theirs needs a new one. Settings of the YAML are
overridden by dotted options. Exit code 0: done; 2: a mistake to correct.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from aura.datagen.project import open_project
from aura.datagen.settings import Commands, ProjectSettings, run_command
from aura.datagen.store.store import Store

PROG = "review.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    return run_command(PROG, __doc__, COMMANDS, list(sys.argv[1:] if arguments is None else arguments))


def _on_store(command: Callable[[Store, ProjectSettings, Namespace], None]) -> Callable[..., int]:
    """The command with the project's store open."""

    def run(settings: ProjectSettings, values: Namespace) -> int:
        try:
            with open_project(settings) as store:
                command(store, settings, values)
        except KeyError as error:
            print(f"error: {error.args[0]}; `{PROG} list` shows who there is", file=sys.stderr)
            return 2
        return 0

    return run


def add_annotator(store: Store, settings: ProjectSettings, options: Namespace) -> None:
    """Add people; with --if-missing those who are there keep their token."""
    known = {person.name.casefold() for person in store.annotators.all()}
    for name in options.names:
        if options.if_missing and " ".join(name.split()).casefold() in known:
            print(f"{name} is there already; `{PROG} new-token {name!r}` replaces a lost token", file=sys.stderr)
            continue
        _tell(name, store.annotators.add(name))
    _warn(store)


def new_token(store: Store, settings: ProjectSettings, options: Namespace) -> None:
    """Replace lost tokens; sessions that run with the old ones end."""
    for name in options.names:
        _tell(name, store.annotators.new_token(name))


def _tell(name: str, token: str) -> None:
    print(f"{name}: {token}")
    if sys.stdout.isatty():
        print("    (shown this once only; it cannot be read back)")


def activate(store: Store, settings: ProjectSettings, options: Namespace) -> None:
    """Let people log in again."""
    for name in options.names:
        store.annotators.set_active(name, True)


def deactivate(store: Store, settings: ProjectSettings, options: Namespace) -> None:
    """Take people out of the review; what they said stays."""
    for name in options.names:
        store.annotators.set_active(name, False)
    _warn(store)


def list_annotators(store: Store, settings: ProjectSettings, options: Namespace) -> None:
    """Show who there is and how far they are."""
    table = Table("name", "judged", "disputes decided", "waiting", "")
    for row in store.queues.progress():
        counts = [str(number) for number in (row.judged, row.decided, row.waiting)]
        table.add_row(row.annotator.name, *counts, "" if row.annotator.active else "inactive")
    Console(highlight=False).print(table)
    _warn(store)


def _warn(store: Store) -> None:
    """Say why the review could not come to its end with these people."""
    for obstacle in store.queues.obstacles():
        print(f"note: {obstacle}", file=sys.stderr)


def serve(store: Store, settings: ProjectSettings, options: Namespace) -> None:
    """Start the web app; Ctrl-C stops it."""
    try:
        from aura.datagen.review.app import serve as serve_app
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the review app needs the Python package {error.name!r}; install it with: pip install -r requirements.txt"
        ) from error
    certificate, key = (None if path is None else Path(path) for path in (options.certificate, options.key))
    if (certificate is None) != (key is None):
        raise ValueError("https needs both --certificate and --key")
    serve_app(store, settings, certificate=certificate, key=key, names=options.name)


def _names(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="people; quote a name with spaces")


def _names_to_add(parser: ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("--if-missing", action="store_true", help="pass over people who are there already")


def _serve_options(parser: ArgumentParser) -> None:
    parser.add_argument("--certificate", metavar="PEM", help="serve https with this certificate")
    parser.add_argument("--key", metavar="PEM", help="private key of the certificate")
    parser.add_argument(
        "--name", action="append", default=[], help="a name under which an https proxy or tunnel passes requests on"
    )


def _nothing(parser: ArgumentParser) -> None:
    del parser


Command = Callable[[Store, ProjectSettings, Namespace], None]
COMMANDS: Commands = {
    "add-annotator": (_on_store(add_annotator), _names_to_add, "add people and print their tokens, once"),
    "list": (_on_store(list_annotators), _nothing, "show who there is and how far they are"),
    "new-token": (_on_store(new_token), _names, "replace lost tokens"),
    "deactivate": (_on_store(deactivate), _names, "let people log in no more; their verdicts stay"),
    "activate": (_on_store(activate), _names, "let people log in again"),
    "serve": (_on_store(serve), _serve_options, "start the web app"),
}

if __name__ == "__main__":
    sys.exit(main())
