"""The tokenizer as AURA needs it: loaded without surprises, with ``[SEG]`` and the image tokens in it."""

from __future__ import annotations

from pathlib import Path

from transformers import AddedToken, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from aura.types import IMAGE_TOKEN, SEG_TOKEN

IM_PATCH, IM_START, IM_END = "<im_patch>", "<im_start>", "<im_end>"


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of ``folder``, exactly as its files describe it.

    ``tokenizer.json`` is taken as it is. A folder with only Llama's SentencePiece ``tokenizer.model`` (LLaVA v1, LISA)
    is read with the legacy behaviour it was trained with. The class is never guessed from ``config.json``: for
    ``model_type`` "llava" that gives other tokens (external formats, section 1.6).

    Raises:
        ValueError: No tokenizer in the folder, or one that did not load whole.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    elif (folder / "tokenizer.model").is_file():
        tokenizer = LlamaTokenizer.from_pretrained(str(folder), legacy=True)
    else:
        raise ValueError(f"{folder} has neither tokenizer.json nor tokenizer.model; point to the model's full folder")
    if len(tokenizer) < 100:
        raise ValueError(f"the tokenizer of {folder} has only {len(tokenizer)} tokens; its files are incomplete")
    return tokenizer


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, use_im_start_end: bool) -> PreTrainedTokenizerBase:
    """Add, in place and where missing, ``[SEG]``, then ``<im_start>`` and ``<im_end>``, then ``<image>``.

    The order gives the ids of LISA's checkpoints (external formats, section 1.5); ``<image>`` comes last because the
    original LLaVA has no such row. Afterwards the embeddings need ``len(tokenizer)`` rows.

    With a legacy Llama tokenizer (one that puts a word boundary after every added token) the added tokens swallow the
    white space around them, as they did when LLaVA v1 and LISA were trained (section 1.6).
    """
    legacy = starts_words_after_added_tokens(tokenizer)
    strip = {"lstrip": legacy, "rstrip": legacy, "normalized": False}
    tokenizer.add_tokens([AddedToken(SEG_TOKEN, special=False, **strip)])
    if use_im_start_end:
        marks = [AddedToken(mark, special=True, **strip) for mark in (IM_START, IM_END)]
        tokenizer.add_tokens(marks, special_tokens=True)
    if legacy:
        if IM_PATCH in tokenizer.get_vocab():
            tokenizer.add_tokens([AddedToken(IM_PATCH, special=True, **strip)], special_tokens=True)
        ends = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
        tokenizer.add_special_tokens({k: AddedToken(v, special=True, **strip) for k, v in ends.items() if v})
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    for token in (SEG_TOKEN, IMAGE_TOKEN, *((IM_START, IM_END) if use_im_start_end else ())):
        token_id(tokenizer, token)
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of ``token``, by name; ValueError if the tokenizer does not know it or does not keep it whole."""
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int) or found == tokenizer.unk_token_id or encode(tokenizer, token)[0] != [found]:
        raise ValueError(f"the tokenizer has no token {token!r}; call prepare_tokenizer on it first")
    return found


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of ``text`` and the (start, end) characters of each; nothing added, cut or padded."""
    encoding = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, padding=False, verbose=False
    )
    return list(encoding["input_ids"]), [tuple(pair) for pair in encoding["offset_mapping"]]


def starts_words_after_added_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether text right after an added token gets a word boundary of its own (Llama's legacy tokenizer)."""
    ids, _ = encode(tokenizer, f"{tokenizer.eos_token}a")
    return tokenizer.convert_ids_to_tokens(ids[1:])[0].startswith("▁")
