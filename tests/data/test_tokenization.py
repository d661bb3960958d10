import json
import re

import pytest

from aura.data.templates import get_template, render
from aura.data.tokenization import complete_v1_tokenizer, encode, load_tokenizer, prepare_tokenizer, token_id

ADDED = ["[SEG]", "<im_start>", "<im_end>", "<im_patch>"]
ENDS = ["</s>", "<s>"]
TURNS = [
    ("What could I eat?", "You could eat the apple [SEG], which hides the cup [SEG]."),
    ("And sit on, please?", "[SEG] and the couch [SEG]"),
    ("Nothing else?", "No, nothing."),
]
ODD = "Where's the café? 123 — “x”\nsecond line   three spaces"


def legacy_tokens(text, sentencepiece_model, strip):
    """Tokens as transformers 4.31 made them: split at added tokens, pieces stripped beside those of ``strip``."""
    pieces = re.split("(" + "|".join(map(re.escape, ADDED + ENDS)) + ")", text)
    tokens = []
    for number, piece in enumerate(pieces):
        if number % 2:
            tokens.append(piece)
            continue
        if number > 0 and pieces[number - 1] in strip:
            piece = piece.lstrip()
        if number + 1 < len(pieces) and pieces[number + 1] in strip:
            piece = piece.rstrip()
        tokens += sentencepiece_model.encode(piece, out_type=str)
    return tokens


@pytest.fixture(params=["objects", "strings"])
def ends(request, llama_folder, tmp_path):
    """A folder whose ``special_tokens_map.json`` names its end tokens so, and the tokens that swallow white space."""
    (tmp_path / "tokenizer.model").write_bytes((llama_folder / "tokenizer.model").read_bytes())
    stated = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if request.param == "objects":
        shape = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False}
        stated = {key: {"content": value, **shape} for key, value in stated.items()}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(stated))
    return tmp_path, ADDED + ENDS * (request.param == "strings")


@pytest.mark.parametrize("name", ["llava_v1", "vicuna_v1", "llava_llama_2"])
def test_llama_tokens_are_those_of_the_legacy_tokenizer(ends, name):
    folder, strip = ends
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = prepare_tokenizer(load_tokenizer(folder), use_im_start_end=True)
    for turns in (TURNS, [(ODD, "  It is [SEG] ; hidden: 40 % 日本 😀 [SEG][SEG]\n done ")], [("Open?", None)]):
        text = render(get_template(name), turns, image="<im_start><im_end>", bos="<s>", eos="</s>").text
        spaced = text.replace("[SEG]", " [SEG]")
        expected = legacy_tokens(spaced, model, strip)
        assert tokenizer.convert_ids_to_tokens(encode(tokenizer, text)[0]) == expected
        assert tokenizer.convert_ids_to_tokens(encode(tokenizer, spaced)[0]) == expected


def test_llama_ids_are_those_that_transformers_4_31_gave(ends):
    folder, strip = ends
    tokenizer = prepare_tokenizer(load_tokenizer(folder), use_im_start_end=True)
    text = "USER: <im_start><im_end>\nWhat hides it? ASSISTANT: The bus [SEG], and [SEG] [SEG] .</s>USER: Hi ASSISTANT:"
    expected = (
        "3148 1001 29901 32001 32002 1724 298 2247 372 29973 319 1799 9047 13566 29901 450 3593 32000 1919 322 32000 "
        "32000 869 2 3148 1001 29901 6324 319 1799 9047 13566 29901"
    )
    assert " ".join(map(str, encode(tokenizer, text)[0])) == expected
    text = (
        "[INST] <<SYS>>\nYou are\n<</SYS>>\n\n<im_start><im_end>\nWhat? [/INST] The bus [SEG]. </s><s>[INST] Hi [/INST]"
    )
    expected = (
        "518 25580 29962 3532 14816 29903 6778 13 3492 526 13 29966 829 14816 29903 6778 32001 32002 1724 29973 518 "
        "29914 25580 29962 450 3593 32000 869 29871 2 1 518 25580 29962 6324 518 29914 25580 29962"
    )
    if "</s>" in strip:
        expected = expected.replace(" 29871", "")
    assert " ".join(map(str, encode(tokenizer, text)[0])) == expected


@pytest.mark.parametrize("use_im_start_end", [True, False])
def test_the_image_stands_where_llava_splits_the_prompt(llama_folder, use_im_start_end):
    tokenizer = prepare_tokenizer(load_tokenizer(llama_folder), use_im_start_end)
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(llama_folder / "tokenizer.model"))
    before, after = ("<im_start>", "<im_end>") if use_im_start_end else ("", "")
    for name in ("llava_v1", "llava_llama_2"):
        text = render(get_template(name), TURNS, image=f"{before}<image>{after}", bos="<s>", eos="</s>").text
        left, right = (legacy_tokens(half, model, ADDED) for half in text.split("<image>"))
        assert tokenizer.convert_ids_to_tokens(encode(tokenizer, text)[0]) == [*left, "<image>", *right]


def test_rows_without_names_get_llavas(llama_folder):
    tokenizer = load_tokenizer(llama_folder)
    complete_v1_tokenizer(tokenizer, 32003, use_im_start_end=True)
    prepare_tokenizer(tokenizer, use_im_start_end=True)
    names = ["<im_patch>", "<im_start>", "<im_end>", "[SEG]"]
    assert [token_id(tokenizer, t) for t in names] == [32000, 32001, 32002, 32003]

    plain = load_tokenizer(llama_folder)
    complete_v1_tokenizer(plain, 32000, use_im_start_end=False)
    assert len(plain) == 32000
    plain.add_tokens(["<more>"])
    with pytest.raises(ValueError, match="32001 tokens but the embedding table only 32000"):
        complete_v1_tokenizer(plain, 32000, use_im_start_end=False)


def test_an_original_checkpoint_is_read_with_the_tokenizer_it_was_trained_with(llama_folder, tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes((llama_folder / "tokenizer.model").read_bytes())
    assert load_tokenizer(tmp_path, original=True).vocab_size == 32000
    assert len(load_tokenizer(tmp_path)) == len(tiny_tokenizer)


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


def test_a_damaged_sentencepiece_model_is_named(llama_folder, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes((llama_folder / "tokenizer.model").read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"tokenizer\.model is damaged .* get it again"):
        load_tokenizer(tmp_path)
