"""Settings from YAML layers and dotted overrides, and back to YAML.

A YAML file or ``--section.key value`` changes only what it names::

    train_ds.py --config configs/aura_7b.yaml --config configs/ablation/baseline.yaml --train.lr 3e-4
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, get_loader, set_loader

from aura.config.settings import Config
from aura.files import read_text

SPLITS = ("train", "val")
"""Parts of ``data`` that may be lists of sources."""


def parse_config(argv: Sequence[str] | None = None, *, prog: str = "train_ds.py") -> Config:
    """Read ``--config`` layers (in order) and dotted overrides into a :class:`Config`.

    ``--print_config`` prints the resolved YAML and exits with 0. An unknown key, a wrong type or value, or a missing
    file ends the program with code 2 and one line on stderr that names it.

    Args:
        argv: Arguments, ``sys.argv[1:]`` by default.
        prog: Program name for the messages.
    """
    try:
        config, print_it = _parse(sys.argv[1:] if argv is None else argv, prog)
    except (argparse.ArgumentError, ValueError, TypeError, OverflowError) as error:
        print(f"{prog}: {_one_line(error)} (see {prog} --help)", file=sys.stderr)
        sys.exit(2)
    if print_it:
        print(to_yaml(config), end="")
        sys.exit(0)
    return config


def load_config(*paths: str | Path) -> Config:
    """Read YAML files over the defaults, each over those before it.

    Raises:
        ValueError: With the files and the key, when one is missing or does not fit.
    """
    try:
        return _parse([f"--config={path}" for path in paths], "config")[0]
    except (argparse.ArgumentError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{' + '.join(map(str, paths))}: {_one_line(error)}") from error


def to_yaml(config: Config) -> str:
    """The whole config as YAML that :func:`load_config` reads back to an equal :class:`Config`."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    text: str = yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False)
    return text


def _load(text: str) -> Any:
    """YAML as the parser reads it, with a list under ``data.train`` or ``data.val`` as the list of its sources.

    A layer that names one file, or none, takes the sources of the layers below out.
    """
    value = get_loader("yaml")(text)
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, dict):
        return value
    for name in SPLITS:
        if isinstance(split := data.get(name), list):
            data[name] = {"annotations": None, "images": None, "sources": split}
        elif isinstance(split, dict) and "annotations" in split:
            data[name] = {"sources": [], **split}
    return value


set_loader("layers", _load, (yaml.YAMLError,))


def _parse(argv: Sequence[str], prog: str) -> tuple[Config, bool]:
    parser = ArgumentParser(
        prog=prog,
        parser_mode="layers",
        description="Train AURA. Later --config files and options win over earlier ones.",
        epilog="Every option can stand in a YAML file: --train.lr 1e-3 is 'train: {lr: 1e-3}'.",
        exit_on_error=False,
        print_config=None,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML layer; repeat it to put one over another")
    parser.add_argument("--print_config", action="store_true", help="print the resolved YAML and exit")
    # The deepspeed launcher appends this; the engine reads the rank from the environment.
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)
    sections = {f.name: f.default_factory for f in dataclasses.fields(Config)}
    for name, section in sections.items():
        parser.add_class_arguments(section, name)
    _check_layers(argv)
    _refuse_leftover(argv)
    values = parser.instantiate(parser.parse_args(list(argv)))
    return Config(**{name: getattr(values, name) for name in sections}), values.print_config


def _check_layers(argv: Sequence[str]) -> None:
    """Raise ``ValueError``, with the file, for a layer whose form is not that of settings: the parser's own message
    names neither the file nor the section."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[], type=Path)
    for path in finder.parse_known_args(list(argv))[0].config:
        try:
            layer = yaml.safe_load(read_text(path)) if path.is_file() else {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        _check_sections(layer, Config, f"{path}: ")


def _check_sections(value: Any, section: type, where: str, prefix: str = "") -> None:
    if isinstance(value, list) and prefix in {f"data.{name}." for name in SPLITS}:
        return
    if not isinstance(value, dict):
        name = prefix.rstrip(".") or "the file"
        raise ValueError(f"{where}{name} must hold settings, 'name: value' line by line, not {value!r:.60}")
    inner: dict[str, Any] = {
        f.name: f.default_factory for f in dataclasses.fields(section) if dataclasses.is_dataclass(f.default_factory)
    }
    for name in value.keys() & inner.keys():
        _check_sections(value[name], inner[name], where, f"{prefix}{name}.")


class _InOrder(argparse.Action):
    """Collects options and their values as they come."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.found = [*(namespace.found or []), (self.option_strings[0], values)]


def _refuse_leftover(argv: Sequence[str]) -> None:
    """Raise ``ValueError`` where a layer's ``data.val`` is left over from other data: ``data.train`` is named later."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--config", *(f"--data.{name}.{key}" for name in SPLITS for key in ("annotations", "sources"))):
        finder.add_argument(option, dest="found", action=_InOrder)
    named: dict[str, tuple[int, str, Any]] = {}
    for place, (option, value) in enumerate(finder.parse_known_args(list(argv))[0].found or []):
        if option != "--config":
            named[option.split(".")[1]] = (place, "the command line", None if value in ("null", "[]") else value)
            continue
        layer = yaml.safe_load(Path(value).read_text(encoding="utf-8")) if Path(value).is_file() else {}
        for name in SPLITS:
            split = (layer.get("data") or {}).get(name) or {}
            if isinstance(split, list):
                files = [str(source.get("annotations")) for source in split if isinstance(source, dict)]
                named[name] = (place, value, " + ".join(files))
            elif "annotations" in split:
                named[name] = (place, value, split["annotations"])
    if {"train", "val"} <= named.keys():
        (train_at, train_from, _), (val_at, val_from, val) = named["train"], named["val"]
        if val is not None and val_from != "the command line" and train_at > val_at:
            raise ValueError(
                f"data.train.annotations is given by {train_from}, but data.val.annotations ({val}) is left over from "
                f"{val_from}; give this data's own, or --data.val.annotations null (and --data.val.sources [] where it "
                "is a list) to hold images out of data.train"
            )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
