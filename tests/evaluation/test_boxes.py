"""SAM in true boxes: prompts and masks against SAM's own pieces, scores by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from aura.data.feature_cache import FeatureCache
from aura.data.images import sam_geometry
from aura.evaluation import boxes
from aura.evaluation.boxes import BoxScorer, SamAlone, masks_in_boxes
from aura.features import encode
from aura.masks import encode_rle
from aura.model.tiny_vit import build_sam
from aura.types import AmodalObject, Conversation, Sample, Turn

SIZE = (32, 48)


@pytest.fixture
def sam(tiny_sam_config):
    return build_sam(tiny_sam_config).eval()


@pytest.fixture
def sample(tmp_path) -> Sample:
    """A bus of 10 x 20 pixels whose left half is hidden, and a tree of unknown shape; both are asked for twice."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)).save(tmp_path / "1.png")
    bus, tree = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    bus[10:20, 10:30], tree[2:30, 36:44] = True, True
    seen = bus.copy()
    seen[:, :20] = False
    objects = (
        AmodalObject(7, "bus", encode_rle(seen), encode_rle(bus), 0.5),
        AmodalObject(8, "tree", encode_rle(tree), None, None),
        AmodalObject(9, "dog", encode_rle(~bus), None, None),  # nobody asks for it
    )
    both = Turn("What is there?", "The tree [SEG] and the bus [SEG].", (8, 7))
    conversations = tuple(Conversation(n, (both,)) for n in (1, 2))
    return Sample(1, tmp_path / "1.png", *SIZE, objects, conversations)


def test_masks_equal_the_pieces_of_sam(sam):
    embeddings = torch.randn(1, 32, 8, 8)
    geometry = sam_geometry(*SIZE, 64)  # 48 x 32 becomes 64 x 43
    found = masks_in_boxes(sam, embeddings, [(6, 3, 12, 9), (30, 20, 10, 12)], geometry)
    for mask, (x, y, right, bottom) in zip(found, ((6, 3, 18, 12), (30, 20, 40, 32)), strict=True):
        across, down = 64 / 48, 43 / 32
        box = torch.tensor([[[x * across, y * down, right * across, bottom * down]]])
        with torch.no_grad():
            sparse, dense = sam.prompt_encoder(None, None, box, None)
            logits, _ = sam.mask_decoder(
                image_embeddings=embeddings,
                image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
        square = F.interpolate(logits[0], (64, 64), mode="bilinear", align_corners=False)
        expected = F.interpolate(square[..., :43, :64], SIZE, mode="bilinear", align_corners=False)[0, 0] > 0
        assert mask.shape == SIZE and 0 < expected.sum() < expected.numel()
        assert np.array_equal(mask, expected.numpy())


def test_many_boxes_are_decoded_in_parts(sam, monkeypatch):
    embeddings, geometry = torch.randn(1, 32, 8, 8), sam_geometry(*SIZE, 64)
    given = [(x, 4, 8, 9) for x in range(0, 30, 5)]
    together = masks_in_boxes(sam, embeddings, given, geometry)
    monkeypatch.setattr(boxes, "OBJECTS_AT_ONCE", 4)
    assert np.array_equal(together, masks_in_boxes(sam, embeddings, given, geometry))
    assert masks_in_boxes(sam, embeddings, [], geometry) == []


def test_scores_of_a_sam_that_fills_its_box(sam, sample, monkeypatch):
    """Boxes are filled whole. Each object counts once for each answer that names it, as in eval.py."""

    def filled(sam, embeddings, given, geometry):
        masks = []
        for x, y, width, height in (map(int, box) for box in given):
            masks.append(np.zeros(SIZE, bool))
            masks[-1][y : y + height, x : x + width] = True
        return masks

    monkeypatch.setattr(boxes, "masks_in_boxes", filled)
    scorer = BoxScorer(sam)
    scorer.add(sample, torch.zeros(1, 32, 8, 8))
    reports = scorer.reports("SAM")
    assert [report.name for report in reports.values()] == ["SAM, true visible box", "SAM, true amodal box"]
    visible, amodal = (report.as_dict() for report in reports.values())
    assert (visible["num_objects"], visible["protocol"], visible["seg_count_accuracy"]) == (4, "teacher_forced", 1.0)
    assert visible["visible"]["giou_object"] == 1.0
    assert visible["amodal_from_visible"]["giou_object"] == 0.5  # of the bus alone
    assert (visible["amodal"]["giou_object"], amodal["visible"]["giou_object"]) == (None, None)
    assert (amodal["amodal"]["giou_object"], amodal["invisible"]["giou_object"]) == (1.0, 1.0)


def test_features_are_kept_for_this_sam(sam, sample, tmp_path):
    alone = SamAlone(sam)
    cache = FeatureCache.open(tmp_path / "cache", alone, alone)
    (first,) = encode(alone, alone, [sample], cache)
    with torch.no_grad():
        expected = sam.get_image_embeddings(alone.image(sample.image_path).sam_pixels[None])
    torch.testing.assert_close(first.sam_embeddings.float(), expected, atol=2e-3, rtol=2e-3)
    assert not cache.missing([sample.image_path])
    before = alone.encoder_fingerprint()
    next(sam.vision_encoder.parameters()).data += 1
    assert alone.encoder_fingerprint() != before
