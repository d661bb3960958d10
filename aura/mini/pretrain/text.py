"""Words for pretraining the language model: captions, questions and answers, and a tokenizer.

``[SEG]`` marks say which words name which object; they are taken out before the language model reads a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aura.data.templates import get_template, render
from aura.datagen.facts.grammar import degree
from aura.datagen.offline.generator import generate_conversations
from aura.formats.sources import AnnotatedImage
from aura.masks import encode_rle
from aura.mini.pretrain.scenes import PooledObject
from aura.types import IMAGE_TOKEN, SEG_TOKEN, AmodalObject, Conversation, Turn

CAPTION_REQUESTS = (
    "Describe the photo from left to right.",
    "What is in this photo, from left to right?",
    "Please list everything you can see, from left to right.",
    "Write a caption for this photo.",
)


def caption(objects: Sequence[PooledObject], rng: np.random.Generator) -> Turn:
    """All objects in the order of their centres from left to right, each with how hidden it is."""
    centres = [float(np.nonzero(o.visible)[1].mean()) for o in objects]
    order = [int(i) for i in np.argsort(centres)]
    parts = [f"a {objects[i].category} {SEG_TOKEN}, {degree(objects[i].occlusion_rate)}" for i in order]
    request = CAPTION_REQUESTS[int(rng.integers(len(CAPTION_REQUESTS)))]
    return Turn(request, f"A photo of {'; '.join(parts)}.", tuple(i + 1 for i in order))


def annotated(objects: Sequence[PooledObject], image_id: int) -> AnnotatedImage:
    """The scene as an annotation file would give it."""
    height, width = objects[0].visible.shape
    records = tuple(
        AmodalObject(number, o.category, encode_rle(o.visible), encode_rle(o.amodal), o.occlusion_rate)
        for number, o in enumerate(objects, start=1)
    )
    return AnnotatedImage(image_id, "", height, width, records)


def conversations_about(
    objects: Sequence[PooledObject], image_id: int, seed: int, pairs: int = 10
) -> list[Conversation]:
    """A caption and ``pairs`` question-answer pairs; object ``i`` of a turn is ``objects[i - 1]``."""
    rng = np.random.default_rng([seed, image_id])
    talks = generate_conversations(annotated(objects, image_id), pairs=pairs, seed=seed, first_id=1)
    return [Conversation(0, (caption(objects, rng),)), *talks]


def without_marks(answer: str) -> str:
    """The answer as the language model reads it."""
    return answer.replace(f" {SEG_TOKEN}", "")


def train_tokenizer(texts: Sequence[str], words: Sequence[str], vocabulary: int = 1000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: whole tokens for common words and ``words``, bytes for everything else.

    Args:
        texts: Conversations as the template writes them.
        words: Words that must be one token, with a space before.
        vocabulary: Tokens, special ones included.
    """
    special = ["<unk>", "<s>", "</s>", "<pad>", IMAGE_TOKEN]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    weight = 2 + len(texts) // 10
    tokenizer.train_from_iterator([*texts, *(f" {word}" for word in words for _ in range(weight))], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=[IMAGE_TOKEN],
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def template_text(talk: Conversation) -> str:
    """A conversation as the llava_v1 template writes it, for the tokenizer's statistics."""
    turns = [(turn.question, without_marks(turn.answer)) for turn in talk.turns]
    return render(get_template("llava_v1"), turns, image="", bos="", eos="").text
