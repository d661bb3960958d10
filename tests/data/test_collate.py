import random

import pytest
import torch

from aura.data.collate import collate, pack, prefix_length
from aura.data.conversations import TokenizedConversation
from aura.data.processor import ProcessedSample, SegTarget
from aura.types import ImageGeometry, SegRecord

SEG = 9


def talk(ids, supervised=(), number=1):
    segs = [t for t, token in enumerate(ids) if token == SEG]
    mask = [t in supervised for t in range(len(ids))]
    return TokenizedConversation(number, list(ids), mask, segs, [(0, i) for i in range(len(segs))])


def processed(conversations, image_id=1, rows=2):
    targets = tuple(
        tuple(
            SegTarget(SegRecord(image_id, c.id, 0, i, 100 + i), i % rows, 0.25 * (i + 1))
            for i in range(len(c.seg_positions))
        )
        for c in conversations
    )
    masks = torch.zeros(rows, 2, 3, dtype=torch.bool)
    return ProcessedSample(
        image_id, ImageGeometry((2, 3), (4, 6), 6), tuple(conversations), targets, masks, masks, torch.zeros(3, 6, 6)
    )


def test_three_branches_of_unequal_length():
    a = talk([1, 5, 6, 2, 3, 9, 4], supervised={4, 5, 6}, number=11)
    b = talk([1, 5, 6, 7, 8], supervised={4}, number=12)
    c = talk([1, 5, 6, 2, 9, 4], supervised={4, 5}, number=13)
    batch = collate([processed([a, b, c])])
    assert batch.input_ids.tolist() == [[1, 5, 6, 2, 3, 9, 4, 7, 8, 2, 9, 4]]
    assert batch.segment_ids.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 3, 4, 3, 4, 5]]
    assert batch.target_index.tolist() == [3, 4, 5, 7, 9, 10]
    assert batch.target_ids.tolist() == [3, 9, 4, 8, 9, 4]
    assert batch.seg_index.tolist() == [5, 10]
    assert [r.conversation_id for r in batch.records] == [11, 13]


def test_identical_questions_part_before_the_token_that_predicts_the_answer():
    a = talk([1, 5, 6, 7, 3, 2], supervised={4, 5})
    b = talk([1, 5, 6, 7, 4, 2], supervised={4, 5})
    packed = pack([a, b])
    assert packed.input_ids == [1, 5, 6, 7, 3, 2, 7, 4, 2]
    assert packed.segment_ids == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert packed.target_index == [3, 4, 6, 7]


def test_identical_conversations_each_keep_their_branch():
    a = talk([1, 5, 6, 9, 2], supervised={3, 4})
    packed = pack([a, a])
    assert packed.segment_ids == [0, 0, 1, 1, 1, 2, 2, 2]
    assert packed.seg_index == [3, 6]


def test_one_conversation_that_begins_another():
    short = talk([1, 5, 6, 3, 2], supervised={3, 4})
    long = talk([1, 5, 6, 3, 2, 7, 8, 9, 2], supervised={3, 4, 7, 8})
    packed = pack([short, long])
    assert packed.input_ids == [1, 5, 6, 3, 2, 6, 3, 2, 7, 8, 9, 2]
    assert packed.position_ids == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8]
    assert packed.target_ids == [3, 2, 3, 2, 9, 2]
    assert packed.target_index == [2, 3, 5, 6, 9, 10]


def test_a_single_conversation_is_one_branch_behind_its_prompt():
    batch = collate([processed([talk([1, 5, 6, 9, 2], supervised={3, 4})])])
    assert batch.input_ids.tolist() == [[1, 5, 6, 9, 2]]
    assert batch.segment_ids.tolist() == [[0, 0, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]]


def test_a_seg_that_is_not_supervised_stays_on_its_branch():
    a, b = talk([1, 5, 9, 6, 7, 2], supervised={5}), talk([1, 5, 9, 6, 8, 2], supervised={5})
    assert prefix_length([a, b]) == 1
    packed = pack([a, b])
    assert packed.segment_ids == [0] + [1] * 5 + [2] * 5
    assert packed.seg_index == [2, 7]


def test_without_labels_or_seg_every_branch_keeps_a_token():
    packed = pack([talk([1, 5, 6]), talk([1, 5, 6])])
    assert packed.segment_ids == [0, 0, 1, 2]
    assert (packed.target_index, packed.seg_index) == ([], [])


def test_a_batch_pads_right_and_flattens_its_indices():
    first = processed([talk([1, 5, 9, 2], {2, 3}, 1)], image_id=1)
    none = processed([talk([1, 5], {1}, 2)], image_id=2)
    last = processed([talk([1, 5, 6, 9, 9, 2], {3, 4, 5}, 3)], image_id=3)
    batch = collate([first, none, last])
    assert batch.input_ids.tolist() == [[1, 5, 9, 2, 0, 0], [1, 5, 0, 0, 0, 0], [1, 5, 6, 9, 9, 2]]
    assert batch.segment_ids.tolist() == [[0, 1, 1, 1, -1, -1], [1, 1, -1, -1, -1, -1], [0, 0, 1, 1, 1, 1]]
    assert batch.target_index.tolist() == [1, 2, 6, 14, 15, 16]
    assert batch.target_ids.tolist() == [9, 2, 5, 9, 9, 2]
    assert batch.seg_index.tolist() == [2, 15, 16]
    assert batch.seg_image.tolist() == [0, 2, 2]
    assert batch.seg_object.tolist() == [0, 0, 1]
    assert batch.occlusion_rates.tolist() == [0.25, 0.25, 0.5]
    assert batch.image_ids == (1, 2, 3)
    assert batch.sam_pixels.shape == (3, 3, 6, 6) and batch.sam_embeddings is None


def test_a_batch_without_any_seg_has_empty_tensors_of_the_right_type():
    batch = collate([processed([talk([1, 5, 6, 2], {2, 3})])])
    for value in (batch.seg_index, batch.seg_image, batch.seg_object):
        assert value.shape == (0,) and value.dtype == torch.int64
    assert batch.occlusion_rates.dtype == torch.float32 and batch.records == ()


def test_pixels_and_features_do_not_mix():
    a, b = (processed([talk([1, 2])]) for _ in range(2))
    b.sam_pixels, b.sam_embeddings = None, torch.zeros(4, 2, 2)
    with pytest.raises(AssertionError, match="only some samples"):
        collate([a, b])


@pytest.mark.parametrize("seed", range(100))
def test_every_conversation_can_be_recovered_from_the_packed_sequence(seed):
    rng = random.Random(seed)
    samples = []
    for image in range(rng.randint(1, 3)):
        start = [rng.randint(1, 8) for _ in range(rng.randint(1, 6))]
        talks = []
        for number in range(rng.randint(1, 4)):
            ids = start + [rng.choice([1, 2, SEG]) for _ in range(rng.randint(1, 6))]
            labels = {t for t in range(len(start), len(ids)) if ids[t] == SEG or rng.random() < 0.5}
            talks.append(talk(ids, labels, number))
        samples.append(processed(talks, image))
    batch = collate(samples)
    length = batch.input_ids.shape[1]
    found_targets, found_segs = [], []
    for b, sample in enumerate(samples):
        segments = batch.segment_ids[b]
        assert segments.max() == len(sample.conversations)
        for q, c in enumerate(sample.conversations, start=1):
            chosen = ((segments == 0) | (segments == q)).nonzero()[:, 0]
            assert batch.input_ids[b, chosen].tolist() == c.input_ids
            assert batch.position_ids[b, chosen].tolist() == list(range(len(c.input_ids)))
            for t in [t for t, label in enumerate(c.target_mask) if label]:
                assert segments[chosen[t - 1]] == q
                found_targets.append((b * length + int(chosen[t - 1]), c.input_ids[t]))
            for t in c.seg_positions:
                assert segments[chosen[t - 1]] == segments[chosen[t]] == q
                found_segs.append((b, b * length + int(chosen[t])))
    assert list(zip(batch.target_index.tolist(), batch.target_ids.tolist(), strict=True)) == found_targets
    assert list(zip(batch.seg_image.tolist(), batch.seg_index.tolist(), strict=True)) == found_segs
    assert len(batch.records) == len(found_segs)


def test_a_real_sample_packs_and_unpacks(processor, sample):
    whole = processor(sample)
    batch = collate([whole])
    assert batch.input_ids.shape[1] < sum(len(c.input_ids) for c in whole.conversations)
    shared = int((batch.segment_ids == 0).sum())
    assert (batch.input_ids[0, :shared] == processor.text.image_token_id).sum() == 4
    flat = batch.input_ids.flatten()
    assert (flat[batch.seg_index] == processor.text.seg_token_id).all()
    assert [r.annotation_id for r in batch.records] == [10, 30, 20, 30, 10, 10]


def test_an_unknown_shape_is_marked():
    sample = processed([talk([1, 5, 9, 9, 2], supervised={2, 3, 4})])
    (first, second), *_ = sample.targets
    sample.targets = ((first, second._replace(occlusion_rate=None)),)
    batch = collate([sample])
    assert batch.shape_known.tolist() == [True, False]
    assert batch.occlusion_rates.tolist() == [0.25, 0.0]


def test_asked_masks_come_in_the_order_of_the_classes():
    sample = processed([talk([1, 5, 6, 9, 9, 2], {3, 4, 5}, 3)])
    first, *rest = sample.targets[0]
    sample.targets = ((first._replace(asked="amodal"), *rest),)
    batch = collate([sample])
    assert batch.asked.tolist() == [1, *[2] * len(rest)] and batch.asked.dtype == torch.int64
