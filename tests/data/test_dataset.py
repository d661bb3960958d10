from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from aura.data.collate import collate
from aura.data.dataset import AuraDataset, EpochSampler
from aura.data.feature_cache import FeatureCache
from aura.types import ImageFeatures


@pytest.fixture
def samples(sample):
    return [replace(sample, image_id=i) for i in range(5)]


@pytest.mark.parametrize(("num", "batch", "world"), [(7, 2, 3), (4, 1, 1), (3, 5, 2), (10, 5, 2)])
def test_every_epoch_holds_every_image_once_over_all_ranks(num, batch, world):
    steps = 3 * num
    ranks = [list(islice(EpochSampler(num, batch, seed=5, rank=r, world=world), steps)) for r in range(world)]
    stream = [key for step in zip(*ranks, strict=True) for keys in step for key in keys]
    assert len(set(stream)) == len(stream) == steps * batch * world
    for epoch in range(3):
        visit = stream[epoch * num : (epoch + 1) * num]
        assert sorted(visit) == [(epoch, i) for i in range(num)]


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed, epoch):
        return [i for ((_, i),) in islice(EpochSampler(50, 1, seed=seed, start=50 * epoch), 50)]

    assert len({tuple(order(s, e)) for s in (0, 1) for e in (0, 1)}) == 4
    assert order(0, 1) == order(0, 1)


@pytest.mark.parametrize("start", [0, 1, 3, 4, 11])
def test_the_order_resumes_at_any_step(start):
    whole = list(islice(EpochSampler(7, 2, seed=3, rank=1, world=2), 20))
    assert list(islice(EpochSampler(7, 2, seed=3, rank=1, world=2, start=start), 20 - start)) == whole[start:]


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        EpochSampler(0, 1)


def test_draws_depend_on_the_key_alone_and_vary(samples, processor):
    def drawn(epoch, index, seed=0):
        dataset = AuraDataset(samples, processor, conversations_per_image=2, seed=seed)
        return tuple(c.id for c in dataset[(epoch, index)].conversations)

    assert drawn(3, 1) == drawn(3, 1)
    visits = {drawn(epoch, 1) for epoch in range(12)}
    assert visits == {(1, 2), (1, 3), (2, 3)}
    assert [drawn(e, 1, seed=1) for e in range(8)] != [drawn(e, 1) for e in range(8)]


@pytest.mark.parametrize("count", [None, 3, 9])
def test_all_conversations_are_taken_when_there_are_not_more(samples, processor, count):
    dataset = AuraDataset(samples, processor, conversations_per_image=count)
    assert [c.id for c in dataset[(0, 0)].conversations] == [1, 2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_same_batches_with_any_number_of_workers(samples, processor, workers):
    dataset = AuraDataset(samples, processor, conversations_per_image=1, seed=4)
    sampler = EpochSampler(len(dataset), 2, seed=4, start=1)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    batches = list(islice(loader, 4))
    for step, batch in enumerate(batches, start=1):
        expected = collate([dataset[key] for key in sampler.keys(step)])
        assert batch.image_ids == expected.image_ids
        assert torch.equal(batch.input_ids, expected.input_ids)
        assert batch.records == expected.records


def test_images_without_conversations_are_left_out_aloud(samples, processor):
    samples[1] = replace(samples[1], conversations=())
    with pytest.warns(UserWarning, match="1 of 5 images have no conversation"):
        dataset = AuraDataset(samples, processor)
    assert [dataset[(0, i)].image_id for i in range(len(dataset))] == [0, 2, 3, 4]


def test_a_batch_uses_cached_features_only_if_it_has_them_all(samples, processor, tmp_path):
    for number, sample in enumerate(samples):
        path = tmp_path / f"{number}.png"
        path.write_bytes(sample.image_path.read_bytes() + bytes([number]))
        samples[number] = replace(sample, image_path=path)
    cache = FeatureCache(tmp_path / "cache", "weights")
    dataset = AuraDataset(samples, processor, cache=cache)
    stored = [
        cache.store(samples[i].image_path, ImageFeatures(torch.rand(1, 8, 4, 4), torch.rand(1, 4, 6))) for i in (0, 2)
    ]
    batch = collate(dataset.__getitems__([(1, 2), (1, 0)]))
    assert batch.sam_pixels is None and batch.clip_pixels is None
    assert torch.equal(batch.sam_embeddings, torch.cat([stored[1].sam_embeddings, stored[0].sam_embeddings]))
    assert torch.equal(batch.clip_features, torch.cat([stored[1].clip_features, stored[0].clip_features]))
    partly = collate(dataset.__getitems__([(1, 0), (1, 1)]))
    assert partly.sam_embeddings is None and partly.sam_pixels.shape == (2, 3, 64, 64)
