"""A new projector learns the words for what image tokens show; the prompt encoder is told how large its states are."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from aura.data.collate import collate
from aura.data.processor import Processor
from aura.masks import encode_rle
from aura.model import AuraModel
from aura.train.align import align_projector, rescale_states, share_named, shares, word_embeddings, word_loss
from aura.train.align_pointer import align_pointer
from aura.types import AmodalObject, Sample


def sample_of(folder: Path, number: int, size: tuple[int, int] = (28, 28)) -> Sample:
    """Black, with a red patch and a blue one at two of the four corners."""
    pixels, objects = np.zeros((*size, 3), np.uint8), []
    corners = np.random.default_rng(number).permutation(4)[:2]
    for corner, (name, colour) in zip(corners, {"red": (250, 0, 0), "blue": (0, 0, 250)}.items(), strict=True):
        mask = np.zeros(size, bool)
        rows, columns = (slice(14 * k, 14 * k + 14) for k in divmod(int(corner), 2))
        mask[rows, columns] = True
        pixels[mask] = colour
        objects.append(AmodalObject(len(objects), name, encode_rle(mask), encode_rle(mask), 0.0))
    path = folder / f"{number}.png"
    Image.fromarray(pixels).save(path)
    return Sample(number, path, *size, tuple(objects), ())


@pytest.fixture
def processor(tiny_tokenizer) -> Processor:
    return Processor(tiny_tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_projector_learns_words_and_everything_else_stays(make_model, processor, tmp_path, dtype):
    model: AuraModel = make_model(train_projector=True).to(dtype)
    samples = [sample_of(tmp_path, number) for number in range(12)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    right = align_projector(model, processor, samples, None, steps=60, batch_size=6, lr=1e-2, quiet=True)
    assert right > 0.9
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"mllm.projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())

    # Without the function's own code: the patch at a corner is nearest to the word for its colour.
    words = word_embeddings(model, processor, ["blue", "red", "background"])
    image = processor.image(samples[0].image_path).clip_pixels[None].to(dtype)
    with torch.no_grad():
        tokens = model.mllm.project(model.mllm.encode_images(image))[0].float()
    corner = int(np.random.default_rng(0).permutation(4)[0])
    assert int((tokens[corner] @ words.T).argmax()) == 1

    # New images of what it knows; and one whose blue patch is called red.
    new = [sample_of(tmp_path, number) for number in range(20, 24)]
    assert share_named(model, processor, samples, new, None) > 0.9
    wrong = dataclasses.replace(new[0], objects=tuple(dataclasses.replace(o, category="red") for o in new[0].objects))
    assert share_named(model, processor, samples, [wrong], None) == 0.5
    unknown = dataclasses.replace(new[0], objects=tuple(dataclasses.replace(o, category="ox") for o in new[0].objects))
    assert math.isnan(share_named(model, processor, samples, [unknown], None))


def test_the_same_seed_gives_the_same_projector(make_model, processor, tmp_path):
    samples = [sample_of(tmp_path, number) for number in range(4)]
    torch.manual_seed(0)
    first = make_model(train_projector=True)
    second = make_model(train_projector=True)
    second.load_state_dict(first.state_dict())
    for model in (first, second):
        align_projector(model, processor, samples, None, steps=3, batch_size=3, seed=5, quiet=True)
    assert_close(first.mllm.projector.state_dict(), second.mllm.projector.state_dict(), atol=0, rtol=0)


def test_a_word_is_the_mean_of_its_tokens_after_a_space(make_model, processor):
    model = make_model()
    ids = processor.text.tokenizer(" zebra", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    table = model.mllm.language_model.get_input_embeddings().weight
    assert_close(word_embeddings(model, processor, ["zebra"])[0], table[ids].mean(0))


def test_the_loss_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])
    shown = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    # The first token shows the first word (probability 1/4), the second is background (1/2, weight 0.2).
    assert_close(word_loss(logits.log_softmax(-1), shown), torch.tensor((math.log(4) + 0.2 * math.log(2)) / 1.2))


@pytest.mark.parametrize(("resize", "expected"), [("squash", (1, 0)), ("pad", (0.5, 0)), ("crop", (1, 0))])
def test_shares_follow_the_image_into_clip(tiny_tokenizer, tmp_path, resize, expected):
    """On an image twice as wide as high, whose left half is red."""
    processor = Processor(tiny_tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4, clip_resize=resize)
    left = np.zeros((28, 56), bool)
    left[:, :28] = True
    sample = Sample(
        1, tmp_path / "none.png", 28, 56, (AmodalObject(1, "red", encode_rle(left), encode_rle(left), 0),), ()
    )
    found = shares(sample, {"red": 0}, processor, 2).reshape(2, 2, 2)
    assert_close(found.sum(-1), np.ones((2, 2), np.float32))
    assert_close(found[..., 0], np.array([expected, expected], np.float32), atol=0.02, rtol=0)


def test_four_objects_share_one_picture(processor, tmp_path):
    """More than an RGB picture has colours, one of them hidden in part."""
    objects = []
    for number in range(4):
        mask = np.zeros((28, 28), bool)
        mask[14 * (number // 2) :, 14 * (number % 2) :][:14, :7] = True
        objects.append(AmodalObject(number, "ab"[number % 2], encode_rle(mask), encode_rle(mask), 0.0))
    found = shares(Sample(1, tmp_path / "none.png", 28, 28, tuple(objects), ()), {"a": 0, "b": 1}, processor, 2)
    assert_close(found, np.array([[0.5, 0, 0.5], [0, 0.5, 0.5]] * 2, np.float32), atol=0.02, rtol=0)


def test_features_that_form_no_square_are_refused(make_model, processor, tmp_path):
    model = make_model(train_projector=True)
    model.mllm.encode_images = lambda pixels: torch.zeros(1, 5, 24)
    with pytest.raises(ValueError, match=r"train\.align_steps: the vision tower gives 5 features"):
        align_projector(model, processor, [sample_of(tmp_path, 0)], None, steps=1, batch_size=1, quiet=True)


def test_states_are_rescaled_by_what_the_model_makes_of_the_data(make_model, make_sample):
    model = make_model(rescale_states=True).train()
    batches = [collate([make_sample([[8], [6]], image_id=number)]) for number in range(6)]
    states = []
    with torch.no_grad():
        model.eval()
        hook = model.prompt_encoder.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))
        for batch in batches:
            model(batch)
        hook.remove()
        model.train()
    trainable = dict(model.trainable_parameters())
    assert {f"prompt_encoder.rescaling.{kind}" for kind in ("weight", "bias")} < set(trainable)
    own = sum(p.numel() for name, p in trainable.items() if name.startswith("prompt_encoder."))
    assert model.num_parameters_by_part()["projection"] == (own, own)
    rescale_states(model, batches, quiet=True)
    assert model.training
    seen = model.prompt_encoder.rescaling(torch.cat(states))
    assert_close(seen.mean(0), torch.zeros(seen.shape[1]), atol=1e-4, rtol=0)
    assert_close(seen.std(0), torch.ones(seen.shape[1]), atol=1e-3, rtol=0)


POINTER = ("query.weight", "query.bias", "key.weight")


def test_a_pointer_learns_alone_where_objects_are(make_model, make_sample):
    model = make_model(pointing=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    some = [collate([make_sample([[8], [6]], image_id=number, seg=2)]) for number in range(20)]
    right = align_pointer(model, [*some, collate([make_sample([[12]], seg=0)])], quiet=True)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"prompt_encoder.pointer.{name}" for name in POINTER}
    assert right > 0.6  # 4 tokens, of which most objects cover two or three


def test_a_stand_in_for_no_object_does_not_count_among_the_states(make_model, make_sample):
    model = make_model(rescale_states=True)
    none, some = collate([make_sample([[12]], seg=0)]), collate([make_sample([[12], [9]], image_id=1, seg=2)])
    rescale_states(model, [some], quiet=True)
    expected = {name: value.clone() for name, value in model.prompt_encoder.rescaling.state_dict().items()}
    for parameter, value in zip(model.prompt_encoder.rescaling.parameters(), (1.0, 0.0), strict=True):
        parameter.data.fill_(value)
    rescale_states(model, [none], quiet=True)
    assert model.prompt_encoder.rescaling.is_new
    rescale_states(model, [none, some], quiet=True)
    assert_close(model.prompt_encoder.rescaling.state_dict(), expected, rtol=0, atol=0)
