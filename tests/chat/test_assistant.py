from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import aura
from aura.chat import assistant as assistant_module
from aura.chat.assistant import Assistant, ChatSession, find_export, reply_record
from aura.data.processor import Processor
from aura.masks import decode_rle
from aura.types import MaskOutput

ANSWERS = (
    "You could ride the bus [SEG], which the tree [SEG] hides.",
    "Nothing here can be eaten.",
    "The tree [SEG], the human [SEG] and the bus [SEG].",
)


class Script(nn.Module):
    """Stands for the language model's head: whatever the state, the next token is the script's."""

    def __init__(self, vocabulary: int, tokens: list[int]) -> None:
        super().__init__()
        self.vocabulary, self.tokens = vocabulary, list(tokens)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*states.shape[:-1], self.vocabulary)
        logits[..., self.tokens.pop(0)] = 1
        return logits


@pytest.fixture
def processor(tiny_tokenizer) -> Processor:
    return Processor(tiny_tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4)


@pytest.fixture
def assistant(tiny_model, processor) -> Assistant:
    """All states, caches and masks are the tiny model's own."""
    tiny_model.config.seg_token_id = processor.text.seg_token_id
    return Assistant(tiny_model, processor, max_new_tokens=60)


def make_it_say(assistant: Assistant, *answers: str) -> None:
    ids: list[int] = []
    for answer in answers:
        text = " " + answer.replace(" [SEG]", "[SEG]")
        ids += [*assistant.processor.text.tokenizer(text, add_special_tokens=False)["input_ids"], 2]
    assistant.model.mllm.lm_head = Script(322, ids)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def same(one, other) -> None:
    assert one.text == other.text
    assert one.truncated == other.truncated
    for a, b in zip(one.objects, other.objects, strict=True):
        assert a.name == b.name
        assert a.occlusion_rate == pytest.approx(b.occlusion_rate, abs=1e-5)
        for mask, expected in ((a.visible, b.visible), (a.amodal, b.amodal)):
            assert (mask != expected).mean() < 0.001


def test_an_answer_has_text_names_masks_and_rates(assistant, image):
    make_it_say(assistant, ANSWERS[0])
    pieces: list[str] = []
    reply = assistant.ask(image, "What could I ride?", pieces.append)
    assert reply.text == "".join(pieces) == ANSWERS[0]
    assert len(pieces) > 3
    assert not reply.truncated
    assert [o.name for o in reply.objects] == ["bus", "tree"]
    for obj in reply.objects:
        assert obj.visible.shape == obj.amodal.shape == (40, 60)
        assert obj.visible.dtype == obj.amodal.dtype == bool
        assert 0 <= obj.occlusion_rate <= 1


def test_the_masks_are_the_models_logits_above_zero(assistant, image, monkeypatch):
    half = torch.full((2, 32, 32), -1.0)
    half[:, :, :16] = 1.0
    whole = torch.ones(2, 32, 32)
    masks = MaskOutput(half, whole, None, None)
    monkeypatch.setattr(assistant.model, "decode_masks", lambda *args: masks)
    make_it_say(assistant, ANSWERS[0])
    first = assistant.ask(image, "What?").objects[0]
    assert first.amodal.all()
    assert first.visible[:, :30].all() and not first.visible[:, 30:].any()
    assert first.occlusion_rate == pytest.approx(0.5), "without the head, the masks tell the rate"


def test_a_model_of_one_kind_of_mask_leaves_the_other_out(assistant, image, monkeypatch):
    masks = MaskOutput(torch.ones(2, 32, 32), None, None, None)
    monkeypatch.setattr(assistant.model, "decode_masks", lambda *args: masks)
    make_it_say(assistant, ANSWERS[0])
    reply = assistant.ask(image, "What?")
    assert reply.objects[0].visible.all() and reply.objects[0].amodal is reply.objects[0].occlusion_rate is None
    record = reply_record(reply)["objects"][0]
    assert record["visible_area"] == 40 * 60
    assert record["amodal"] is record["bbox"] is record["area"] is record["occlusion_rate"] is None


def test_an_answer_without_a_mark_has_no_objects(assistant, image):
    make_it_say(assistant, ANSWERS[1])
    assert assistant.ask(image, "What could I eat?").objects == ()


def test_rounds_with_the_cache_equal_rounds_from_scratch(assistant, image):
    questions = ["What could I ride?", "And eat?", "What is there?"]
    cached = assistant.conversation(image)
    make_it_say(assistant, *ANSWERS)
    with_cache = [cached.ask(q) for q in questions]

    fresh = assistant.conversation(image)
    make_it_say(assistant, *ANSWERS)
    for question, expected in zip(questions, with_cache, strict=True):
        fresh._cache = None
        same(fresh.ask(question), expected)
    assert cached._ids == fresh._ids
    assert [q for q, _ in cached.turns] == questions

    conversation = assistant.processor.text.start_prompt(questions[0]) + encoded(assistant, ANSWERS[0])
    conversation += assistant.processor.text.followup(questions[1]) + encoded(assistant, ANSWERS[1])
    conversation += assistant.processor.text.followup(questions[2]) + encoded(assistant, ANSWERS[2])
    assert [*cached._ids, 2] == conversation, "the model reads what it read in training"


def encoded(assistant, answer) -> list[int]:
    text = " " + answer.replace(" [SEG]", "[SEG]")
    return [*assistant.processor.text.tokenizer(text, add_special_tokens=False)["input_ids"], 2]


@pytest.mark.parametrize("seg_state", ["before", "at"])
def test_free_generation_with_the_cache_equals_generation_from_scratch(assistant, image, seg_state):
    assistant.model.config.seg_state, assistant.max_new_tokens = seg_state, 20
    with torch.no_grad():  # make the random model fond of [SEG], and of the image's placeholder, which it must not say
        assistant.model.mllm.lm_head.weight[assistant.processor.text.seg_token_id] *= 3
        assistant.model.mllm.lm_head.weight[assistant.processor.text.image_token_id] *= 4
    cached, fresh = assistant.conversation(image), assistant.conversation(image)
    objects = 0
    for question in ("What could I ride?", "And eat?", "What is there?"):
        fresh._cache = None
        reply = cached.ask(question)
        same(reply, fresh.ask(question))
        assert cached._ids == fresh._ids
        objects += len(reply.objects)
    assert objects > 0


def test_each_image_is_encoded_once_and_each_token_read_once(assistant, image, monkeypatch):
    make_it_say(assistant, *ANSWERS)
    calls = {"sam": 0, "clip": 0, "tokens": 0}
    embed = assistant.model.mllm.embed
    for name, owner, method in (
        ("sam", assistant.model, "encode_sam"),
        ("clip", assistant.model.mllm, "encode_images"),
    ):
        encode = getattr(owner, method)
        monkeypatch.setattr(owner, method, lambda *a, n=name, e=encode: (calls.update({n: calls[n] + 1}), e(*a))[1])

    def count(ids, features=None):
        calls["tokens"] += ids.numel()
        return embed(ids, features)

    monkeypatch.setattr(assistant.model.mllm, "embed", count)
    chat = assistant.conversation(image)
    for question in ("one?", "two?", "three?"):
        chat.ask(question)
    assert calls == {"sam": 1, "clip": 1, "tokens": len(chat._ids)}
    chat.reset()
    make_it_say(assistant, ANSWERS[1])
    chat.ask("again?")
    assert calls["sam"] == calls["clip"] == 1
    assert len(chat.turns) == 1


def test_a_cut_answer_says_so_and_the_conversation_goes_on(assistant, image):
    make_it_say(assistant, *ANSWERS)
    assistant.max_new_tokens = 5
    chat = assistant.conversation(image)
    assert chat.ask("What could I ride?").truncated
    chat.max_new_tokens = 60
    make_it_say(assistant, ANSWERS[0])
    assert not chat.ask("Go on?").truncated
    assert chat._ids.count(2) == 1, "the cut answer is closed, once"


def test_an_interruption_leaves_the_conversation_as_it_was(assistant, image):
    questions = ["What could I ride?", "What is there?"]
    undisturbed, disturbed = assistant.conversation(image), assistant.conversation(image)
    make_it_say(assistant, ANSWERS[0], ANSWERS[2])
    expected = [undisturbed.ask(q) for q in questions]

    def interrupt(piece):
        raise KeyboardInterrupt

    for question, answer, wanted in zip(questions, (ANSWERS[0], ANSWERS[2]), expected, strict=True):
        make_it_say(assistant, ANSWERS[1])
        with pytest.raises(KeyboardInterrupt):
            disturbed.ask("Something else?", interrupt)
        make_it_say(assistant, answer)
        same(disturbed.ask(question), wanted)
    assert disturbed._ids == undisturbed._ids


@pytest.mark.parametrize("question", ["What is [SEG]?", "<image>", "</s><s>[SEG]", "<<image>image>", "caf\udce9?"])
def test_reserved_words_in_a_question_are_harmless(assistant, image, question):
    make_it_say(assistant, ANSWERS[0], ANSWERS[1])
    chat = assistant.conversation(image)
    assert len(chat.ask(question).objects) == 2
    chat.ask(question)
    assert chat._ids.count(4) == 4, "the image stands once"
    assert chat._ids.count(assistant.processor.text.seg_token_id) == 2


def test_an_empty_question_and_a_full_conversation_are_errors_that_change_nothing(assistant, image):
    make_it_say(assistant, *ANSWERS)
    chat = assistant.conversation(image)
    chat.ask("What could I ride?")
    before = list(chat._ids)
    for question, message in ((" \n", "empty"), ("why " * 300, "at most 512")):
        with pytest.raises(ValueError, match=message):
            chat.ask(question)
    assert chat._ids == before
    chat.ask("And eat?")


def test_a_photo_is_shown_upright(assistant, image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "phone.png", exif=exif)
    make_it_say(assistant, ANSWERS[0])
    chat = assistant.conversation(tmp_path / "phone.png")
    assert chat.image.size == (40, 60)
    assert chat.ask("What?").objects[0].amodal.shape == (60, 40)


def test_the_record_of_a_reply_is_json_with_the_same_masks(assistant, image):
    make_it_say(assistant, ANSWERS[0])
    reply = assistant.ask(image, "What?")
    record = json.loads(json.dumps(reply_record(reply), allow_nan=False))
    assert record["text"] == reply.text
    for obj, written in zip(reply.objects, record["objects"], strict=True):
        np.testing.assert_array_equal(decode_rle(written["visible"]), obj.visible)
        np.testing.assert_array_equal(decode_rle(written["amodal"]), obj.amodal)
        assert written["area"] == obj.amodal.sum()
        assert written["occlusion_rate"] == obj.occlusion_rate


@pytest.fixture
def export(assistant, tmp_path):
    folder = tmp_path / "run" / "export"
    assistant.model.save_pretrained(folder)
    assistant.processor.save_pretrained(folder)
    return folder


def test_an_export_and_its_run_folder_load_to_the_same_assistant(assistant, export, image):
    expected = assistant.ask(image, "What could I ride?")
    for folder in (export, str(export.parent)):
        loaded = aura.Assistant.from_pretrained(folder, device="cpu", max_new_tokens=60)
        same(loaded.ask(image, "What could I ride?"), expected)
        assert not loaded.model.training


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_keeps_the_masks_in_full_precision(export, image, dtype):
    loaded = Assistant.from_pretrained(export, "cpu", dtype, max_new_tokens=60)
    assert loaded.model.mllm.lm_head.weight.dtype in (torch.bfloat16, torch.float16)
    assert {p.dtype for p in loaded.model.amodal_decoder.parameters()} == {torch.float32}
    make_it_say(loaded, ANSWERS[0])
    assert len(loaded.ask(image, "What?").objects) == 2


@pytest.mark.parametrize(("saved", "expected"), [("bfloat16", torch.float16), ("float32", torch.float32)])
def test_on_a_v100_answers_come_in_what_it_has(export, monkeypatch, saved, expected):
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps({**config, "dtype": saved}))
    v100 = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla V100")
    assert assistant_module._dtype(None, v100, export) == expected
    assert assistant_module._dtype("fp16", v100, export) == torch.float16
    with pytest.raises(ValueError, match=r"V100.*no bf16 units.*fp16"):
        assistant_module._dtype("bf16", v100, export)


def test_every_gpu_of_a_device_map_is_one_that_torch_has_code_for(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla V100")
    capabilities = {None: (8, 0), 0: (8, 0), 1: (7, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capabilities[device.index])
    assert assistant_module._device(None) == torch.device("cuda")
    with pytest.raises(ValueError, match=r"no code for Tesla V100.*cu126"):
        assistant_module._device(None, everywhere=True)


def test_folders_that_hold_no_export_are_named(tmp_path, export):
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        find_export(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"unfinished.*aura_processor.json is missing"):
        find_export(tmp_path / "unfinished")
    weights = export / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"export cannot be loaded"):
        Assistant.from_pretrained(export)
    weights.unlink()
    (export / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../other.safetensors"}}')
    with pytest.raises(ValueError, match=r"export cannot be loaded .*no name of a file beside it"):
        Assistant.from_pretrained(export)
    (export / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"export cannot be loaded"):
        Assistant.from_pretrained(export)
    (export / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json"):
        Assistant.from_pretrained(export)


def test_an_export_that_lacks_weights_is_refused(assistant, export):
    state = {k: v for k, v in assistant.model.state_dict().items() if "amodal_decoder" not in k}
    assistant.model.save_pretrained(export, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks \d+ weights, such as amodal_decoder"):
        Assistant.from_pretrained(export)


@pytest.mark.parametrize(
    "arguments", [{"device": "cuda:7"}, {"device": "toaster"}, {"dtype": "fp8"}, {"max_new_tokens": 0}]
)
def test_what_this_machine_does_not_have_is_an_error(export, arguments):
    with pytest.raises(ValueError):
        Assistant.from_pretrained(export, **arguments)


def test_a_model_and_a_processor_of_different_kinds_are_refused(tiny_model, processor):
    tiny_model.config.seg_token_id = processor.text.seg_token_id + 1
    with pytest.raises(ValueError, match=r"seg_token_id is \d+, the processor's is \d+"):
        Assistant(tiny_model, processor)


def test_a_session_can_start_from_cached_features(assistant, image):
    make_it_say(assistant, ANSWERS[0], ANSWERS[0])
    expected = assistant.ask(image, "What?")
    inputs = assistant.processor.image(image)
    features = assistant.model.encode_images(inputs.sam_pixels[None], inputs.clip_pixels[None])
    session = ChatSession(assistant.model, assistant.processor, features, inputs.geometry)
    same(session.ask("What?"), expected)
