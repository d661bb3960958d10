import multiprocessing
import pickle
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from aura.data import feature_cache
from aura.data.feature_cache import FeatureCache
from aura.types import ImageFeatures


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"picture one")
    return path


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ImageFeatures(torch.randn(1, 8, 4, 4, generator=generator), torch.randn(1, 4, 6, generator=generator) * 100)


def equal(a, b):
    return torch.equal(a.sam_embeddings, b.sam_embeddings) and torch.equal(a.clip_features, b.clip_features)


def test_stored_features_come_back_as_store_returned_them(tmp_path, image):
    cache = FeatureCache(tmp_path / "cache", "weights")
    assert cache.load(image) is None
    kept = cache.store(image, features())
    assert equal(cache.load(image), kept)
    assert equal(FeatureCache(tmp_path / "cache", "weights").load(image), kept)
    assert equal(pickle.loads(pickle.dumps(cache)).load(image), kept)  # as a loader process gets it
    assert kept.sam_embeddings.dtype == kept.clip_features.dtype == torch.float16
    torch.testing.assert_close(kept.sam_embeddings.float(), features().sam_embeddings, rtol=1e-3, atol=1e-6)


def test_exact_storage_keeps_every_bit_and_its_own_files(tmp_path, image):
    exact = FeatureCache(tmp_path, "weights", exact=True)
    assert equal(exact.store(image, features()), features())
    assert equal(exact.load(image), features())
    assert FeatureCache(tmp_path, "weights").load(image) is None


def test_what_is_stored_stays_whoever_comes_later(tmp_path, image):
    first, second = (FeatureCache(tmp_path / "cache", "weights") for _ in range(2))
    kept = first.store(image, features())
    assert equal(first.store(image, features(1)), kept)
    second.store(image, features(2))  # it has not seen the first one's
    for cache in (first, second, FeatureCache(tmp_path / "cache", "weights")):
        cache.refresh()
        assert equal(cache.load(image), kept)
    assert cache.size().images == 1


def test_values_beyond_half_precision_are_kept(tmp_path, image):
    large = features()
    large.clip_features[0, 0, 0] = 1e6
    cache = FeatureCache(tmp_path, "weights")
    assert cache.store(image, large).clip_features[0, 0, 0] == 1e6
    assert cache.load(image).clip_features[0, 0, 0] == 1e6


def test_features_that_are_not_finite_are_refused(tmp_path, image):
    broken = features()
    broken.sam_embeddings[0, 0, 0, 0] = float("nan")
    cache = FeatureCache(tmp_path, "weights")
    with pytest.raises(ValueError, match=r"sam_embeddings of .*a\.jpg are not finite"):
        cache.store(image, broken)
    assert cache.size().images == 0


def test_the_bytes_and_the_fingerprint_decide_and_the_name_does_not(tmp_path, image):
    cache = FeatureCache(tmp_path / "cache", "weights")
    cache.store(image, features())
    moved = tmp_path / "b.jpg"
    shutil.copy(image, moved)
    assert cache.load(moved) is not None
    assert FeatureCache(tmp_path / "cache", "other weights").load(image) is None
    image.write_bytes(b"picture two, another one")
    assert cache.load(image) is None


def test_an_image_is_read_once_as_long_as_it_does_not_change(tmp_path, image, monkeypatch):
    FeatureCache(tmp_path / "cache", "weights").store(image, features())
    again = FeatureCache(tmp_path / "cache", "weights")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read again"))
        assert again.load(image) is not None
        assert again.missing([image, image]) == []
    image.write_bytes(b"picture 1st")  # as long as before
    assert again.missing([image]) == [image]


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_damaged_features_are_named_forgotten_and_computed_anew(tmp_path, image, damage):
    cache = FeatureCache(tmp_path / "cache", "weights")
    cache.store(image, features())
    (shard,) = cache.folder.glob("*.shard")
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes({"cut": content[:-20], "changed": content, "emptied": b""}[damage])
    with pytest.warns(UserWarning, match=re.escape(f"{image} are damaged ({shard} at byte 0")):
        assert cache.load(image) is None
    for other in (cache, FeatureCache(tmp_path / "cache", "weights")):
        assert other.missing([image]) == [image]
    kept = cache.store(image, features())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (cache, FeatureCache(tmp_path / "cache", "weights")):
            assert equal(other.load(image), kept)


def test_any_file_may_be_deleted(tmp_path, image):
    for suffix in ("shard", "rows"):
        cache = FeatureCache(tmp_path / suffix, "weights")
        cache.store(image, features())
        for file in cache.folder.glob(f"*.{suffix}"):
            file.unlink()
        assert FeatureCache(tmp_path / suffix, "weights").load(image) is None
    shutil.rmtree(tmp_path / "rows" / feature_cache.NAMES)
    assert FeatureCache(tmp_path / "rows", "weights").load(image) is None


def _write_often(root, images, failures):
    for _ in range(10):
        cache = FeatureCache(root, "weights")
        for seed, image in enumerate(images):
            cache.store(image, features(seed))
            rounded = ImageFeatures(*(t.half() for t in vars(features(seed)).values()))
            if not equal(cache.load(image), rounded):
                failures.put("torn")


def test_two_processes_may_write_the_same_images(tmp_path):
    images = [tmp_path / f"{number}.jpg" for number in range(5)]
    for number, image in enumerate(images):
        image.write_bytes(b"picture %d" % number)
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    workers = [context.Process(target=_write_often, args=(tmp_path / "cache", images, failures)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert failures.empty()
    assert FeatureCache(tmp_path / "cache", "weights").missing(images) == []


def test_a_disk_that_cannot_hold_the_rest_is_told_in_time(tmp_path, image, monkeypatch):
    cache = FeatureCache(tmp_path / "cache", "weights")
    cache.require_room(100)  # nothing is known yet
    cache.store(image, features())
    cache.require_room(100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 8, 10_000))
    with pytest.raises(ValueError, match=r"for 100 more images, and its disk has 0\.0 GiB left; make room"):
        cache.require_room(100)


def test_size_counts_images_and_bytes(tmp_path, image):
    cache = FeatureCache(tmp_path / "cache", "weights")
    assert cache.size() == (0, 0)
    cache.store(image, features())
    (shard,) = cache.folder.glob("*.shard")
    assert cache.size() == (1, shard.stat().st_size)
    assert str(cache.size()) == "1 images, 0.0 MiB"


def test_a_missing_image_or_an_impossible_folder_is_named(tmp_path, image):
    with pytest.raises(ValueError, match=r"gone\.jpg cannot be read"):
        FeatureCache(tmp_path, "weights").load(tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match=r"feature cache .*a\.jpg cannot be made"):
        FeatureCache(image, "weights")
