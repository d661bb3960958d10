"""One packed sequence per image gives what separate sequences give."""

import dataclasses

import pytest
import torch

from aura.config import LossSettings
from aura.data.collate import collate
from aura.losses import AuraCriterion
from aura.model.mllm import packed_attention_mask

CONVERSATIONS = {
    "unequal lengths": [[[9], [4], [17]]],
    "several turns": [[[6, 8, 3], [5], [7, 4]]],
    "one conversation": [[[9]]],
    "two images, unequal counts": [[[9], [4, 6]], [[12]]],
}


def separate(sample):
    """One sample per conversation."""
    return [
        dataclasses.replace(sample, conversations=(conversation,), targets=(targets,))
        for conversation, targets in zip(sample.conversations, sample.targets, strict=True)
    ]


def run(model, batch, weight=1.0):
    """Outputs, losses, and gradients (added to what is there) of ``weight`` x total."""
    output = model(batch)
    losses = AuraCriterion(LossSettings())(output, batch)
    return output, losses


def gradients(model):
    return {name: p.grad.clone() for name, p in model.trainable_parameters()}


@pytest.mark.parametrize("seg_state", ["before", "at"])
@pytest.mark.parametrize("conversations", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_packed_equals_separate(make_model, make_sample, conversations, seg_state):
    model = make_model(seg_state=seg_state)
    samples = [make_sample(c, image_id=i, seg=2) for i, c in enumerate(conversations)]
    packed = collate(samples)
    output, losses = run(model, packed)
    losses.total.backward()
    packed_gradients = gradients(model)
    model.zero_grad()

    parts = [collate([one]) for sample in samples for one in separate(sample)]
    assert packed.input_ids.numel() <= sum(p.input_ids.numel() for p in parts) + 40
    outputs = [run(model, part) for part in parts]
    names = ["text_logits", "visible_logits", "amodal_logits", "occlusion_rate", "spatial_logits"]
    for name in names:
        expected = torch.cat([getattr(o, name) for o, _ in outputs])
        assert (getattr(output, name) - expected).abs().max() < 1e-5 * max(1, expected.abs().max()), name

    # The packed batch averages over all tokens and objects at once, each part over its own.
    total = sum(
        part_losses.text * len(part.target_ids) / len(packed.target_ids)
        + (part_losses.total - part_losses.text) * len(part.seg_index) / len(packed.seg_index)
        for part, (_, part_losses) in zip(parts, outputs, strict=True)
    )
    assert total.item() == pytest.approx(losses.total.item(), abs=1e-5)
    total.backward()
    for name, expected in gradients(model).items():
        assert (packed_gradients[name] - expected).abs().max() < 1e-5 * max(1, expected.abs().max()), name


def test_packed_hidden_states_equal_separate_ones(tiny_model, make_sample):
    sample = make_sample([[9, 5], [4]], seg=2)

    def hidden(batch):
        mask = packed_attention_mask(batch.segment_ids, torch.float32)
        features = tiny_model.mllm.encode_images(batch.clip_pixels)
        states = tiny_model.mllm(
            batch.input_ids, clip_features=features, attention_mask=mask, position_ids=batch.position_ids
        ).flatten(0, 1)
        return torch.cat([states[batch.target_index], states[batch.seg_index], states[batch.seg_index - 1]])

    packed = collate([sample])
    ours = hidden(packed).split([len(packed.target_index), len(packed.seg_index), len(packed.seg_index)])
    parts = [
        hidden(b).split([len(b.target_index), len(b.seg_index), len(b.seg_index)])
        for b in map(collate, ([s] for s in separate(sample)))
    ]
    for kind, packed_states in enumerate(ours):
        assert (packed_states - torch.cat([p[kind] for p in parts])).abs().max() < 1e-5


def test_mask_by_hand():
    mask = packed_attention_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]), torch.float32)[0, 0] == 0
    expected = ["#.....", "##....", "###...", "####..", "##..#.", ".....#"]
    assert ["".join("#" if value else "." for value in row) for row in mask.tolist()] == expected


def test_a_plain_llava_forward_gives_the_same_states(make_model, make_sample):
    """Our use of LLaVA's parts against its own forward."""
    from transformers import LlavaForConditionalGeneration

    model = make_model(lora=None)
    llava = LlavaForConditionalGeneration(model.config.llava_config).eval()
    llava.model.vision_tower.load_state_dict(model.mllm.vision_tower.state_dict())
    llava.model.multi_modal_projector.load_state_dict(model.mllm.projector.state_dict())
    llava.model.language_model.load_state_dict(model.mllm.language_model.state_dict())
    llava.lm_head.load_state_dict(model.mllm.lm_head.state_dict())
    batch = collate([make_sample([[9]])])
    logits = llava(input_ids=batch.input_ids, pixel_values=batch.clip_pixels).logits.flatten(0, 1)
    assert (model(batch).text_logits - logits[batch.target_index]).abs().max() < 1e-5
