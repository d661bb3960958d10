"""Models of the Hugging Face hub by name, wherever a folder is taken: ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.

What a name means is decided here alone. The hub's own library fetches, so its cache, its token, ``HF_ENDPOINT`` and
``HF_HUB_OFFLINE`` hold. Nothing is fetched but what the user named, and of that only what is read: config and tokenizer
files, and weights as safetensors, or as ``.bin`` where there are none.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from aura.config import ModelSettings
from aura.machine import ranks
from aura.weights.files import WEIGHT_FILES, read_config, read_index
from aura.weights.lisa import is_lisa

NAME = re.compile(r"(?P<owner>[A-Za-z0-9][\w-]*)/(?P<model>[A-Za-z0-9][\w.-]*)(?:@(?P<revision>\w[\w./-]*))?")
FILES = (".pth", ".pt", ".bin", ".gguf", ".safetensors", ".ckpt")
"""Endings of a file on this disk; no model is called so."""
OUR_FOLDERS = {"weights", "runs", "exports", "data", "configs"}
"""Folders that configs and documentation name. A path below one of them that is not there is a slip, not an owner."""

SMALL_FILES = ["*.json", "tokenizer.model", "merges.txt"]
BELOW = ["*/*"]
"""What lies in folders of a model, such as other formats of its weights, is not read."""

_commits: dict[str, str] = {}
"""Names, as given, and their commits: a process sees one commit of a name, whatever happens on the hub meanwhile."""


class Name(NamedTuple):
    """A model on the hub; without a revision its main branch is meant."""

    model: str
    revision: str | None

    def __str__(self) -> str:
        return self.model + (f"@{self.revision}" if self.revision else "")


def hub_name(source: str | Path) -> Name | None:
    """``source`` as a name on the hub, or ``None`` where it is a path.

    What exists on this disk is a path, and so is a :class:`~pathlib.Path`. A name whose owner is a folder here, or one
    of :data:`OUR_FOLDERS`, is a path with a slip in it, unless a revision says otherwise.
    """
    found = NAME.fullmatch(source) if isinstance(source, str) else None
    if found is None or source.endswith(FILES) or Path(source).exists():  # type: ignore[union-attr]
        return None
    owner, model, revision = found["owner"], found["model"], found["revision"]
    if revision is None and (owner in OUR_FOLDERS or Path(owner).is_dir()):
        return None
    return Name(f"{owner}/{model}", revision)


def local_folder(source: str | Path, setting: str, *, weights: bool = True) -> str:
    """The folder of ``source``: itself if it is a path, there or not; else the hub's in the cache, fetched if needed.

    Args:
        source: A path, or a name on the hub.
        setting: Named in errors, such as ``model.sam``.
        weights: Fetch the weights too, not only config and tokenizer.

    Raises:
        ValueError: The hub has no such model or does not give it out; or it cannot be asked, and the cache lacks it.
    """
    name = hub_name(source)
    if name is None:
        return str(source)
    return str(_fetch(name, str(source), setting, weights))


def here(settings: ModelSettings, *, weights: bool = True) -> tuple[ModelSettings, dict[str, str]]:
    """The settings with folders of this disk in the place of names, and the commits of these names.

    What the model will not be made of is not looked up: with an AURA export nothing else, with a whole LLaVA no
    ``vision_tower``.

    Args:
        settings: As the user gave them.
        weights: As for :func:`local_folder`.

    Raises:
        ValueError: As :func:`local_folder`.
    """
    folders: dict[str, Any] = {}

    def look_up(*fields: str, weights: bool = weights) -> None:
        for field in fields:
            if (source := getattr(settings, field)) is not None:
                folders[field] = local_folder(source, f"model.{field}", weights=weights)

    if settings.init_from is not None:
        look_up("init_from")
        if is_lisa(folders["init_from"]):
            look_up("vision_tower")
            if not (Path(folders["init_from"]) / "config.json").is_file():
                look_up("mllm", weights=False)
    else:
        look_up("mllm", weights=False)  # a slip in any name is told before gigabytes are fetched
        if settings.sam is not None and hub_name(settings.sam):
            look_up("sam", weights=False)
        if not _holds_tower(folders.get("mllm")):
            look_up("vision_tower")
        look_up("mllm", "sam")
    names = [name for field in folders if (name := getattr(settings, field)) in _commits]
    return dataclasses.replace(settings, **folders), {name: _commits[name] for name in names}


def together(look_up: Callable[[], object]) -> None:
    """Let the first of several processes ``look_up`` and fetch; the others wait, and see the same commits afterwards.

    On another machine, without that cache, the others then fetch these commits themselves; the hub's locks let one of
    them fetch each file.
    """

    def first() -> dict[str, str]:
        look_up()
        return dict(_commits)

    remember(ranks.from_first(first))


def remember(commits: Mapping[str, str]) -> None:
    """From now on these names mean these commits: a run that continues has the weights that it began with."""
    _commits.update(commits)


def short(source: str) -> str:
    """``source`` with ``OWNER/NAME@COMMIT`` in the place of a folder in the hub's cache, for people to read."""
    return re.sub(r"\S*/models--([\w-]+?)--([\w.-]+)/snapshots/([0-9a-f]{12})[0-9a-f]*", r"\1/\2@\3", source)


def _fetch(name: Name, given: str, setting: str, weights: bool) -> Path:
    def ask(call: Callable[..., Any], **options: Any) -> Any:
        try:
            return call(name.model, **options)
        except Exception as error:  # the errors of the hub's transport have no class in common across its versions
            raise ValueError(f"{setting}: {_sentence(name, error)}") from error

    revision = _commits.get(given) or name.revision
    small = {"allow_patterns": SMALL_FILES, "ignore_patterns": BELOW, "tqdm_class": _Silent}
    folder = Path(ask(snapshot_download, revision=revision, **small))
    if not (folder / "config.json").is_file():
        files = ask(HfApi().list_repo_files, revision=folder.name)
        raise ValueError(
            f"{setting}: {name} on {constants.ENDPOINT} has no config.json, so it is not a model folder (it holds "
            f"{_some(files)}); download the file that you mean (hf download {name.model} FILE) and give its path"
        )
    if weights and not _has_weights(folder, setting):
        files = ask(HfApi().list_repo_files, revision=folder.name)
        chosen = _chosen(files)
        if not chosen:
            raise ValueError(
                f"{setting}: {name} on {constants.ENDPOINT} has no weights that are read here (model*.safetensors or "
                f"pytorch_model*.bin); it holds {_some(files)}"
            )
        what = f"{name} ({', '.join(chosen[:2])}{', ...' * (len(chosen) > 2)})"
        told = f"fetching {what} from {constants.ENDPOINT} into {constants.HF_HUB_CACHE}"
        print(told, file=sys.stderr, flush=True)
        ask(snapshot_download, revision=folder.name, allow_patterns=chosen, tqdm_class=_Bar)
    _commits[given] = folder.name
    return folder


def _some(files: list[str]) -> str:
    return ", ".join(sorted(files)[:6]) + ", ..." * (len(files) > 6)


def _chosen(files: list[str]) -> list[str]:
    """The weight files to fetch, of one kind; not those of other precisions, nor optimizer states."""
    for stem, ending in WEIGHT_FILES:
        if found := [file for file in files if re.fullmatch(rf"{stem}(-\d+-of-\d+)?\.{ending}", file)]:
            return found
    return []


def _has_weights(folder: Path, setting: str) -> bool:
    """Whether all weight files are there; each appears when it is complete."""
    for stem, ending in WEIGHT_FILES:
        index = folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            shards = set(read_index(index, setting).values())
            if shards and all((folder / shard).is_file() for shard in shards):
                return True
        elif (folder / f"{stem}.{ending}").is_file():
            return True
    return False


def _holds_tower(mllm: str | None) -> bool:
    """Whether this is a whole LLaVA, whose vision tower is taken whatever ``model.vision_tower`` says."""
    if mllm is None or not (Path(mllm) / "config.json").is_file():
        return False
    try:
        return "text_config" in read_config(mllm, "model.mllm")
    except ValueError:  # the loader says what is wrong with it
        return False


def _sentence(name: Name, error: Exception) -> str:
    """What was asked, what was tried and the remedy, in one sentence."""
    hub, cause = constants.ENDPOINT, error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(error, GatedRepoError):
        return (
            f"{name} is gated on {hub}; accept its terms at {hub}/{name.model}, then log in there from here "
            "(hf auth login, or the variable HF_TOKEN)"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name.model} has no revision {name.revision} on {hub}; choose a branch, a tag or a commit of it"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name} is neither a folder here nor a model on {hub}, which answers {error.response.status_code}; "
            "correct the path or the name, or, for a private model, log in (hf auth login, or the variable HF_TOKEN)"
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        remedy = "log in with another token (hf auth login, or HF_TOKEN)" if status in (401, 403) else "start again"
        return f"{hub} does not give out {name} ({_told(error)}); {remedy}"
    if isinstance(error, OSError) and not isinstance(error, LocalEntryNotFoundError | ConnectionError):
        return f"{name} could not be fetched from {hub} ({_told(error)}); mend that, then start again: it goes on"
    offline = isinstance(cause, OfflineModeIsEnabled)
    tried = "is not asked (HF_HUB_OFFLINE is set)" if offline else f"cannot be asked for it ({_told(cause or error)})"
    return (
        f"{name} is not a folder here, {hub} {tried}, and the cache {constants.HF_HUB_CACHE} does not hold all of it; "
        f"fetch it where there is a network (hf download {name.model}) and give that folder, or bring its part of the "
        "cache here"
    )


def _told(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


class _Silent(tqdm):  # type: ignore[type-arg]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


class _Bar(tqdm):  # type: ignore[type-arg]
    """Of weights, on a terminal: also where the bars of loading are switched off, since this may take an hour."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": constants.HF_HUB_DISABLE_PROGRESS_BARS or None})
