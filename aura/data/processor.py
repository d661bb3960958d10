"""Image and conversations to tensors; used by training, evaluation and chat alike.

Legend: S SAM's square input, P CLIP's square input, K distinct objects of one image, C channels, T image tokens, H W
pixels of the original image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from aura.config import ObjectsPerAnswer
from aura.data.conversations import ConversationTokenizer, TokenizedConversation
from aura.data.images import (
    CLIP_MEAN,
    CLIP_RESIZES,
    CLIP_STD,
    ClipResize,
    clip_pixels,
    image_size,
    load_image,
    sam_geometry,
    sam_pixels,
)
from aura.data.tokenization import load_tokenizer
from aura.files import read_text, write_json
from aura.masks import decode_rle, is_number
from aura.types import (
    AmodalObject,
    Conversation,
    ImageFeatures,
    ImageGeometry,
    Masks,
    Sample,
    SegRecord,
)

SETTINGS_FILE = "aura_processor.json"


@dataclass
class ImageInputs:
    """One image for the two frozen encoders, and the RGB image itself."""

    sam_pixels: torch.Tensor  # [3, S, S] float32
    clip_pixels: torch.Tensor  # [3, P, P] float32
    geometry: ImageGeometry
    pil: Image.Image


class SegTarget(NamedTuple):
    """What a ``[SEG]`` stands for: its origin, the row of its masks, its occlusion rate in [0, 1], the mask asked for.

    The rate is ``None`` where the object's whole shape is not known; its amodal mask is then a placeholder.
    """

    record: SegRecord
    row: int
    occlusion_rate: float | None
    asked: Masks = "both"


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


LARGEST = 1_000_000
"""Of pixels a side and of tokens; more is no setting but a slip."""


def _are_colours(values: Any) -> bool:
    return isinstance(values, Sequence) and len(values) == 3 and all(map(is_number, values))


class Processor:
    """Everything between files and tensors: :meth:`image` for pictures, ``text`` for words, a call for whole samples.

    ``text`` is a :class:`ConversationTokenizer`: prompts, conversations and answers as token ids.

    Args:
        tokenizer: The language model's tokenizer; ``[SEG]`` and the image tokens are added to it **in place**, so
            resize the embeddings to ``len(processor.text.tokenizer)`` rows afterwards.
        sam_image_size: Side S of SAM's input in pixels.
        clip_image_size: Side P of CLIP's input in pixels.
        num_image_tokens: Tokens that one image occupies in the language model (CLIP's patches).
        prompt_template: A name in ``aura.data.templates.TEMPLATES``.
        max_length: Longest conversation in tokens, image included; a longer one is an error, never cut.
        use_im_start_end: Put ``<im_start>`` and ``<im_end>`` around the image (LLaVA v1-1, LISA).
        objects_per_answer: Objects of an answer that have a ``[SEG]``: ``all``, or the ``first`` alone.
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
        objects_per_answer: ObjectsPerAnswer = "all",
        clip_mean: Sequence[float] = CLIP_MEAN,
        clip_std: Sequence[float] = CLIP_STD,
        clip_resize: ClipResize = "crop",
    ) -> None:
        if clip_resize not in CLIP_RESIZES:
            raise ValueError(f"clip_resize must be one of {', '.join(CLIP_RESIZES)}, got {clip_resize!r}")
        sizes = {"sam_image_size": sam_image_size, "clip_image_size": clip_image_size}
        sizes |= {"num_image_tokens": num_image_tokens, "max_length": max_length}
        for name, size in sizes.items():
            if type(size) is not int or not 0 < size <= LARGEST:
                raise ValueError(f"{name} must be a whole number from 1 to {LARGEST}, got {size!r:.40}")
        for name, colours in (("clip_mean", clip_mean), ("clip_std", clip_std)):
            if not _are_colours(colours) or (name == "clip_std" and min(colours) <= 0):
                raise ValueError(f"{name} must be three numbers of the 0-1 scale, got {colours!r:.80}")
        self.text = ConversationTokenizer(
            tokenizer,
            num_image_tokens=num_image_tokens,
            prompt_template=prompt_template,
            max_length=max_length,
            use_im_start_end=use_im_start_end,
            objects_per_answer=objects_per_answer,
        )
        self.sam_image_size, self.clip_image_size = sam_image_size, clip_image_size
        self.clip_mean, self.clip_std, self.clip_resize = tuple(clip_mean), tuple(clip_std), clip_resize

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make an equal processor."""
        pictures = ("sam_image_size", "clip_image_size", "clip_mean", "clip_std", "clip_resize")
        words = ("num_image_tokens", "prompt_template", "max_length", "use_im_start_end", "objects_per_answer")
        return {name: getattr(self, name) for name in pictures} | {name: getattr(self.text, name) for name in words}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files and ``aura_processor.json``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.text.tokenizer.save_pretrained(str(folder))
        write_json(Path(folder) / SETTINGS_FILE, self.settings, indent=2)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Processor:
        """Read what :meth:`save_pretrained` wrote; ``changes`` replace single settings, such as ``max_length``."""
        path = Path(folder) / SETTINGS_FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing; {folder} is not a folder that AURA exported")
        tokenizer = load_tokenizer(folder)
        try:
            settings = json.loads(read_text(path))
            return cls(tokenizer, **{**settings, **changes})
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is not a valid processor file: {error}; export the model again") from error

    def image_fingerprint(self) -> str:
        """Changes whenever the pixels that the encoders see could change; part of the feature cache's key."""
        text = f"1 {self.sam_image_size} {self.clip_image_size} {self.clip_mean} {self.clip_std} {self.clip_resize}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def image(self, image: Image.Image | np.ndarray | str | Path, context: str = "") -> ImageInputs:
        """Pixels for both encoders. EXIF orientation is not applied; errors as :func:`load_image`."""
        pil = load_image(image, context)
        sam, geometry = sam_pixels(pil, self.sam_image_size)
        clip = clip_pixels(pil, self.clip_image_size, self.clip_mean, self.clip_std, self.clip_resize)
        return ImageInputs(sam, clip, geometry, pil)

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
                anything :meth:`ConversationTokenizer.conversation` refuses; named by file, image and conversation.
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
        tokenized = tuple(self.text.conversation(c, sample.image_id) for c in conversations)
        used = {
            c.turns[turn].objects[i] for c, t in zip(conversations, tokenized, strict=True) for turn, i in t.seg_turns
        }
        objects = [o for o in sample.objects if o.id in used]
        rows = {o.id: row for row, o in enumerate(objects)}

        def target(conversation: Conversation, turn: int, index: int) -> SegTarget:
            said = conversation.turns[turn]
            obj = objects[rows[said.objects[index]]]
            record = SegRecord(sample.image_id, conversation.id, turn, index, obj.id, obj.category)
            return SegTarget(record, rows[obj.id], obj.occlusion_rate, said.asks(index))

        processed = ProcessedSample(
            image_id=sample.image_id,
            geometry=sam_geometry(height, width, self.sam_image_size),
            conversations=tokenized,
            targets=tuple(
                tuple(target(c, *at) for at in t.seg_turns) for c, t in zip(conversations, tokenized, strict=True)
            ),
            visible_masks=_mask_tensor(objects, "visible", sample),
            amodal_masks=_mask_tensor(objects, "amodal", sample),
        )
        if features is not None:
            processed.sam_embeddings, processed.clip_features = features.sam_embeddings[0], features.clip_features[0]
        else:
            inputs = self.image(sample.image_path, context)
            processed.sam_pixels, processed.clip_pixels = inputs.sam_pixels, inputs.clip_pixels
        return processed


def _mask_tensor(objects: Sequence[AmodalObject], kind: str, sample: Sample) -> torch.Tensor:
    masks = torch.zeros(len(objects), sample.height, sample.width, dtype=torch.bool)
    for row, obj in enumerate(objects):
        try:
            rle = getattr(obj, kind)
            masks[row] = torch.from_numpy(decode_rle(obj.visible if rle is None else rle))
        except ValueError as error:
            raise ValueError(f"image {sample.image_id}, annotation {obj.id}: the {kind} mask: {error}") from error
    return masks
