"""The losses of the paper's Eq. 1 to 4 as pure functions, and :class:`AuraCriterion`, which applies them to a batch.

Legend: B images, N ``[SEG]`` objects of the batch, n of one image, M supervised tokens, V vocabulary, H W pixels of
the image, h w the mask decoder's grid. All mask losses are computed in fp32, whatever the model's precision.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from aura.config import LossSettings
from aura.geometry import to_decoder_grid, to_image
from aura.machine.chunks import in_chunks
from aura.targets import soft_spatial_map, spatial_map
from aura.types import ASKED, AuraOutput, Batch, ImageGeometry, Losses

OBJECT_TERMS = ("visible_bce", "visible_dice", "amodal_bce", "amodal_dice", "occlusion_rate", "spatial")
"""Terms of Eq. 4 that are means over objects; the other one is ``text``."""

DICE_EPS = 1.0
"""Added to both sides of the Dice fraction, in pixels: an empty mask predicted empty has loss 0, and never 0 / 0."""

PIXELS_AT_ONCE = 16 * 640 * 480
"""Most pixels of masks that are compared together: 16 objects of a COCO image, one of a large photograph."""

LOGITS_AT_ONCE = 2**24
"""Most logits of tokens that are held in fp32 together, 64 MiB: those of 524 tokens of LLaVA's vocabulary."""


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token, fp32 [M]; 0 where the target is -100. ``logits`` [M, V], ``targets`` [M]."""

    def compare(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"text": F.cross_entropy(logits.float(), targets, reduction="none")}

    return in_chunks(compare, [logits, targets], max(1, LOGITS_AT_ONCE // logits.shape[1]))["text"]


def text_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, mean over the supervised tokens (Eq. 1). ``logits`` [M, V], ``targets`` [M]; 0 if M = 0."""
    return _mean_of_tokens(token_losses(logits, targets), targets)


def _mean_of_tokens(losses: Tensor, targets: Tensor) -> Tensor:
    return losses.sum() / (targets >= 0).sum().clamp(min=1)


def mask_bce(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, mean over the pixels of each mask (the CE of Eq. 2).

    Args:
        logits: [n, H, W].
        targets: [n, H, W] in [0, 1].
        valid: Bool [H, W]; other pixels do not count.

    Returns:
        fp32 [n].
    """
    return _pixel_mean(F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none"), valid)


def dice_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Soft Dice ``1 - (2 |p g| + eps) / (|p| + |g| + eps)`` of each mask, with eps = :data:`DICE_EPS` (Eq. 2).

    The arguments are those of :func:`mask_bce`.

    Returns:
        fp32 [n], in [0, 1).
    """
    probabilities, targets = logits.float().sigmoid(), targets.float()
    if valid is not None:
        probabilities, targets = probabilities * valid, targets * valid
    overlap = (probabilities * targets).flatten(1).sum(1)
    total = probabilities.flatten(1).sum(1) + targets.flatten(1).sum(1)
    return 1 - (2 * overlap + DICE_EPS) / (total + DICE_EPS)


def spatial_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """3-class cross-entropy of the spatial occlusion map, mean over the pixels of each object (Eq. 3).

    Args:
        logits: [n, 3, H, W].
        targets: Classes [n, H, W] int64, or class probabilities [n, 3, H, W].
        valid: Bool [H, W]; other pixels do not count.

    Returns:
        fp32 [n].
    """
    if targets.dtype == torch.int64 and logits.is_cuda and torch.are_deterministic_algorithms_enabled():
        targets = _as_shares(targets)  # torch's own loss of classes per pixel has no deterministic form on a GPU
    return _pixel_mean(F.cross_entropy(logits.float(), targets, reduction="none"), valid)


def intent_loss(logits: Tensor, asked: Tensor) -> Tensor:
    """Cross-entropy of the asked mask, mean over the ``[SEG]`` objects. ``logits`` [N, 3], ``asked`` [N]; 0 if N = 0.

    ``asked`` are places in :data:`aura.types.ASKED`.
    """
    return text_loss(logits, asked)


def pointing_losses(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy of the image token that each state points at against those that show its object.

    Args:
        logits: [N, T].
        shares: [N, T], how much of each token's square the visible mask covers.

    Returns:
        fp32 [N]; 0 for an object that no token shows.
    """
    wanted = shares / shares.sum(1, keepdim=True).clamp(min=1e-6)
    return -(wanted * logits.float().log_softmax(1)).sum(1)


def token_shares(batch: Batch, side: int) -> Tensor:
    """How much of each of ``side`` x ``side`` squares the visible mask of each ``[SEG]`` covers: fp32 [N, T]."""
    seen = [
        to_decoder_grid(masks, geometry, (side, side))[0][batch.seg_object[batch.seg_image == image]]
        for image, (masks, geometry) in enumerate(zip(batch.visible_masks, batch.geometries, strict=True))
    ]
    return torch.cat(seen).flatten(1)


def _as_shares(classes: Tensor) -> Tensor:
    """The same targets as class probabilities: [n, H, W] -> fp32 [n, 3, H, W]."""
    return (classes[:, None] == torch.arange(3, device=classes.device)[:, None, None]).float()


def _mean_by(group: Tensor, values: Tensor, num_groups: int, weights: Tensor | None = None) -> Tensor:
    """The mean of ``values`` [n] in each group (int64 [n]), fp32 [num_groups]; NaN in one that has none."""
    weights = torch.ones_like(values) if weights is None else weights
    sums, counts = (values.new_zeros(num_groups).index_add(0, group, v) for v in (values * weights, weights))
    return sums / counts


def _pixel_mean(losses: Tensor, valid: Tensor | None) -> Tensor:
    """[n, H, W] -> [n]."""
    if valid is None:
        return losses.flatten(1).mean(1)
    return (losses * valid).flatten(1).sum(1) / valid.sum().clamp(min=1)


class AuraCriterion:
    """Compares an :class:`AuraOutput` with its :class:`Batch`.

    Text is averaged over the batch's supervised tokens, mask terms over its ``[SEG]`` objects. Pixels outside the image
    (SAM's padding) never count. Without any ``[SEG]`` the mask terms are 0. Objects whose whole shape is not known
    (``Batch.shape_known``) count for the text and the visible mask alone.

    Args:
        settings: The weights and the resolution at which masks are compared.
    """

    def __init__(self, settings: LossSettings) -> None:
        self.settings = settings

    def __call__(self, output: AuraOutput, batch: Batch) -> Losses:
        return self._losses(output, batch, None)

    def with_images(self, output: AuraOutput, batch: Batch) -> tuple[Losses, dict[str, Tensor]]:
        """The same losses, and each image's own, without gradients, for a log that tells images apart.

        Returns:
            Losses, and the terms of each image by name: fp32 [B], the mean over the image's tokens or objects, NaN
            where it has none; ``total`` is the weighted sum of those that it has.
        """
        own: dict[str, Tensor] = {}
        losses = self._losses(output, batch, own)
        with torch.no_grad():
            for name in OBJECT_TERMS:
                own.setdefault(name, torch.full_like(own["text"], torch.nan))
            own["total"] = sum(
                (getattr(self.settings, name) * value.nan_to_num() for name, value in own.items()),
                torch.zeros_like(own["text"]),
            )
        return losses, own

    def _losses(self, output: AuraOutput, batch: Batch, own: dict[str, Tensor] | None) -> Losses:
        tokens = token_losses(output.text_logits, batch.target_ids)
        if own is not None:
            image = batch.target_index // batch.input_ids.shape[1]
            own["text"] = _mean_by(image, tokens.detach(), len(batch.seg_counts))
        terms = {"text": _mean_of_tokens(tokens, batch.target_ids), **self._object_losses(output, batch, own)}
        if output.pointed_logits is not None:
            terms["pointing"] = self._pointing_loss(output.pointed_logits, batch, own)
        if output.asked_logits is not None:
            terms["intent"] = self._intent_loss(output.asked_logits, batch, own)
        total = sum(getattr(self.settings, name) * value for name, value in terms.items())
        return Losses(total=total + output.unused.float(), **terms)

    @staticmethod
    def _pointing_loss(logits: Tensor, batch: Batch, own: dict[str, Tensor] | None) -> Tensor:
        losses = pointing_losses(logits, token_shares(batch, math.isqrt(logits.shape[1])))
        if own is not None:
            own["pointing"] = _mean_by(batch.seg_image, losses.detach(), len(batch.seg_counts))
        return losses.sum() / max(len(losses), 1)

    @staticmethod
    def _intent_loss(logits: Tensor, batch: Batch, own: dict[str, Tensor] | None) -> Tensor:
        asked = batch.asked
        if asked is None:
            asked = torch.full_like(batch.seg_image, ASKED.index("both"))
        if own is not None:
            values = F.cross_entropy(logits.detach().float(), asked, reduction="none")
            own["intent"] = _mean_by(batch.seg_image, values, len(batch.seg_counts))
        return intent_loss(logits, asked)

    def _object_losses(self, output: AuraOutput, batch: Batch, own: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The terms of all objects; ``own`` takes those of each image, [B], that were computed on the way."""
        zero = output.text_logits.new_zeros((), dtype=torch.float32)
        num_objects = len(batch.seg_image)
        if num_objects == 0:
            # Sums of nothing: ZeRO 3 wants each output in every process's backward pass.
            outputs = (output.visible_logits, output.amodal_logits, output.occlusion_rate, output.spatial_logits)
            return dict.fromkeys(
                OBJECT_TERMS, sum((value.float().sum() for value in outputs if value is not None), zero)
            )
        terms = dict.fromkeys(OBJECT_TERMS, zero)
        # An object of unknown shape counts for what can be seen of it, and for nothing that asks for its whole.
        known = batch.shape_known.float()
        num_known = known.sum().clamp(min=1)
        if output.occlusion_rate is not None:
            errors = (output.occlusion_rate.float() - batch.occlusion_rates.float()).square()
            terms["occlusion_rate"] = (errors * known).sum() / num_known
            if own is not None:
                own["occlusion_rate"] = _mean_by(batch.seg_image, errors.detach(), len(batch.seg_counts), known)
        # One image at a time: the images' sizes differ, and only one image's full-size maps have to be built at once.
        end = 0
        for image, (geometry, count) in enumerate(zip(batch.geometries, batch.seg_counts, strict=True)):
            mine, end = slice(end, end + count), end + count
            if count == 0:
                continue
            logits = (output.visible_logits, output.amodal_logits, output.spatial_logits)
            rows = [None if values is None else values[mine] for values in logits] + [batch.seg_object[mine]]
            masks = {"visible": batch.visible_masks[image], "amodal": batch.amodal_masks[image]}
            compare = partial(self._compare, all_masks=masks, geometry=geometry)
            height, width = geometry.original
            losses = in_chunks(compare, rows, max(1, PIXELS_AT_ONCE // (height * width)))
            for name, values in losses.items():
                if own is not None:
                    one = own.setdefault(name, known.new_full((len(batch.seg_counts),), torch.nan))
                    weights = torch.ones_like(values) if name.startswith("visible") else known[mine]
                    one[image] = (values.detach() * weights).sum() / weights.sum()
                if name.startswith("visible"):
                    terms[name] = terms[name] + values.sum() / num_objects
                else:
                    terms[name] = terms[name] + (values * known[mine]).sum() / num_known
        return terms

    def _compare(
        self,
        visible: Tensor | None,  # [n, h, w]
        amodal: Tensor | None,  # [n, h, w]
        spatial: Tensor | None,  # [n, 3, h, w]
        objects: Tensor,  # [n] rows of the image's masks
        *,
        all_masks: dict[str, Tensor],
        geometry: ImageGeometry,
    ) -> dict[str, Tensor]:
        """Each mask term [n] of objects of one image."""
        masks = {kind: values[objects] for kind, values in all_masks.items()}
        # A model may decode one kind of mask only; the other kind then has no loss.
        logits = {kind: value for kind, value in (("visible", visible), ("amodal", amodal)) if value is not None}
        compare = self._at_image if self.settings.mask_resolution == "image" else self._at_decoder
        return compare(logits, spatial, masks, geometry)

    @staticmethod
    def _at_image(
        mask_logits: dict[str, Tensor],  # visible, amodal, or both: [n, h, w]
        spatial_logits: Tensor | None,  # [n, 3, h, w]
        masks: dict[str, Tensor],  # visible and amodal: [n, H, W] bool
        geometry: ImageGeometry,
    ) -> dict[str, Tensor]:
        """Each term [n], at the image's size; cutting SAM's square to the image leaves the padding out."""
        losses = {}
        for kind, logits in mask_logits.items():
            logits = to_image(logits.float(), geometry)  # [n, H, W]
            losses[f"{kind}_bce"] = mask_bce(logits, masks[kind])
            losses[f"{kind}_dice"] = dice_loss(logits, masks[kind])
        if spatial_logits is not None:
            classes = spatial_map(masks["visible"], masks["amodal"])
            losses["spatial"] = spatial_loss(to_image(spatial_logits.float(), geometry), classes)
        return losses

    @staticmethod
    def _at_decoder(
        mask_logits: dict[str, Tensor],
        spatial_logits: Tensor | None,
        masks: dict[str, Tensor],
        geometry: ImageGeometry,
    ) -> dict[str, Tensor]:
        """Each term [n], on the decoder's grid, where a target is the share of its cell that the mask covers."""
        losses, shares = {}, {}
        for kind, logits in mask_logits.items():
            grid = (logits.shape[-2], logits.shape[-1])
            shares[kind], valid = to_decoder_grid(masks[kind], geometry, grid)  # [n, h, w], [h, w]
            losses[f"{kind}_bce"] = mask_bce(logits, shares[kind], valid)
            losses[f"{kind}_dice"] = dice_loss(logits, shares[kind], valid)
        if spatial_logits is not None:  # the map is made from both masks, so both are here
            grid = (spatial_logits.shape[-2], spatial_logits.shape[-1])
            hidden, valid = to_decoder_grid(masks["amodal"] & ~masks["visible"], geometry, grid)
            seen = shares["visible"]
            if seen.shape != hidden.shape:  # a map finer than the masks
                seen, _ = to_decoder_grid(masks["visible"], geometry, grid)
            classes = soft_spatial_map(seen, hidden)  # [n, 3, h, w]
            losses["spatial"] = spatial_loss(spatial_logits, classes, valid)
        return losses
