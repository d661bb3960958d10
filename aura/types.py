"""The records, tensors and results that travel between the parts of AURA.

Legend of shapes: B images, Q conversations of an image, L packed tokens, M supervised tokens, N ``[SEG]`` objects of
the whole batch, K distinct objects of one image, C channels, H W pixels of the original image, S SAM's square input,
h w the mask decoder's output grid.

This module imports no torch at run time, so that data tools start fast.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch

SEG_TOKEN = "[SEG]"
IMAGE_TOKEN = "<image>"
RESERVED_TOKENS = (IMAGE_TOKEN, "<im_start>", "<im_end>", "<im_patch>", "<s>", "</s>")
"""Texts that stand for something else than themselves whatever the tokenizer; its own special tokens come on top."""
_HALF = re.compile("[\ud800-\udfff]")

Rle = dict[str, Any]
"""COCO run-length encoding: ``{"size": [height, width], "counts": str}``."""

Masks = Literal["both", "visible", "amodal"]
"""The kinds of mask that a method predicts, or that a question asks for."""

ASKED: tuple[Masks, ...] = ("visible", "amodal", "both")
"""What a ``[SEG]`` may stand for, in the order of the classes that ``model.intent`` tells apart."""


def kinds_of(visible: Any, amodal: Any) -> Masks:
    """Which of two masks are there; a missing one is ``None``."""
    return "visible" if amodal is None else "amodal" if visible is None else "both"


# --- records: what a data set holds -----------------------------------------------------------------------------------


def text_flaw(text: str) -> str | None:
    """Why no program can write a text down; ``None`` for a sound one.

    JSON can hold halves of characters, such as ``"\\ud83d"`` where an emoji was cut in two. No encoding knows them.
    """
    found = _HALF.search(text)
    return None if found is None else f"holds half of a character (U+{ord(found.group()):04X}); write the text anew"


@dataclass(frozen=True)
class Turn:
    """One question and its answer; ``objects`` are annotation ids in the order of the answer's ``[SEG]`` tokens.

    ``asked`` says which mask of each the question means. It is empty where all mean both, however that is said.
    """

    question: str
    answer: str
    objects: tuple[int, ...] = ()
    asked: tuple[Masks, ...] = ()

    def __post_init__(self) -> None:
        if flaw := asked_flaw(self.asked, len(self.objects)):
            raise ValueError(flaw)
        if set(self.asked) == {"both"}:
            object.__setattr__(self, "asked", ())
        found = self.answer.count(SEG_TOKEN)
        if found != len(self.objects):
            raise ValueError(
                f"the answer has {found} {SEG_TOKEN} but {len(self.objects)} objects are listed: {self.answer!r}; "
                f"list one annotation id per {SEG_TOKEN}, in order"
            )
        if not self.question.strip():
            raise ValueError("the question is empty; every turn needs a question")
        for name in ("question", "answer"):
            if flaw := text_flaw(getattr(self, name)):
                raise ValueError(f"the {name} {flaw}")

    def __repr__(self) -> str:
        # Digests of data sets are made of it, and those without a word on masks keep the digest that they had.
        asked = f", asked={self.asked!r}" if self.asked else ""
        return f"Turn(question={self.question!r}, answer={self.answer!r}, objects={self.objects!r}{asked})"

    def asks(self, index: int) -> Masks:
        """Which mask of the ``index``-th object is meant."""
        return self.asked[index] if self.asked else "both"


def asked_flaw(asked: Any, num_objects: int) -> str | None:
    """What is wrong with the ``asked`` of an answer, which is empty or has one of :data:`ASKED` an object."""
    if not isinstance(asked, list | tuple) or not all(isinstance(kind, str) and kind in ASKED for kind in asked):
        return f"'asked' is {asked!r:.80}; give {', '.join(ASKED[:-1])} or {ASKED[-1]} for each object, or leave it out"
    if asked and len(asked) != num_objects:
        return f"'asked' has {len(asked)} entries for {num_objects} objects; give one for each, or leave it out"
    return None


@dataclass(frozen=True)
class Conversation:
    """One or more turns about one image. ``provenance`` says who wrote it (generator, version, seed, ...)."""

    id: int
    turns: tuple[Turn, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"conversation {self.id} has no turns")


@dataclass(frozen=True)
class AmodalObject:
    """One annotated object; the visible mask lies within the amodal mask.

    ``occlusion_rate`` = 1 - |visible| / |amodal|, in [0, 1]; ``occluded_by`` holds annotation ids. ``amodal`` and
    ``occlusion_rate`` are ``None`` together, where the whole shape is not known.
    """

    id: int
    category: str
    visible: Rle
    amodal: Rle | None
    occlusion_rate: float | None
    occluded_by: tuple[int, ...] = ()
    supercategory: str = ""


@dataclass(frozen=True)
class Sample:
    """One image with its objects and conversations. Refuses to exist when a turn names an object it does not have.

    ``ignore`` are pixels of which nobody said whether they belong to an object: an evaluation does not count them.
    """

    image_id: int
    image_path: Path
    height: int
    width: int
    objects: tuple[AmodalObject, ...]
    conversations: tuple[Conversation, ...]
    ignore: Rle | None = None

    def __post_init__(self) -> None:
        known = {o.id for o in self.objects}
        if self.ignore is not None and list(self.ignore["size"]) != [self.height, self.width]:
            raise ValueError(
                f"image {self.image_id}: the 'ignore' mask is {self.ignore['size']} "
                f"but the image is [{self.height}, {self.width}] (height, width)"
            )
        for obj in self.objects:
            for kind, rle in (("visible", obj.visible), ("amodal", obj.amodal)):
                if rle is not None and list(rle["size"]) != [self.height, self.width]:
                    raise ValueError(
                        f"image {self.image_id}, annotation {obj.id}: the {kind} mask is {rle['size']} "
                        f"but the image is [{self.height}, {self.width}] (height, width)"
                    )
        for conversation in self.conversations:
            for number, turn in enumerate(conversation.turns):
                missing = [i for i in turn.objects if i not in known]
                if missing:
                    raise ValueError(
                        f"image {self.image_id}, conversation {conversation.id}, turn {number}: "
                        f"annotation ids {missing} are not objects of this image"
                    )


def identifying_bytes(sample: Sample) -> bytes:
    """What a run's identity depends on, of one image: its id and its conversations."""
    return repr((sample.image_id, [(c.id, c.turns) for c in sample.conversations])).encode()


# --- tensors: what the model reads and returns ------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageGeometry:
    """How an image lies in SAM's square input: resized to ``resized``, then zero-padded right and bottom to ``padded``.

    ``original`` and ``resized`` are (height, width) in pixels; ``padded`` is the side S of the square.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    padded: int


@dataclass(frozen=True, slots=True)
class SegRecord:
    """Where a ``[SEG]`` comes from: enough to name it in an error, a report or a prediction file."""

    image_id: int
    conversation_id: int
    turn: int
    index: int
    annotation_id: int
    category: str = ""


@dataclass
class Batch:
    """B images, each with one packed sequence: a shared prefix and Q branches (conversations).

    Each image comes as pixels or as cached frozen features (then the pixels are ``None``).

    ``segment_ids`` [B, L]: 0 on the shared prefix, q = 1..Q on branch q, -1 on padding. A token attends to itself and
    to earlier tokens of the prefix and of its own branch. ``position_ids`` [B, L] continue from the prefix in each
    branch. ``target_index`` [M] are the positions (flattened, b * L + l) whose **next** token is supervised, and
    ``target_ids`` [M] those tokens. ``seg_index`` [N] are the flattened positions of the ``[SEG]`` tokens themselves,
    ``seg_image`` [N] (ascending) the image of each and ``seg_counts`` how many each image has, ``seg_object`` [N] the
    row of its masks in ``visible_masks[seg_image]``. The tokens before every supervised token and every ``[SEG]`` are
    on the same branch.
    """

    image_ids: tuple[int, ...]
    geometries: tuple[ImageGeometry, ...]
    input_ids: torch.Tensor  # [B, L] int64
    position_ids: torch.Tensor  # [B, L] int64
    segment_ids: torch.Tensor  # [B, L] int64
    target_index: torch.Tensor  # [M] int64
    target_ids: torch.Tensor  # [M] int64
    seg_index: torch.Tensor  # [N] int64
    seg_image: torch.Tensor  # [N] int64
    seg_object: torch.Tensor  # [N] int64
    occlusion_rates: torch.Tensor  # [N] float32, 0 where the shape is not known
    shape_known: torch.Tensor  # [N] bool; where it is False, the amodal mask is a placeholder
    visible_masks: tuple[torch.Tensor, ...]  # B x [K, H, W] bool
    amodal_masks: tuple[torch.Tensor, ...]  # B x [K, H, W] bool
    records: tuple[SegRecord, ...]  # N
    seg_counts: tuple[int, ...]  # B; known without a look at the GPU
    sam_pixels: torch.Tensor | None = None  # [B, 3, S, S]
    clip_pixels: torch.Tensor | None = None  # [B, 3, P, P]
    sam_embeddings: torch.Tensor | None = None  # [B, C, S/16, S/16], or whatever the patch size gives
    clip_features: torch.Tensor | None = None  # [B, T, C]
    asked: torch.Tensor | None = None  # [N] int64, places in ASKED; None where every [SEG] means both masks

    def to(self, device: torch.device | str) -> Batch:
        """A copy with every tensor on ``device``."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, which a GPU reads while it computes; ``DataLoader`` calls it by this name."""
        return self._changed(lambda tensor: tensor.pin_memory())

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor, those of each image too."""
        for field_ in dataclasses.fields(self):
            value = getattr(self, field_.name)
            yield from (v for v in (value if isinstance(value, tuple) else (value,)) if hasattr(v, "pin_memory"))

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        def changed(value: Any) -> Any:
            if isinstance(value, tuple) and value and hasattr(value[0], "pin_memory"):
                return tuple(map(change, value))
            return change(value) if hasattr(value, "pin_memory") else value

        return Batch(**{f.name: changed(getattr(self, f.name)) for f in dataclasses.fields(self)})


@dataclass
class ImageFeatures:
    """The frozen encoders' outputs: SAM ``[B, C, S/p, S/p]`` and CLIP ``[B, T, C]`` (before the projector)."""

    sam_embeddings: torch.Tensor
    clip_features: torch.Tensor


class MaskOutput(dict[str, Any]):
    """What is decoded for N ``[SEG]`` states; ``None`` where the model has no such part. Grid: SAM's padded square.

    A dict whose keys are attributes too. DeepSpeed hooks the tensors of tuples, lists and dicts alone: from any other
    object it would not learn that a backward pass begins, and ZeRO would accumulate wrong gradients without a word.
    """

    __slots__ = ()
    visible_logits: torch.Tensor | None  # [N, h, w]
    amodal_logits: torch.Tensor | None  # [N, h, w]; one of the two is there
    occlusion_rate: torch.Tensor | None  # [N], in [0, 1]
    spatial_logits: torch.Tensor | None  # [N, 3, h, w]: 0 background, 1 visible, 2 occluded
    asked_logits: torch.Tensor | None  # [N, 3] in the order of ASKED
    pointed_logits: torch.Tensor | None  # [N, T], of the image tokens that a state points at

    def __init__(
        self,
        visible_logits: torch.Tensor | None,
        amodal_logits: torch.Tensor | None,
        occlusion_rate: torch.Tensor | None,
        spatial_logits: torch.Tensor | None,
        asked_logits: torch.Tensor | None = None,
        pointed_logits: torch.Tensor | None = None,
    ) -> None:
        values = visible_logits, amodal_logits, occlusion_rate, spatial_logits, asked_logits, pointed_logits
        super().__init__(zip(MaskOutput.__annotations__, values, strict=True))

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name}") from None


class AuraOutput(MaskOutput):
    """The model's answer to a :class:`Batch`, without any target or loss.

    ``text_logits`` stand at ``Batch.target_index`` only. ``unused`` is a zero that keeps in the graph what no target
    asks for: SAM's mask quality head, and all that lies behind ``[SEG]`` when the batch has none. Add it to the loss,
    so that every trainable parameter takes part in every backward pass.
    """

    __slots__ = ()
    text_logits: torch.Tensor  # [M, V]
    unused: torch.Tensor

    def __init__(self, masks: MaskOutput, *, text_logits: torch.Tensor, unused: torch.Tensor) -> None:
        super().__init__(**masks)
        self.update(text_logits=text_logits, unused=unused)


@dataclass
class Losses:
    """The terms of Eq. 1 to 3, unweighted scalars (0 where ablated), and their weighted ``total`` (Eq. 4).

    ``intent`` is one term more, of a model that tells which mask is asked for, and ``pointing`` of one whose states
    point at image tokens; ``None`` of any other.
    """

    total: torch.Tensor
    text: torch.Tensor
    visible_bce: torch.Tensor
    visible_dice: torch.Tensor
    amodal_bce: torch.Tensor
    amodal_dice: torch.Tensor
    occlusion_rate: torch.Tensor
    spatial: torch.Tensor
    pointing: torch.Tensor | None = None
    intent: torch.Tensor | None = None

    def present(self) -> dict[str, torch.Tensor]:
        """Those that the model has, by name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def as_floats(self) -> dict[str, float]:
        return {name: float(value.detach()) for name, value in self.present().items()}


# --- results: what a user gets ----------------------------------------------------------------------------------------


class MaskPair(NamedTuple):
    """A visible and an amodal mask, bool [H, W], and the occlusion rate that was predicted with them, if any.

    The truth has both masks; the prediction of a method of one kind has ``None`` in the other's place. ``asked`` is the
    mask that the question means, or is held to mean; ``None`` where nobody said.
    """

    visible: np.ndarray | None
    amodal: np.ndarray | None
    occlusion_rate: float | None = None
    asked: Masks | None = None

    @property
    def kinds(self) -> Masks:
        """Which masks are there."""
        return kinds_of(self.visible, self.amodal)


@dataclass(frozen=True)
class ReplyObject:
    """One ``[SEG]`` of a reply. Masks are bool [H, W] at the image's size; ``occlusion_rate`` in [0, 1].

    ``name`` is the phrase before the ``[SEG]`` in the sentence. The rate is the model's own estimate, or, where that
    head is ablated, 1 - |visible and amodal| / |amodal|. A model of one kind of mask (``model.masks``) leaves the
    other ``None``, and the rate with it unless it estimates one. ``asked`` is the mask that the model takes the
    question to mean; always ``both`` of a model without ``model.intent``.
    """

    name: str
    visible: np.ndarray | None
    amodal: np.ndarray | None
    occlusion_rate: float | None
    asked: Masks = "both"


@dataclass(frozen=True)
class Reply:
    """The answer to one question: its text with ``[SEG]`` marks, and one object per mark, in order.

    ``truncated`` says that the answer hit ``max_new_tokens`` before it ended.
    """

    text: str
    objects: tuple[ReplyObject, ...]
    truncated: bool = False
