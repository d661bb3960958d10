"""Chunks against one call: values, gradients, and what is kept for the backward pass."""

import pytest
import torch

from aura.config import LossSettings
from aura.losses import PIXELS_AT_ONCE, AuraCriterion, token_losses
from aura.machine.chunks import in_chunks
from aura.model import AuraModel
from aura.types import AuraOutput, Batch, ImageGeometry, MaskOutput


class Cube:
    """x^3 weighted by w, and a note of how many objects each call got."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x, w, nothing):
        assert nothing is None
        self.calls.append(len(x))
        return {"cube": (x * x * x) * w}


@pytest.mark.parametrize(("count", "calls"), [(3, [3]), (4, [4]), (5, [1, 4]), (11, [4, 3, 4])])
def test_values_gradients_and_calls(count, calls):
    x = torch.randn(count, 2, requires_grad=True)
    w = torch.randn(count, 2)
    cube = Cube()
    out = in_chunks(cube, (x, w, None), 4)["cube"]
    assert torch.equal(out, x**3 * w) or torch.allclose(out, x**3 * w)
    assert cube.calls == calls
    out.sum().backward()
    assert torch.allclose(x.grad, 3 * x.detach() ** 2 * w)
    # The last chunk is not computed again.
    assert len(cube.calls) == 2 * len(calls) - 1


def test_nothing_is_computed_twice_without_gradients():
    cube = Cube()
    with torch.no_grad():
        assert in_chunks(cube, (torch.ones(9, 2), torch.ones(9, 2), None), 4)["cube"].shape == (9, 2)
    assert cube.calls == [4, 1, 4]


def kept_bytes(function) -> int:
    """Bytes that autograd saves while ``function`` runs, each storage counted once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(kept.values())


def decode(model: AuraModel, states, embeddings):
    image = torch.arange(len(states)) % len(embeddings)
    return model._decode(states, model._blank_canvas(embeddings, None), image)


@pytest.mark.parametrize("changes", [{}, {"spatial_occlusion": False}, {"masks": "visible"}, {"masks": "amodal"}])
def test_decoding_in_chunks_changes_nothing(make_model, monkeypatch, changes):
    if changes.get("masks"):
        changes = {**changes, "spatial_occlusion": False, "occlusion_condition": changes["masks"] == "amodal"}
    model = make_model(**changes)
    embeddings = torch.randn(2, 32, 8, 8)
    values, gradients = [], []
    for size in (100, 4):
        monkeypatch.setattr(model, "_objects_at_once", lambda grid, size=size: size)
        states = torch.randn(11, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
        output, unused = decode(model, states, embeddings)
        found = {name: value for name, value in output.items() if value is not None}
        values.append(found)
        (sum((value**2).mean() for value in found.values()) + unused).backward()
        named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        gradients.append({"states": states.grad, **named})
        model.zero_grad()
    for one, other in (values, gradients):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.allclose(one[name], other[name], atol=1e-6, rtol=1e-5), name
    assert len(gradients[0]) > 30


def test_many_objects_keep_no_more_than_a_few(tiny_model, monkeypatch):
    embeddings = torch.randn(1, 32, 8, 8)
    states = torch.randn(40, 32)
    monkeypatch.setattr(tiny_model, "_objects_at_once", lambda grid: 4)
    few = kept_bytes(lambda: decode(tiny_model, states[:4], embeddings))
    chunked = kept_bytes(lambda: decode(tiny_model, states, embeddings))
    monkeypatch.setattr(tiny_model, "_objects_at_once", lambda grid: 40)
    whole = kept_bytes(lambda: decode(tiny_model, states, embeddings))
    assert whole > 4 * few
    assert chunked < 1.5 * few


def test_eight_objects_at_sams_size_and_all_under_zero_3(tiny_model):
    assert tiny_model._objects_at_once((64, 64)) == 8
    assert tiny_model._objects_at_once((12, 12)) == 227
    next(tiny_model.prompt_encoder.projection.parameters()).ds_id = 0
    assert tiny_model._objects_at_once((64, 64)) > 10**6


@pytest.mark.parametrize("resolution", ["image", "decoder"])
def test_losses_in_chunks_are_the_losses(monkeypatch, resolution):
    """11 objects of two images, whose masks of 40 x 60 and 20 x 30 pixels are compared 3 and 12 at a time."""
    generator = torch.Generator().manual_seed(2)
    geometries = (ImageGeometry((40, 60), (43, 64), 64), ImageGeometry((20, 30), (43, 64), 64))
    amodal = tuple(torch.rand(3, *g.original, generator=generator) > 0.4 for g in geometries)
    visible = tuple(mask & (torch.rand(mask.shape, generator=generator) > 0.3) for mask in amodal)
    empty = torch.zeros(0, dtype=torch.int64)
    batch = Batch(
        image_ids=(0, 1), geometries=geometries, input_ids=empty, position_ids=empty, segment_ids=empty,
        target_index=empty, target_ids=empty, seg_index=empty, seg_image=torch.tensor([0] * 8 + [1] * 3),
        seg_object=torch.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2, 0, 1]), occlusion_rates=torch.rand(11, generator=generator),
        visible_masks=visible, amodal_masks=amodal, records=(), seg_counts=(8, 3),
        shape_known=torch.arange(11) % 4 > 0,
    )  # fmt: skip
    logits = torch.randn(11, 5, 32, 32, generator=generator)
    losses, gradients = [], []
    for pixels in (PIXELS_AT_ONCE, 3 * 40 * 60):
        monkeypatch.setattr("aura.losses.PIXELS_AT_ONCE", pixels)
        leaf = logits.clone().requires_grad_()
        masks = MaskOutput(leaf[:, 0], leaf[:, 1], None, leaf[:, 2:])
        output = AuraOutput(masks, text_logits=torch.zeros(0, 7), unused=torch.zeros(()))
        found = AuraCriterion(LossSettings(mask_resolution=resolution))(output, batch)
        found.total.backward()
        losses.append(torch.tensor(list(found.as_floats().values())))
        gradients.append(leaf.grad)
    assert torch.allclose(*losses, atol=1e-6) and torch.allclose(*gradients, atol=1e-6)
    assert losses[0].sum() > 1 and gradients[0].abs().sum() > 0


def test_losses_of_tokens_in_chunks_are_the_losses_and_keep_less(monkeypatch):
    logits = torch.randn(40, 1000, generator=torch.Generator().manual_seed(3)).bfloat16()
    targets = torch.arange(40) * 7
    losses, gradients, kept = [], [], []
    for at_once in (10**6, 4 * 1000):
        monkeypatch.setattr("aura.losses.LOGITS_AT_ONCE", at_once)
        leaf = logits.clone().requires_grad_()
        kept.append(kept_bytes(lambda leaf=leaf: losses.append(token_losses(leaf, targets))))
        losses[-1].mean().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*losses) and torch.equal(*gradients)
    picked = logits.float()[torch.arange(40), targets]
    assert torch.allclose(losses[0], logits.float().logsumexp(1) - picked, atol=1e-5)
    assert gradients[0].abs().sum() > 0
    assert kept[0] > 40 * 1000 * 4  # as fp32
    assert kept[1] < 40 * 1000 * 2 + 2 * 4 * 1000 * 4  # the logits themselves, and one chunk of them in fp32
