"""Settings of a data generation project: YAML layers and dotted overrides, as in :mod:`aura.config`."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from aura.datagen.checks.rules import CheckSettings
from aura.datagen.service.settings import ApiSettings

SPLITS = ("train", "test")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class SourceSettings:
    """An annotation file.

    Args:
        annotations: The file, of COCOA-cls, COCOA, D2SA or KINS.
        images: Folder of its pictures.
        split: ``train`` or ``test`` for all its images; ``null`` leaves that to ``split``.
        layout: How the file is laid out; ``null`` tells by its content.
        with_stuff: Take COCOA's regions of stuff (grass, sky) too.
        id_offset: Added to the ids of images and annotations, where two sources number theirs alike.
    """

    annotations: str
    images: str
    split: Literal["train", "test"] | None = None
    layout: Literal["COCOA-cls", "COCOA", "D2SA", "KINS 2019", "KINS 2020"] | None = None
    with_stuff: bool = False
    id_offset: int = 0

    def __post_init__(self) -> None:
        _require(self.id_offset >= 0, f"sources: id_offset must not be negative, got {self.id_offset}")


@dataclass(frozen=True)
class SplitSettings:
    """How images are divided; the result is written into the project once, by ``init``.

    Args:
        train_list: File with one image id or file name per line; only these are in ``train``.
        test_list: The same for ``test``; without ``train_list`` all others are in ``train``.
        test_fraction: Share of the images that have no split by their source or a list, drawn by ``seed``.
        seed: Another seed draws other images.
        take_train: So many training images at most, drawn by ``seed``; ``null`` takes all.
        take_test: The same for the test images.
    """

    train_list: str | None = None
    test_list: str | None = None
    test_fraction: float = 0.0
    seed: int = 0
    take_train: int | None = None
    take_test: int | None = None

    def __post_init__(self) -> None:
        _require(0 <= self.test_fraction <= 1, f"split.test_fraction must be in [0, 1], got {self.test_fraction}")
        for key in ("take_train", "take_test"):
            number = getattr(self, key)
            _require(number is None or number > 0, f"split.{key} must be positive, got {number}")


@dataclass(frozen=True)
class GeneratorSettings:
    """Who writes the pairs.

    Args:
        kind: ``openai`` (any server that speaks its API), ``openai-batch`` or ``offline``.
        pairs_per_image: Pairs asked for per image.
        seed: Of the offline generator.
        api: :class:`aura.datagen.service.settings.ApiSettings` of the first two kinds; keys are never among them.
        max_attempts: Tries per image, each with the client's own retries.
        retry_delay: Seconds before the second try; it doubles with each further one.
        lease_seconds: An image whose process is silent for so long is taken by another process.
        send_back: Pairs that fail their checks go back to the generator once.
        intents: Questions may mean one kind of mask, the visible or the amodal one, and say so.
    """

    kind: Literal["openai", "openai-batch", "offline"] = "openai"
    pairs_per_image: int = 10
    seed: int = 0
    api: dict[str, Any] = field(default_factory=dict)
    max_attempts: int = 3
    retry_delay: float = 30.0
    lease_seconds: float = 300.0
    send_back: bool = True
    intents: bool = False

    def __post_init__(self) -> None:
        if self.intents:  # one setting for every kind of generator
            object.__setattr__(self, "api", {**self.api, "intents": True})
        for key in ("pairs_per_image", "max_attempts", "lease_seconds"):
            _require(getattr(self, key) > 0, f"generator.{key} must be positive, got {getattr(self, key)}")
        for key in ("retry_delay", "seed"):
            _require(getattr(self, key) >= 0, f"generator.{key} must not be negative, got {getattr(self, key)}")


@dataclass(frozen=True)
class ReviewSettings:
    """The review.

    Args:
        reviewers: Annotators who judge each pair without seeing each other's verdict.
        host: Address of the web app; only this machine by default.
        port: Its port.
    """

    reviewers: int = 2
    host: str = "127.0.0.1"
    port: int = 8000

    def __post_init__(self) -> None:
        _require(self.reviewers >= 1, f"review.reviewers must be positive, got {self.reviewers}")
        _require(0 <= self.port < 65536, f"review.port must be a port number, got {self.port}")


@dataclass(frozen=True)
class ExportSettings:
    """The released data set.

    Args:
        out: Folder of the versions; a version is written to ``out/version``.
        name: Name of the data set, for the data card.
        version: Another content needs another version.
        include: ``reviewed`` pairs only, or ``all`` that no annotator rejected, each with its state.
        pictures: ``copy`` the pictures into the release, or only ``reference`` their folder.
        parquet: Write the folder for Hugging Face ``datasets`` as well.
        license: Licence of the texts, for the data card.
        description: A sentence or two for the data card.
        annotator_names: Name annotators in the provenance instead of numbering them.
    """

    out: str = "data/releases"
    name: str = "AmodalReasonSeg"
    version: str = "0.1"
    include: Literal["reviewed", "all"] = "reviewed"
    pictures: Literal["copy", "reference"] = "copy"
    parquet: bool = True
    license: str = ""
    description: str = ""
    annotator_names: bool = False

    def __post_init__(self) -> None:
        _require(
            bool(self.version) and not self.version.startswith(".") and not set(self.version) & set("/\\\0"),
            f"export.version must be usable as a folder's name, got {self.version!r}",
        )


@dataclass(frozen=True)
class ProjectSettings:
    """All settings of a project. ``project`` is the folder of its database and of what generators keep."""

    project: str
    sources: tuple[SourceSettings, ...]
    split: SplitSettings = field(default_factory=SplitSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    checks: CheckSettings = field(default_factory=CheckSettings)
    review: ReviewSettings = field(default_factory=ReviewSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    notes: tuple[str, ...] = ()

    @property
    def database(self) -> Path:
        """The project's SQLite file."""
        return Path(self.project) / "project.sqlite"

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return dataclasses.asdict(self)


SECTIONS: dict[str, type] = {
    "split": SplitSettings,
    "generator": GeneratorSettings,
    "checks": CheckSettings,
    "review": ReviewSettings,
    "export": ExportSettings,
}


Commands = Mapping[str, tuple[Callable[[ProjectSettings, Namespace], int], Callable[[ArgumentParser], None], str]]
"""Commands by name: what runs, what adds its options, one line of help."""


def settings_parser(prog: str, description: str) -> ArgumentParser:
    """A parser of settings; a command adds its own options to it. Errors are raised, not printed."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, print_config=None)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML layer; repeat it to put one over another")
    parser.add_argument("--project", type=str, default="", help="folder of the project")
    parser.add_argument("--sources", type=list[SourceSettings], default=[], help="annotation files")
    parser.add_argument("--notes", type=list[str], default=[], help="remarks that init and the data card repeat")
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    return parser


def settings_from(parser: ArgumentParser, values: Namespace) -> ProjectSettings:
    """The settings among parsed ``values``.

    Raises:
        ValueError: No project or no source is named, or a value does not fit.
    """
    made = parser.instantiate(values)
    _require(bool(made.project), "no project: give --config configs/datagen/....yaml, or --project FOLDER")
    _require(bool(made.sources), "no sources: name an annotation file and its pictures under 'sources'")
    return ProjectSettings(
        project=made.project,
        sources=tuple(made.sources),
        notes=tuple(made.notes),
        **{name: getattr(made, name) for name in SECTIONS},
    )


def run_command(prog: str, doc: str | None, commands: Commands, arguments: Sequence[str]) -> int:
    """What a program with several commands does: help, options, the command itself, one line for a mistake.

    Args:
        prog: Name of the program in its messages.
        doc: What it is, for the help of the whole.
        commands: By name.
        arguments: The command's name and its options.

    Returns:
        The command's exit code; 2 for what the user can mend.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print((doc or "").strip() + "\n\nCommands:")
        width = max(map(len, commands)) + 2
        for name, (_, _, line) in commands.items():
            print(f"  {name:{width}}{line} ({prog} {name} --help)")
        return 0 if arguments else 2
    if arguments[0] not in commands:
        print(f"error: no such command: {arguments[0]}; the commands are {', '.join(commands)}", file=sys.stderr)
        return 2
    command, add_options, line = commands[arguments[0]]
    parser = settings_parser(f"{prog} {arguments[0]}", line)
    add_options(parser)
    try:
        values = parser.parse_args(list(arguments[1:]))
        return command(settings_from(parser, values), values)
    except (argparse.ArgumentError, ValueError, TypeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def api_settings(values: Mapping[str, Any]) -> ApiSettings:
    """``generator.api`` as the client's settings, with their types checked.

    Raises:
        ValueError: A key is unknown, or a value does not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ApiSettings, "api")
    try:
        made: ApiSettings = parser.instantiate(parser.parse_object({"api": copy.deepcopy(dict(values))})).api
        return made
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise ValueError(f"generator.api: {' '.join(str(error).split())}") from error
