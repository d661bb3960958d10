"""What conversations about an image share, and what runs beside them: the same answers, and nothing left running."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from aura.chat.album import Album, Picture
from aura.chat.assistant import Assistant, ChatSession
from aura.data.processor import Processor
from aura.machine.beside import LateTask, StreamTask, ThreadTask
from aura.types import ImageFeatures
from tests.threads import TIMEOUT, nobody_works

QUESTION = "What could I ride?"


@pytest.fixture
def assistant(make_model, tiny_tokenizer) -> Assistant:
    """Fond of [SEG], whatever else it babbles."""
    processor = Processor(tiny_tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4)
    model = make_model(seg_token_id=processor.text.seg_token_id)
    with torch.no_grad():
        model.mllm.lm_head.weight[processor.text.seg_token_id] *= 3
    return Assistant(model, processor, max_new_tokens=12)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def plain(assistant: Assistant, image: Image.Image) -> ChatSession:
    """Nothing beside and nothing kept: the encoders first, then the whole prompt."""
    inputs = assistant.processor.image(image)
    features = assistant.model.encode_images(inputs.sam_pixels[None], inputs.clip_pixels[None])
    return ChatSession(assistant.model, assistant.processor, features, inputs.geometry, inputs.pil, 12)


def same(one, other) -> None:
    assert one.text == other.text
    for a, b in zip(one.objects, other.objects, strict=True):
        assert a.name == b.name and a.occlusion_rate == pytest.approx(b.occlusion_rate, abs=1e-5)
        assert (a.visible != b.visible).mean() < 0.001 and (a.amodal != b.amodal).mean() < 0.001


def count_calls(monkeypatch, owner, name) -> list:
    calls: list = []
    function = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: calls.append(a) or function(*a, **k))
    return calls


def test_the_words_come_before_sam_has_begun_and_the_objects_one_by_one(assistant, monkeypatch):
    spoke, encode, seen = threading.Event(), assistant.model.encode_sam, []

    def after_the_first_word(pixels):
        assert spoke.wait(TIMEOUT)
        return encode(pixels)

    expected = plain(assistant, picture()).ask(QUESTION)
    assert len(expected.objects) > 1
    monkeypatch.setattr(assistant.model, "encode_sam", after_the_first_word)
    for ask in (assistant.ask, lambda image, *rest: assistant.conversation(image).ask(*rest)):
        reply = ask(picture(len(seen)), QUESTION, lambda _: spoke.set(), seen.append)
        assert seen[-len(reply.objects) :] == list(reply.objects)
        spoke.clear()
        if len(seen) == len(reply.objects):
            same(reply, expected)
    assert nobody_works()


def test_what_is_kept_of_an_image_changes_no_answer_and_is_not_computed_again(assistant, monkeypatch):
    questions = [QUESTION, "And what hides it?"]
    calls = [
        count_calls(monkeypatch, assistant.model, "encode_sam"),
        count_calls(monkeypatch, assistant.model.mllm, "encode_images"),
        count_calls(monkeypatch, assistant.model, "canvas"),
    ]
    first = assistant.conversation(picture())
    replies = [first.ask(question) for question in questions]
    assert [len(made) for made in calls] == [1, 1, 1]
    read = count_calls(monkeypatch, assistant.model.mllm, "embed")
    again = assistant.conversation(picture())
    assert not read
    again_replies = [again.ask(question) for question in questions]
    assert [len(made) for made in calls] == [1, 1, 1]
    prompt = assistant.processor.text.start_prompt(QUESTION)
    image_end = len(prompt) - prompt[::-1].index(4)
    assert read[0][0].tolist() == [prompt[image_end:]]
    for reply, repeated in zip(replies, again_replies, strict=True):
        same(reply, repeated)
    fresh = plain(assistant, picture())
    for question, reply in zip(questions, replies, strict=True):
        same(fresh.ask(question), reply)


def test_the_system_prompt_is_read_once_for_all_images(assistant, monkeypatch):
    read = count_calls(monkeypatch, assistant.model, "read_prefix")
    sessions = [assistant.conversation(picture(seed)) for seed in range(3)]
    assert [4 in ids for (ids,) in read] == [False, True, True, True]
    for seed, session in enumerate(sessions):
        assert session.ask(QUESTION).text == plain(assistant, picture(seed)).ask(QUESTION).text


def test_an_album_is_bounded_by_count_and_bytes_and_goes_on_without(assistant):
    album = assistant.album
    album.count = 2
    sessions = [assistant.conversation(picture(seed)) for seed in (0, 1, 0, 2)]
    assert sessions[0].picture is sessions[2].picture
    assert len(album._pictures) == 2 and sessions[1].picture.album is None
    assert sessions[0].picture.held_prefix is not None and sessions[1].picture.held_prefix is None
    same(sessions[1].ask(QUESTION), plain(assistant, picture(1)).ask(QUESTION))
    size = sessions[0].picture.num_bytes
    sessions[3].ask(QUESTION)
    assert sessions[3].picture.num_bytes > size, "with a canvas"
    album.max_bytes = sessions[3].picture.num_bytes
    album.trim()
    assert [found.album for found in (sessions[0].picture, sessions[3].picture)] == [None, album]
    album.max_bytes = 0
    album.trim()
    assert not album._pictures
    sessions[3].ask("And what hides it?")
    assert len(sessions[3].turns) == 2


def test_nothing_is_kept_where_nothing_shall_be(assistant):
    forgetful = Assistant(assistant.model, assistant.processor, max_new_tokens=12, kept_images=0)
    session = forgetful.conversation(picture())
    same(session.ask(QUESTION), plain(assistant, picture()).ask(QUESTION))
    assert not forgetful.album._pictures and session.picture.album is None


def test_new_weights_are_seen(assistant):
    session = assistant.conversation(picture())
    with torch.no_grad():
        for name, parameter in assistant.model.mllm.language_model.named_parameters():
            if "norm" in name:
                parameter.mul_(1.3)
    assert session.ask(QUESTION).text == plain(assistant, picture()).ask(QUESTION).text
    with torch.no_grad():
        for parameter in assistant.model.image_encoder.parameters():
            parameter.mul_(1.01)
    other = assistant.conversation(picture())
    assert other.picture is not session.picture
    same(other.ask(QUESTION), plain(assistant, picture()).ask(QUESTION))


@pytest.fixture
def held_up(assistant):
    """SAM's encoder waits in its first layer until it is let go."""
    entered, leave = threading.Event(), threading.Event()

    def wait(*_):
        entered.set()
        assert leave.wait(TIMEOUT)

    layers = assistant.model.image_encoder.layers
    hook = layers[0].register_forward_hook(wait)
    later = count_calls(pytest.MonkeyPatch(), layers[1], "forward")
    yield SimpleNamespace(entered=entered, leave=leave, later=later)
    leave.set()
    hook.remove()


def interrupt(*_):
    raise KeyboardInterrupt


def test_ctrl_c_leaves_nothing_running_and_the_next_question_is_answered(assistant, held_up):
    session = assistant.conversation(picture())
    assert held_up.entered.wait(TIMEOUT)
    threading.Timer(0.05, held_up.leave.set).start()
    with pytest.raises(KeyboardInterrupt):
        session.ask(QUESTION, interrupt)
    assert nobody_works() and not held_up.later and session.turns == []
    with pytest.raises(KeyboardInterrupt):
        session.ask(QUESTION, None, interrupt)
    assert nobody_works() and session.turns == []
    same(session.ask(QUESTION), plain(assistant, picture()).ask(QUESTION))


def test_a_closed_conversation_gives_the_encoder_up(assistant, held_up):
    session = assistant.conversation(picture())
    assert held_up.entered.wait(TIMEOUT)
    threading.Timer(0.05, held_up.leave.set).start()
    session.close()
    assert nobody_works() and not held_up.later


@pytest.mark.parametrize("half", ["encode_sam", "generate_answer"])
def test_an_error_in_either_half_is_raised_once(assistant, monkeypatch, half):
    session = assistant.conversation(picture(1))
    first = session.ask(QUESTION)
    broken, function = [RuntimeError("no memory")], getattr(assistant.model, half)

    def fail_once(*args, **kwargs):
        if broken:
            raise broken.pop()
        return function(*args, **kwargs)

    monkeypatch.setattr(assistant.model, half, fail_once)
    session = assistant.conversation(picture())
    with pytest.raises(RuntimeError, match="no memory"):
        session.ask(QUESTION)
    assert nobody_works() and session.turns == [] and not broken
    same(session.ask(QUESTION), plain(assistant, picture()).ask(QUESTION))
    same(assistant.ask(picture(1), QUESTION), first)


def test_an_answer_without_objects_does_not_wait_for_sam(assistant, held_up):
    with torch.no_grad():
        assistant.model.mllm.lm_head.weight[assistant.processor.text.seg_token_id] = 0
    session = assistant.conversation(picture())
    assert session.ask(QUESTION).objects == ()
    assert not session.picture.sam.done
    held_up.leave.set()
    assert nobody_works()


def test_where_sam_runs(assistant, monkeypatch):
    def task(*devices: str):
        places = [torch.device(device) for device in devices]
        model = SimpleNamespace(
            device=places[0], parameters=lambda: [SimpleNamespace(device=place) for place in places], image_encoder=None
        )
        return type(Album(model, assistant.processor.text)._encoding(torch.zeros(1)))  # type: ignore[arg-type]

    assert task("cpu") is ThreadTask
    assert task("cuda:0") is StreamTask
    assert task("cuda:0", "cuda:1") is task("cpu", "meta") is task("mps") is LateTask


def test_features_make_a_picture_without_an_album(assistant):
    features = ImageFeatures(torch.zeros(1, 32, 8, 8), torch.zeros(1, 4, 24))
    found = Picture.of(assistant.model, features)
    assert found.prefix() is None and found.canvas().images.shape == (1, 32, 8, 8)
