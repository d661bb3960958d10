import json
import re

import pytest

from aura.data.templates import get_template, render
from aura.data.tokenization import encode, load_tokenizer, prepare_tokenizer, token_id

ADDED = ["[SEG]", "<im_start>", "<im_end>", "</s>", "<s>"]
TURNS = [
    ("What could I eat?", "You could eat the apple [SEG], which hides the cup [SEG]."),
    ("And sit on, please?", "[SEG] and the couch [SEG]"),
    ("Nothing else?", "No, nothing."),
]


def legacy_tokens(text, sentencepiece_model):
    """Tokens as LLaVA v1 and LISA were trained on: split at added tokens, pieces stripped, each encoded by itself."""
    pieces = re.split("(" + "|".join(map(re.escape, ADDED)) + ")", text)
    tokens = []
    for piece in pieces:
        tokens += [piece] if piece in ADDED else sentencepiece_model.encode(piece.strip(), out_type=str)
    return tokens


@pytest.mark.parametrize("name", ["llava_v1", "vicuna_v1", "llava_llama_2"])
def test_llama_tokens_are_those_of_the_legacy_tokenizer(llama_folder, name):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(llama_folder / "tokenizer.model"))
    tokenizer = prepare_tokenizer(load_tokenizer(llama_folder), use_im_start_end=True)
    text = render(get_template(name), TURNS, image="<im_start><im_end>", bos="<s>", eos="</s>").text
    spaced = text.replace("[SEG]", " [SEG]")
    expected = legacy_tokens(spaced, model)
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, text)[0]) == expected
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, spaced)[0]) == expected


def test_token_ids_on_a_plain_llama_vocabulary_are_lisas(llama_folder):
    tokenizer = prepare_tokenizer(load_tokenizer(llama_folder), use_im_start_end=True)
    names = ["<s>", "</s>", "[SEG]", "<im_start>", "<im_end>", "<image>"]
    assert [token_id(tokenizer, t) for t in names] == [1, 2, 32000, 32001, 32002, 32003]
    assert len(tokenizer) == 32004


def test_token_ids_on_a_llava_v1_vocabulary_are_lisas(llama_folder):
    tokenizer = load_tokenizer(llama_folder)
    tokenizer.add_tokens(["<im_patch>", "<im_start>", "<im_end>"], special_tokens=True)
    prepare_tokenizer(tokenizer, use_im_start_end=True)
    names = ["<im_patch>", "<im_start>", "<im_end>", "[SEG]", "<image>"]
    assert [token_id(tokenizer, t) for t in names] == [32000, 32001, 32002, 32003, 32004]
    ids = encode(tokenizer, "hi <im_start><image><im_end>\nWhat")[0]
    assert tokenizer.convert_ids_to_tokens(ids)[1:] == ["<im_start>", "<image>", "<im_end>", "▁What"]


def test_preparing_twice_changes_nothing(tiny_tokenizer):
    size = len(tiny_tokenizer)
    prepare_tokenizer(tiny_tokenizer, use_im_start_end=False)
    once = tiny_tokenizer.backend_tokenizer.to_str()
    prepare_tokenizer(tiny_tokenizer, use_im_start_end=False)
    assert tiny_tokenizer.backend_tokenizer.to_str() == once
    assert len(tiny_tokenizer) == size + 1
    assert token_id(tiny_tokenizer, "[SEG]") == size


def test_an_existing_image_token_keeps_its_id(tiny_tokenizer):
    before = token_id(tiny_tokenizer, "<image>")
    assert token_id(prepare_tokenizer(tiny_tokenizer, use_im_start_end=True), "<image>") == before


def test_a_token_the_tokenizer_lacks_is_an_error(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"no token '\[SEG\]'"):
        token_id(tiny_tokenizer, "[SEG]")


def test_a_saved_llama_tokenizer_gives_the_same_ids(llama_folder, tmp_path):
    tokenizer = prepare_tokenizer(load_tokenizer(llama_folder), use_im_start_end=True)
    tokenizer.save_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    again = load_tokenizer(tmp_path)
    for name in ("llava_v1", "llava_llama_2"):
        text = render(get_template(name), TURNS, image="<im_start><image><im_end>", bos="<s>", eos="</s>").text
        assert encode(again, text) == encode(tokenizer, text)
    assert (again.bos_token_id, again.eos_token_id, again.unk_token_id) == (1, 2, 0)


def test_stored_truncation_and_padding_are_not_applied(tiny_tokenizer):
    whole = encode(tiny_tokenizer, "one two three four")[0]
    tiny_tokenizer.backend_tokenizer.enable_truncation(2)
    tiny_tokenizer.backend_tokenizer.enable_padding(length=90)
    assert encode(tiny_tokenizer, "one two three four")[0] == whole


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load_tokenizer(tmp_path)
