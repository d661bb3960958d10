"""From a generated answer's tokens to its text, piece by piece, and to the names of its objects. Imports no torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aura.types import SEG_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNNAMED = "object"
"""The name of an object that the sentence does not name."""

_BROKEN = "\ufffd"
_CLOSING = frozenset(".,;:!?)]'’\"")

_DETERMINERS = "the|a|an|this|that|these|those|its|his|her|their|my|your|our"
_NEW_PHRASE = re.compile(rf"[,.;:!?\n]|\b(?:{_DETERMINERS}|and|or|but|nor|then)\b", re.IGNORECASE)
_DETERMINED = re.compile(rf"(?:{_DETERMINERS})", re.IGNORECASE)
_NOT_IN_NAME = re.compile(
    r"\b(?:is|are|was|were|be|am|by|behind|under|on|in|at|with|to|for|from|using|near|here|there|it|they|you|i|we|"
    r"see|sees|use|ride|eat|drink|hides|hide|covers|cover|blocks|block|sure|yes|no|only|also)\b",
    re.IGNORECASE,
)
_PARENTHESIS = re.compile(r"\([^()]*\)")


class AnswerText:
    """Decodes an answer while it is written.

    ``push`` takes tokens, one or many, and returns the text that became certain. All pieces joined are ``text``,
    however the tokens are cut. Nothing is taken back: an unfinished character (byte fallback) and white space wait for
    what follows, and never come if nothing does.

    The text shows the answer's words and, for the ``[SEG]`` token, ``[SEG]`` with a space before it; every other
    special token is dropped.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seg_token_id: int) -> None:
        self._tokenizer = tokenizer
        self._seg = seg_token_id
        # Not tokenizer.all_special_ids: that forgets added ones, such as the image's, when a tokenizer is loaded again.
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._dropped = (special | set(tokenizer.all_special_ids)) - {seg_token_id}
        self._before = ""  # text up to and including the last [SEG]
        self._ids: list[int] = []  # tokens after it
        self.text = ""

    def push(self, *token_ids: int) -> str:
        """The text that is certain after these tokens and was not before them; often empty, never taken back."""
        known = len(self.text)
        for token_id in token_ids:
            if token_id == self._seg:
                self._settle()
                self._before = f"{self.text} {SEG_TOKEN}".lstrip()
                self._ids = []
            elif token_id not in self._dropped:
                self._ids.append(token_id)
        self._settle()
        return self.text[known:]

    def _settle(self) -> None:
        self.text += (self._before + self._words())[len(self.text) :]

    def _words(self) -> str:
        words = ""
        # A character takes at most four bytes, hence tokens; one that is not whole yet must wait.
        for ids in (self._ids[: len(self._ids) - late] for late in range(min(4, len(self._ids)))):
            words = str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
            if not words.endswith(_BROKEN):
                break
        # Letters that happen to spell the mark are not the [SEG] token: a reply has one object per mark.
        words = words.replace(SEG_TOKEN, SEG_TOKEN[:-1]).rstrip(_BROKEN).strip()
        return f" {words}" if words and self._before and words[0] not in _CLOSING else words


def object_names(text: str) -> list[str]:
    """The name of each ``[SEG]`` of an answer: the noun phrase before it.

    The phrase starts after the last article or other determiner, "and", "or", punctuation mark or ``[SEG]``. A
    ``[SEG]`` that only follows another one ("the apples [SEG] and [SEG]") has the other's name; one without any words
    is an "object".
    """
    names: list[str] = []
    for before in text.split(SEG_TOKEN)[:-1]:
        name = _last_phrase(_PARENTHESIS.sub(" ", before))
        names.append(name or (names[-1] if names else UNNAMED))
    return names


def _last_phrase(words: str) -> str:
    start, determined = 0, False
    for found in _NEW_PHRASE.finditer(words):
        if words[found.end() :].strip(" \"'“”‘’*_-"):
            start, determined = found.end(), bool(_DETERMINED.fullmatch(found.group()))
    phrase = words[start:]
    if not determined:
        phrase = _NOT_IN_NAME.split(phrase)[-1]
        if _NEW_PHRASE.fullmatch(phrase.strip()):
            phrase = ""
    return " ".join(phrase.split()).strip(" ,.;:!?\"'“”‘’*_-")
