"""Questions and answers as token ids, for training and for generation alike.

Labels come from character spans and token offsets; nothing is ever tokenised twice to find out where it ends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from aura.config import ObjectsPerAnswer
from aura.data.answers import AnswerText
from aura.data.templates import get_template, render, render_followup
from aura.data.tokenization import IM_END, IM_START, encode, prepare_tokenizer, token_id
from aura.types import IMAGE_TOKEN, SEG_TOKEN, Conversation, Turn


@dataclass(frozen=True)
class TokenizedConversation:
    """A conversation's token ids, image placeholder expanded.

    ``target_mask[t]`` says that token t is supervised: the answers and the ``</s>`` that closes each.
    ``seg_positions`` are the positions of the ``[SEG]`` tokens, ``seg_turns`` the (turn, index within its answer) of
    each.
    """

    id: int
    input_ids: list[int]
    target_mask: list[bool]
    seg_positions: list[int]
    seg_turns: list[tuple[int, int]]


class ConversationTokenizer:
    """A tokenizer that knows the prompt template, the image's place and ``[SEG]``.

    Args: as :class:`aura.data.processor.Processor`. ``tokenizer`` is prepared in place.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        num_image_tokens: int,
        prompt_template: str,
        max_length: int,
        use_im_start_end: bool,
        objects_per_answer: ObjectsPerAnswer = "all",
    ) -> None:
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has no end-of-sequence token, which closes every answer; set eos_token")
        self.template = get_template(prompt_template)
        if self.template.begin and tokenizer.bos_token is None:
            raise ValueError(f"template {prompt_template} begins with a bos token, and the tokenizer has none")
        self.tokenizer = prepare_tokenizer(tokenizer, use_im_start_end)
        self.seg_token_id = token_id(tokenizer, SEG_TOKEN)
        self.image_token_id = token_id(tokenizer, IMAGE_TOKEN)
        self.eos_token_id = tokenizer.eos_token_id
        self.num_image_tokens, self.max_length = num_image_tokens, max_length
        self.prompt_template, self.use_im_start_end = prompt_template, use_im_start_end
        self.objects_per_answer: ObjectsPerAnswer = objects_per_answer
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        reserved = special | {SEG_TOKEN, IMAGE_TOKEN, IM_START, IM_END}
        self._reserved = re.compile("|".join(re.escape(t) for t in sorted(reserved, key=len, reverse=True)))

    def start_prompt(self, question: str) -> list[int]:
        """Token ids up to where the model begins to write: system prompt, image, first question.

        ``start_prompt(q1) + answer1 + followup(q2) + answer2 ...``, with each answer's ids ending in ``</s>``, are
        exactly the ids of the whole conversation in training.
        """
        self._check_question(question)
        text = render(self.template, [(question, None)], image=self._image_text, bos=self._bos, eos=self._eos).text
        ids, _ = self._encode_with_image(text)
        if len(ids) > self.max_length:
            raise ValueError(f"the question makes {len(ids)} tokens, at most {self.max_length} fit; shorten it")
        return ids

    def defuse(self, question: str) -> str:
        """A user's question with every reserved token in it spelled apart (``[SEG]`` becomes ``[ SEG]``).

        A question of a data set may not hold one (an error there); a person in a chat may ask about them. Characters
        that are no valid text, as a terminal may send them, become question marks.
        """
        text = question.encode("utf-8", "replace").decode("utf-8")
        while self._reserved.search(text):
            text = self._reserved.sub(lambda found: f"{found.group()[0]} {found.group()[1:]}", text)
        return text

    def followup(self, question: str, closed: bool = True) -> list[int]:
        """Token ids between an answer and the next one: the next question, as the template puts it.

        Args:
            closed: Whether the previous answer's ids, as already given to the model, end in ``</s>``. With ``False``
                (it was cut short, or generation did not feed the ``</s>`` back) the result begins with ``</s>``.
        """
        self._check_question(question)
        text = render_followup(self.template, question, bos=self._bos, eos=self._eos)
        ids, _ = encode(self.tokenizer, text)
        assert ids[0] == self.eos_token_id
        return ids[1:] if closed else ids

    def decode(self, ids: Sequence[int]) -> str:
        """An answer's text with ``[SEG]`` marks, without ``</s>``; the inverse of tokenising a clean answer."""
        answer = self.new_answer()
        answer.push(*ids)
        return answer.text

    def new_answer(self) -> AnswerText:
        """An empty answer, to be read token by token."""
        return AnswerText(self.tokenizer, self.seg_token_id)

    def conversation(self, conversation: Conversation, image_id: int | None = None) -> TokenizedConversation:
        """Tokenise a whole conversation; labels come from character spans and token offsets.

        Where answers have their first object alone, the other ``[SEG]`` are taken out before.

        Raises:
            ValueError: Too long, a reserved token in a question or an answer, or a tokenizer that merges a prompt's
                end with an answer's start. Every message names the image and the conversation.
        """
        where = f"image {image_id}, conversation {conversation.id}"
        for number, turn in enumerate(conversation.turns):
            self._check_turn(turn, f"{where}, turn {number}: ")
        if self.objects_per_answer == "first":
            conversation = replace(conversation, turns=tuple(map(first_object_alone, conversation.turns)))
        turns = [(turn.question, turn.answer) for turn in conversation.turns]
        text, spans = render(self.template, turns, image=self._image_text, bos=self._bos, eos=self._eos)
        ids, offsets = self._encode_with_image(text)
        turn_of = _turn_of_tokens(offsets, spans, where)
        if len(ids) > self.max_length:
            raise ValueError(
                f"{where}: {len(ids)} tokens ({self.num_image_tokens} of them the image) exceed the limit of "
                f"{self.max_length}; raise data.max_length or shorten the conversation"
            )
        seg_positions = [t for t, token in enumerate(ids) if token == self.seg_token_id]
        seg_turns: list[tuple[int, int]] = []
        for position in seg_positions:
            at = turn_of[position]
            seg_turns.append((at, sum(other == at for other, _ in seg_turns)))
        expected = [(t, i) for t, turn in enumerate(conversation.turns) for i in range(len(turn.objects))]
        if seg_turns != expected:
            raise ValueError(
                f"{where}: {len(seg_turns)} {SEG_TOKEN} tokens (id {self.seg_token_id}) for {len(expected)} objects; "
                f"the tokenizer does not keep {SEG_TOKEN} whole"
            )
        return TokenizedConversation(conversation.id, ids, [t >= 0 for t in turn_of], seg_positions, seg_turns)

    @property
    def _bos(self) -> str | None:
        return self.tokenizer.bos_token

    @property
    def _eos(self) -> str:
        return self.tokenizer.eos_token

    @property
    def _image_text(self) -> str:
        return f"{IM_START}{IMAGE_TOKEN}{IM_END}" if self.use_im_start_end else IMAGE_TOKEN

    def _encode_with_image(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets = encode(self.tokenizer, text)
        at = ids.index(self.image_token_id)
        ids[at : at + 1] = [self.image_token_id] * self.num_image_tokens
        offsets[at : at + 1] = [offsets[at]] * self.num_image_tokens
        if self.template.begin:
            ids.insert(0, self.tokenizer.bos_token_id)
            offsets.insert(0, (0, 0))
        return ids, offsets

    def _check_question(self, question: str, where: str = "") -> None:
        if not question.strip():
            raise ValueError(f"{where}the question is empty")
        found = self._reserved.search(question)
        if found:
            raise ValueError(f"{where}the question contains the reserved token {found.group()!r}; remove it")

    def _check_turn(self, turn: Turn, where: str) -> None:
        self._check_question(turn.question, where)
        found = [token for token in self._reserved.findall(turn.answer) if token != SEG_TOKEN]
        if found:
            raise ValueError(f"{where}the answer contains the reserved token {found[0]!r}; remove it")


def first_object_alone(turn: Turn) -> Turn:
    """The same words with the first ``[SEG]`` alone; the turn itself where there are no more."""
    if len(turn.objects) <= 1:
        return turn
    first, *rest = turn.answer.split(SEG_TOKEN)
    words = first + SEG_TOKEN + "".join(part.rstrip(" ") for part in rest[:-1]) + rest[-1]
    return replace(turn, answer=words, objects=turn.objects[:1], asked=turn.asked[:1])


def _turn_of_tokens(offsets: list[tuple[int, int]], spans: Sequence[tuple[int, int]], where: str) -> list[int]:
    """For each token the turn whose answer it belongs to, or -1 for prompts."""
    turns = []
    for begin, end in offsets:
        turn = next((n for n, (first, last) in enumerate(spans) if first <= begin < last), -1)
        limit = next((first for first, _ in spans if begin < first < end), None)
        if limit is not None or (turn >= 0 and end > spans[turn][1]):
            raise ValueError(
                f"{where}: a token covers characters {begin} to {end}, across the border of an answer; "
                f"the prompt template does not suit this tokenizer"
            )
        turns.append(turn)
    return turns
