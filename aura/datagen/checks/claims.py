"""The statements of an answer about occlusion, held against the masks.

The parser reads plain statements about named objects: who hides whom ("A is partly hidden by B", "A covers a part of
B"), how much ("more than half of A is hidden", "A is fully visible"), who is in front, which of two is hidden more.
What it does not understand it leaves alone: it finds contradictions, it does not prove an answer right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from aura.datagen.checks.mentions import Mention
from aura.datagen.facts.facts import Facts

TOLERANCE = 0.05
"""Rates are seen, not measured, by those who read: words may be off by this much."""
NEVER = 0.01
"""Below this rate nothing can be said to be hidden."""

Bounds = tuple[float, float]

_FULLY = "fully|completely|entirely|totally|wholly|perfectly"
_ALMOST = r"(?:almost|nearly)\s+(?:fully|completely|entirely|totally|wholly)"
_MORE_HALF = r"(?:more than|over)\s+(?:a\s+)?half"
_LESS_HALF = r"(?:less than|under)\s+(?:a\s+)?half"
_HALF = r"(?:(?:about|around|roughly|approximately|nearly|almost)\s+)?half"
_MOSTLY = "mostly|largely|mainly|predominantly|for the most part"
_HEAVILY = "heavily|substantially|significantly|considerably|greatly"
_PARTLY = "partly|partially|somewhat|in part"
_SLIGHTLY = "slightly|a little(?: bit)?|a bit|marginally|minimally"
_BARELY = "barely|hardly|scarcely"

_DEGREES: tuple[tuple[str, Bounds, Bounds], ...] = (
    (_ALMOST, (0.75, 1.0), (0.0, 0.25)),
    (_FULLY, (0.95, 1.0), (0.0, TOLERANCE)),
    (_MORE_HALF, (0.5 - TOLERANCE, 1.0), (0.0, 0.5 + TOLERANCE)),
    (_LESS_HALF, (NEVER, 0.5 + TOLERANCE), (0.5 - TOLERANCE, 1.0)),
    (_HALF, (0.35, 0.65), (0.35, 0.65)),
    (_MOSTLY, (0.5 - TOLERANCE, 1.0), (0.0, 0.5 + TOLERANCE)),
    (_HEAVILY, (0.3, 1.0), (0.0, 1.0)),
    (_PARTLY, (NEVER, 0.9), (NEVER, 1.0)),
    (_SLIGHTLY, (NEVER, 0.3), (0.4, 1.0)),
    (_BARELY, (0.0, 0.3), (0.4, 1.0)),
)
"""Adverb -> bounds of the occlusion rate when it goes with "hidden", and when it goes with "visible"."""

_SHARES: tuple[tuple[str, Bounds], ...] = (
    (_MORE_HALF, (0.5 - TOLERANCE, 1.0)),
    (_LESS_HALF, (NEVER, 0.5 + TOLERANCE)),
    (_HALF, (0.35, 0.65)),
    (r"(?:a|one)[ -]quarter", (0.12, 0.38)),
    (r"(?:a|one)[ -]third", (0.2, 0.47)),
    (r"two[ -]thirds", (0.53, 0.8)),
    (r"three[ -]quarters", (0.62, 0.88)),
    (r"(?:the\s+)?(?:most|majority|bulk|greater part|larger part)", (0.5 - TOLERANCE, 1.0)),
    (r"(?:only\s+|just\s+)?(?:a\s+)?(?:small|tiny|little|minor)\s+(?:part|bit|portion|piece|section)", (0.0, 0.35)),
    (r"(?:a\s+)?(?:large|big|great|good|major)\s+(?:part|portion|section)|much", (0.25, 1.0)),
    (
        r"(?:only\s+)?(?:a\s+|the\s+|some\s+)?(?:\w+\s+)?(?:parts?|bit|portion|piece|section|edge|corner)|some",
        (NEVER, 1.0),
    ),
    (r"all|the whole|the entirety", (0.95, 1.0)),
    (r"none|nothing", (0.0, TOLERANCE)),
)
"""Words for a share of an object -> bounds of that share; "of" follows."""

_G = r"⟨([\d,]+)⟩"
_HIDDEN = "hidden|occluded|covered|obscured|obstructed|blocked|concealed|masked|out of sight|out of view"
_VISIBLE = "visible|seen|exposed"
_FREE = "unobstructed|unoccluded|unobscured|uncovered|in (?:full|plain) (?:view|sight)"
_BE = (
    r"(?:is|are|was|were|being|appears?|looks?|seems?|remains?|stays?|can be|lies?|stands?|sits?)(?:\s+to be)?"
    r"(?:\s+(?:still|also|only|itself|themselves|both|all|currently|just|actually|quite))*"
)
_ADVERB = "|".join(f"(?:{words})" for words, _, _ in _DEGREES)
_SHARE = "|".join(f"(?:{words})" for words, _ in _SHARES)
_WHICH = r"(?:\s*,?\s+(?:which|that|who))?"
_COVERS = (
    r"(?:hid(?:e|es|ing)|cover(?:s|ing)?|block(?:s|ing)?|occlud(?:e|es|ing)|obscur(?:e|es|ing)|"
    r"obstruct(?:s|ing)?|conceal(?:s|ing)?)"
)
_PLACED = (
    rf"(?:\s+(?:{_PARTLY}|{_MOSTLY}|{_FULLY}|{_SLIGHTLY}|just|right|directly|immediately|close|standing|sitting|lying|"
    r"placed|located|positioned|parked|tucked|peeking out from|partially))*"
)

_STATE = re.compile(
    rf"{_G}{_WHICH}(?:\s*,)?(?:\s+{_BE})?(\s+not)?(?:\s+({_ADVERB}))?\s+({_HIDDEN}|{_VISIBLE}|{_FREE})\b"
    rf"(?:\s+(the most|the least|more|less|most|least)\b)?"
    r"(?:\s+(?:from view|from sight|here|in the picture))?(?:\s*,)?"
    rf"(?:\s+(?:by|behind|under|beneath|underneath)\s+{_G})?"
)
_SHARE_STATE = re.compile(
    rf"\b({_SHARE}|(?:about\s+|around\s+|roughly\s+)?\d+\s*(?:%|percent|per cent))\s+of\s+{_G}\s+{_BE}(\s+not)?"
    rf"\s+({_HIDDEN}|{_VISIBLE})\b(?:\s+(?:by|behind|under|beneath)\s+{_G})?"
)
_ACTIVE = re.compile(
    rf"{_G}{_WHICH}(?:\s*,)?(?:\s+(?:is|are|does|do))?(\s+not)?(?:\s+({_ADVERB}))?\s+{_COVERS}\s+"
    rf"(?:({_SHARE})\s+of\s+|(?:the\s+|our\s+|your\s+)?(?:view|sight)\s+of\s+)?{_G}"
)
_BEHIND = re.compile(rf"{_G}{_WHICH}(?:\s*,)?(?:\s+{_BE})?(\s+not)?({_PLACED})\s+(behind|in front of)\s+{_G}")
_FRONTED = re.compile(
    rf"(?:^|[.,;:!?]|\b(?:and|but|while|yes|no|then))\s*({_PLACED})\s*(behind|in front of)\s+{_G}\s+"
    rf"(?:there\s+)?(?:{_BE}|you (?:can )?see)\s+{_G}"
)
_IN_THE_WAY = re.compile(rf"{_G}{_WHICH}\s+{_BE}(\s+not)?{_PLACED}\s+in (?:the way|front)\b(?!\s+of\s+⟨)")
_NOTHING = re.compile(
    rf"\bnothing(?:\s+else)?\s+(?:{_BE}\s+)?(?:in the way|in front|{_COVERS})(?:\s+of)?(?:\s+(?:{_G}|it|them))?"
)
_COMPARED = re.compile(
    rf"{_G}{_WHICH}\s+{_BE}\s+(?:(?:much|far|slightly|a little)\s+)?"
    rf"(?:(more|less)\s+(?:\w+ly\s+)?({_HIDDEN}|{_VISIBLE})|({_HIDDEN}|{_VISIBLE})\s+(more|less))\s+than\s+{_G}"
)
_SUPERLATIVE = re.compile(
    rf"{_G}{_WHICH}\s+{_BE}\s+(?:the\s+(most|least)\s+(?:\w+ly\s+)?({_HIDDEN}|{_VISIBLE})|({_HIDDEN}|{_VISIBLE})\s+"
    r"(?:the\s+)?(most|least))\b"
)
_INNER = re.compile(rf"(?:({_ADVERB})\s+)?({_HIDDEN}|{_VISIBLE})")

_LIST = re.compile(r"⟨\d+⟩(?:(?:\s*,?\s+(?:and|or|as well as|along with|together with)\s+|\s*,\s*)(?:also\s+)?⟨\d+⟩)+")
_SINGULAR = re.compile(
    r"\s+(?:\w+ly\s+)?(?:is|was|has|looks|stands|sits|lies|remains|appears|hides|covers|blocks|occludes|obscures|"
    r"obstructs|conceals)\b"
)
_PLURAL = re.compile(
    r"\s+(?:both\s+|all\s+|\w+ly\s+)?(?:are|were|can|have|look|stand|sit|lie|remain|appear|hide|cover|block|occlude|"
    r"obscure|obstruct|conceal)\b"
)
_CLAUSE = re.compile(
    r"(?:^|[.!?;:,]|\b(?:and|but|while|because|since|so|yes|no|here|as|although|though|that|where|whereas|then))\s*\Z"
)


@dataclass(frozen=True)
class Contradiction:
    """``said`` for a person ("the cup is hidden by the book"); ``objects`` are the indices that it speaks of."""

    said: str
    objects: tuple[int, ...]


def contradictions(answer: str, mentions: Sequence[Mention], facts: Facts) -> list[Contradiction]:
    """Each statement of ``answer`` about occlusion that the masks deny, once."""
    reader = _Reader(answer, mentions, facts)
    return list(dict.fromkeys(reader.read()))


class _Reader:
    """One answer, with its mentions as ⟨numbers⟩ in the text."""

    def __init__(self, answer: str, mentions: Sequence[Mention], facts: Facts) -> None:
        self.mentions, self.facts = mentions, facts
        self.text = _grouped(_with_places(answer, mentions))

    def read(self) -> Iterator[Contradiction]:
        yield from self._premodifiers()
        for sentence in re.split(r"(?<=[.!?;])\s+", self.text):
            for check in (
                self._states, self._shares, self._active, self._places, self._in_the_way, self._compared
            ):  # fmt: skip
                yield from check(sentence)

    # --- what is said -------------------------------------------------------------------------------------------------

    def _premodifiers(self) -> Iterator[Contradiction]:
        for number, mention in enumerate(self.mentions):
            found = _INNER.search(_plain(mention.inner))
            if found:
                yield from self._degree(
                    str(number), *_bounds(found.group(1), found.group(2), False), f"{{}} is {found.group()}"
                )

    def _states(self, sentence: str) -> Iterator[Contradiction]:
        for m in _STATE.finditer(sentence):
            who, negated, adverb, word, compared, by = m.groups()
            if not compared and not (negated and by):
                said = " ".join(filter(None, ("not" if negated else "", adverb, word)))
                yield from self._degree(who, *_bounds(adverb, word, bool(negated)), f"{{}} is {said}")
            if by and re.fullmatch(_HIDDEN, word):
                yield from self._hides(by, who, bool(negated))

    def _shares(self, sentence: str) -> Iterator[Contradiction]:
        for m in _SHARE_STATE.finditer(sentence):
            share, who, negated, word, by = m.groups()
            low, high = _share_bounds(share)
            if re.fullmatch(_VISIBLE, word):
                low, high = 1 - high, 1 - low
            if not negated:
                yield from self._degree(who, low, high, f"{share} of {{}} is {word}")
                if by:
                    yield from self._hides(by, who, False)

    def _active(self, sentence: str) -> Iterator[Contradiction]:
        for m in _ACTIVE.finditer(sentence):
            who, negated, adverb, share, whom = m.groups()
            yield from self._hides(who, whom, bool(negated))
            if negated:
                continue
            # Others may hide the rest, so that only the lower bound follows from what one of them hides.
            if adverb:
                yield from self._degree(whom, _bounds(adverb, "hidden", False)[0], 1.0, f"{{}} is {adverb} hidden")
            if share:
                yield from self._degree(whom, _share_bounds(share)[0], 1.0, f"{share} of {{}} is hidden")

    def _places(self, sentence: str) -> Iterator[Contradiction]:
        for m in _BEHIND.finditer(sentence):
            who, negated, placed, place, whom = m.groups()
            front, back = (whom, who) if place == "behind" else (who, whom)
            if not negated:
                overlapping = re.search(rf"\b(?:{_PARTLY}|{_MOSTLY}|{_SLIGHTLY})\b", placed)
                yield from self._hides(front, back, False) if overlapping else self._before(front, back)
        for m in _FRONTED.finditer(sentence):
            _, place, who, whom = m.groups()
            front, back = (who, whom) if place == "behind" else (whom, who)
            yield from self._before(front, back)

    def _in_the_way(self, sentence: str) -> Iterator[Contradiction]:
        """In whose way, and what "it" is, is clear only when one thing was spoken of before."""
        for m in _IN_THE_WAY.finditer(sentence):
            earlier = set(re.findall(_G, sentence[: m.start()]))
            if len(earlier) == 1 and not m.group(2):
                yield from self._before(m.group(1), earlier.pop())
        for m in _NOTHING.finditer(sentence):
            earlier = {m.group(1)} if m.group(1) else set(re.findall(_G, sentence[: m.start()]))
            if len(earlier) == 1:
                yield from self._degree(earlier.pop(), 0.0, TOLERANCE, "nothing hides {}")

    def _compared(self, sentence: str) -> Iterator[Contradiction]:
        for m in _COMPARED.finditer(sentence):
            who, before, word_after, word_before, after, whom = m.groups()
            more = (before or after) == "more"
            hidden = re.fullmatch(_HIDDEN, word_after or word_before) is not None
            yield from self._ranked(who, whom, more == hidden)
        for m in _SUPERLATIVE.finditer(sentence):
            who, before, word_after, word_before, after = m.groups()
            most = (before or after) == "most"
            hidden = re.fullmatch(_HIDDEN, word_after or word_before) is not None
            yield from self._extreme(who, most == hidden)

    # --- what is true -------------------------------------------------------------------------------------------------

    def _degree(self, group: str, low: float, high: float, said: str) -> Iterator[Contradiction]:
        for mention in self._members(group):
            if self._rated(mention.objects) and not any(low <= self.facts.rates[i] <= high for i in mention.objects):
                yield Contradiction(said.format(self._name(mention)), mention.objects)

    def _hides(self, fronts: str, backs: str, negated: bool) -> Iterator[Contradiction]:
        for front, back in self._unmatched(fronts, backs, negated):
            said = "does not hide" if negated else "hides"
            yield Contradiction(f"{self._name(front)} {said} {self._name(back)}", (*back.objects, *front.objects))

    def _unmatched(self, fronts: str, backs: str, negated: bool) -> Iterator[tuple[Mention, Mention]]:
        """Pairs that break the claim: each one in front must hide one behind, and each one behind be hidden by one."""
        some, others = self._members(fronts), self._members(backs)
        if not all(m.objects for m in (*some, *others)):
            return
        hides = {(f, b): self._any_hides(f, b) for f, b in product(some, others)}
        if negated:
            yield from (pair for pair, true in hides.items() if true)
            return
        idle = [f for f in some if not any(hides[f, b] for b in others)]
        yield from ((f, others[0]) for f in idle)
        active = next((f for f in some if f not in idle), None)
        if active is not None:
            yield from ((active, b) for b in others if not any(hides[f, b] for f in some))

    def _before(self, fronts: str, backs: str) -> Iterator[Contradiction]:
        """Depth: denied only where the masks show the reverse; things that do not overlap may stand either way."""
        for front, back in product(self._members(fronts), self._members(backs)):
            known = front.objects and back.objects
            if known and self._any_hides(back, front) and not self._any_hides(front, back):
                said = f"{self._name(front)} is in front of {self._name(back)}"
                yield Contradiction(said, (*back.objects, *front.objects))

    def _rated(self, objects: Sequence[int]) -> bool:
        """Whether the occlusion rates of these objects are known; of others no claim can be denied."""
        return bool(objects) and not any(math.isnan(self.facts.rates[i]) for i in objects)

    def _ranked(self, group: str, other: str, more: bool) -> Iterator[Contradiction]:
        rates = self.facts.rates
        for a, b in product(self._members(group), self._members(other)):
            sign = 1 if more else -1
            pairs = list(product(a.objects, b.objects))
            rated = self._rated((*a.objects, *b.objects))
            if pairs and rated and not any(sign * (rates[i] - rates[j]) > 0 for i, j in pairs):
                said = f"{self._name(a)} is hidden {'more' if more else 'less'} than {self._name(b)}"
                yield Contradiction(said, (*a.objects, *b.objects))

    def _extreme(self, group: str, most: bool) -> Iterator[Contradiction]:
        """The most or least hidden one is so among those that the answer pointed at before."""
        for a in self._members(group):
            if most and a.objects and all(self.facts.rates[i] < NEVER for i in a.objects):
                yield Contradiction(f"{self._name(a)} is hidden the most", a.objects)
            earlier = [m for m in self.mentions if m.marked and m.end <= a.start and m.objects]
            for b in (m for m in earlier if m not in self._members(group)):
                sign = 1 if most else -1
                if a.objects and all(
                    sign * (self.facts.rates[i] - self.facts.rates[b.objects[0]]) < 0 for i in a.objects
                ):
                    said = f"{self._name(a)} is hidden the {'most' if most else 'least'}"
                    yield Contradiction(said, (*a.objects, *b.objects))

    def _any_hides(self, front: Mention, back: Mention) -> bool:
        return any(f in self.facts.front[b] for f, b in product(front.objects, back.objects))

    def _members(self, group: str) -> list[Mention]:
        return [self.mentions[int(n)] for n in group.split(",")]

    def _name(self, mention: Mention) -> str:
        if len(mention.objects) == 1:
            return f"the {self.facts.names[mention.objects[0]]}"
        return f"the {mention.name.text if mention.name else 'object'}"


def _bounds(adverb: str | None, word: str, negated: bool) -> Bounds:
    """Bounds of the occlusion rate for "(not) fully visible" and the like; (0, 1) where nothing follows."""
    if re.fullmatch(_FREE, word):
        return (NEVER, 1.0) if negated else (0.0, TOLERANCE)
    hidden = re.fullmatch(_HIDDEN, word) is not None
    if adverb is None:
        if not hidden:
            return 0.0, 1.0
        return (0.0, TOLERANCE) if negated else (NEVER, 1.0)
    found = next(pair for words, *pair in _DEGREES if re.fullmatch(words, adverb))
    if not negated:
        return found[0] if hidden else found[1]
    return (NEVER, 1.0) if not hidden and re.fullmatch(_FULLY, adverb) else (0.0, 1.0)


def _share_bounds(share: str) -> Bounds:
    number = re.search(r"\d+", share)
    if number:
        value = int(number.group()) / 100
        return value - 2 * TOLERANCE, value + 2 * TOLERANCE
    return next(bounds for words, bounds in _SHARES if re.fullmatch(words, share))


def _plain(text: str) -> str:
    """Lower case, hyphens and contractions opened, single spaces."""
    text = re.sub(r"n['’]t\b", " not", text.lower())
    return " ".join(re.sub(r"(?<=\w)-(?=\w)", " ", text).split())


def _with_places(answer: str, mentions: Sequence[Mention]) -> str:
    parts, end = [], 0
    for number, mention in enumerate(mentions):
        parts += [answer[end : mention.start], f" ⟨{number}⟩ "]
        end = mention.end
    text = _plain("".join(parts) + answer[end:])
    return re.sub(r"\s+([.,;:!?])", r"\1", re.sub(r"\b(?:both|either) (?=⟨)", "", text))


def _grouped(text: str) -> str:
    """Lists become one place: "⟨0⟩, ⟨1⟩ and ⟨2⟩" is ⟨0,1,2⟩, unless its last member opens a clause of its own."""
    return _LIST.sub(lambda found: _group(found, text), text)


def _group(found: re.Match[str], text: str) -> str:
    members = re.findall(r"\d+", found.group())
    before, after = text[: found.start()], text[found.end() :]
    if _SINGULAR.match(after):
        return f"⟨{','.join(members[:-1])}⟩, and ⟨{members[-1]}⟩"
    if _PLURAL.match(after) and not _CLAUSE.search(before):
        # "behind A and B are visible": where the second clause begins cannot be told.
        return f"⟨{members[0]}⟩ and ⟨?⟩"
    return f"⟨{','.join(members)}⟩"
