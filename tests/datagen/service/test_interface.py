"""Every generator answers to one interface."""

from __future__ import annotations

from aura.datagen.generators import OfflineGenerator, make_generator
from aura.datagen.records import (
    GenerationRequest,
    GenerationResult,
    PairProblem,
)
from tests.datagen.service.asking import image, run_all, settings


def test_all_three_answer_to_one_interface(server, picture, tmp_path):
    request = GenerationRequest(image(3), picture, 2)
    for kind in ("openai", "openai-batch", "offline"):
        generator = make_generator(kind, settings(server, linger=0.02, poll_every=0.02), folder=tmp_path)
        assert generator.name == kind and generator.concurrency >= 1
        (result,) = run_all(generator, [request])
        assert isinstance(result, GenerationResult) and result.generator == kind and len(result.pairs) == 2


def test_the_offline_generator_is_deterministic_and_replaces_rejected_pairs(picture):
    request = GenerationRequest(image(3, 3), picture, 6)
    (first,), (again,) = (run_all(OfflineGenerator(5), [request]) for _ in range(2))
    assert first == again and first.cost == 0
    for number, pair in enumerate(first.pairs):
        assert pair.follows is None or pair.follows < number
    problem = PairProblem("x", "y")
    redo = GenerationRequest(image(3, 3), picture, 1, ((first.pairs[0], (problem,)),), first.pairs)
    (new,) = run_all(OfflineGenerator(5), [redo])
    assert len(new.pairs) == 1 and new.pairs[0].question not in {p.question for p in first.pairs}
    (nothing,) = run_all(OfflineGenerator(5), [GenerationRequest(image(3, 0), picture)])
    assert nothing.reason == "empty" and not nothing.retryable
