"""Pretraining of the LLaVA-like model: projector and language model on captions and questions, on the trained tower.

All conversations about an image are packed behind one shared prefix, exactly as AURA trains later. Three losses beside
that of the text make up for the few images:

- Image tokens: as it enters the language model and as it leaves it, the state of a token says the word for what is
  there. As it enters it also tells its row and column.
- The state before an object's name tells where that object lies.
- The state at the last word of the name tells the object's category, place and occlusion rate, what hides it, and what
  it hides. Region tasks teach large models the same.

No ``[SEG]`` and no mask is learned here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionModel,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from aura.data.collate import pack
from aura.data.conversations import ConversationTokenizer, TokenizedConversation
from aura.data.images import CLIP_MEAN, CLIP_STD
from aura.files import write_json
from aura.mini.pretrain.cells import CellBatch, cell_targets, stack_cells
from aura.mini.pretrain.relations import RELATION_WEIGHT, RelationHead, object_relations
from aura.mini.pretrain.run import Metrics
from aura.mini.pretrain.scenes import PooledObject, ScenePool, shuffled
from aura.mini.pretrain.text import conversations_about, without_marks
from aura.mini.pretrain.tower import FEATURE_LAYER, POSITION_WEIGHT, PositionHead, squashed_pixels, squashed_shares
from aura.model.mllm import Mllm, packed_attention_mask
from aura.train.align import word_loss
from aura.types import IMAGE_TOKEN


def new_llava(
    tower: CLIPVisionModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden: int = 256,
    layers: int = 4,
    heads: int = 4,
    mlp: int = 512,
) -> LlavaForConditionalGeneration:
    """A LLaVA on a trained tower; its language model has about 3 million parameters and random weights."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        initializer_range=0.04,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )
    llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    return llava


@dataclass
class LlavaBatch:
    """B images with all their conversations, packed; the fields are those of :class:`aura.types.Batch`."""

    cells: CellBatch
    input_ids: torch.Tensor  # [B, L] int64
    position_ids: torch.Tensor  # [B, L] int64
    segment_ids: torch.Tensor  # [B, L] int64
    target_index: torch.Tensor  # [M] int64
    target_ids: torch.Tensor  # [M] int64
    name_index: torch.Tensor  # [N] int64, positions of the last token of each object's name
    before_index: torch.Tensor  # [N] int64, positions of the token before each object's name
    name_category: torch.Tensor  # [N] int64
    name_places: torch.Tensor  # [N, 2 T], visible and amodal share of each patch
    name_relations: torch.Tensor  # [N, 2 Y + 1], see pretrain_relations; the last is the occlusion rate


class LlavaBatches:
    """Makes batches from scenes: pixels, the tower's targets, and conversations written anew each time.

    Args:
        pool: The scenes.
        categories: Names in the order of the heads' outputs.
        tokenizer: The pretraining tokenizer; a copy is prepared, the original stays without ``[SEG]``.
        num_image_tokens: Patches of the tower.
    """

    def __init__(
        self, pool: ScenePool, categories: list[str], tokenizer: PreTrainedTokenizerFast, num_image_tokens: int
    ) -> None:
        self.pool = pool
        self.index_of = {name: i for i, name in enumerate(categories)}
        self.name_length = {name: len(tokenizer.encode(f" {name}")) for name in categories}
        self.text = ConversationTokenizer(
            copy.deepcopy(tokenizer),
            num_image_tokens=num_image_tokens,
            prompt_template="llava_v1",
            max_length=512,
            use_im_start_end=False,
        )

    def stream(self, batch_size: int, rng: np.random.Generator, pairs: int = 10) -> Iterator[LlavaBatch]:
        """Shuffled, mirrored batches without end."""
        order = shuffled(len(self.pool), rng)
        while True:
            yield self.batch([next(order) for _ in range(batch_size)], int(rng.integers(1 << 31)), pairs)

    def batch(self, picked: Sequence[tuple[int, bool]], seed: int, pairs: int = 10) -> LlavaBatch:
        """The batch of the (index, mirrored) scenes ``picked``, with conversations of ``seed``."""
        samples, packed, named, relations = [], [], [], []
        for index, flip in picked:
            objects = self.pool.objects(index, flip)
            pixels = squashed_pixels(Image.fromarray(self.pool.image(index, flip)))
            samples.append((pixels, *cell_targets(objects, self.index_of, squashed_shares)))
            talks = conversations_about(objects, index, seed, pairs)
            packed.append(
                pack([unmarked(self.text.conversation(talk, index), self.text.seg_token_id) for talk in talks])
            )
            rows = [i - 1 for talk in talks for turn in talk.turns for i in turn.objects]
            named += [objects[row] for row in rows]
            relations.append(object_relations(objects, self.index_of)[rows])
        length = max(len(p.input_ids) for p in packed)

        def padded(name: str, value: int) -> torch.Tensor:
            rows = [getattr(p, name) for p in packed]
            return torch.tensor([row + [value] * (length - len(row)) for row in rows])

        name_index = torch.tensor([b * length + i - 1 for b, p in enumerate(packed) for i in p.seg_index])
        return LlavaBatch(
            cells=stack_cells(samples),
            input_ids=padded("input_ids", 0),
            position_ids=padded("position_ids", 0),
            segment_ids=padded("segment_ids", -1),
            target_index=torch.tensor([b * length + i for b, p in enumerate(packed) for i in p.target_index]),
            target_ids=torch.tensor([i for p in packed for i in p.target_ids]),
            name_index=name_index,
            before_index=name_index - torch.tensor([self.name_length[obj.category] for obj in named]),
            name_category=torch.tensor([self.index_of[obj.category] for obj in named]),
            name_places=torch.from_numpy(np.stack([places(obj) for obj in named])),
            name_relations=torch.from_numpy(np.concatenate(relations)),
        )


def unmarked(tokens: TokenizedConversation, seg_token_id: int) -> TokenizedConversation:
    """The conversation without its ``[SEG]`` tokens; ``seg_positions`` then point behind each object's name."""
    kept = [t for t, token in enumerate(tokens.input_ids) if token != seg_token_id]
    return replace(
        tokens,
        input_ids=[tokens.input_ids[t] for t in kept],
        target_mask=[tokens.target_mask[t] for t in kept],
        seg_positions=[position - number for number, position in enumerate(tokens.seg_positions)],
    )


def places(obj: PooledObject) -> np.ndarray:
    """Visible and amodal share of each patch of the squashed image, float32 [2 T]."""
    return np.concatenate([squashed_shares(mask).ravel() for mask in (obj.visible, obj.amodal)])


class GroundingHead(nn.Module):
    """Throw-away: place of an object from the states before and at its name; from the latter all else known of it."""

    def __init__(self, hidden: int, num_categories: int, num_patches: int) -> None:
        super().__init__()
        self.category = nn.Linear(hidden, num_categories)
        self.places = nn.Linear(hidden, 2 * num_patches)
        self.places_ahead = nn.Linear(hidden, 2 * num_patches)
        self.relations = RelationHead(hidden, num_categories)

    def loss(self, before: torch.Tensor, at: torch.Tensor, batch: LlavaBatch) -> tuple[torch.Tensor, Metrics]:
        """From the states [N, H] before and at the names."""
        category = F.cross_entropy(self.category(at), batch.name_category)
        place = F.binary_cross_entropy_with_logits(self.places(at), batch.name_places)
        place_ahead = F.binary_cross_entropy_with_logits(self.places_ahead(before), batch.name_places)
        relations, related = self.relations.loss(at, batch.name_relations)
        terms = {"category": category, "place": place, "place_ahead": place_ahead}
        loss = category + 4 * (place + place_ahead) + RELATION_WEIGHT * relations
        return loss, {key: float(value.detach()) for key, value in terms.items()} | related


class LlavaPretrainer(nn.Module):
    """LLaVA with the throw-away heads. Its tower stays as it is."""

    def __init__(
        self, llava: LlavaForConditionalGeneration, categories: Sequence[str], tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__()
        hidden = llava.config.text_config.hidden_size
        first_tokens = [tokenizer.encode(f" {name}")[0] for name in categories]
        self.register_buffer("words", torch.tensor([*first_tokens, tokenizer.pad_token_id]), persistent=False)
        self.llava = llava
        self.llava.model.vision_tower.requires_grad_(False)
        self.grounding = GroundingHead(hidden, len(categories), llava.config.image_seq_length)
        self.position_head = PositionHead(hidden)
        # In a tuple, so that the shared parts are not registered twice.
        self._parts = (Mllm(self.llava),)
        self.low_precision = torch.cpu._is_avx512_bf16_supported()

    def forward(self, batch: LlavaBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token logits [M, V] at the supervised positions, the image tokens' states [2, B, T, H] as they enter the
        language model and as they leave it, all states that leave it [B, L, H].
        """
        (parts,) = self._parts
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
            with torch.no_grad():
                seen = parts.vision_tower(batch.cells.pixels, output_hidden_states=True)
                features = seen.hidden_states[FEATURE_LAYER][:, 1:]
            states = parts(
                batch.input_ids,
                clip_features=features,
                attention_mask=packed_attention_mask(batch.segment_ids, torch.float32),
                position_ids=batch.position_ids,
            )
            logits = parts.lm_head(states.flatten(0, 1)[batch.target_index])
            entering = parts.language_model.norm(parts.projector(features))
            leaving = states[batch.input_ids == self.llava.config.image_token_id].view_as(entering)
        return logits.float(), torch.stack([entering, leaving]), states

    def loss(self, batch: LlavaBatch) -> tuple[torch.Tensor, Metrics]:
        """Cross-entropy of the answers and of the image tokens' words, grounding, positions; the terms."""
        logits, at_image, states = self(batch)
        text = F.cross_entropy(logits, batch.target_ids)
        words = self.word_loss(at_image, batch.cells)
        position = self.position_head.loss(at_image[0])
        before, at = (states.flatten(0, 1)[index].float() for index in (batch.before_index, batch.name_index))
        grounding, placed = self.grounding.loss(before, at, batch)
        right = float((logits.argmax(-1) == batch.target_ids).float().mean())
        terms = {"text": float(text.detach()), "token_accuracy": right, "words": float(words.detach())}
        terms |= {"position": float(position.detach())} | placed
        return text + 0.5 * words + POSITION_WEIGHT * position + 0.5 * grounding, terms

    def word_loss(self, states: torch.Tensor, batch: CellBatch) -> torch.Tensor:
        """Cross-entropy of the word at each image token [2, B, T, H]: of the category seen, or hidden there (half)."""
        (parts,) = self._parts
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
            logits = parts.lm_head(states.flatten(0, 2)).float()
        hidden = (batch.reaching - batch.seen[:, :-1]).clamp(min=0)
        target = torch.cat([batch.seen[:, :-1] + 0.5 * hidden, batch.seen[:, -1:]], dim=1)
        target = target.flatten(2).transpose(1, 2).flatten(0, 1)  # [B T, Y + 1], rows of patches as in the sequence
        target = (target / target.sum(1, keepdim=True)).repeat(2, 1)
        return word_loss(logits.log_softmax(-1)[:, self.words], target)


@torch.no_grad()
def evaluate_llava(
    model: LlavaPretrainer, batches: Sequence[LlavaBatch], tokenizer: PreTrainedTokenizerFast, words: Sequence[str]
) -> Metrics:
    """On held-out scenes: loss, accuracy of tokens and of the categories' words, answers that are right to the letter.

    An answer is right when each of its tokens is the likeliest after the true ones before it, which is the same as
    greedy generation giving this very answer.
    """
    word_ids = torch.tensor(sorted({i for word in words for i in tokenizer.encode(f" {word}")}))
    losses, tokens, named, exact = [], [], [], []
    for batch in batches:
        logits, _, _ = model(batch)
        losses.append(F.cross_entropy(logits, batch.target_ids))
        hits = logits.argmax(-1) == batch.target_ids
        tokens.append(hits.float())
        named.append(hits[torch.isin(batch.target_ids, word_ids)].float())
        start = 0
        for end in (batch.target_ids == tokenizer.eos_token_id).nonzero().flatten().tolist():
            exact.append(float(hits[start : end + 1].all()))
            start = end + 1
    return {
        "text": float(torch.stack(losses).mean()),
        "token_accuracy": float(torch.cat(tokens).mean()),
        "name_accuracy": float(torch.cat(named).mean()),
        "exact_answers": float(np.mean(exact)),
    }


@torch.no_grad()
def evaluate_generation(
    folder: Path, batches: LlavaBatches, categories: Sequence[str], *, scenes: int = 40, seed: int = 1
) -> Metrics:
    """Greedy answers of an exported folder to the first questions about held-out scenes.

    ``generated_exact`` is the share of answers right to the letter, ``generated_names`` of those that name exactly the
    right categories.
    """
    llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    exact, named = [], []
    for index in range(scenes):
        objects = batches.pool.objects(index)
        pixels = squashed_pixels(Image.fromarray(batches.pool.image(index)))[None]
        for talk in conversations_about(objects, index, seed)[:5]:
            turn = talk.turns[0]
            prompt = torch.tensor([batches.text.start_prompt(turn.question)])
            ids = llava.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), pixel_values=pixels)
            answer = tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True).strip()
            true = without_marks(turn.answer)
            exact.append(answer == true)
            named.append(names_in(answer, categories) == names_in(true, categories))
    return {"generated_exact": float(np.mean(exact)), "generated_names": float(np.mean(named))}


def names_in(text: str, categories: Sequence[str]) -> set[str]:
    """The categories that ``text`` names as whole words, the longest first ("hot dog" is no dog)."""
    found = re.findall("|".join(rf"\b{re.escape(c)}s?\b" for c in sorted(categories, key=len, reverse=True)), text)
    return {next(c for c in categories if match in (c, f"{c}s")) for match in found}


def export_llava(model: LlavaPretrainer, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save LLaVA in float16 without the heads, its tokenizer, generation defaults and image preprocessing."""
    llava = copy.deepcopy(model.llava).half()
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    llava.generation_config = GenerationConfig(**ends, do_sample=False, max_new_tokens=128)
    llava.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    size = llava.config.vision_config.image_size
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "do_center_crop": False,
        "resample": 3,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "clip_resize": "squash",
    }
    write_json(folder / "preprocessor_config.json", preprocessing, indent=2)
