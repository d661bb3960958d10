"""Answers with a cache, alone and in lockstep, against plain forward passes."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, MistralConfig

from aura.model import AuraModel
from aura.model.generation import _select_rows

SEG, EOS = 321, 2
PREFIX = [1, 10, 11, 4, 4, 4, 4, 12]


@pytest.fixture(params=["before", "at"])
def talkative(make_model, request) -> AuraModel:
    """A random model that likes to say ``[SEG]`` and to stop."""
    model = make_model(seg_state=request.param)
    head = model.mllm.lm_head.weight
    with torch.no_grad():
        head[SEG] *= 2.5
        head[EOS] *= 1.8
    return model


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(1, 4, 24, generator=torch.Generator().manual_seed(5))


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [PREFIX + torch.randint(20, 320, (3 + 5 * (k % 4),), generator=generator).tolist() for k in range(count)]


def states_by_teacher_forcing(model, ids, answer_start, features):
    """(greedy tokens after each position, [SEG] states) of a plain forward pass over everything."""
    with torch.no_grad():
        hidden = model.mllm(torch.tensor([ids]), clip_features=features)[0]
        choices = model.mllm.lm_head(hidden).argmax(-1).tolist()
    offset = 1 if model.config.seg_state == "before" else 0
    rows = [t - offset for t in range(answer_start, len(ids)) if ids[t] == SEG]
    return choices, hidden[rows]


def test_an_answer_agrees_with_teacher_forcing(talkative, features):
    seen_seg = seen_end = 0
    for prompt in prompts(8):
        streamed = []
        answer = talkative.generate_answer(
            torch.tensor([prompt]), clip_features=features, max_new_tokens=20, on_token=streamed.append
        )
        ids = prompt + answer.token_ids
        choices, states = states_by_teacher_forcing(talkative, ids, len(prompt), features)
        assert choices[len(prompt) - 1 : -1] == answer.token_ids == streamed
        assert answer.seg_hidden.shape == states.shape == (answer.token_ids.count(SEG), 32)
        assert torch.allclose(answer.seg_hidden, states, atol=1e-5)
        assert answer.truncated == (answer.token_ids[-1] != EOS)
        assert EOS not in answer.token_ids[:-1] and len(answer.token_ids) <= 20
        seen_seg, seen_end = seen_seg + len(states), seen_end + (not answer.truncated)
    assert seen_seg > 3 and seen_end > 1  # else this test shows little


def test_a_conversation_goes_on_in_the_cache(talkative, features):
    """Cache + pending_ids are exactly the conversation so far, whatever ended the answer."""
    lengths = set()
    for prompt in prompts(6):
        for limit in (1, 2, 14):
            first = talkative.generate_answer(torch.tensor([prompt]), clip_features=features, max_new_tokens=limit)
            held = first.past_key_values.get_seq_length()
            assert held + len(first.pending_ids) == len(prompt) + len(first.token_ids)
            lengths.add((first.truncated, len(first.pending_ids)))
            followup = [30, 31, 32]
            second = talkative.generate_answer(
                torch.tensor([first.pending_ids + followup]), past_key_values=first.past_key_values, max_new_tokens=6
            )
            whole = talkative.generate_answer(
                torch.tensor([prompt + first.token_ids + followup]), clip_features=features, max_new_tokens=6
            )
            assert second.token_ids == whole.token_ids
            assert torch.allclose(second.seg_hidden, whole.seg_hidden, atol=1e-5)
    assert {(True, 1), (False, 1)} <= lengths
    assert ((True, 0) in lengths) == (talkative.config.seg_state == "at")  # cut right at a [SEG], which had to be read


@pytest.mark.parametrize("count", [1, 2, 9])
def test_lockstep_equals_one_by_one(talkative, features, count):
    questions = prompts(count)
    together = talkative.generate_answers(questions, clip_features=features, max_new_tokens=16)
    assert len(together) == count
    for prompt, answer in zip(questions, together, strict=True):
        alone = talkative.generate_answer(torch.tensor([prompt]), clip_features=features, max_new_tokens=16)
        assert answer.token_ids == alone.token_ids and answer.truncated == alone.truncated
        assert answer.pending_ids == alone.pending_ids
        assert torch.allclose(answer.seg_hidden, alone.seg_hidden, atol=1e-5)
        assert answer.seg_hidden.shape == alone.seg_hidden.shape
    if count == 9:
        assert len({len(answer.token_ids) for answer in together}) > 2  # rows do end at different times
        assert sum(len(answer.seg_hidden) for answer in together) > 3


def test_lockstep_reads_the_prefix_once(talkative, features, monkeypatch):
    shapes = []
    forward = talkative.mllm.forward
    monkeypatch.setattr(
        talkative.mllm, "forward", lambda ids, **kw: shapes.append(tuple(ids.shape)) or forward(ids, **kw)
    )
    questions = prompts(4)
    talkative.generate_answers(questions, clip_features=features, max_new_tokens=3)
    longest = max(map(len, questions)) - len(PREFIX)
    assert shapes[:2] == [(1, len(PREFIX)), (4, longest)]
    assert all(length == 1 for _, length in shapes[2:]) and len(shapes) <= 2 + 3


def test_same_prompt_twice_and_no_prompt(talkative, features):
    prompt = prompts(1)[0]
    one, two = talkative.generate_answers([prompt, prompt], clip_features=features, max_new_tokens=5)
    assert one.token_ids == two.token_ids
    assert talkative.generate_answers([], clip_features=features) == []


def test_misuse_is_named(talkative, features):
    with pytest.raises(ValueError, match="differ before or inside the image"):
        talkative.generate_answers([PREFIX, [1, 9, *PREFIX[1:]]], clip_features=features)
    with pytest.raises(ValueError, match="max_new_tokens must be positive, got 0"):
        talkative.generate_answer(torch.tensor([PREFIX]), clip_features=features, max_new_tokens=0)
    with pytest.raises(ValueError, match="image placeholders"):
        talkative.generate_answer(torch.tensor([PREFIX[4:]]), clip_features=features)


class Layer:
    """A cache layer on some device that remembers which rows it was told to keep."""

    def __init__(self, device: str) -> None:
        self.keys = torch.empty(3, 1, 2, 4, device=device)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.chosen = indices


def test_rows_are_selected_on_each_layers_own_device():
    cache = SimpleNamespace(layers=[Layer("cpu"), Layer("meta")])
    _select_rows(cache, torch.tensor([0, 2]))
    assert [layer.chosen.device.type for layer in cache.layers] == ["cpu", "meta"]
    assert cache.layers[0].chosen.tolist() == [0, 2]


def test_the_head_may_lie_on_another_device_than_the_states(talkative, monkeypatch):
    logits = torch.zeros(2, 322).index_fill_(1, torch.tensor([7]), 1.0)
    monkeypatch.setattr(talkative.mllm, "logits", lambda states: logits)
    assert talkative._likeliest(torch.empty(2, 32, device="meta")).device.type == "meta"
    assert talkative._likeliest(torch.zeros(2, 32)).tolist() == [7, 7]


def test_layers_on_the_disk_answer_alike(talkative, features, tmp_path):
    talkative.save_pretrained(tmp_path / "model")
    parts = dict.fromkeys(["mllm.vision_tower", "mllm.projector", "mllm.lm_head", "image_encoder"], "cpu")
    parts |= dict.fromkeys(["prompt_encoder", "visible_decoder", "amodal_decoder"], "cpu")
    parts |= dict.fromkeys(["occlusion_condition", "spatial_occlusion"], "cpu")
    parts |= {f"mllm.language_model.{part}": "cpu" for part in ("embed_tokens", "layers.0", "norm", "rotary_emb")}
    parts["mllm.language_model.layers.1"] = "disk"
    spread = AuraModel.from_pretrained(tmp_path / "model", device_map=parts, offload_folder=tmp_path / "disk")
    spread.decoding = "static"  # refused: these weights come and go
    for one, other in zip(
        talkative.generate_answers(prompts(5), clip_features=features, max_new_tokens=12),
        spread.generate_answers(prompts(5), clip_features=features, max_new_tokens=12),
        strict=True,
    ):
        assert one.token_ids == other.token_ids
        assert torch.allclose(one.seg_hidden, other.seg_hidden, atol=1e-5)


def test_prompts_that_go_on_from_a_prefix_are_answered_alike(talkative, features, monkeypatch):
    """The system prompt's keys serve every image, an image's keys every question."""
    system = talkative.read_prefix(PREFIX[:3])
    image = talkative.read_prefix(PREFIX[:7], clip_features=features, after=system)
    assert (len(system), len(image)) == (3, 7)
    for prompt in prompts(4):
        assert image.begins(prompt)
        whole = talkative.generate_answer(torch.tensor([prompt]), clip_features=features, max_new_tokens=16)
        cache = image.new_cache(talkative.mllm.config.text_config)
        reused = talkative.generate_answer(torch.tensor([prompt[7:]]), past_key_values=cache, max_new_tokens=16)
        assert reused.token_ids == whole.token_ids and reused.pending_ids == whole.pending_ids
        assert torch.allclose(reused.seg_hidden, whole.seg_hidden, atol=1e-5)


def test_layers_that_forget_have_no_prefix(talkative, monkeypatch):
    window = MistralConfig(num_hidden_layers=2, sliding_window=4)
    monkeypatch.setattr(talkative.mllm, "new_cache", lambda: DynamicCache(config=window))
    assert talkative.read_prefix(PREFIX[:3]) is None
