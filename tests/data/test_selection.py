"""Some of the records, and what is asked of them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from aura.data.selection import Selection, content_of, conversation_counts, hold_out, pictures, records_digest


def test_a_selection_has_the_chosen_images_without_what_is_left_out(sample):
    samples = [replace(sample, image_id=i) for i in range(5)]
    chosen = Selection(samples, np.array([1, 3, 4]), {3: [2]})
    assert [s.image_id for s in chosen] == [1, 3, 4] and len(chosen) == 3
    assert [[c.id for c in s.conversations] for s in chosen] == [[1, 2, 3], [1, 3], [1, 2, 3]]
    assert [s.image_id for s in chosen[1:]] == [3, 4] and chosen[-1].image_id == 4
    assert conversation_counts(chosen).tolist() == [3, 2, 3]
    assert [picture.image_id for picture in pictures(chosen)] == [1, 3, 4]
    assert content_of(chosen) is None


def test_digests_tell_records_apart(sample):
    samples = [replace(sample, image_id=i) for i in range(3)]
    everything = Selection(samples, np.arange(3))
    assert records_digest(everything) == records_digest(samples)
    fewer = replace(sample, image_id=1, conversations=sample.conversations[:2])
    others = [
        Selection(samples, np.arange(2)),
        Selection(samples, np.arange(3), {1: [3]}),
        Selection(samples, np.arange(3), {1: [2]}),
        samples[::-1],
        [samples[0], fewer, samples[2]],
    ]
    assert len({records_digest(each) for each in [samples, *others]}) == 6


def ids(samples):
    return [sample.image_id for sample in samples]


def test_what_is_held_out_depends_on_the_ids_alone(sample):
    samples = [replace(sample, image_id=i) for i in range(40)]
    samples[7] = replace(samples[7], conversations=())
    train, held = hold_out(samples, 3)
    order = sorted((i for i in range(40) if i != 7), key=lambda i: hashlib.sha256(f"{i}".encode()).hexdigest())
    assert set(ids(held)) == set(order[:3]) and len(held) == 3
    assert sorted(ids(train) + ids(held)) == list(range(40)) and ids(held) == sorted(ids(held))
    assert set(ids(hold_out(samples[::-1], 3)[1])) == set(ids(held))
    assert len(hold_out(samples, 100)[1]) == 3, "at most a tenth of the 39 that have conversations"
    assert len(hold_out(samples[:9], 100)[1]) == 0
