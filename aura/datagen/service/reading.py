"""The pairs in an answer's text: JSON with whatever a model writes around it, read pair by pair.

Models think aloud, fence their JSON, explain it, write ids as text and leave keys out. What is unambiguous is read. A
pair that cannot be read keeps its place in the list and bears a problem, so that the others are not lost with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aura.datagen.records import PairDraft, PairProblem
from aura.types import asked_flaw

MAX_ATTEMPTS = 2000
"""So many beginnings of JSON that turn out to be none are tried; an answer has a few dozen braces."""

_THOUGHTS_BEGIN = re.compile(r"<(?:think|thinking|thought|reasoning)>|\[THINK\]|◁think▷", re.IGNORECASE)
_THOUGHTS_END = re.compile(
    r"</(?:think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>", re.IGNORECASE
)
_BEGIN = re.compile(r'\{\s*["}]|\[\s*[\[{\]]')
_PAIR_BEGIN = re.compile(r'\{\s*"(?:question|answer|objects|follows|asked)"\s*:', re.IGNORECASE)
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)
_NUMBER = re.compile(r"\s*([+-]?\d{1,19})(?:\.0*)?\s*", re.ASCII)
_NUMBERS = re.compile(r"\s*\[?\s*\d{1,19}(?:\s*[,;]\s*\d{1,19})*\s*\]?\s*", re.ASCII)
_DECODER = json.JSONDecoder(strict=False)
_ADVICE = 'Give every pair "question" and "answer" as text and "objects" as a list of ids.'


@dataclass(frozen=True)
class ReadPair:
    """A pair with what was wrong with its form; without problems it is exactly what the model meant."""

    draft: PairDraft
    problems: tuple[PairProblem, ...] = ()


@dataclass(frozen=True)
class _Broken:
    """What begins as a pair and is no JSON."""

    text: str


class Unreadable(Exception):
    """The answer holds no pair that can be read; ``reason`` is malformed, schema or empty."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read_pairs(text: str) -> tuple[ReadPair, ...]:
    """The pairs of an answer, in their order; at least one of them can be read.

    Raises:
        Unreadable: None can.
    """
    answer = without_thoughts(text)
    best: tuple[ReadPair, ...] | None = None
    error = Unreadable("malformed", "the answer is no JSON")
    for variant in dict.fromkeys((_TRAILING_COMMA.sub(r"\1", answer), answer)):
        try:
            read = _read(variant)
        except Unreadable as unreadable:
            error = unreadable
            continue
        if best is None or _num_good(read) > _num_good(best):
            best = read
    if best is None:
        raise error
    if not best:
        raise Unreadable("empty", "the answer holds no pairs")
    if not _num_good(best):
        found = [problem.message for pair in best for problem in pair.problems]
        raise Unreadable(_reason(best), f"{found[0]} ({len(found)} in all)")
    return best


def without_thoughts(text: str) -> str:
    """The answer after the model's thoughts, which may hold drafts of it."""
    ends = list(_THOUGHTS_END.finditer(text))
    if ends and text[ends[-1].end() :].strip():
        text = text[ends[-1].end() :]
    begin = _THOUGHTS_BEGIN.search(text)
    if begin is None:
        return text
    if not text[: begin.start()].strip():
        raise Unreadable(
            "malformed", "the answer is no JSON: it ends within the model's thoughts; raise max_output_tokens"
        )
    return text[: begin.start()]


def _num_good(pairs: tuple[ReadPair, ...]) -> int:
    return sum(not pair.problems for pair in pairs)


def _reason(pairs: tuple[ReadPair, ...]) -> str:
    return "malformed" if all(p.problems[0].message.endswith("is no JSON") for p in pairs) else "schema"


def _read(text: str) -> tuple[ReadPair, ...]:
    """The list with the most good pairs, the last of several; without a list, the pairs that stand alone."""
    values = list(_values(text))
    lists = [items for items in map(_items, values) if items is not None]
    if lists:
        read = [tuple(_pair(number, item) for number, item in enumerate(items)) for items in lists]
        return max(reversed(read), key=_num_good)
    alone = [value for value in values if isinstance(value, _Broken) or _is_pair(value)]
    if not alone:
        if values:
            raise Unreadable("schema", 'the answer is JSON without "pairs", a list of objects with question and answer')
        raise Unreadable("malformed", f"the answer is no JSON: {_why(text)}")
    return tuple(_pair(number, item) for number, item in enumerate(alone))


def _values(text: str) -> Iterator[Any]:
    """The outermost JSON values of a text; where one is broken, those inside it, and what is broken there."""
    place = attempts = 0
    while attempts < MAX_ATTEMPTS and (begin := _BEGIN.search(text, place)):
        try:
            value, place = _DECODER.raw_decode(text, begin.start())
            yield value
        except (ValueError, RecursionError):
            attempts += 1
            place = begin.start() + 1
            if _PAIR_BEGIN.match(text, begin.start()):
                yield _Broken(text[begin.start() : begin.start() + 200])


def _why(text: str) -> str:
    try:
        json.loads(text)
    except ValueError as error:
        return str(error)
    except RecursionError:
        return "it is nested too deeply"
    return "it holds no object"


def _items(value: Any) -> list[Any] | None:
    """The list of pairs that a JSON value is, or holds."""
    if isinstance(value, list):
        if any(map(_is_pair, value)):
            return value
        return _items(value[0]) if len(value) == 1 and isinstance(value[0], Mapping) else None
    if not isinstance(value, Mapping) or _is_pair(value):
        return None
    if isinstance(value.get("pairs"), list):
        return list(value["pairs"])
    inner = [items for items in map(_items, value.values()) if items is not None]
    single = value.get("pairs")
    if _is_pair(single):
        return [single]
    return inner[0] if len(inner) == 1 else None


def _is_pair(value: Any) -> bool:
    return isinstance(value, Mapping) and not {"question", "answer"}.isdisjoint(str(key).lower() for key in value)


def _pair(number: int, item: Any) -> ReadPair:
    if isinstance(item, _Broken):
        return ReadPair(PairDraft("", "", ()), (_problem(f"pairs.{number}: {_shown(item.text)} is no JSON"),))
    if not isinstance(item, Mapping):
        return ReadPair(PairDraft("", "", ()), (_problem(f"pairs.{number}: {_shown(item)} is no object"),))
    known = {str(key).lower(): value for key, value in item.items()}
    problems: list[PairProblem] = []

    def wrong(key: str, what: str) -> None:
        said = f"is {_shown(known[key])}, not {what}" if known.get(key) is not None else "is missing"
        problems.append(_problem(f"pairs.{number}.{key}: {said}"))

    texts = []
    for key in ("question", "answer"):
        value = known.get(key)
        if isinstance(value, str) and value.strip():
            texts.append(storable(value))
        else:
            texts.append("")
            wrong(key, "a text")
    objects, all_known = _objects(known.get("objects"))
    if not all_known:
        wrong("objects", "a list of ids")
    follows = _number(known.get("follows"))
    if follows is None and not _means_nothing(known.get("follows")):
        wrong("follows", "a position or null")
    asked = _asked(known.get("asked"), len(objects))
    if flaw := asked_flaw(asked, len(objects)):
        problems.append(_problem(f"pairs.{number}.asked: {flaw}"))
        asked = ()
    return ReadPair(PairDraft(texts[0], texts[1], objects, follows, tuple(asked)), tuple(problems))


def _asked(value: Any, num_objects: int) -> Any:
    """The masks that are asked for; one word stands for all objects, nothing for both masks of each."""
    if _means_nothing(value):
        return ()
    if isinstance(value, str):
        value = [value] * max(num_objects, 1)
    words = [v.strip().lower() if isinstance(v, str) else v for v in value] if isinstance(value, list) else value
    return () if isinstance(words, list) and set(map(str, words)) == {"both"} else words


def _objects(value: Any) -> tuple[tuple[int, ...], bool]:
    """Ids from a list, one id, or a text of ids; and whether that was all of them."""
    if isinstance(value, str) and _NUMBERS.fullmatch(value):
        value = re.findall(r"\d+", value)
    if not isinstance(value, list):
        value = [value]
    numbers = [_number(v.get("id") if isinstance(v, Mapping) else v) for v in value]
    return tuple(n for n in numbers if n is not None), None not in numbers


def _number(value: Any) -> int | None:
    """A whole number that SQLite holds, also as 1.0 and as text."""
    if isinstance(value, str) and (digits := _NUMBER.fullmatch(value)):
        value = int(digits.group(1))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        return None
    return value


def _means_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "null", "none"))


def _problem(message: str) -> PairProblem:
    return PairProblem("form", storable(message), _ADVICE)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def storable(text: str) -> str:
    """The text with a mark in the place of halves of letters, which no file and no database takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
