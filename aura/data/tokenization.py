"""The tokenizer as AURA needs it: loaded without surprises, with ``[SEG]`` and the image tokens in it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from google.protobuf.message import DecodeError
from transformers import AddedToken, AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from aura.types import IMAGE_TOKEN, SEG_TOKEN

IM_PATCH, IM_START, IM_END = "<im_patch>", "<im_start>", "<im_end>"


def load_tokenizer(source: str | Path, *, original: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, exactly as its files describe it, or the one inside a ``.gguf`` file.

    ``tokenizer.json`` is taken as it is. Llama's SentencePiece ``tokenizer.model`` is read with the legacy behaviour
    that LLaVA v1 and LISA were trained with. The class is never guessed from ``config.json``: for ``model_type``
    "llava" that gives other tokens (``docs/formats.md``, "Tokenizer").

    Args:
        source: The folder, or the file.
        original: The folder is an original LLaVA's or LISA's; of two tokenizers it may hold, ``tokenizer.model`` is the
            one that they were trained with.

    Raises:
        ValueError: No tokenizer there, or one that did not load whole.
    """
    tokenizer: PreTrainedTokenizerBase
    folder = Path(source)
    json_file, model_file = folder / "tokenizer.json", folder / "tokenizer.model"
    if folder.suffix == ".gguf":
        tokenizer = AutoTokenizer.from_pretrained(str(folder.parent), gguf_file=folder.name)
    elif json_file.is_file() and not (original and model_file.is_file()):
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
        except Exception as error:  # whatever the library stumbles over in a damaged file
            raise ValueError(
                f"the tokenizer of {folder} cannot be read ({_first_line(error)}); get it again"
            ) from error
    elif model_file.is_file():
        tokenizer = _legacy_llama(folder)
    else:
        raise ValueError(f"{folder} has neither tokenizer.json nor tokenizer.model; point to the model's full folder")
    if len(tokenizer) < 100:
        raise ValueError(f"the tokenizer of {folder} has only {len(tokenizer)} tokens; its files are incomplete")
    return tokenizer


def complete_v1_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, use_im_start_end: bool) -> None:
    """Name the tokens that an original LLaVA's embeddings have rows for and its tokenizer lacks, in place.

    Some merged checkpoints come with plain Llama's tokenizer although LLaVA trained ``<im_patch>``, ``<im_start>`` and
    ``<im_end>`` behind it; ``[SEG]`` would silently take over the first of their rows.

    Raises:
        ValueError: The tokenizer and an embedding table of ``rows`` rows cannot belong together.
    """
    names = (IM_PATCH, IM_START, IM_END) if use_im_start_end else (IM_PATCH,)
    for name in names:
        if len(tokenizer) < rows and name not in tokenizer.get_vocab():
            tokenizer.add_tokens([AddedToken(name, special=True, **_strip(legacy=True))], special_tokens=True)
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the embedding table only {rows} rows; "
            "the tokenizer's files are those of another model"
        )


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, use_im_start_end: bool) -> PreTrainedTokenizerBase:
    """Add, in place and where missing, ``[SEG]``, then ``<im_start>`` and ``<im_end>``, then ``<image>``.

    The order gives the ids of LISA's checkpoints (``docs/formats.md``, "Tokenizer"). ``<image>`` comes last because the
    original LLaVA has no such row. Afterwards the embeddings need ``len(tokenizer)`` rows.

    With a legacy Llama tokenizer (one that puts a word boundary after every added token) the added tokens swallow the
    white space around them, as they did when LLaVA v1 and LISA were trained.
    """
    legacy = starts_words_after_added_tokens(tokenizer)
    strip = _strip(legacy)
    tokenizer.add_tokens([AddedToken(SEG_TOKEN, special=False, **strip)])
    if use_im_start_end:
        marks = [AddedToken(mark, special=True, **strip) for mark in (IM_START, IM_END)]
        tokenizer.add_tokens(marks, special_tokens=True)
    if legacy and IM_PATCH in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IM_PATCH, special=True, **strip)], special_tokens=True)
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


def _legacy_llama(folder: Path) -> PreTrainedTokenizerBase:
    """Llama's slow tokenizer as transformers 4.31 read the folder.

    It kept the white space around ``<s>`` and ``</s>``, unless ``special_tokens_map.json`` names them by plain strings:
    then they swallowed it, like every other added token.
    """
    with tempfile.TemporaryDirectory() as alone:  # a tokenizer.json beside tokenizer.model would win
        for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, Path(alone) / name)
        try:
            tokenizer = LlamaTokenizer.from_pretrained(alone, legacy=True)
        except (RuntimeError, ValueError, OSError, DecodeError) as error:
            raise ValueError(f"{folder / 'tokenizer.model'} is damaged ({_first_line(error)}); get it again") from error
    tokenizer.name_or_path = str(folder)
    path = folder / "special_tokens_map.json"
    named = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ends = {key: named[key] for key in ("bos_token", "eos_token") if isinstance(named.get(key), str)}
    if ends:
        tokenizer.add_special_tokens({k: AddedToken(v, special=True, **_strip(legacy=True)) for k, v in ends.items()})
    return tokenizer


def _strip(legacy: bool) -> dict[str, bool]:
    return {"lstrip": legacy, "rstrip": legacy, "normalized": False}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
