"""Samples to a Batch: all conversations of an image packed behind their shared prefix.

Legend: B images, Q conversations of an image, L packed tokens, M supervised tokens, N ``[SEG]`` objects of the batch.

The prefix is the longest common prefix of the conversations' token ids (never of their text, so that no token border
can go wrong). It ends early enough that the token **before** every supervised token and every ``[SEG]`` lies on a
branch: that token's hidden state differs between branches as soon as what follows it differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from aura.data.conversations import TokenizedConversation
from aura.data.processor import ProcessedSample
from aura.types import ASKED, Batch, SegRecord


def prefix_length(conversations: Sequence[TokenizedConversation]) -> int:
    """Number of leading tokens that the packed conversations share; every branch keeps at least one token."""
    first = conversations[0].input_ids
    shared = min(len(c.input_ids) for c in conversations) - 1
    for other in conversations[1:]:
        shared = next((t for t in range(shared) if other.input_ids[t] != first[t]), shared)
    for c in conversations:
        fixed = [*c.seg_positions[:1], *([c.target_mask.index(True)] if True in c.target_mask else [])]
        assert all(position > 0 for position in fixed), f"conversation {c.id} supervises its first token"
        shared = min([shared, *(position - 1 for position in fixed)])
    return shared


@dataclass
class _Packed:
    """One image's sequence; indices are within the sequence."""

    input_ids: list[int]
    position_ids: list[int]
    segment_ids: list[int]
    target_index: list[int] = field(default_factory=list)
    target_ids: list[int] = field(default_factory=list)
    seg_index: list[int] = field(default_factory=list)


def pack(conversations: Sequence[TokenizedConversation]) -> _Packed:
    """Prefix once, then each conversation's rest; positions continue from the prefix in every branch."""
    shared = prefix_length(conversations)
    packed = _Packed(conversations[0].input_ids[:shared], list(range(shared)), [0] * shared)
    for number, c in enumerate(conversations, start=1):
        shift = len(packed.input_ids) - shared
        packed.input_ids += c.input_ids[shared:]
        packed.position_ids += range(shared, len(c.input_ids))
        packed.segment_ids += [number] * (len(c.input_ids) - shared)
        targets = [t for t, supervised in enumerate(c.target_mask) if supervised]
        packed.target_index += [t - 1 + shift for t in targets]
        packed.target_ids += [c.input_ids[t] for t in targets]
        packed.seg_index += [t + shift for t in c.seg_positions]
    return packed


def collate(samples: Sequence[ProcessedSample]) -> Batch:
    """Pack each sample and pad on the right; the layout is described at :class:`aura.types.Batch`.

    The samples must all bring pixels or all bring cached features.
    """
    packed = [pack(sample.conversations) for sample in samples]
    length = max(len(p.input_ids) for p in packed)

    def padded(name: str, value: int) -> torch.Tensor:
        rows = [getattr(p, name) for p in packed]
        return torch.tensor([row + [value] * (length - len(row)) for row in rows], dtype=torch.int64)

    def flat(name: str, stride: int) -> torch.Tensor:
        values = [b * stride + value for b, p in enumerate(packed) for value in getattr(p, name)]
        return torch.tensor(values, dtype=torch.int64)

    targets = [(b, t) for b, s in enumerate(samples) for branch in s.targets for t in branch]
    records: tuple[SegRecord, ...] = tuple(t.record for _, t in targets)
    return Batch(
        image_ids=tuple(s.image_id for s in samples),
        geometries=tuple(s.geometry for s in samples),
        input_ids=padded("input_ids", 0),
        position_ids=padded("position_ids", 0),
        segment_ids=padded("segment_ids", -1),
        target_index=flat("target_index", length),
        target_ids=flat("target_ids", 0),
        seg_index=flat("seg_index", length),
        seg_image=torch.tensor([b for b, _ in targets], dtype=torch.int64),
        seg_object=torch.tensor([t.row for _, t in targets], dtype=torch.int64),
        occlusion_rates=torch.tensor([t.occlusion_rate or 0.0 for _, t in targets], dtype=torch.float32),
        shape_known=torch.tensor([t.occlusion_rate is not None for _, t in targets], dtype=torch.bool),
        visible_masks=tuple(s.visible_masks for s in samples),
        amodal_masks=tuple(s.amodal_masks for s in samples),
        records=records,
        seg_counts=tuple(sum(len(branch) for branch in s.targets) for s in samples),
        sam_pixels=_stack(samples, "sam_pixels"),
        clip_pixels=_stack(samples, "clip_pixels"),
        sam_embeddings=_stack(samples, "sam_embeddings"),
        clip_features=_stack(samples, "clip_features"),
        asked=torch.tensor([ASKED.index(t.asked) for _, t in targets], dtype=torch.int64),
    )


def without_objects(batch: Batch) -> Batch:
    """The batch's text alone: nothing behind its ``[SEG]`` is asked for."""
    none = {
        name: tensor[:0]
        for name in ("seg_index", "seg_image", "seg_object", "occlusion_rates", "shape_known", "asked")
        if (tensor := getattr(batch, name)) is not None
    }
    return dataclasses.replace(batch, **none, records=(), seg_counts=(0,) * len(batch.seg_counts))


def _stack(samples: Sequence[ProcessedSample], name: str) -> torch.Tensor | None:
    values = [getattr(s, name) for s in samples]
    present = [v for v in values if v is not None]
    assert len(present) in (0, len(values)), f"only some samples of the batch have {name}"
    return torch.stack(present) if present else None
