"""Readers of weights, checkpoints and prompts.

Some checkpoints carry a payload: opening one as a plain pickle would make the folder :data:`HARM`.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from aura.data.conversations import ConversationTokenizer
from aura.data.processor import SETTINGS_FILE, Processor
from aura.data.tokenization import load_tokenizer
from aura.fuzz.damage import CUTS, Reader, damaged_bytes
from aura.train.checkpoint import newest, read_state
from aura.train.logs import read_log
from aura.train.stored import refuse_code
from aura.types import Conversation, Turn
from aura.weights.files import check_weight_files, read_config, read_folder_tensors, read_tensors

HARM = Path(tempfile.gettempdir()) / f"aura_fuzz_{os.getpid()}"
LONGEST_PROMPT = 100_000
TOKENIZER = Path(__file__).parents[2] / "data" / "mini_assets" / "backbones" / "llava"


class _Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, (str(HARM),)


def _stored(value: Any, *, archive: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(3, dtype=torch.float16)}
CHECKPOINT = {"module": STATE, "ds_config": {"zero": 2}, "global_steps": 7}
WHOLE = [_stored(STATE), _stored(STATE, archive=False)]
LOADED = [_stored({**STATE, "b": _Payload()}), _stored({**STATE, "b": _Payload()}, archive=False)]
CHECKPOINTS = [_stored(CHECKPOINT), _stored({**CHECKPOINT, "more": _Payload()})]


def _cut(contents: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(damaged_bytes, st.sampled_from(contents), CUTS)


# --- readers ----------------------------------------------------------------------------------------------------------


def _harmless(read: Any) -> Any:
    """``read``, which must not have run what is in the file."""

    def reading(path: Path) -> object:
        try:
            return read(path)
        finally:
            if HARM.exists():
                HARM.rmdir()
                raise AssertionError("code in the file was run")

    return reading


def _renamed(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


def _config(path: Path) -> object:
    return read_config(_renamed(path, "config.json").parent, "model.sam")


def _index(path: Path) -> object:
    """The shard that a sound index names is there, and so is a file that it must not name."""
    folder = _renamed(path, "model.safetensors.index.json").parent
    (folder / "model-00001-of-00001.safetensors").write_bytes(save(STATE))
    check_weight_files(folder, "model.sam")
    return read_folder_tensors(folder, "model.sam")


def _processor(path: Path) -> object:
    """The processor of an export whose tokenizer is sound."""
    folder = _renamed(path, SETTINGS_FILE).parent
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(TOKENIZER / name)
    return Processor.from_pretrained(folder)


def _tokenizer(path: Path) -> object:
    folder = _renamed(path, "tokenizer_config.json").parent
    (folder / "tokenizer.json").symlink_to(TOKENIZER / "tokenizer.json")
    return load_tokenizer(folder)


def _state(path: Path) -> object:
    folder = _renamed(path, "state.json").parent
    (folder / "process_0.pt").write_bytes(b"123")
    return read_state(folder)


def _pointer(path: Path) -> object:
    """What ``latest`` leads to, which is always a checkpoint of its own folder."""
    folder = _renamed(path, "latest").parent
    (folder / "step_000002").mkdir()
    (folder / "step_000002" / "state.json").write_text("{}")
    found = newest(folder)
    assert found == folder / "step_000002", f"{found} is no checkpoint of this run"
    return found


# --- prompts ----------------------------------------------------------------------------------------------------------


@cache
def prompts() -> ConversationTokenizer:
    """The mini model's, with room for any prompt that is read at all."""
    words = {"num_image_tokens": 4, "prompt_template": "llava_v1", "max_length": 512, "use_im_start_end": True}
    return ConversationTokenizer(load_tokenizer(TOKENIZER), **words)  # type: ignore[arg-type]


def special_tokens() -> list[str]:
    """Every token that a text must not turn into."""
    return sorted(token.content for token in prompts().tokenizer.added_tokens_decoder.values())


def _special_ids(ids: list[int]) -> list[int]:
    special = set(prompts().tokenizer.added_tokens_decoder)
    return [number for number in ids if number in special]


def _prompt(text: str) -> object:
    """A user's text, as the chat takes it: it never becomes a special token, be it short or too long."""
    plain = _special_ids(prompts().start_prompt("What?"))
    ids = prompts().start_prompt(prompts().defuse(text))
    assert _special_ids(ids) == plain, "the text became special tokens"
    following = prompts().followup(prompts().defuse(text))
    assert _special_ids(following) == _special_ids(prompts().followup("What?")), "the text became special tokens"
    return ids


def _question(text: str) -> object:
    """The same text in a data set, where a reserved token is an error."""
    turn = Conversation(1, (Turn(text, "It is here [SEG].", (7,)),))
    whole = prompts().conversation(turn)
    assert len(whole.seg_positions) == 1, "the text became [SEG]"
    return whole


def _pieces() -> st.SearchStrategy[str]:
    """Words, whole and halved special tokens, any characters, and long repetitions of them."""
    marks = [
        *special_tokens(),
        "[",
        "]",
        "<",
        ">",
        "SEG",
        "[SE",
        "G]",
        "im_",
        "</",
        "s>",
        "\u200b",
        "\ufeff",
        "\0",
        "\n",
    ]
    piece = st.one_of(
        st.sampled_from(marks), st.text(max_size=8), st.sampled_from(["a cup", "컵", "😀", "\ud800", " "])
    )
    short = st.lists(piece, max_size=12).map("".join)
    times = st.sampled_from([1, 1, 1, 50, LONGEST_PROMPT])
    return st.builds(lambda text, number: (text * number)[:LONGEST_PROMPT], short, times)


PROMPTS = _pieces()
LOG = b"".join(json.dumps({"kind": "train", "step": step, "total": 0.5}).encode() + b"\n" for step in range(3))
PROCESSOR = {
    **{"sam_image_size": 64, "clip_image_size": 32, "clip_mean": [0.5] * 3, "clip_std": [0.5] * 3},
    **{"clip_resize": "squash", "num_image_tokens": 4, "prompt_template": "llava_v1", "max_length": 512},
    **{"use_im_start_end": True, "objects_per_answer": "all"},
}
INDEX = {"metadata": {"total_size": 10}, "weight_map": dict.fromkeys(STATE, "model-00001-of-00001.safetensors")}
NAMES = st.sampled_from(["../x", "/etc/hostname", "..", "step_000002", "step_000009", "a/b", "C:x", ""])

READERS = (
    Reader("safetensors", save(STATE), lambda path: read_tensors(path, "model.sam"), ".safetensors"),
    Reader("weights", b"", _harmless(lambda path: read_tensors(path, "model.sam")), ".pth", _cut(WHOLE + LOADED)),
    Reader("checkpoints", b"", _harmless(lambda path: refuse_code(path.parent)), ".pt", _cut(CHECKPOINTS)),
    Reader("indexes of weights", INDEX, _index),
    Reader("configs of models", {"model_type": "sam", "vision_config": {"hidden_size": 8}}, _config),
    Reader("settings of processors", PROCESSOR, _processor),
    Reader("configs of tokenizers", json.loads((TOKENIZER / "tokenizer_config.json").read_text()), _tokenizer),
    Reader("logs of runs", LOG, read_log, ".jsonl"),
    Reader("a checkpoint's state", {"format": 1, "step": 2, "files": {"process_0.pt": 3}, "best": None}, _state),
    Reader("a checkpoint's pointer", b"", _pointer, ".txt", st.one_of(NAMES.map(str.encode), st.binary(max_size=30))),
    Reader("prompts", "", _prompt, "", PROMPTS),
    Reader("questions of data", "", _question, "", PROMPTS),
)
