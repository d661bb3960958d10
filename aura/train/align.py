"""What new parts are told before the first step: the projector words, the prompt encoder the size of its states.

A language model that has never seen a vision tower takes image tokens for noise, and thousands of captions teach it to
read them (LLaVA's first stage). Masks allow a shorter way: each image token must say the word for the object seen
there. That asks the projector alone and not the language model, so that it takes a minute. Whatever else the tower
knows still passes through, for the training to use.

Legend of shapes: B images, T image tokens, H hidden size of the language model, Y words, the last for no object.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from aura.data.feature_cache import FeatureCache
from aura.data.images import clip_pixels
from aura.data.processor import Processor
from aura.features import encode
from aura.masks import decode_rle
from aura.model import AuraModel
from aura.types import Batch, Sample

BACKGROUND = "background"
BACKGROUND_WEIGHT = 0.2
"""Weight of an image token that shows no object; most of a photograph is background."""
SHARPNESS = 8.0
"""The logit that a word's own embedding gets."""
KEPT_SHARES = 2048
"""Images of which it is remembered what their image tokens show: making that costs more than reading their features."""


def align_projector(
    model: AuraModel,
    processor: Processor,
    samples: Sequence[Sample],
    cache: FeatureCache | None,
    *,
    steps: int,
    batch_size: int = 16,
    lr: float = 1e-3,
    seed: int = 0,
    quiet: bool = False,
) -> float:
    """Train the projector for ``steps`` steps of ``batch_size`` images; everything else stays as it is.

    Returns:
        The share of the image tokens showing an object, mostly, that are nearest to its word, in the last tenth of the
        steps: these images had not been seen before, if there are enough.

    Raises:
        ValueError: The tower's features form no square.
    """
    categories = _categories(samples)
    words = word_embeddings(model, processor, [*categories, BACKGROUND])
    scale = SHARPNESS / (words - words.mean(0)).square().sum(1).mean()
    projector = model.mllm.projector
    dtype = next(projector.parameters()).dtype
    projector.float()  # small steps, which bf16 would round away
    optimizer = torch.optim.AdamW(projector.parameters(), lr=lr, weight_decay=0.0)
    hits: list[torch.Tensor] = []
    stream = _batches(model, processor, samples, cache, categories, batch_size, np.random.default_rng(seed))
    for step in tqdm(range(steps), desc="aligning the projector", disable=quiet):
        features, shown = next(stream)
        logits = scale * (model.mllm.project(features) @ words.T)  # [B, T, Y]
        loss = word_loss(logits.log_softmax(-1), shown)
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 0.9 * steps:
            hits.append(_nearest_is_right(logits, shown))
    projector.to(dtype)
    return float(torch.cat(hits).mean()) if hits else float("nan")


@torch.no_grad()
def share_named(
    model: AuraModel,
    processor: Processor,
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    cache: FeatureCache | None,
) -> float:
    """What :func:`align_projector` returns, on images that it was not trained on; NaN where no token shows an object.

    It tells early how far the training can get: what the tower does not tell apart on new images is hardly found there.

    Args:
        samples: Those of the alignment. Their categories are the words to choose from.
        held_out: The images to look at. Objects of other categories count as background.
    """
    categories = _categories(samples)
    words = word_embeddings(model, processor, [*categories, BACKGROUND])
    index_of, hits = {category: i for i, category in enumerate(categories)}, [torch.zeros(0, device=words.device)]
    for sample in held_out:
        features = encode(model, processor, [sample], cache)[0].clip_features.to(model.device, torch.float32)
        logits = model.mllm.project(features).float() @ words.T
        known = dataclasses.replace(sample, objects=tuple(o for o in sample.objects if o.category in index_of))
        shown = torch.from_numpy(shares(known, index_of, processor, math.isqrt(logits.shape[1])))[None]
        hits.append(_nearest_is_right(logits, shown.to(model.device)))
    return float(torch.cat(hits).mean())


def _categories(samples: Sequence[Sample]) -> list[str]:
    return sorted({obj.category for sample in samples for obj in sample.objects})


def _nearest_is_right(logits: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Of the image tokens [B, T, Y] that show an object, mostly: 1 where the nearest word is what most of it shows."""
    seen = shown[..., :-1].sum(-1) > 0.5
    return (logits.argmax(-1) == shown.argmax(-1))[seen].float()


@torch.no_grad()
def rescale_states(model: AuraModel, batches: Iterable[Batch], quiet: bool = False) -> None:
    """Set the rescaling of the ``[SEG]`` states by those of ``batches``. Batches without any do not count."""
    rescaling = model.prompt_encoder.rescaling
    assert rescaling is not None
    was_training = model.training
    model.eval()
    seen = tqdm(batches, desc="looking at [SEG] states", disable=quiet)
    states = [model.read(batch.to(model.device))[1].float() for batch in seen]
    model.train(was_training)
    if states:
        rescaling.standardize(torch.cat(states))


@torch.no_grad()
def word_embeddings(model: AuraModel, processor: Processor, words: Sequence[str]) -> torch.Tensor:
    """The input embedding of each word after a space, the mean of its tokens: float32 [Y, H]."""
    embed = model.mllm.language_model.get_input_embeddings()
    ids = [processor.text.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    return torch.stack([embed(torch.tensor(i, device=model.device)).float().mean(0) for i in ids])


def word_loss(log_probabilities: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of words' log probabilities [..., Y] against what image tokens show of each [..., Y]."""
    entropy = -(shown * log_probabilities).sum(-1)
    weight = 1 - (1 - BACKGROUND_WEIGHT) * shown[..., -1]
    return (weight * entropy).sum() / weight.sum()


def _batches(
    model: AuraModel,
    processor: Processor,
    samples: Sequence[Sample],
    cache: FeatureCache | None,
    categories: Sequence[str],
    batch_size: int,
    rng: np.random.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled, endless: CLIP features [B, T m m, C] and what each image token shows [B, T, Y]."""
    index_of = {category: i for i, category in enumerate(categories)}
    shares_of = lru_cache(KEPT_SHARES)(lambda i, side: shares(samples[i], index_of, processor, side))
    order: list[int] = []
    while True:
        while len(order) < batch_size:
            order += rng.permutation(len(samples)).tolist()
        picked, order = order[:batch_size], order[batch_size:]
        features = torch.cat([encode(model, processor, [samples[i]], cache)[0].clip_features for i in picked])
        side, rest = divmod(math.isqrt(features.shape[1]), model.mllm.image_token_merge)
        if rest or (side * model.mllm.image_token_merge) ** 2 != features.shape[1]:
            raise ValueError(
                f"train.align_steps: the vision tower gives {features.shape[1]} features, which form no square; "
                "leave it 0"
            )
        shown = np.stack([shares_of(i, side) for i in picked])
        yield features.to(model.device, torch.float32), torch.from_numpy(shown).to(model.device)


def shares(sample: Sample, index_of: dict[str, int], processor: Processor, side: int) -> np.ndarray:
    """How much of each of ``side`` x ``side`` squares of CLIP's input shows what: float32 [T, Y], rows sum to 1.

    The masks go through the same resizing as the image, three at a time in the place of its colours.
    """
    result = np.zeros((len(index_of) + 1, side, side), np.float32)
    objects = sample.objects
    for start in range(0, len(objects), 3):
        part = objects[start : start + 3]
        picture = np.zeros((sample.height, sample.width, 3), np.uint8)
        for channel, obj in enumerate(part):
            picture[..., channel] = 255 * decode_rle(obj.visible)
        size, resize = processor.clip_image_size, processor.clip_resize
        pixels = clip_pixels(Image.fromarray(picture), size, (0, 0, 0), (1, 1, 1), resize)
        pooled = F.adaptive_avg_pool2d(pixels[None], side)[0].numpy()
        for channel, obj in enumerate(part):
            result[index_of[obj.category]] += pooled[channel]
    result[-1] = (1 - result[:-1].sum(0)).clip(0, 1)
    return (result / result.sum(0, keepdims=True)).reshape(len(result), -1).T
