from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from aura.data.answers import AnswerText, object_names

NAMES = {
    "You could eat the apple [SEG].": ["apple"],
    "You could ride the bus [SEG], which the big old tree [SEG] hides.": ["bus", "big old tree"],
    "A hot dog [SEG] and pizza [SEG] are there.": ["hot dog", "pizza"],
    "apple [SEG], donut [SEG], an orange [SEG]": ["apple", "donut", "orange"],
    "The dog [SEG] cat [SEG]": ["dog", "cat"],
    "It is the person in a red coat [SEG].": ["red coat"],
    "the bottle of water [SEG]": ["bottle of water"],
    "The cup (half hidden) [SEG] and the “teddy bear” [SEG]": ["cup", "teddy bear"],
    "You could use scissors [SEG] or knife [SEG].": ["scissors", "knife"],
    "Its wheel [SEG] is bent; that tie [SEG] is not.": ["wheel", "tie"],
    "It is hidden by umbrella [SEG].": ["umbrella"],
    "the apples [SEG] and [SEG]": ["apples", "apples"],
    "The vase, [SEG]": ["vase"],
    "[SEG]": ["object"],
    "Sure, it is [SEG].": ["object"],
    "[SEG] and the kite [SEG]": ["object", "kite"],
    "The sandwich [SEG] of Andy, the man [SEG]": ["sandwich", "man"],
    "Nothing here can be eaten.": [],
    "": [],
}


@pytest.mark.parametrize("text", NAMES)
def test_names_are_the_noun_phrases_before_the_marks(text):
    assert object_names(text) == NAMES[text]


def stream(tokenizer, seg, ids):
    text = AnswerText(tokenizer, seg)
    pieces = [text.push(i) for i in ids]
    at_once = AnswerText(tokenizer, seg)
    assert "".join(pieces) == text.text == at_once.push(*ids) == at_once.text
    return pieces, text.text


ANSWERS = [
    "You could ride the bus [SEG], which the tree [SEG] hides.",
    "[SEG] and [SEG] [SEG]",
    "The café's crème brûlée [SEG] (日本語, naïve 🐻‍❄️) [SEG]!",
    "Two  spaces\nand a line.",
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_pieces_join_to_the_text_with_byte_level_tokens(processor, answer):
    ids = processor.text.tokenizer(answer.replace(" [SEG]", "[SEG]"), add_special_tokens=False)["input_ids"]
    pieces, text = stream(processor.text.tokenizer, processor.text.seg_token_id, [*ids, processor.text.eos_token_id])
    assert text == answer
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([p for p in pieces if p]) > 1


@pytest.mark.parametrize("answer", ANSWERS[:3])
def test_pieces_join_to_the_text_with_llamas_tokens(llama_processor, answer):
    processor = llama_processor()
    ids = processor.text.tokenizer(answer.replace(" [SEG]", "[SEG]"), add_special_tokens=False)["input_ids"]
    pieces, text = stream(processor.text.tokenizer, processor.text.seg_token_id, [*ids, processor.text.eos_token_id])
    assert text == answer == processor.text.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.fixture
def byte_fallback():
    """Llama's way of writing: words begin with a low line, unknown characters are bytes."""
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "▁the", "▁cup", "s", ".", "[SEG]"] + [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.add_tokens(["[SEG]"])
    return fast


def ids_of(tokenizer, tokens):
    return [tokenizer.convert_tokens_to_ids(t) for t in tokens]


def test_a_character_of_several_bytes_comes_whole_or_not_at_all(byte_fallback):
    bear = [f"<0x{byte:02X}>" for byte in "🐻".encode()]
    seg = byte_fallback.convert_tokens_to_ids("[SEG]")
    ids = ids_of(byte_fallback, ["▁the", *bear, "▁cup", "[SEG]", "▁the", "s", "[SEG]", ".", "</s>"])
    pieces, text = stream(byte_fallback, seg, ids)
    assert text == "the🐻 cup [SEG] thes [SEG]."
    assert pieces[:6] == ["the", "", "", "", "🐻", " cup"]
    assert stream(byte_fallback, seg, ids[:4])[1] == "the", "a cut character is left out"
    double = ids_of(byte_fallback, ["<0xC3>", "<0xA9>", *bear[:2]])
    assert stream(byte_fallback, seg, double)[0] == ["", "é", "", ""], "the whole one before it stays"


def test_special_tokens_are_not_shown_and_letters_do_not_make_a_mark(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    tokenizer = type(processor).from_pretrained(tmp_path).text.tokenizer
    letters = [i for c in ("[", "SEG", "]") for i in tokenizer(c, add_special_tokens=False)["input_ids"]]
    assert processor.text.seg_token_id not in letters
    ids = [
        tokenizer.bos_token_id,
        *letters,
        processor.text.image_token_id,
        processor.text.seg_token_id,
        tokenizer.pad_token_id,
    ]
    _, text = stream(tokenizer, processor.text.seg_token_id, ids)
    assert text == "[SEG [SEG]"
    assert len(object_names(text)) == 1
