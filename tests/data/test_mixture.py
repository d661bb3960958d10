"""Several sources as one: the order of an epoch against hand-worked numbers, and ids that no two sources share."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from aura.data.dataset import AuraDataset, EpochSampler
from aura.data.mixture import STRIDE, Mixture, Schedule, evenly, hold_out_of, shares
from aura.data.selection import conversation_counts, pictures, records_digest


@pytest.fixture
def mixture(sample):
    """Four images and two with the same ids; the last of each has no conversation."""
    first, second = ([replace(sample, image_id=number) for number in range(count)] for count in (4, 2))
    for part in (first, second):
        part[-1] = replace(part[-1], conversations=())
    return Mixture([first, second], ["photos", "scenes"], [3, 1])


def test_the_visits_of_an_epoch_lie_evenly_by_weight():
    # Six images: 4 visits at 1/8, 3/8, 5/8, 7/8 of the way, and 2 at 1/4, 3/4.
    schedule = Schedule([3, 3], [2, 1], ["a", "b"])
    assert schedule.visits.tolist() == [4, 2] and schedule.source.tolist() == [0, 1, 0, 0, 1, 0]
    assert [schedule.drawn(n) for n in (0, 1, 2, 6, 8, 13)] == [[0, 0], [1, 0], [1, 1], [4, 2], [5, 3], [9, 4]]
    keys = [schedule.key(position, 7) for position in range(18)]
    first = [key for key in keys if key[1] < 3]
    assert [number for number, _ in first] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], "pass by pass, whatever the epochs"
    for number in range(4):
        assert sorted(index for at, index in first if at == number) == [0, 1, 2]
    assert sorted(index for _, index in keys if index >= 3) == [3, 3, 4, 4, 5, 5]


def test_every_stretch_holds_the_sources_in_their_ratio():
    schedule = Schedule([1000, 300, 7], [5, 3, 2], "abc")
    for positions in range(0, 4000, 7):
        assert np.abs(np.array(schedule.drawn(positions)) - positions * schedule.visits / 1307).max() <= 1
    assert schedule.visits.tolist() == [654, 392, 261]  # 653.5, 392.1, 261.4 of 1307: the largest remainder goes up


def test_shares_are_whole_and_add_up():
    assert shares(10, [1, 1, 1]).tolist() == [4, 3, 3]
    assert shares(7, [0.5, 0.25, 0.25]).tolist() == [3, 2, 2]
    with pytest.raises(ValueError, match=r"data\.train: b has a weight under one visit an epoch"):
        Schedule([3, 3], [100, 1], ["a", "b"])
    with pytest.raises(ValueError, match=r"data\.train: b has no image with a conversation"):
        Schedule([3, 0], [1, 1], ["a", "b"])


def test_ids_are_those_of_the_source_and_of_no_other(mixture, sample):
    assert len(mixture) == 6 and len(mixture[:]) == 6 and mixture[-1].image_id == STRIDE + 1
    ids = [one.image_id for one in mixture]
    assert ids == [0, 1, 2, 3, STRIDE, STRIDE + 1] == [picture.image_id for picture in pictures(mixture)]
    assert [talk.id for talk in mixture[4].conversations] == [STRIDE + talk.id for talk in sample.conversations]
    assert mixture[4].conversations[0].turns == mixture[0].conversations[0].turns
    assert conversation_counts(mixture).tolist() == [3, 3, 3, 0, 3, 0]
    other = Mixture(mixture.parts, mixture.names, [1, 1])
    assert records_digest(other) != records_digest(mixture) == records_digest(mixture.of(mixture.parts))
    with pytest.raises(ValueError, match=r"scenes: image id \d+; of several sources"):
        Mixture([mixture.parts[0], [replace(sample, image_id=STRIDE)]], mixture.names, [1, 1])


def test_a_part_of_a_mixture_is_a_mixture(mixture):
    chosen = mixture.select(np.array([1, 2, 4]))
    assert [one.image_id for one in chosen] == [1, 2, STRIDE] and chosen.names == mixture.names
    many = Mixture([[replace(mixture[0], image_id=n) for n in range(20)]] * 2, ["a", "b"], [1, 1])
    kept, held = hold_out_of(many, 4)
    assert isinstance(held, Mixture) and len(held) == 4 and len(kept) == 36
    assert {one.image_id for one in kept} | {one.image_id for one in held} == {one.image_id for one in many}
    assert [one.image_id for one in evenly(mixture, 3)] == [0, 1, STRIDE]
    assert len(evenly(mixture, None)) == 6 and len(evenly(mixture.parts[0], 2)) == 2


@pytest.mark.parametrize("start", [0, 1, 5, 11])
def test_the_order_of_a_data_set_resumes_at_any_step_for_all_ranks(mixture, processor, start):
    dataset = AuraDataset(mixture, processor, conversations_per_image=1, seed=3)
    assert len(dataset) == 4  # three and one have a conversation
    options = {"seed": 3, "rank": 1, "world": 2, "schedule": dataset.schedule()}
    whole = list(islice(EpochSampler(4, 2, **options), 14))
    again = {**options, "schedule": AuraDataset(mixture, processor, seed=3).schedule()}
    assert list(islice(EpochSampler(4, 2, **again, start=start), 14 - start)) == whole[start:]
    keys = [key for step in whole for key in step]
    keys += [key for step in islice(EpochSampler(4, 2, **{**options, "rank": 0}), 14) for key in step]
    scenes = [key for key in keys if dataset.record(key).image_id >= STRIDE]
    assert len(scenes) == len(set(scenes)) == 14, "one of four visits, each a pass of its own"
    assert dataset[scenes[0]].image_id == STRIDE and mixture.visits(56) == {"photos": 42, "scenes": 14}
