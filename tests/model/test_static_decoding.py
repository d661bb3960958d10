"""Answers by static steps against answers by plain ones."""

import copy
import logging

import pytest
import torch

from aura.model import AuraModel, static_decoding
from aura.model.static_decoding import BLOCK, KeptDecoders, StaticDecoder

SEG, EOS = 321, 2
PREFIX = [1, 10, 11, 4, 4, 4, 4, 12]


@pytest.fixture(autouse=True)
def _few_places(monkeypatch) -> None:
    """Caches of the tests run full after a few tokens, as those of real answers do after 256."""
    monkeypatch.setattr(static_decoding, "PLACES", 16)


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


def assert_same(one, other) -> None:
    assert one.token_ids == other.token_ids
    assert (one.truncated, one.pending_ids) == (other.truncated, other.pending_ids)
    assert one.seg_hidden.shape == other.seg_hidden.shape
    assert torch.allclose(one.seg_hidden, other.seg_hidden, atol=1e-5)


def test_an_answer_is_the_plain_one(talkative, features):
    """Answers end inside a block and at its rim, run out of places, and are cut."""
    lengths = set()
    for prompt in prompts(8):
        for limit in (1, BLOCK - 1, BLOCK, 30):
            ids, streamed = torch.tensor([prompt]), []
            talkative.decoding = "plain"
            plain = talkative.generate_answer(ids, clip_features=features, max_new_tokens=limit)
            talkative.decoding = "static"
            static = talkative.generate_answer(
                ids, clip_features=features, max_new_tokens=limit, on_token=streamed.append
            )
            assert_same(plain, static)
            assert streamed == static.token_ids
            lengths.add(len(static.token_ids))
            held = static.past_key_values.get_seq_length()
            assert (
                held
                == plain.past_key_values.get_seq_length()
                == len(prompt) + len(static.token_ids) - len(static.pending_ids)
            )
            for mine, other in zip(static.past_key_values.layers, plain.past_key_values.layers, strict=True):
                assert torch.allclose(mine.keys, other.keys, atol=1e-5) and mine.keys.shape == other.keys.shape
                assert torch.allclose(mine.values, other.values, atol=1e-5)
    assert {1, BLOCK, 30} <= lengths and len(lengths) > 4


def test_a_conversation_goes_on_in_the_cache(talkative, features):
    ways = {}
    for way in ("plain", "static"):
        talkative.decoding = way
        answer = talkative.generate_answer(torch.tensor([prompts(1)[0]]), clip_features=features, max_new_tokens=9)
        ways[way] = [answer]
        for limit in (2, 20, 12):
            ids = torch.tensor([[*answer.pending_ids, 30, 31, 32]])
            answer = talkative.generate_answer(ids, past_key_values=answer.past_key_values, max_new_tokens=limit)
            ways[way].append(answer)
    for one, other in zip(*ways.values(), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_answers_written_together_are_the_plain_ones(talkative, features, count):
    for questions in (prompts(count), prompts(count + 2)[2:]):  # the second time in kept decoders
        talkative.decoding = "plain"
        plain = talkative.generate_answers(questions, clip_features=features, max_new_tokens=40)
        talkative.decoding = "static"
        static = talkative.generate_answers(questions, clip_features=features, max_new_tokens=40)
        for one, other in zip(plain, static, strict=True):
            assert_same(one, other)
    if count == 9:
        assert len({len(answer.token_ids) for answer in static}) > 2  # answers do end at different times


def test_a_full_cache_moves_to_a_longer_one(talkative, features, monkeypatch):
    places = []
    make = StaticDecoder.__init__
    monkeypatch.setattr(StaticDecoder, "__init__", lambda self, *parts: places.append(parts[2:]) or make(self, *parts))
    talkative.config.eos_token_id = -1  # never
    talkative.decoding = "static"
    prompt = torch.tensor([prompts(1)[0]])  # 11 tokens
    assert len(talkative.generate_answer(prompt, clip_features=features, max_new_tokens=30).token_ids) == 30
    assert places == [(1, 32), (1, 48)]
    talkative.generate_answer(prompt, clip_features=features, max_new_tokens=30)
    assert places[2:] == []  # the last decoder was kept, and is long enough


def test_nothing_is_made_where_plain_steps_are_better(talkative, features):
    talkative.generate_answer(torch.tensor([prompts(1)[0]]), clip_features=features, max_new_tokens=3)
    assert talkative._decoders is None  # "auto" on a CPU


def test_new_weights_are_seen(talkative, features):
    """A recorded graph would go on with the old ones."""
    prompt = torch.tensor([prompts(1)[0]])
    talkative.decoding = "static"
    talkative.generate_answer(prompt, clip_features=features, max_new_tokens=20)
    kept = talkative._decoders._idle[False]
    assert kept.fits(talkative.mllm, 1, 16)
    talkative.merge_lora()
    assert not kept.fits(talkative.mllm, 1, 16)
    static = talkative.generate_answer(prompt, clip_features=features, max_new_tokens=20)
    talkative.decoding = "plain"
    assert_same(talkative.generate_answer(prompt, clip_features=features, max_new_tokens=20), static)


def test_decoders_stay_behind_when_a_model_is_copied_or_trained(talkative, features):
    talkative.decoding = "static"
    talkative.generate_answer(torch.tensor([prompts(1)[0]]), clip_features=features, max_new_tokens=3)
    assert talkative._decoders._idle
    assert isinstance(copied := copy.deepcopy(talkative)._decoders, KeptDecoders) and not copied._idle
    talkative.train()
    assert talkative._decoders is None


def test_what_cannot_be_recorded_is_run(caplog, monkeypatch):
    """Without a GPU, the recorder's parts are stand-ins."""

    class Nothing:
        def __init__(self, *_, **__) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *_) -> None: ...

        def wait_stream(self, _) -> None: ...

    def refuse(*_, **__):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    for name in ("Stream", "stream", "device", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    monkeypatch.setattr(torch.cuda, "current_stream", Nothing)
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    ran = []
    with caplog.at_level(logging.WARNING):
        step = static_decoding.record(lambda: ran.append(1), torch.device("cuda"))
    assert len(ran) == 2 and "cannot be recorded (operation not permitted)" in caplog.text
    step()
    assert len(ran) == 3
