"""The checks of a question-answer pair before a person sees it: pure functions of the pair and the annotations.

:mod:`aura.formats.checks` is something else: it validates the files of a data set.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz import fuzz

from aura.datagen.checks.claims import contradictions
from aura.datagen.checks.english import not_english
from aura.datagen.checks.intents import asked_is_said
from aura.datagen.checks.mentions import mentions_in, names_in, plain
from aura.datagen.facts.facts import Facts, facts_of
from aura.datagen.records import PairDraft, PairProblem
from aura.formats.sources import AnnotatedImage
from aura.types import SEG_TOKEN, Masks

_RESERVED = re.compile(r"<image>|<im_start>|<im_end>|<im_patch>|</?s>|<unk>|<pad>|\[/?INST\]|<<SYS>>", re.IGNORECASE)
_SPOILT_MARK = re.compile(r"[\[<(]\s*/?seg\w*\s*[\])>]", re.IGNORECASE)
_LEAK = re.compile(
    r"\b(?:ids?\s*(?:number\s*)?[:=#]?\s*\d+|object\s+#?\d+|annotations?|bounding box(?:es)?|segmentation|"
    r"occlusion rate|amodal)\b|#\d+|\(\s*\d+\s*,\s*\d+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class CheckSettings:
    """Limits of the checks; lengths in words (``[SEG]`` is none), ``duplicate`` in percent of rapidfuzz's similarity.

    ``words_before_mark``: so many words at most may stand between an object's name and its ``[SEG]``.
    """

    question_words: tuple[int, int] = (3, 60)
    answer_words: tuple[int, int] = (2, 120)
    duplicate: float = 90.0
    words_before_mark: int = 3

    def __post_init__(self) -> None:
        for key in ("question_words", "answer_words"):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                raise ValueError(f"{key} must be (least, most) with 0 < least <= most, got {(low, high)}")
        if not 0 < self.duplicate <= 100:
            raise ValueError(f"duplicate must be in (0, 100], got {self.duplicate}")


class PairChecker:
    """The checks for one image; reading the masks is done once, so that pairs can be checked while they are edited."""

    def __init__(self, image: AnnotatedImage, settings: CheckSettings | None = None) -> None:
        self.settings = settings or CheckSettings()
        self.facts = facts_of(image)

    def check_all(self, pairs: Sequence[PairDraft]) -> tuple[tuple[PairProblem, ...], ...]:
        """The problems of each pair, in order; of two near-duplicates the later one has the problem."""
        return tuple(self.check(pair, pairs[:number], position=number) for number, pair in enumerate(pairs))

    def check(
        self, pair: PairDraft, others: Sequence[PairDraft] = (), *, position: int | None = None
    ) -> tuple[PairProblem, ...]:
        """The problems of one pair.

        Args:
            pair: The pair.
            others: The image's other pairs that it must not repeat.
            position: The pair's index in its response when ``others`` are those before it; ``follows`` is checked only
                then.
        """
        facts, settings = self.facts, self.settings
        found = [
            *objects_exist(pair, facts),
            *marks_match_objects(pair),
            *question_hides_target(pair, facts),
            *answer_names_objects(pair, facts, settings.words_before_mark),
            *occlusion_agrees(pair, facts),
            *not_a_duplicate(pair, others, settings.duplicate),
            *is_english(pair),
            *lengths_fit(pair, settings),
            *text_is_clean(pair),
            *asked_is_said(pair, facts),
        ]
        if position is not None:
            found += follows_an_earlier_pair(pair, others)
        return tuple(found)


def objects_exist(pair: PairDraft, facts: Facts) -> Iterator[PairProblem]:
    """Every id is an object of the image, none occurs twice, and there is one at least."""
    unknown = [i for i in pair.objects if i not in facts.ids]
    if unknown:
        known = ", ".join(f"{i} ({c})" for i, c in zip(facts.ids, facts.categories, strict=True))
        yield PairProblem(
            "unknown_object",
            f"the image has no object {_listed(unknown)}",
            f"There is no object {_listed(unknown)}; the ids are {known}.",
        )
    twice = sorted({i for i in pair.objects if pair.objects.count(i) > 1})
    if twice:
        yield PairProblem(
            "repeated_object",
            f"object {_listed(twice)} is pointed at twice",
            f"Point at object {_listed(twice)} once; write its name without {SEG_TOKEN} the second time.",
        )
    if not pair.objects:
        yield PairProblem("no_object", "the answer points at nothing", "Ask for one object at least, and point at it.")


def marks_match_objects(pair: PairDraft) -> Iterator[PairProblem]:
    """One ``[SEG]`` in the answer for each object."""
    marks = pair.answer.count(SEG_TOKEN)
    if marks != len(pair.objects):
        counted = f"the answer has {marks} {SEG_TOKEN} for {len(pair.objects)} objects"
        yield PairProblem("seg_count", counted, f"{counted[0].upper()}{counted[1:]}; write one mark for each id.")


def question_hides_target(pair: PairDraft, facts: Facts) -> Iterator[PairProblem]:
    """The question does not hold the name, a plural or a common synonym of what is asked for."""
    targets = {c for i, c in zip(facts.ids, facts.categories, strict=True) if i in pair.objects}
    for name in names_in(pair.question, sorted(targets)):
        category = sorted(name.categories)[0]
        yield PairProblem(
            "names_target",
            f"the question names its target: {name.text!r} ({category})",
            f'The question must not say "{name.text}", since the answer points at that {plain(category)}; ask by '
            "purpose or relation.",
        )


def answer_names_objects(pair: PairDraft, facts: Facts, words_before_mark: int = 3) -> Iterator[PairProblem]:
    """Straight before each ``[SEG]`` stands the category (or plural, or synonym) of its object."""
    indices = _indices(pair, facts)
    marked = [m for m in mentions_in(pair.answer, indices, facts) if m.marked]
    for number, (mention, index) in enumerate(zip(marked, indices, strict=False), 1):
        if index is None:
            continue
        category = plain(facts.categories[index])
        advice = (
            f'Write "{category} {SEG_TOKEN}" for object {facts.ids[index]}: the mark comes straight after the name.'
        )
        where = f"{SEG_TOKEN} number {number} stands for object {facts.ids[index]} ({category})"
        if mention.name is None:
            yield PairProblem("unnamed_object", f"{where}, but no such name stands before it", advice)
        elif facts.categories[index] not in mention.name.categories:
            yield PairProblem("unnamed_object", f"{where}, but {mention.name.text!r} stands before it", advice)
        else:
            between = pair.answer[mention.name.end : max(mention.name.end, mention.end - len(SEG_TOKEN))]
            if SEG_TOKEN not in between and len(between.split()) > words_before_mark:
                yield PairProblem("unnamed_object", f"{where}, but its name stands too far before it", advice)


def occlusion_agrees(pair: PairDraft, facts: Facts) -> Iterator[PairProblem]:
    """What the answer says about who hides whom and how much is what the masks show."""
    for wrong in contradictions(pair.answer, mentions_in(pair.answer, _indices(pair, facts), facts), facts):
        truth = "; ".join(_state(facts, i) for i in dict.fromkeys(wrong.objects))
        yield PairProblem(
            "occlusion",
            f"the answer says that {wrong.said}, but in the masks {truth}",
            f"It is wrong that {wrong.said}: by the table {truth}.",
        )


def not_a_duplicate(pair: PairDraft, others: Sequence[PairDraft], threshold: float = 90.0) -> Iterator[PairProblem]:
    """No other pair of the image asks nearly the same for the same masks, nor the very same for other objects.

    Questions such as "What hides it?" depend on what they follow, so that only openers are held against openers, and
    follow-ups against those that continue the same pair.
    """
    for other in others:
        if other is pair or other.follows != pair.follows:
            continue
        alike = fuzz.token_sort_ratio(_bare(pair.question), _bare(other.question))
        if alike >= threshold and _wanted(other) == _wanted(pair):
            yield PairProblem(
                "duplicate",
                f"nearly the same question was asked before: {other.question!r}",
                f'Ask something else than "{other.question}", which is taken.',
            )
            return
        if _bare(pair.question) == _bare(other.question):
            yield PairProblem(
                "contradicting_duplicate",
                "the same question was asked before with other objects as its answer",
                f'The question "{pair.question}" is taken, with another answer; ask something else.',
            )
            return


def _wanted(pair: PairDraft) -> set[tuple[int, Masks]]:
    """Each object with the mask that is asked for."""
    asked: Sequence[Masks] = pair.asked or ["both" for _ in pair.objects]
    return set(zip(pair.objects, asked, strict=False))


def is_english(pair: PairDraft) -> Iterator[PairProblem]:
    """Question and answer, each and together, read as English."""
    for what, text in (("question", pair.question), ("answer", pair.answer.replace(SEG_TOKEN, " "))):
        reason = not_english(text)
        if reason:
            yield PairProblem("language", f"the {what} is not English: {reason}", f"Write the {what} in plain English.")


def lengths_fit(pair: PairDraft, settings: CheckSettings) -> Iterator[PairProblem]:
    """Question and answer are neither too short nor too long."""
    texts = (("question", pair.question, settings.question_words), ("answer", pair.answer, settings.answer_words))
    for what, text, (least, most) in texts:
        words = len(text.replace(SEG_TOKEN, " ").split())
        if not least <= words <= most:
            yield PairProblem(
                "length",
                f"the {what} has {words} words; {least} to {most} are wanted",
                f"The {what} has {words} words; write {least} to {most}.",
            )


def text_is_clean(pair: PairDraft) -> Iterator[PairProblem]:
    """No mark in a question, no misspelt mark, no token of the language model, no talk of ids, boxes or annotations."""
    if SEG_TOKEN in pair.question:
        yield PairProblem("text", f"the question holds {SEG_TOKEN}", f"{SEG_TOKEN} belongs into answers only.")
    answer = pair.answer.replace(SEG_TOKEN, " ")
    for what, text in (("question", pair.question.replace(SEG_TOKEN, " ")), ("answer", answer)):
        for pattern, why in (
            (_RESERVED, "which the model reserves"),
            (_SPOILT_MARK, f"which is no {SEG_TOKEN}"),
            (_LEAK, "which speaks of the annotations, not of the picture"),
        ):
            found = pattern.search(text)
            if found:
                said = f"the {what} holds {found.group()!r}, {why}"
                yield PairProblem("text", said, f"{said[0].upper()}{said[1:]}; leave it out.")


def follows_an_earlier_pair(pair: PairDraft, earlier: Sequence[PairDraft]) -> Iterator[PairProblem]:
    """``follows`` is an earlier pair that no other pair continues. ``earlier`` are all pairs before this one."""
    if pair.follows is None:
        return
    if not 0 <= pair.follows < len(earlier):
        yield PairProblem(
            "follows",
            f"the pair continues pair {pair.follows}, which does not come before it",
            '"follows" must be the position of an earlier pair, counted from 0, or null.',
        )
    elif any(other.follows == pair.follows for other in earlier):
        yield PairProblem(
            "follows",
            f"pair {pair.follows} is continued twice",
            f'Two pairs continue pair {pair.follows}; continue the later one, or set "follows" to null.',
        )


def _indices(pair: PairDraft, facts: Facts) -> list[int | None]:
    index = {number: i for i, number in enumerate(facts.ids)}
    return [index.get(number) for number in pair.objects]


def _state(facts: Facts, index: int) -> str:
    """ "the cup is 37 % hidden, by the book and the cat"."""
    names = [f"the {facts.names[b]}" for b in facts.front[index]]
    if facts.unexplained(index):
        names.append("something unlabelled")
    rate = facts.rates[index]
    if math.isnan(rate):
        return f"how much of the {facts.names[index]} is hidden is not known"
    if rate < 0.005:
        return f"the {facts.names[index]} is fully visible"
    by = f", by {_joined(names)}" if names else ""
    return f"the {facts.names[index]} is {100 * rate:.0f} % hidden{by}"


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


@lru_cache(maxsize=4096)
def _bare(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())
