import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from aura.data.processor import Processor
from aura.masks import decode_rle
from aura.types import Conversation, ImageFeatures, SegRecord, Turn

TEMPLATES = ["llava_v1", "vicuna_v1", "llava_llama_2"]
ANSWERS = ["You could ride the bus [SEG], which the tree [SEG] hides.", "Only the apple [SEG]."]


def pieces(processor, ids):
    return processor.text.tokenizer.convert_ids_to_tokens(ids)


def supervised(processor, tokenized):
    """Runs of supervised tokens, one list per answer."""
    runs, previous = [], False
    for token, target in zip(pieces(processor, tokenized.input_ids), tokenized.target_mask, strict=True):
        if target:
            runs += [] if previous else [[]]
            runs[-1].append(token)
        previous = target
    return runs


@pytest.mark.parametrize("template", TEMPLATES)
def test_llama_labels_are_exactly_the_answers_and_their_end(llama_processor, conversations, template):
    processor = llama_processor(prompt_template=template)
    tokenized = processor.text.conversation(conversations[0], 7)
    end = "▁ </s>" if template == "llava_llama_2" else "</s>"  # its " </s>", as transformers 4.31 read it
    assert [" ".join(run) for run in supervised(processor, tokenized)] == [
        f"▁You ▁could ▁ride ▁the ▁bus [SEG] ▁, ▁which ▁the ▁tree [SEG] ▁h ides . {end}",
        f"▁Only ▁the ▁apple [SEG] ▁. {end}",
    ]
    assert tokenized.seg_turns == [(0, 0), (0, 1), (1, 0)]
    assert [tokenized.input_ids[p] for p in tokenized.seg_positions] == [processor.text.seg_token_id] * 3
    assert pieces(processor, tokenized.input_ids[:1]) == ["<s>"]


def test_the_first_object_alone_keeps_the_words_and_takes_out_the_other_marks(tiny_tokenizer, sample, conversations):
    sizes = {"sam_image_size": 64, "clip_image_size": 28, "num_image_tokens": 4}
    first = Processor(tiny_tokenizer, **sizes, objects_per_answer="first")
    for conversation, expected, segs in (
        (conversations[0], ["You could ride the bus [SEG], which the tree hides.", "Only the apple [SEG]."], 2),
        (conversations[1], ["[SEG] and"], 1),
        (conversations[2], ["Fine."], 0),
    ):
        tokenized = first.text.conversation(conversation, 7)
        assert tokenized.seg_turns == [(0, 0), (1, 0)][:segs]
        alone = [
            Turn(t.question, answer, t.objects[:1]) for t, answer in zip(conversation.turns, expected, strict=True)
        ]
        whole = Processor(tiny_tokenizer, **sizes)
        assert whole.text.conversation(Conversation(conversation.id, tuple(alone)), 7) == tokenized
    processed = first(sample)
    assert [[t.record.annotation_id for t in branch] for branch in processed.targets] == [[10, 20], [30], []]
    assert len(processed.visible_masks) == 3, "the bus, the apple and the tree; without the tree's question, two"
    assert len(first(sample, None, conversations[:1]).visible_masks) == 2


def test_an_answer_that_begins_with_seg_is_supervised_whole(llama_processor, processor, conversations):
    for made in (llama_processor(), processor):
        tokenized = made.text.conversation(conversations[1], 7)
        (run,) = supervised(made, tokenized)
        assert run[0] == "[SEG]" and run[-3:] == ["[SEG]", "[SEG]", "</s>"]


def test_labels_of_a_byte_level_tokenizer_are_exactly_the_answers(processor, conversations):
    tokenized = processor.text.conversation(conversations[0], 7)
    text = ["".join(run).replace("Ġ", " ") for run in supervised(processor, tokenized)]
    assert text == [f" {a}</s>".replace(" [SEG]", "[SEG]") for a in ANSWERS]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["llama", "bytes"])
def test_generation_builds_the_very_ids_of_training(request, conversations, template, kind):
    if kind == "llama":
        processor = request.getfixturevalue("llama_processor")(prompt_template=template)
    else:
        tokenizer = request.getfixturevalue("tiny_tokenizer")
        processor = Processor(
            tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4, prompt_template=template
        )
    for conversation in conversations:
        whole = processor.text.conversation(conversation, 7)
        runs, built, open_built = [], [], []
        for token, target, before in zip(whole.input_ids, whole.target_mask, [False, *whole.target_mask], strict=False):
            runs += [[]] if target and not before else []
            if target:
                runs[-1].append(token)
        for number, (turn, answer) in enumerate(zip(conversation.turns, runs, strict=True)):
            assert answer[-1] == processor.text.eos_token_id
            if number == 0:
                built, open_built = (
                    processor.text.start_prompt(turn.question),
                    processor.text.start_prompt(turn.question),
                )
            else:
                built += processor.text.followup(turn.question)
                open_built += processor.text.followup(turn.question, closed=False)
            built += answer
            open_built += answer[:-1]
        assert built == whole.input_ids
        assert open_built == whole.input_ids[:-1]


def test_the_image_takes_its_number_of_tokens(llama_processor):
    short, long = (llama_processor(num_image_tokens=n).text.start_prompt("What?") for n in (3, 256))
    assert len(long) - len(short) == 253
    assert pieces(llama_processor(num_image_tokens=3), short)[-12:-4] == (
        ["<im_start>", "<image>", "<image>", "<image>", "<im_end>", "▁What", "?", "▁A"]
    )


@pytest.mark.parametrize("text", [*ANSWERS, "[SEG] and [SEG]", "Fine.", "The bus [SEG]; [SEG] (a tree [SEG])!", ""])
def test_decode_gives_the_answer_back(llama_processor, processor, text):
    for made in (llama_processor(), processor):
        count = text.count("[SEG]")
        whole = made.text.conversation(Conversation(1, (Turn("What?", text, tuple(range(count))),)))
        answer = [t for t, target in zip(whole.input_ids, whole.target_mask, strict=True) if target]
        assert made.text.decode(answer) == text


def test_a_sample_becomes_tensors(processor, sample):
    result = processor(sample)
    assert [c.id for c in result.conversations] == [1, 2, 3]
    assert [[t.record for t in branch] for branch in result.targets] == [
        [
            SegRecord(7, 1, 0, 0, 10, "bus"),
            SegRecord(7, 1, 0, 1, 30, "tree"),
            SegRecord(7, 1, 1, 0, 20, "apple"),
        ],
        [SegRecord(7, 2, 0, 0, 30, "tree"), SegRecord(7, 2, 0, 1, 10, "bus"), SegRecord(7, 2, 0, 2, 10, "bus")],
        [],
    ]
    by_id = {o.id: o for o in sample.objects}
    assert result.visible_masks.shape == result.amodal_masks.shape == (3, 40, 60)
    assert result.visible_masks.dtype == torch.bool
    for target in (t for branch in result.targets for t in branch):
        obj = by_id[target.record.annotation_id]
        assert target.occlusion_rate == obj.occlusion_rate
        assert np.array_equal(result.visible_masks[target.row], decode_rle(obj.visible))
        assert np.array_equal(result.amodal_masks[target.row], decode_rle(obj.amodal))
    inputs = processor.image(sample.image_path)
    assert torch.equal(result.sam_pixels, inputs.sam_pixels) and torch.equal(result.clip_pixels, inputs.clip_pixels)
    assert result.geometry == inputs.geometry
    assert (result.geometry.original, result.geometry.resized) == ((40, 60), (43, 64))
    assert result.sam_embeddings is None


def test_only_the_chosen_conversations_and_their_objects_are_used(processor, sample):
    result = processor(sample, conversations=[sample.conversations[2]])
    assert result.targets == ((),)
    assert result.visible_masks.shape == (0, 40, 60)


def test_cached_features_stand_in_for_the_pixels(processor, sample):
    features = ImageFeatures(torch.rand(1, 32, 8, 8), torch.rand(1, 4, 24))
    result = processor(sample, features)
    assert result.sam_pixels is None and result.clip_pixels is None
    assert torch.equal(result.sam_embeddings, features.sam_embeddings[0])
    assert torch.equal(result.clip_features, features.clip_features[0])
    assert result.geometry == processor.image(sample.image_path).geometry


def test_a_conversation_is_refused_rather_than_cut(tiny_tokenizer, conversations):
    sizes = {"sam_image_size": 64, "clip_image_size": 28, "num_image_tokens": 4}
    length = len(Processor(tiny_tokenizer, **sizes).text.conversation(conversations[0]).input_ids)
    exact = Processor(tiny_tokenizer, **sizes, max_length=length)
    assert len(exact.text.conversation(conversations[0]).input_ids) == length
    short = Processor(tiny_tokenizer, **sizes, max_length=length - 1)
    with pytest.raises(ValueError, match=rf"image 7, conversation 1: {length} tokens .* limit of {length - 1}"):
        short.text.conversation(conversations[0], 7)
    with pytest.raises(ValueError, match="shorten it"):
        short.text.start_prompt("why " * length)


@pytest.mark.parametrize("token", ["[SEG]", "<image>", "</s>", "<im_end>"])
def test_reserved_tokens_in_text_are_refused(processor, token):
    for ask in (processor.text.start_prompt, processor.text.followup):
        with pytest.raises(ValueError, match="reserved token"):
            ask(f"Where is {token}?")
    bad = Conversation(4, (Turn("Hi?", "Yes."), Turn(f"Where is {token}?", "There.")))
    with pytest.raises(ValueError, match=r"image 7, conversation 4, turn 1: the question .*reserved"):
        processor.text.conversation(bad, 7)
    if token != "[SEG]":
        with pytest.raises(ValueError, match=r"conversation 4, turn 0: the answer .*reserved"):
            processor.text.conversation(Conversation(4, (Turn("Hi?", f"A {token}."),)), 7)
    with pytest.raises(ValueError, match="empty"):
        processor.text.start_prompt("  ")


def test_a_template_that_the_tokenizer_merges_into_the_answer_is_refused(processor):
    processor.text.template = replace(processor.text.template, ask=" a", lead="")
    with pytest.raises(ValueError, match="across the border of an answer"):
        processor.text.conversation(Conversation(4, (Turn("Hi", "nd the bus"),)), 7)


def test_images_that_do_not_fit_their_record_are_named(processor, sample, tmp_path):
    Image.new("RGB", (60, 41)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"image 7: .*other.png is 60 x 41 .*annotated as 60 x 40"):
        processor(replace(sample, image_path=tmp_path / "other.png"))
    with pytest.raises(ValueError, match=r"image 7: .*gone.png does not exist"):
        processor(replace(sample, image_path=tmp_path / "gone.png"))
    with pytest.raises(ValueError, match="image 7: it has no conversation"):
        processor(sample, conversations=[])
    damaged = replace(sample.objects[0], amodal={"size": [40, 60], "counts": "11"})
    with pytest.raises(ValueError, match="image 7, annotation 10: the amodal mask"):
        processor(replace(sample, objects=(damaged, *sample.objects[1:])))


@pytest.mark.parametrize("template", ["llava_v1", "llava_llama_2"])
def test_a_saved_processor_is_the_same(llama_processor, sample, tmp_path, template):
    processor = llama_processor(prompt_template=template, clip_resize="squash", clip_mean=(0.1, 0.2, 0.3))
    processor.save_pretrained(tmp_path / "export")
    again = Processor.from_pretrained(tmp_path / "export")
    assert again.settings == processor.settings
    assert again.image_fingerprint() == processor.image_fingerprint()
    for conversation in sample.conversations:
        assert again.text.conversation(conversation) == processor.text.conversation(conversation)
    assert torch.equal(again.image(sample.image_path).clip_pixels, processor.image(sample.image_path).clip_pixels)
    assert Processor.from_pretrained(tmp_path / "export", max_length=99).text.max_length == 99
    alone = Processor.from_pretrained(tmp_path / "export", objects_per_answer="first")
    alone.save_pretrained(tmp_path / "alone")
    assert Processor.from_pretrained(tmp_path / "alone").text.objects_per_answer == "first"


def test_a_folder_without_a_whole_processor_is_named(processor, tmp_path):
    with pytest.raises(ValueError, match=r"aura_processor.json is missing"):
        Processor.from_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "aura_processor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))
    with pytest.raises(ValueError, match=r"aura_processor.json is not a valid .*colour"):
        Processor.from_pretrained(tmp_path)
    path.write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"aura_processor.json is not a valid .*export the model again"):
        Processor.from_pretrained(tmp_path)


def test_every_image_setting_changes_the_fingerprint(tiny_tokenizer):
    sizes = {"sam_image_size": 64, "clip_image_size": 28, "num_image_tokens": 4}
    changes = [
        {},
        {"sam_image_size": 128},
        {"clip_image_size": 56},
        {"clip_resize": "pad"},
        {"clip_mean": (0, 0, 0)},
        {"clip_std": (1, 1, 1)},
    ]
    prints = [Processor(tiny_tokenizer, **{**sizes, **c}).image_fingerprint() for c in changes]
    assert len(set(prints)) == len(changes)
    assert Processor(tiny_tokenizer, **sizes, max_length=9).image_fingerprint() == prints[0]


def test_settings_that_cannot_work_are_refused(tiny_tokenizer):
    sizes = {"sam_image_size": 64, "clip_image_size": 28, "num_image_tokens": 4}
    with pytest.raises(ValueError, match="clip_resize"):
        Processor(tiny_tokenizer, **sizes, clip_resize="zoom")
    for wrong in ({"sam_image_size": 0}, {"num_image_tokens": "4"}, {"max_length": 10**9}, {"clip_mean": [0.5]}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            Processor(tiny_tokenizer, **{**sizes, **wrong})
    with pytest.raises(ValueError, match="clip_std must be"):
        Processor(tiny_tokenizer, **sizes, clip_std=(0.5, 0, 0.5))
    with pytest.raises(ValueError, match="unknown prompt template"):
        Processor(tiny_tokenizer, **sizes, prompt_template="alpaca")
    tiny_tokenizer.bos_token = None
    with pytest.raises(ValueError, match="bos"):
        Processor(tiny_tokenizer, **sizes)
    tiny_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end-of-sequence"):
        Processor(tiny_tokenizer, **sizes)


def test_a_chat_question_about_a_reserved_token_is_spelled_apart(processor):
    question = "What is [SEG]</s> in <image>?"
    assert processor.text.defuse(question) == "What is [ SEG]< /s> in < image>?"
    ids = processor.text.start_prompt(processor.text.defuse(question))
    assert processor.text.seg_token_id not in ids and processor.text.eos_token_id not in ids
    assert ids.count(processor.text.image_token_id) == processor.text.num_image_tokens
    assert processor.text.defuse("Where is the bus?") == "Where is the bus?"


@pytest.mark.parametrize(
    "text", ["Où est l'œuf 🥚?", "第一\n\n  第二", "a\u00a0b\t\u200d c", "e\u0301 ½ ﬁ", "::  :", "▁ x"]
)
def test_any_text_keeps_labels_and_generation_exact(llama_processor, processor, text):
    for made in (llama_processor(), processor):
        whole = made.text.conversation(Conversation(1, (Turn(text, f"{text} [SEG] {text}", (1,)), Turn(text, text))))
        first = whole.target_mask.index(True)
        last = whole.input_ids.index(made.text.eos_token_id, first)
        assert whole.input_ids[:first] == made.text.start_prompt(text)
        followup = made.text.followup(text)
        assert whole.input_ids[last + 1 : last + 1 + len(followup)] == followup
        assert all(whole.target_mask[first : last + 1])
        assert whole.target_mask[last + 1 :] == [
            t >= last + 1 + len(followup) for t in range(last + 1, len(whole.input_ids))
        ]
