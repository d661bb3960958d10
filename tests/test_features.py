"""Features on their way from an image to a model: encoded once, kept, shared between processes."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aura.data.feature_cache import FeatureCache
from aura.data.processor import Processor
from aura.features import encode, fill_cache
from aura.types import ImageFeatures, Sample


class Means:
    """An encoder whose features are the means of the pixels; it remembers how many images came in each pass."""

    device = torch.device("cpu")

    def __init__(self, name: str = "weights") -> None:
        self.name, self.passes = name, []

    def encode_images(self, sam_pixels: torch.Tensor, clip_pixels: torch.Tensor) -> ImageFeatures:
        self.passes.append(len(sam_pixels))
        return ImageFeatures(sam_pixels.mean((2, 3), keepdim=True), clip_pixels.mean((2, 3))[:, None])

    def encoder_fingerprint(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]


@pytest.fixture
def processor(tiny_tokenizer) -> Processor:
    return Processor(tiny_tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4)


def sample_of(folder: Path, number: int) -> Sample:
    path = folder / f"{number:02}.png"
    Image.fromarray(np.full((8, 8, 3), 12 * number, np.uint8)).save(path)
    return Sample(number, path, 8, 8, (), ())


def test_what_the_cache_lacks_is_encoded_in_one_pass_and_kept(processor, tmp_path):
    model = Means()
    cache = FeatureCache.open(tmp_path / "cache", model, processor)
    samples = [sample_of(tmp_path, number) for number in range(5)]
    first = encode(model, processor, samples[1:3], cache)
    every = encode(model, processor, samples, cache)
    assert model.passes == [2, 3]
    assert torch.equal(every[2].sam_embeddings, first[1].sam_embeddings)
    fresh = encode(Means(), processor, samples)
    for kept, new in zip(every, fresh, strict=True):
        torch.testing.assert_close(kept.clip_features.float(), new.clip_features, rtol=1e-3, atol=1e-3)


def test_ranks_share_the_images_and_nothing_is_encoded_twice(processor, tmp_path):
    paths = [sample_of(tmp_path, number).image_path for number in range(10)]
    models = [Means(), Means()]
    caches = [FeatureCache.open(tmp_path / "cache", model, processor) for model in models]
    found = [
        fill_cache(cache, [*paths, *paths], model, processor, rank=rank, world=2, quiet=True)
        for rank, (cache, model) in enumerate(zip(caches, models, strict=True))
    ]
    assert found == [5, 5] == [sum(model.passes) for model in models]
    for cache in caches:
        cache.refresh()
        assert cache.missing(paths) == []
    assert fill_cache(caches[0], paths, models[0], processor, quiet=True) == 0


def test_other_weights_or_pixels_are_another_cache(processor, tmp_path):
    path = sample_of(tmp_path, 1).image_path
    fill_cache(FeatureCache.open(tmp_path / "cache", Means(), processor), [path], Means(), processor, quiet=True)
    assert FeatureCache.open(tmp_path / "cache", Means("other"), processor).missing([path]) == [path]
    processor.sam_image_size = 128
    assert FeatureCache.open(tmp_path / "cache", Means(), processor).missing([path]) == [path]
    assert FeatureCache.open(None, Means(), processor) is None


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_read_ahead_and_every_image_gets_its_own_features(processor, tmp_path, workers):
    samples = [sample_of(tmp_path, number) for number in range(13)]
    model = Means()
    cache = FeatureCache.open(tmp_path / "cache", model, processor)
    fill_cache(cache, [s.image_path for s in samples], model, processor, workers=workers, quiet=True)
    assert model.passes == [8, 5]
    alone = FeatureCache(tmp_path / "alone", "weights")
    for sample in samples:
        (fresh,) = encode(Means(), processor, [sample])
        kept = alone.store(sample.image_path, fresh)
        assert torch.equal(cache.load(sample.image_path).sam_embeddings, kept.sam_embeddings)


def test_what_cannot_be_read_or_stored_is_named_and_what_was_done_is_kept(processor, tmp_path, monkeypatch):
    paths = [sample_of(tmp_path, number).image_path for number in range(20)]
    paths[12].write_bytes(b"no picture")
    cache = FeatureCache.open(tmp_path / "cache", Means(), processor)
    with pytest.raises(ValueError, match=r"12\.png cannot be decoded"):
        fill_cache(cache, paths, Means(), processor, quiet=True)
    assert cache.missing(paths) == paths[8:]
    paths[12].unlink()
    broken = Means()
    broken.encode_images = lambda sam, clip: ImageFeatures(sam.mean((2, 3), keepdim=True) / 0, clip)
    with pytest.raises(ValueError, match=r"sam_embeddings of .*08\.png are not finite"):
        fill_cache(cache, paths[:12], broken, processor, quiet=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ValueError, match="for 4 more images"):
        fill_cache(FeatureCache(tmp_path / "new", "weights"), paths[:12], Means(), processor, quiet=True)


def test_a_batch_that_does_not_fit_is_halved(processor, tmp_path):
    class Small(Means):
        def encode_images(self, sam_pixels: torch.Tensor, clip_pixels: torch.Tensor) -> ImageFeatures:
            if len(sam_pixels) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().encode_images(sam_pixels, clip_pixels)

    model, samples = Small(), [sample_of(tmp_path, number) for number in range(5)]
    found = encode(model, processor, samples)
    assert model.passes == [2, 1, 2]
    for one, other in zip(found, encode(Means(), processor, samples), strict=True):
        assert torch.equal(one.sam_embeddings, other.sam_embeddings)
