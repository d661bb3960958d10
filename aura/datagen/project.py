"""From settings to a project: makes it, opens it, and says what is asked of the generator."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aura.datagen.checks.rules import PairChecker
from aura.datagen.generate import Check, RunSettings
from aura.datagen.records import PairDraft, PairProblem
from aura.datagen.settings import ProjectSettings, api_settings
from aura.datagen.splits import divide
from aura.datagen.staging import Progress, Staging, silent
from aura.datagen.store.images import ImageEntry, Source
from aura.datagen.store.jobs import Recipe
from aura.datagen.store.pairs import draft_of
from aura.datagen.store.store import Store
from aura.formats.pictures import find_picture
from aura.formats.sources import AnnotatedImage


@dataclass(frozen=True)
class InitSummary:
    """What ``init`` did: images ``added`` now, images per split in all, and those left out with the reason.

    ``layouts``: of each source.
    """

    added: int
    splits: dict[str, int]
    layouts: tuple[str, ...]
    without_objects: int
    not_listed: int
    not_taken: int
    warnings: tuple[str, ...]


def init_project(settings: ProjectSettings, *, progress: Progress = silent) -> InitSummary:
    """Make the project, or complete one whose making was interrupted.

    Of the annotations one image is in memory at a time, and of every image its id and split. The annotations, the
    pictures' digests and the split of each image are written into the project: what changes in the files later does
    not change it.

    Raises:
        ValueError: A file is missing or contradicts itself, a picture is missing, two images share an id or, within a
            split, a file name, or the project was made from other data.
    """
    # All settings are written into the project: what is wrong in them, or a key among them, must not be.
    api_settings(settings.generator.api)
    sources = [Source(s.annotations, s.images) for s in settings.sources]
    staging = Staging(settings.sources, progress)
    splits = divide(settings, staging.ids(), staging.find)
    staging.choose(splits.split_of)
    exists = settings.database.exists()
    store = Store.open(settings.database) if exists else Store.create(settings.database, sources=sources)
    with store:
        store.images.set_sources(sources)
        store.database.set_meta("licenses", staging.licenses)
        added = store.images.add(_entries(staging, progress))
        if store.images.count() != len(staging):
            raise ValueError(
                f"{store.path}: the project holds {store.images.count()} images, these settings name {len(staging)}; "
                "start a new project for another choice of images"
            )
        store.database.set_meta("settings", _resolved(settings, staging.layouts))
        store.database.set_meta("reviewers", settings.review.reviewers)
        store.database.set_meta("complete", True)
        counts = store.status().splits
    return InitSummary(
        added=added,
        splits=counts,
        layouts=tuple(staging.layouts),
        without_objects=staging.without_objects,
        not_listed=splits.not_listed,
        not_taken=splits.not_taken,
        warnings=_warnings(settings),
    )


def _resolved(settings: ProjectSettings, layouts: Sequence[str]) -> dict[str, Any]:
    """The settings for the record, with the layouts that were found."""
    found = settings.as_dict()
    found["sources"] = [{**s, "layout": layout} for s, layout in zip(found["sources"], layouts, strict=True)]
    return found


def open_project(settings: ProjectSettings) -> Store:
    """Open the project that ``init`` made; where the files lie is taken from ``settings``.

    Raises:
        ValueError: There is none, or ``init`` was interrupted.
    """
    store = Store.open(settings.database)
    if not store.database.meta("complete", False):
        store.close()
        raise ValueError(f"{settings.database}: init was interrupted; run it again to complete the project")
    store.images.set_sources([Source(s.annotations, s.images) for s in settings.sources])
    return store


def _entries(staging: Staging, progress: Progress) -> Iterator[ImageEntry]:
    total = len(staging)
    for done, (number, split, image) in enumerate(staging.chosen(), start=1):
        with find_picture(Path(staging.sources[number].images), image.file_name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield ImageEntry(image, split, number, digest)
        progress("pictures", done, total)


def _warnings(settings: ProjectSettings) -> tuple[str, ...]:
    found = list(settings.notes)
    if settings.split.take_train or settings.split.take_test:
        found.append(
            "take_train and take_test draw images by the seed: the split has the size asked for, but it is not a "
            "published list of images"
        )
    return tuple(found)


# --- what is asked, and how it is checked -----------------------------------------------------------------------------


def recipe_of(settings: ProjectSettings) -> Recipe:
    """What makes the generator's answers what they are; part of every job's key."""
    generator = settings.generator
    if generator.kind == "offline":
        from aura.datagen.offline.generator import GENERATOR, VERSION

        details = f"seed {generator.seed}{', intents' if generator.intents else ''}"
        return Recipe(GENERATOR, f"{GENERATOR}-{VERSION}", f"{GENERATOR}-{VERSION}", generator.pairs_per_image, details)
    from aura.datagen.service.prompt import prompt_version

    api = api_settings(generator.api)
    asked = {key: getattr(api, key) for key in ("detail", "image_side", "jpeg_quality", "temperature", "seed")}
    # A picture answered through the batch endpoint is not asked about again one by one.
    version = prompt_version(api.intents)
    return Recipe("openai", api.model, version, generator.pairs_per_image, json.dumps(asked, sort_keys=True))


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
    for done, stored in enumerate(store.images.all(), start=1):
        pairs = store.pairs.of(stored.image.image_id)
        place = {pair.id: number for number, pair in enumerate(pairs)}
        drafts = [draft_of(p.text, None if p.follows is None else place[p.follows]) for p in pairs]
        if pairs:
            found = PairChecker(stored.image, settings.checks).check_all(drafts)
            for pair, problems in zip(pairs, found, strict=True):
                if pair.state == "in_review":
                    changed += store.pairs.set_problems(pair.id, pair.version, problems)
        progress(done)
    return changed
