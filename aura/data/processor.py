"""Image and conversations to tensors; used by training, evaluation and chat alike.

Legend: S SAM's square input, P CLIP's square input, K distinct objects of one image, C channels, T image tokens, H W
pixels of the original image.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from aura.data.images import (
    CLIP_MEAN,
    CLIP_RESIZES,
    CLIP_STD,
    ClipResize,
    clip_pixels,
    clip_preprocessing,
    image_size,
    load_image,
    sam_geometry,
    sam_pixels,
)
from aura.data.templates import get_template, render, render_followup
from aura.data.tokenization import IM_END, IM_START, encode, load_tokenizer, prepare_tokenizer, token_id
from aura.files import write_json
from aura.masks import decode_rle
from aura.types import (
    IMAGE_TOKEN,
    SEG_TOKEN,
    Conversation,
    ImageFeatures,
    ImageGeometry,
    Rle,
    Sample,
    SegRecord,
    Turn,
)

__all__ = [
    "ImageInputs",
    "ProcessedSample",
    "Processor",
    "SegTarget",
    "TokenizedConversation",
    "clip_pixels",
    "clip_preprocessing",
    "load_image",
    "load_tokenizer",
    "prepare_tokenizer",
    "sam_geometry",
    "sam_pixels",
]

SETTINGS_FILE = "aura_processor.json"


@dataclass
class ImageInputs:
    """One image for the two frozen encoders, and the RGB image itself."""

    sam_pixels: torch.Tensor  # [3, S, S] float32
    clip_pixels: torch.Tensor  # [3, P, P] float32
    geometry: ImageGeometry
    pil: Image.Image


@dataclass(frozen=True)
class TokenizedConversation:
    """A conversation's token ids, image placeholder expanded.

    ``target_mask[t]`` says that token t is supervised: the answers and the ``</s>`` that closes each.
    ``seg_positions`` are the positions of the ``[SEG]`` tokens, ``seg_turns`` the (turn, index within its answer) of
    each.
    """

    id: int
    input_ids: list[int]
    target_mask: list[bool]
    seg_positions: list[int]
    seg_turns: list[tuple[int, int]]


class SegTarget(NamedTuple):
    """What a ``[SEG]`` stands for: its origin, the row of its masks, and its occlusion rate in [0, 1]."""

    record: SegRecord
    row: int
    occlusion_rate: float


@dataclass
class ProcessedSample:
    """One image with Q tokenised conversations; pixels, or cached features in their place.

    ``targets[q]`` belong to ``conversations[q].seg_positions``. The masks hold only the K objects that these
    conversations name.
    """

    image_id: int
    geometry: ImageGeometry
    conversations: tuple[TokenizedConversation, ...]
    targets: tuple[tuple[SegTarget, ...], ...]
    visible_masks: torch.Tensor  # [K, H, W] bool
    amodal_masks: torch.Tensor  # [K, H, W] bool
    sam_pixels: torch.Tensor | None = None  # [3, S, S]
    clip_pixels: torch.Tensor | None = None  # [3, P, P]
    sam_embeddings: torch.Tensor | None = None  # [C, S/p, S/p]
    clip_features: torch.Tensor | None = None  # [T, C]


class Processor:
    """Everything between files and tensors.

    Args:
        tokenizer: The language model's tokenizer; ``[SEG]`` and the image tokens are added to it **in place**, so
            resize the embeddings to ``len(processor.tokenizer)`` rows afterwards.
        sam_image_size: Side S of SAM's input in pixels.
        clip_image_size: Side P of CLIP's input in pixels.
        num_image_tokens: Tokens that one image occupies in the language model (CLIP's patches).
        prompt_template: A name in ``aura.data.templates.TEMPLATES``.
        max_length: Longest conversation in tokens, image included; a longer one is an error, never cut.
        use_im_start_end: Put ``<im_start>`` and ``<im_end>`` around the image (LLaVA v1-1, LISA).
        clip_mean: CLIP's mean per channel, on the 0-1 scale.
        clip_std: CLIP's standard deviation per channel, on the 0-1 scale.
        clip_resize: How an image becomes CLIP's square, see :func:`clip_pixels`. ``crop`` as LISA.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        sam_image_size: int,
        clip_image_size: int,
        num_image_tokens: int,
        prompt_template: str = "llava_v1",
        max_length: int = 1024,
        use_im_start_end: bool = False,
        clip_mean: Sequence[float] = CLIP_MEAN,
        clip_std: Sequence[float] = CLIP_STD,
        clip_resize: ClipResize = "crop",
    ) -> None:
        if clip_resize not in CLIP_RESIZES:
            raise ValueError(f"clip_resize must be one of {', '.join(CLIP_RESIZES)}, got {clip_resize!r}")
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has no end-of-sequence token, which closes every answer; set eos_token")
        self.template = get_template(prompt_template)
        if self.template.begin and tokenizer.bos_token is None:
            raise ValueError(f"template {prompt_template} begins with a bos token, and the tokenizer has none")
        self.tokenizer = prepare_tokenizer(tokenizer, use_im_start_end)
        self.seg_token_id = token_id(tokenizer, SEG_TOKEN)
        self.image_token_id = token_id(tokenizer, IMAGE_TOKEN)
        self.eos_token_id = tokenizer.eos_token_id
        self.sam_image_size, self.clip_image_size = sam_image_size, clip_image_size
        self.num_image_tokens, self.max_length = num_image_tokens, max_length
        self.prompt_template, self.use_im_start_end = prompt_template, use_im_start_end
        self.clip_mean, self.clip_std, self.clip_resize = tuple(clip_mean), tuple(clip_std), clip_resize
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        reserved = special | {SEG_TOKEN, IMAGE_TOKEN, IM_START, IM_END}
        self._reserved = re.compile("|".join(re.escape(t) for t in sorted(reserved, key=len, reverse=True)))

    # --- files --------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make an equal processor."""
        names = (
            "sam_image_size clip_image_size num_image_tokens prompt_template max_length use_im_start_end "
            "clip_mean clip_std clip_resize"
        )
        return {name: getattr(self, name) for name in names.split()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files and ``aura_processor.json``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(str(folder))
        write_json(Path(folder) / SETTINGS_FILE, self.settings, indent=2)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Processor:
        """Read what :meth:`save_pretrained` wrote; ``changes`` replace single settings, such as ``max_length``."""
        path = Path(folder) / SETTINGS_FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing; {folder} is not a folder that AURA exported")
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            return cls(load_tokenizer(folder), **{**settings, **changes})
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is not a valid processor file: {error}; export the model again") from error

    def image_fingerprint(self) -> str:
        """Changes whenever the pixels that the encoders see could change; part of the feature cache's key."""
        text = f"1 {self.sam_image_size} {self.clip_image_size} {self.clip_mean} {self.clip_std} {self.clip_resize}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # --- images -------------------------------------------------------------------------------------------------------

    def image(self, image: Image.Image | np.ndarray | str | Path, context: str = "") -> ImageInputs:
        """Pixels for both encoders. EXIF orientation is not applied; errors as :func:`load_image`."""
        pil = load_image(image, context)
        sam, geometry = sam_pixels(pil, self.sam_image_size)
        clip = clip_pixels(pil, self.clip_image_size, self.clip_mean, self.clip_std, self.clip_resize)
        return ImageInputs(sam, clip, geometry, pil)

    # --- text ---------------------------------------------------------------------------------------------------------

    def start_prompt(self, question: str) -> list[int]:
        """Token ids up to where the model begins to write: system prompt, image, first question.

        ``start_prompt(q1) + answer1 + followup(q2) + answer2 ...``, with each answer's ids ending in ``</s>``, are
        exactly the ids of the whole conversation in training.
        """
        self._check_question(question)
        text = render(self.template, [(question, None)], image=self._image_text, bos=self._bos, eos=self._eos).text
        ids, _ = self._encode_with_image(text)
        if len(ids) > self.max_length:
            raise ValueError(f"the question makes {len(ids)} tokens, at most {self.max_length} fit; shorten it")
        return ids

    def followup(self, question: str, closed: bool = True) -> list[int]:
        """Token ids between an answer and the next one: the next question, as the template puts it.

        Args:
            closed: Whether the previous answer's ids, as already given to the model, end in ``</s>``. With ``False``
                (it was cut short, or generation did not feed the ``</s>`` back) the result begins with ``</s>``.
        """
        self._check_question(question)
        text = render_followup(self.template, question, bos=self._bos, eos=self._eos)
        ids, _ = encode(self.tokenizer, text)
        assert ids[0] == self.eos_token_id
        return ids[1:] if closed else ids

    def decode(self, ids: Sequence[int]) -> str:
        """An answer's text with ``[SEG]`` marks, without ``</s>``; the inverse of tokenising a clean answer."""
        pieces: list[list[int]] = [[]]
        for token in ids:
            if token == self.seg_token_id:
                pieces.append([])
            elif token != self.eos_token_id:
                pieces[-1].append(token)
        text, *rest = (self.tokenizer.decode(p, skip_special_tokens=True).strip() for p in pieces)
        for piece in rest:
            joint = "" if not piece or re.match(r"[.,;:!?)\]'’\"]", piece) else " "
            text += f"{' ' if text else ''}{SEG_TOKEN}{joint}{piece}"
        return text

    def conversation(self, conversation: Conversation, image_id: int | None = None) -> TokenizedConversation:
        """Tokenise a whole conversation; labels come from character spans and token offsets.

        Raises:
            ValueError: Too long, a reserved token in a question or an answer, or a tokenizer that merges a prompt's
                end with an answer's start. Every message names the image and the conversation.
        """
        where = f"image {image_id}, conversation {conversation.id}"
        for number, turn in enumerate(conversation.turns):
            self._check_turn(turn, f"{where}, turn {number}: ")
        turns = [(turn.question, turn.answer) for turn in conversation.turns]
        text, spans = render(self.template, turns, image=self._image_text, bos=self._bos, eos=self._eos)
        ids, offsets = self._encode_with_image(text)
        turn_of = _turn_of_tokens(offsets, spans, where)
        if len(ids) > self.max_length:
            raise ValueError(
                f"{where}: {len(ids)} tokens ({self.num_image_tokens} of them the image) exceed the limit of "
                f"{self.max_length}; raise data.max_length or shorten the conversation"
            )
        seg_positions = [t for t, token in enumerate(ids) if token == self.seg_token_id]
        seg_turns: list[tuple[int, int]] = []
        for position in seg_positions:
            turn = turn_of[position]
            seg_turns.append((turn, sum(1 for other, _ in seg_turns if other == turn)))
        expected = [(t, i) for t, turn in enumerate(conversation.turns) for i in range(len(turn.objects))]
        if seg_turns != expected:
            raise ValueError(
                f"{where}: {len(seg_turns)} {SEG_TOKEN} tokens (id {self.seg_token_id}) for {len(expected)} objects; "
                f"the tokenizer does not keep {SEG_TOKEN} whole"
            )
        return TokenizedConversation(conversation.id, ids, [t >= 0 for t in turn_of], seg_positions, seg_turns)

    # --- samples ------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        sample: Sample,
        features: ImageFeatures | None = None,
        conversations: Sequence[Conversation] | None = None,
    ) -> ProcessedSample:
        """A sample's tensors.

        Args:
            sample: The record.
            features: Cached outputs of the frozen encoders (B = 1); the image is then not decoded.
            conversations: Those of the sample to use; all by default.

        Raises:
            ValueError: An image that is missing, undecodable or of another size than annotated, no conversation, or
                anything :meth:`conversation` refuses; named by file, image and conversation.
        """
        conversations = sample.conversations if conversations is None else conversations
        context = f"image {sample.image_id}: "
        if not conversations:
            raise ValueError(f"{context}it has no conversation; leave it out or write questions for it")
        height, width = image_size(sample.image_path, context)
        if (height, width) != (sample.height, sample.width):
            raise ValueError(
                f"{context}{sample.image_path} is {width} x {height} pixels (width x height) but annotated as "
                f"{sample.width} x {sample.height}; use the image that was annotated"
            )
        used = {i: None for c in conversations for turn in c.turns for i in turn.objects}
        objects = [o for o in sample.objects if o.id in used]
        rows = {o.id: row for row, o in enumerate(objects)}

        def target(conversation: Conversation, turn: int, index: int) -> SegTarget:
            obj = objects[rows[conversation.turns[turn].objects[index]]]
            record = SegRecord(sample.image_id, conversation.id, turn, index, obj.id, obj.category)
            return SegTarget(record, rows[obj.id], obj.occlusion_rate)

        tokenized = tuple(self.conversation(c, sample.image_id) for c in conversations)
        processed = ProcessedSample(
            image_id=sample.image_id,
            geometry=sam_geometry(height, width, self.sam_image_size),
            conversations=tokenized,
            targets=tuple(
                tuple(target(c, *at) for at in t.seg_turns) for c, t in zip(conversations, tokenized, strict=True)
            ),
            visible_masks=_mask_tensor([o.visible for o in objects], height, width),
            amodal_masks=_mask_tensor([o.amodal for o in objects], height, width),
        )
        if features is not None:
            processed.sam_embeddings, processed.clip_features = features.sam_embeddings[0], features.clip_features[0]
        else:
            inputs = self.image(sample.image_path, context)
            processed.sam_pixels, processed.clip_pixels = inputs.sam_pixels, inputs.clip_pixels
        return processed

    # --- helpers ------------------------------------------------------------------------------------------------------

    @property
    def _bos(self) -> str | None:
        return self.tokenizer.bos_token

    @property
    def _eos(self) -> str:
        return self.tokenizer.eos_token

    @property
    def _image_text(self) -> str:
        return f"{IM_START}{IMAGE_TOKEN}{IM_END}" if self.use_im_start_end else IMAGE_TOKEN

    def _encode_with_image(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets = encode(self.tokenizer, text)
        at = ids.index(self.image_token_id)
        ids[at : at + 1] = [self.image_token_id] * self.num_image_tokens
        offsets[at : at + 1] = [offsets[at]] * self.num_image_tokens
        if self.template.begin:
            ids.insert(0, self.tokenizer.bos_token_id)
            offsets.insert(0, (0, 0))
        return ids, offsets

    def _check_question(self, question: str, where: str = "") -> None:
        if not question.strip():
            raise ValueError(f"{where}the question is empty")
        found = self._reserved.search(question)
        if found:
            raise ValueError(f"{where}the question contains the reserved token {found.group()!r}; remove it")

    def _check_turn(self, turn: Turn, where: str) -> None:
        self._check_question(turn.question, where)
        found = [token for token in self._reserved.findall(turn.answer) if token != SEG_TOKEN]
        if found:
            raise ValueError(f"{where}the answer contains the reserved token {found[0]!r}; remove it")


def _turn_of_tokens(offsets: list[tuple[int, int]], spans: Sequence[tuple[int, int]], where: str) -> list[int]:
    """For each token the turn whose answer it belongs to, or -1 for prompts."""
    turns = []
    for begin, end in offsets:
        turn = next((n for n, (first, last) in enumerate(spans) if first <= begin < last), -1)
        limit = next((first for first, _ in spans if begin < first < end), None)
        if limit is not None or (turn >= 0 and end > spans[turn][1]):
            raise ValueError(
                f"{where}: a token covers characters {begin} to {end}, across the border of an answer; "
                f"the prompt template does not suit this tokenizer"
            )
        turns.append(turn)
    return turns


def _mask_tensor(rles: Sequence[Rle], height: int, width: int) -> torch.Tensor:
    if not rles:
        return torch.zeros(0, height, width, dtype=torch.bool)
    return torch.from_numpy(np.stack([decode_rle(rle) for rle in rles]).astype(bool))
