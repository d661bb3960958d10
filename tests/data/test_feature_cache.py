import multiprocessing
import re
import shutil
import warnings

import pytest
import torch

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
    assert equal(FeatureCache(tmp_path / "cache", "weights").load(image), kept)
    assert kept.sam_embeddings.dtype == torch.float32
    torch.testing.assert_close(kept.sam_embeddings, features().sam_embeddings, rtol=1e-3, atol=1e-6)
    assert not equal(kept, features())


def test_exact_storage_keeps_every_bit_and_its_own_files(tmp_path, image):
    exact = FeatureCache(tmp_path, "weights", exact=True)
    assert equal(exact.store(image, features()), features())
    assert equal(exact.load(image), features())
    assert FeatureCache(tmp_path, "weights").load(image) is None


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
    assert cache.size().files == 0


def test_the_bytes_and_the_fingerprint_decide_and_the_name_does_not(tmp_path, image):
    cache = FeatureCache(tmp_path / "cache", "weights")
    cache.store(image, features())
    moved = tmp_path / "b.jpg"
    shutil.copy(image, moved)
    assert cache.load(moved) is not None
    assert FeatureCache(tmp_path / "cache", "other weights").load(image) is None
    image.write_bytes(b"picture two, another one")
    assert cache.load(image) is None


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_file_is_named_removed_and_counts_as_absent(tmp_path, image, damage):
    cache = FeatureCache(tmp_path / "cache", "weights")
    cache.store(image, features())
    path = cache.path(image)
    path.write_bytes(path.read_bytes()[:-20] if damage is None else damage)
    with pytest.warns(UserWarning, match=re.escape(str(path))):
        assert cache.load(image) is None
    assert not path.exists()
    kept = cache.store(image, features())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(cache.load(image), kept)


def _write_often(root, image, failures):
    cache = FeatureCache(root, "weights")
    for _ in range(50):
        cache.store(image, features())
        if not equal(cache.load(image), ImageFeatures(*(t.half().float() for t in vars(features()).values()))):
            failures.put("torn")


def test_two_processes_may_write_the_same_image(tmp_path, image):
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    workers = [context.Process(target=_write_often, args=(tmp_path / "cache", image, failures)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert failures.empty()
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert len(files) == 1


def test_size_counts_files_and_bytes(tmp_path, image):
    cache = FeatureCache(tmp_path / "cache", "weights")
    assert cache.size() == (0, 0)
    cache.store(image, features())
    assert cache.size() == (1, cache.path(image).stat().st_size)
    assert str(cache.size()) == "1 images, 0.0 MiB"


def test_a_missing_image_or_an_impossible_folder_is_named(tmp_path, image):
    with pytest.raises(ValueError, match=r"gone\.jpg cannot be read"):
        FeatureCache(tmp_path, "weights").load(tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match=r"feature cache .*a\.jpg cannot be made"):
        FeatureCache(image, "weights")
