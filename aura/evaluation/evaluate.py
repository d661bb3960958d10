"""An AURA model against a data set, under a named protocol (see :mod:`aura.evaluation.scoring`).

``teacher_forced`` reads the true answers and decodes a mask for each of their ``[SEG]``, as LISA's evaluation does: one
packed forward pass per image. The two generated protocols let the model write every answer itself, greedily; an answer
in a later turn follows the **true** history of its conversation, so that each answer is judged by itself. Masks are
resampled to the image's size and cut at logit 0.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from aura.config import Protocol
from aura.data.collate import collate
from aura.data.conversations import TokenizedConversation
from aura.data.feature_cache import FeatureCache
from aura.data.images import sam_geometry
from aura.data.processor import Processor
from aura.evaluation.report import Report
from aura.evaluation.scoring import PredictedAnswer, Scorer, TurnKey
from aura.evaluation.unfinished import Answers, Unfinished, weights_digest
from aura.features import encode
from aura.machine.ranks import from_first, gather, rank_and_world, wait
from aura.model import AuraModel
from aura.model.readout import decode_answers, read_masks
from aura.types import ImageFeatures, MaskPair, Sample

Observer = Callable[[Sample, Mapping[TurnKey, PredictedAnswer]], None]


def evaluate(
    model: AuraModel, processor: Processor, dataset: Sequence[Sample], protocol: Protocol, **options: Any
) -> Report:
    """Score ``model`` on ``dataset`` under one protocol; the options are those of :func:`evaluate_all`."""
    return dict(evaluate_all(model, processor, dataset, [protocol], **options))[protocol]


def evaluate_all(
    model: AuraModel,
    processor: Processor,
    dataset: Sequence[Sample],
    protocols: Sequence[Protocol],
    *,
    cache: FeatureCache | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    max_new_tokens: int = 256,
    progress: bool = True,
    name: str = "AURA",
    observers: Sequence[Observer] = (),
    unfinished: Path | None = None,
) -> Iterator[tuple[Protocol, Report]]:
    """Score ``model`` on ``dataset`` under each protocol.

    Answers are generated once: both generated protocols score the same ones. A report is yielded as soon as it is
    complete, so the caller can write it before the next protocol begins.

    With ``torch.distributed`` each rank evaluates its own share of the images, and every rank gets the report of all
    images. No image is scored twice. The model returns to training mode if it was in it.

    Args:
        model: On the device to use.
        processor: The one it was trained with.
        dataset: Samples; those without a conversation are left out.
        protocols: Some of ``teacher_forced``, ``generated_order`` and ``generated_matched``.
        cache: The frozen encoders' outputs; missing ones are computed and stored.
        limit: Take the first so many images; ``None`` takes all.
        batch_size: Images per forward pass (``teacher_forced``) or per encoder pass.
        max_new_tokens: Longest generated answer; it is cut there.
        progress: Show a progress bar on rank 0.
        name: The model's row in tables.
        observers: Each is called with each image of this rank and its answers under the last protocol.
        unfinished: A folder for answers until their reports have been taken. An evaluation that finds some there, of
            the same model and settings, goes on with them; an image whose record has changed is answered anew.

    Raises:
        ValueError: No image to evaluate, answers of another model or with other settings in ``unfinished``, or a sample
            that the processor refuses; the message names it.
    """
    rank, world = rank_and_world()
    chosen = [sample for sample in dataset if sample.conversations][:limit]
    if not chosen:
        raise ValueError("there is no image with a conversation to evaluate; check the data file and the limit")
    mine = chosen[rank::world]
    # ZeRO 3 needs every rank in every forward pass. A rank with one image less repeats one and drops the result.
    padding = chosen[: -(-len(chosen) // world) - len(mine)]
    hidden = not progress or rank > 0
    for read in dict.fromkeys(protocol == "teacher_forced" for protocol in protocols):
        same = [protocol for protocol in protocols if (protocol == "teacher_forced") == read]
        misses = processor.text.objects_per_answer == "first"
        scorers = [Scorer(protocol, model.config.masks, misses=misses) for protocol in same]

        def answer(samples: Sequence[Sample], protocol: Protocol = same[0]) -> Iterator[tuple[Sample, Answers]]:
            options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
            return predict(model, processor, samples, protocol, cache=cache, **options)  # type: ignore[arg-type]

        kept = None
        if unfinished is None:
            predicted: Iterable[tuple[Sample, Answers]] = answer([*mine, *padding])
        else:
            kept = Unfinished(unfinished / ("read" if read else "written"))
            identity = {
                "model": weights_digest(model),
                "processor": json.loads(json.dumps(processor.settings)),
                "device": model.device.type,
                "batch size": batch_size,
                "feature cache": cache is not None,
                "longest answer": None if read else max_new_tokens,
            }
            found = from_first(partial(kept.begin, identity))
            if found and not hidden:
                tqdm.write(f"{', '.join(same)}: {found} images were answered before; going on in {kept.folder}")
            predicted = _kept(kept, mine, batch_size, answer)
        bar = tqdm(predicted, total=len(mine), desc=", ".join(same), unit="image", disable=hidden, leave=False)
        for number, (sample, answers) in enumerate(bar):
            if number < len(mine):
                for scorer in scorers:
                    scorer.add(sample, answers)
                for observe in observers if protocols[-1] in same else ():
                    observe(sample, answers)
        for protocol, scorer in zip(same, scorers, strict=True):
            yield protocol, Report.merge(protocol, gather(scorer.report(name)), name)
        if kept is not None:
            wait()
            if rank == 0:
                kept.end()


def _kept(
    kept: Unfinished,
    samples: Sequence[Sample],
    batch_size: int,
    answer: Callable[[Sequence[Sample]], Iterable[tuple[Sample, Answers]]],
) -> Iterator[tuple[Sample, Answers]]:
    """Answers from ``kept``, and new ones put there, by whole batches: their members differ in rounding elsewhere."""
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        found = [(sample, answers) for sample in part if (answers := kept.load(sample)) is not None]
        if len(found) < len(part):
            found = list(answer(part))
            kept.save(found)
        yield from found


@torch.no_grad()
def predict(
    model: AuraModel,
    processor: Processor,
    samples: Sequence[Sample],
    protocol: Protocol,
    *,
    cache: FeatureCache | None = None,
    batch_size: int = 1,
    max_new_tokens: int = 256,
) -> Iterator[tuple[Sample, Answers]]:
    """Each sample (with at least one conversation) and the model's answers; arguments as in :func:`evaluate`."""
    was_training = model.training
    model.train(False)
    try:
        for start in range(0, len(samples), batch_size):
            part = samples[start : start + batch_size]
            features = encode(model, processor, part, cache)
            if protocol == "teacher_forced":
                yield from zip(part, _read_answers(model, processor, part, features), strict=True)
            else:
                for sample, feature in zip(part, features, strict=True):
                    yield sample, _write_answers(model, processor, sample, feature, max_new_tokens)
    finally:
        model.train(was_training)


def _read_answers(
    model: AuraModel, processor: Processor, samples: Sequence[Sample], features: Sequence[ImageFeatures]
) -> list[Answers]:
    """Masks for the ``[SEG]`` of the true answers. The number of ``[SEG]`` is what the model itself would have put."""
    processed = [processor(sample, found) for sample, found in zip(samples, features, strict=True)]
    batch = collate(processed).to(model.device)
    output = model(batch)

    turns = [key for p in processed for c in p.conversations for key in _supervised_turns(c)]
    written = (output.text_logits.argmax(-1) == processor.text.seg_token_id).tolist()
    counts = Counter(key for key, is_seg in zip(turns, written, strict=True) if is_seg)
    answers: list[Answers] = []
    for b, (sample, p) in enumerate(zip(samples, processed, strict=True)):
        rows = [n for n, image in enumerate(batch.seg_image.tolist()) if image == b]
        masks = read_masks(output, rows, p.geometry)
        found: dict[TurnKey, dict[int, MaskPair]] = {
            (c.id, number): {} for c in sample.conversations for number in range(len(c.turns))
        }
        for row, pair in zip(rows, masks, strict=True):
            record = batch.records[row]
            found[record.conversation_id, record.turn][record.index] = pair
        answers.append({key: PredictedAnswer(pairs, counts[key]) for key, pairs in found.items()})
    return answers


def _write_answers(
    model: AuraModel, processor: Processor, sample: Sample, features: ImageFeatures, max_new_tokens: int
) -> Answers:
    """The model's own answer to every question about one image, all generated together."""
    prompts: dict[TurnKey, list[int]] = {}
    for conversation in sample.conversations:
        tokens = processor.text.conversation(conversation, sample.image_id)
        starts = answer_starts(tokens)
        prompts |= {(conversation.id, turn): tokens.input_ids[:start] for turn, start in enumerate(starts)}
    generations = model.generate_answers(
        list(prompts.values()), clip_features=features.clip_features, max_new_tokens=max_new_tokens
    )
    states = torch.cat([g.seg_hidden for g in generations])
    geometry = sam_geometry(sample.height, sample.width, processor.sam_image_size)
    masks = decode_answers(model, states, features, geometry)
    answers: Answers = {}
    for key, generation in zip(prompts, generations, strict=True):
        count = len(generation.seg_hidden)
        pairs = {index: next(masks) for index in range(count)}
        answers[key] = PredictedAnswer(pairs, count, processor.text.decode(generation.token_ids))
    return answers


def answer_starts(tokens: TokenizedConversation) -> list[int]:
    """Position of each answer's first token. Answers never touch: a question stands between them."""
    mask = tokens.target_mask
    return [at for at, supervised in enumerate(mask) if supervised and not (at and mask[at - 1])]


def _supervised_turns(tokens: TokenizedConversation) -> Iterator[TurnKey]:
    """Conversation and turn of each supervised token, in order."""
    starts = answer_starts(tokens)
    return ((tokens.id, bisect_right(starts, at) - 1) for at, supervised in enumerate(tokens.target_mask) if supervised)
