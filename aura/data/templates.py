"""Prompt templates: a conversation as one text, and the character spans of it that are supervised.

A template is data. To support another language model, add one entry to :data:`TEMPLATES`; nothing else changes.
The three LLaVA templates are those of LISA's ``model/llava/conversation.py`` (``docs/formats.md``, "Templates").
That of SmolLM2 is the chat template in its own files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aura.types import SEG_TOKEN

BOS = "<bos>"
EOS = "<eos>"
_SPACE_BEFORE_SEG = re.compile(r"\s+(?=" + re.escape(SEG_TOKEN) + ")")


@dataclass(frozen=True)
class Template:
    """How turns are joined; ``<bos>`` and ``<eos>`` in the parts stand for the tokenizer's own special tokens.

    The text of a conversation is ``start q1 ask lead a1 close <eos> again q2 ask lead a2 close <eos>``. ``start`` ends
    where the first question begins (system prompt included), ``ask`` ends where the model begins to write; ``lead`` and
    ``close`` surround the answer and are supervised with it, as is ``<eos>``. ``begin`` says whether the sequence
    starts with the ``<bos>`` token.
    """

    start: str
    ask: str
    again: str
    lead: str = " "
    close: str = ""
    begin: bool = True


class Rendered(NamedTuple):
    """A conversation's text, and per turn the (start, end) characters the model is to write, ``<eos>`` included."""

    text: str
    spans: tuple[tuple[int, int], ...]


_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_SMOLLM2 = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)

TEMPLATES: dict[str, Template] = {
    "llava_v1": Template(start=f"{_HUMAN} USER: ", ask=" ASSISTANT:", again="USER: "),
    "vicuna_v1": Template(start=f"{_USER} USER: ", ask=" ASSISTANT:", again="USER: "),
    "llava_llama_2": Template(
        start=f"[INST] <<SYS>>\n{_LLAMA_2}\n<</SYS>>\n\n", ask=" [/INST]", again=f"{BOS}[INST] ", close=" "
    ),
    "smollm2": Template(
        start=f"<|im_start|>system\n{_SMOLLM2}{EOS}\n<|im_start|>user\n",
        ask=f"{EOS}\n<|im_start|>assistant\n",
        again="\n<|im_start|>user\n",
        lead="",
        begin=False,
    ),
}


def get_template(name: str) -> Template:
    """The template called ``name``; ValueError lists the known ones."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown prompt template {name!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def render(
    template: Template, turns: Sequence[tuple[str, str | None]], *, image: str, bos: str | None, eos: str
) -> Rendered:
    """Write ``turns`` of (question, answer) as one text; an answer of ``None`` (the last one) leaves the turn open.

    Args:
        image: Text that stands for the image, put on a line of its own before the first question.
        bos: The tokenizer's token for ``<bos>``; may be ``None`` if the template has no ``<bos>``.
        eos: The tokenizer's token that ends an answer.

    White space around questions and answers, and before every ``[SEG]``, is dropped: the token before ``[SEG]`` shall
    be the object's name and never a lone space.
    """
    text, spans = _special(template.start, bos, eos), []
    for number, (question, answer) in enumerate(turns):
        text += f"{image}\n{question.strip()}" if number == 0 else question.strip()
        text += _special(template.ask, bos, eos)
        if answer is None:
            assert number == len(turns) - 1, "only the last turn may be open"
            break
        begin = len(text)
        text += _SPACE_BEFORE_SEG.sub("", template.lead + answer.strip() + template.close) + eos
        spans.append((begin, len(text)))
        if number + 1 < len(turns):
            text += _special(template.again, bos, eos)
    return Rendered(text, tuple(spans))


def render_followup(template: Template, question: str, *, bos: str | None, eos: str) -> str:
    """The text from the end of an answer to the next open turn: ``<eos> again question ask``."""
    return eos + _special(template.again, bos, eos) + question.strip() + _special(template.ask, bos, eos)


def _special(part: str, bos: str | None, eos: str) -> str:
    if BOS in part and bos is None:
        raise ValueError("this prompt template needs a beginning-of-sequence token, and the tokenizer has none")
    return part.replace(BOS, bos or "").replace(EOS, eos)
