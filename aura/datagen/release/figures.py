"""The statistics of a split, counted image by image, under the names of ``AmodalReasonSeg.statistics``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from aura.formats.amodal_reason_seg import OCCLUSION_BINS
from aura.formats.sources import AnnotatedImage
from aura.types import Conversation


class SplitFigures:
    """Counts images, objects, pairs and words; of the questions only digests are kept."""

    def __init__(self) -> None:
        self.images = 0
        self.objects = 0
        self.conversations = 0
        self.pairs = 0
        self.occluded = 0
        self.known = 0
        self.rates = 0.0
        self.words = Counter[str]()
        self.categories: set[str] = set()
        self.questions: set[bytes] = set()
        self.per_answer = Counter[int]()
        self.asked = Counter[str]()
        self.turns = Counter[int]()
        self.histogram = np.zeros(len(OCCLUSION_BINS) - 1, np.int64)

    def add(self, image: AnnotatedImage, conversations: Iterable[Conversation]) -> None:
        """Count one image with its conversations."""
        self.images += 1
        self.objects += len(image.objects)
        self.occluded += sum(bool(o.occluded_by) for o in image.objects)
        self.categories |= {o.category for o in image.objects}
        rates = [o.occlusion_rate for o in image.objects if o.occlusion_rate is not None]
        self.known += len(rates)
        self.rates += sum(rates)
        self.histogram += np.histogram(rates, bins=OCCLUSION_BINS)[0]
        for conversation in conversations:
            self.conversations += 1
            self.turns[len(conversation.turns)] += 1
            for turn in conversation.turns:
                self.pairs += 1
                self.per_answer[len(turn.objects)] += 1
                self.asked.update(turn.asked)
                self.words.update(question=len(turn.question.split()), answer=len(turn.answer.split()))
                self.questions.add(hashlib.blake2b(turn.question.encode(), digest_size=16).digest())

    def as_dict(self) -> dict[str, Any]:
        """The figures; means over nothing are 0."""
        pairs, images = max(self.pairs, 1), max(self.images, 1)
        return {
            "images": self.images,
            "images_with_conversations": self.images,
            "objects": self.objects,
            "categories": len(self.categories),
            "objects_per_image": self.objects / images,
            "conversations": self.conversations,
            "pairs": self.pairs,
            "pairs_per_image": self.pairs / images,
            "objects_per_answer": sum(n * count for n, count in self.per_answer.items()) / pairs,
            "objects_per_answer_histogram": dict(sorted(self.per_answer.items())),
            "turns_histogram": dict(sorted(self.turns.items())),
            "distinct_questions": len(self.questions),
            "words_per_question": self.words["question"] / pairs,
            "words_per_answer": self.words["answer"] / pairs,
            "objects_of_unknown_shape": self.objects - self.known,
            "mean_occlusion_rate": self.rates / max(self.known, 1),
            "occlusion_histogram": self.histogram.tolist(),
            "occluded_objects": self.occluded,
            **{f"asked_{kind}": self.asked[kind] for kind in ("visible", "amodal") if self.asked[kind]},
        }
