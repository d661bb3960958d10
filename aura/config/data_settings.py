"""What to train and validate on: sources, splits, and how records become batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from aura.config.require import require

ObjectsPerAnswer = Literal["all", "first"]


@dataclass(frozen=True)
class SourceSettings:
    """One of several files to train or to validate on.

    Args:
        annotations: AmodalReasonSeg JSON file.
        images: Folder that its ``file_name`` entries are relative to.
        weight: Its share of the visits, compared with the weights of the other sources. Validation visits each image
            once, whatever the weights.
    """

    annotations: str
    images: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(
            0 < self.weight < math.inf,
            f"data: the weight of {self.annotations} must be positive and finite, got {self.weight}",
        )


@dataclass(frozen=True)
class SplitSettings:
    """One split of a data set: a file or several.

    In YAML ``train: [{annotations: ..., images: ..., weight: ...}, ...]`` stands for ``train: {sources: [...]}``; so
    does a list under ``val``.

    Args:
        annotations: AmodalReasonSeg JSON file.
        images: Folder that its ``file_name`` entries are relative to.
        sources: Several files in place of one, see :mod:`aura.data.mixture`.
    """

    annotations: str | None = None
    images: str | None = None
    sources: tuple[SourceSettings, ...] = ()

    def files(self, name: str) -> dict[str, SplitSettings | SourceSettings]:
        """Its files by the name that errors give them: ``name`` itself, or ``name[0]``, ``name[1]``, ..."""
        if not self.sources:
            return {name: self}
        return {f"{name}[{number}]": source for number, source in enumerate(self.sources)}


@dataclass(frozen=True)
class DataSettings:
    """What to train and validate on.

    Args:
        train: Training split, one file or several.
        val: Validation split, one file or several; without it a part of the training split is held out.
        held_out: Images held out of the training split where ``val`` names no file: those whose ids come first in the
            order of their hashes, at most a tenth of all. 0 trains on all of them and does not validate.
        conversations_per_image: Conversations drawn per image and step; ``null`` takes all.
        objects_per_answer: ``all`` objects of an answer have a ``[SEG]`` (AURA), or the ``first`` alone, the one that
            the answer names first (LISA): the other ``[SEG]`` are taken out of the answers, and evaluation counts
            their objects as missed.
        max_length: Longest single conversation in tokens, image included; longer ones are an error, never cut.
        feature_cache: Folder for the frozen encoders' outputs, which are computed once, before the first step (2.5 MiB
            an image with SAM ViT-H); ``null`` computes them anew in every step.
        num_workers: Processes that load data; 0 loads in the training process.
        prefetch: Micro-batches that each of them keeps ready.
        on_bad_record: What the checks before the start do about records that training would refuse: ``stop``, or
            ``skip`` them and list them in the run folder.
    """

    train: SplitSettings = field(default_factory=SplitSettings)
    val: SplitSettings = field(default_factory=SplitSettings)
    conversations_per_image: int | None = 3
    objects_per_answer: ObjectsPerAnswer = "all"
    max_length: int = 1024
    feature_cache: str | None = "data/features"
    num_workers: int = 4
    prefetch: int = 2
    held_out: int = 100
    on_bad_record: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        per_image = self.conversations_per_image
        require(per_image is None or per_image > 0, f"data.conversations_per_image must be positive, got {per_image}")
        require(self.max_length > 0, f"data.max_length must be positive, got {self.max_length}")
        require(self.prefetch > 0, f"data.prefetch must be positive, got {self.prefetch}")
        for key in ("num_workers", "held_out"):
            require(getattr(self, key) >= 0, f"data.{key} must not be negative, got {getattr(self, key)}")
        for name, split in (("train", self.train), ("val", self.val)):
            one, several = split.annotations, split.sources
            require(
                one is None or not several,
                f"data.{name} names one file ({one}) and a list of {len(several)} sources; to take the one file pass "
                f"--data.{name}.sources [] too",
            )
            files = [source.annotations for source in several]
            require(len(set(files)) == len(files), f"data.{name} lists a file twice; list it once: {files}")

    def files(self) -> dict[str, SplitSettings | SourceSettings]:
        """The files to train on, by the name that errors give them: ``train``, or ``train[0]``, ``train[1]``, ..."""
        return self.train.files("train")

    def val_files(self) -> dict[str, SplitSettings | SourceSettings]:
        """Those to validate on, likewise; none where ``val`` names no file."""
        named = self.val.annotations is not None or self.val.sources
        return self.val.files("val") if named else {}
