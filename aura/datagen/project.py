"""From settings to a project: reads annotations, divides images into splits, says what is asked of the generator."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from aura.data.reading import read_json_object
from aura.data.sources import AnnotatedImage, load_cocoa_cls
from aura.datagen.checks import PairChecker
from aura.datagen.generate import Check, RunSettings
from aura.datagen.records import PairDraft, PairProblem
from aura.datagen.settings import SPLITS, ProjectSettings, SplitSettings, api_settings
from aura.datagen.store import ImageEntry, Recipe, Source, Store


@dataclass(frozen=True)
class InitSummary:
    """What ``init`` did: images ``added`` now, images per split in all, and those left out with the reason."""

    added: int
    splits: dict[str, int]
    without_objects: int
    not_listed: int
    not_taken: int
    warnings: tuple[str, ...]


def init_project(
    settings: ProjectSettings, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> InitSummary:
    """Make the project, or complete one whose making was interrupted; ``progress`` is told (images done, in all).

    The annotations, the pictures' digests and the split of each image are written into the project: what changes in
    the files later does not change it.

    Raises:
        ValueError: A file is missing or contradicts itself, a picture is missing, two images share an id or, within a
            split, a file name, or the project was made from other data.
    """
    sources = [Source(s.annotations, s.images) for s in settings.sources]
    found = [
        (number, image)
        for number, source in enumerate(settings.sources)
        for image in load_cocoa_cls(source.annotations)
    ]
    with_objects = [(number, image) for number, image in found if image.objects]
    _check_ids(settings, with_objects)
    _check_categories(with_objects)
    splits = divide(settings, with_objects)
    chosen = [(number, image) for number, image in with_objects if image.image_id in splits.split_of]
    _check_files(settings, chosen, splits.split_of)
    exists = settings.database.exists()
    store = Store.open(settings.database) if exists else Store.create(settings.database, sources=sources)
    with store:
        store.set_sources(sources)
        store.database.set_meta("licenses", _licenses(settings))
        added = store.add_images(_entries(settings, chosen, splits.split_of, progress))
        if store.num_images() != len(chosen):
            raise ValueError(
                f"{store.path}: the project holds {store.num_images()} images, these settings name {len(chosen)}; "
                "start a new project for another choice of images"
            )
        store.database.set_meta("settings", settings.as_dict())
        store.database.set_meta("reviewers", settings.review.reviewers)
        store.database.set_meta("complete", True)
        counts = store.status().splits
    return InitSummary(
        added=added,
        splits=counts,
        without_objects=len(found) - len(with_objects),
        not_listed=splits.not_listed,
        not_taken=splits.not_taken,
        warnings=_warnings(settings),
    )


def open_project(settings: ProjectSettings) -> Store:
    """Open the project that ``init`` made; where the files lie is taken from ``settings``.

    Raises:
        ValueError: There is none, or ``init`` was interrupted.
    """
    store = Store.open(settings.database)
    if not store.database.meta("complete", False):
        store.close()
        raise ValueError(f"{settings.database}: init was interrupted; run it again to complete the project")
    store.set_sources([Source(s.annotations, s.images) for s in settings.sources])
    return store


def _entries(
    settings: ProjectSettings,
    chosen: Sequence[tuple[int, AnnotatedImage]],
    split_of: Mapping[int, str],
    progress: Callable[[int, int], None],
) -> Iterator[ImageEntry]:
    for done, (number, image) in enumerate(chosen, start=1):
        with (Path(settings.sources[number].images) / image.file_name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield ImageEntry(image, split_of[image.image_id], number, digest)
        progress(done, len(chosen))


def _check_ids(settings: ProjectSettings, images: Sequence[tuple[int, AnnotatedImage]]) -> None:
    seen: dict[int, int] = {}
    owners: dict[int, int] = {}
    for number, image in images:
        for known, key, what in (
            (seen, [image.image_id], "image"),
            (owners, [o.id for o in image.objects], "annotation"),
        ):
            for value in key:
                if value in known:
                    files = sorted({settings.sources[i].annotations for i in (known[value], number)})
                    raise ValueError(f"{' and '.join(files)}: {what} {value} occurs twice; give each an id of its own")
                known[value] = number


def _check_categories(images: Sequence[tuple[int, AnnotatedImage]]) -> None:
    numbers: dict[str, int] = {}
    for _, image in images:
        for name, number in image.category_ids.items():
            if numbers.setdefault(name, number) != number:
                raise ValueError(
                    f"image {image.image_id}: category {name!r} has the number {number} here and {numbers[name]} in "
                    "another image; only sources that share their categories can make one data set"
                )


def _licenses(settings: ProjectSettings) -> list[dict[str, Any]]:
    """The licences that the annotation files list, one of each number."""
    found: dict[Any, dict[str, Any]] = {}
    for source in settings.sources:
        licenses = read_json_object(source.annotations).get("licenses")
        for record in licenses if isinstance(licenses, list) else []:
            if isinstance(record, dict) and found.setdefault(record.get("id"), record) != record:
                raise ValueError(
                    f"{source.annotations}: license {record.get('id')} is another one than in the other annotation "
                    "file; number them alike"
                )
    return list(found.values())


def _check_files(
    settings: ProjectSettings, chosen: Sequence[tuple[int, AnnotatedImage]], split_of: Mapping[int, str]
) -> None:
    names: dict[tuple[str, str], int] = {}
    missing = []
    for number, image in chosen:
        source, path = settings.sources[number], PurePosixPath(image.file_name)
        if path.is_absolute() or ".." in path.parts or "\\" in image.file_name:
            raise ValueError(
                f"{source.annotations}: image {image.image_id}: the file name {image.file_name!r} leads out of the "
                "picture folder; use names below it"
            )
        key = (split_of[image.image_id], image.file_name)
        if key in names:
            raise ValueError(
                f"images {names[key]} and {image.image_id} of the split {key[0]!r} have the same file name "
                f"{image.file_name!r}; rename one of the pictures"
            )
        names[key] = image.image_id
        if not (Path(source.images) / path).is_file():
            missing.append(str(Path(source.images) / path))
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(chosen)} pictures are not there, such as {missing[0]}; "
            "are the 'images' folders of the sources right?"
        )


def _warnings(settings: ProjectSettings) -> tuple[str, ...]:
    found = list(settings.notes)
    if settings.split.take_train or settings.split.take_test:
        found.append(
            "take_train and take_test draw images by the seed: the split has the size asked for, but it is not a "
            "published list of images"
        )
    return tuple(found)


# --- splits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Division:
    """The split of each chosen image, and how many images the lists and the limits left out."""

    split_of: dict[int, str]
    not_listed: int
    not_taken: int


def divide(settings: ProjectSettings, images: Sequence[tuple[int, AnnotatedImage]]) -> Division:
    """Say for each (source, image) whether it is in ``train`` or ``test``: by its source, a list, or the seed.

    What the seed draws depends on the image's id alone, so it does not change when other images are added.

    Raises:
        ValueError: A list names an image that is not there, both lists name the same, or an image has a split by its
            source and by a list.
    """
    split = settings.split
    listed = _listed(split, [image for _, image in images])
    split_of: dict[int, str] = {}
    open_images: list[int] = []
    not_listed = 0
    for number, image in images:
        own, by_list = settings.sources[number].split, listed.get(image.image_id)
        if own is not None and by_list not in (None, own):
            raise ValueError(
                f"image {image.image_id} is in {own!r} by its source and in {by_list!r} by a list; drop one of them"
            )
        if by_list is not None:
            split_of[image.image_id] = by_list
        elif _must_be_listed(split, own):
            not_listed += 1
        elif own is not None:
            split_of[image.image_id] = own
        else:
            open_images.append(image.image_id)
    num_test = 0 if split.test_list else round(split.test_fraction * len(open_images))
    for place, image_id in enumerate(sorted(open_images, key=lambda i: _lot(split.seed, i))):
        split_of[image_id] = "test" if place < num_test else "train"
    taken = _take(split, split_of)
    return Division(taken, not_listed, len(split_of) - len(taken))


def _must_be_listed(split: SplitSettings, own: str | None) -> bool:
    """Whether an image that no list names is left out."""
    if own == "train" or own is None:
        return split.train_list is not None
    return split.test_list is not None


def _listed(split: SplitSettings, images: Sequence[AnnotatedImage]) -> dict[int, str]:
    by_name: dict[str, int] = {}
    for image in images:
        by_name[str(image.image_id)] = by_name[image.file_name] = image.image_id
    found: dict[int, str] = {}
    for name, path in (("train", split.train_list), ("test", split.test_list)):
        if path is None:
            continue
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read ({error}); check split.{name}_list") from error
        for number, line in enumerate(lines, start=1):
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            if entry not in by_name:
                raise ValueError(f"{path}: line {number}: no image with objects is called {entry!r}")
            if found.setdefault(by_name[entry], name) != name:
                raise ValueError(f"{path}: line {number}: {entry!r} is in both lists; keep it in one")
    return found


def _take(split: SplitSettings, split_of: Mapping[int, str]) -> dict[int, str]:
    taken: set[int] = set()
    for name in SPLITS:
        members = [image_id for image_id, own in split_of.items() if own == name]
        limit = split.take_train if name == "train" else split.take_test
        if limit is not None and limit > len(members):
            raise ValueError(f"split.take_{name} is {limit}, but there are {len(members)} images; lower it")
        taken |= set(sorted(members, key=lambda i: _lot(split.seed, i))[:limit])
    return {image_id: name for image_id, name in split_of.items() if image_id in taken}


def _lot(seed: int, image_id: int) -> str:
    return hashlib.sha256(f"{seed}/{image_id}".encode()).hexdigest()


# --- what is asked, and how it is checked -----------------------------------------------------------------------------


def recipe_of(settings: ProjectSettings) -> Recipe:
    """What makes the generator's answers what they are; part of every job's key."""
    generator = settings.generator
    if generator.kind == "offline":
        from aura.datagen.offline import GENERATOR, VERSION

        details = f"seed {generator.seed}"
        return Recipe(GENERATOR, f"{GENERATOR}-{VERSION}", f"{GENERATOR}-{VERSION}", generator.pairs_per_image, details)
    from aura.datagen.prompt import PROMPT_VERSION

    api = api_settings(generator.api)
    asked = {key: getattr(api, key) for key in ("detail", "image_side", "jpeg_quality", "temperature", "seed")}
    # A picture answered through the batch endpoint is not asked about again one by one.
    return Recipe("openai", api.model, PROMPT_VERSION, generator.pairs_per_image, json.dumps(asked, sort_keys=True))


def checks_of(settings: ProjectSettings) -> Check:
    """The checks as the orchestrator calls them."""

    def check(
        image: AnnotatedImage, pairs: Sequence[PairDraft], kept: Sequence[PairDraft] | None
    ) -> Sequence[Sequence[PairProblem]]:
        checker = PairChecker(image, settings.checks)
        if kept is None:
            return checker.check_all(pairs)
        return [checker.check(pair, [*kept, *pairs[:number]]) for number, pair in enumerate(pairs)]

    return check


def run_settings_of(settings: ProjectSettings, *, max_images: int | None = None) -> RunSettings:
    """How a run treats jobs."""
    generator = settings.generator
    return RunSettings(
        max_attempts=generator.max_attempts,
        retry_delay=generator.retry_delay,
        lease_seconds=generator.lease_seconds,
        send_back=generator.send_back,
        max_cost=None if generator.kind == "offline" else api_settings(generator.api).max_cost,
        max_images=max_images,
    )


def recheck(store: Store, settings: ProjectSettings, progress: Callable[[int], None] = lambda done: None) -> int:
    """Run the checks again over every pair that is not decided; returns how many pairs have other problems now."""
    changed = 0
    for done, stored in enumerate(store.images(), start=1):
        pairs = store.pairs(stored.image.image_id)
        place = {pair.id: number for number, pair in enumerate(pairs)}
        drafts = [
            PairDraft(p.text.question, p.text.answer, p.text.objects, None if p.follows is None else place[p.follows])
            for p in pairs
        ]
        if pairs:
            found = PairChecker(stored.image, settings.checks).check_all(drafts)
            for pair, problems in zip(pairs, found, strict=True):
                if pair.state == "in_review":
                    changed += store.set_problems(pair.id, pair.version, problems)
        progress(done)
    return changed
