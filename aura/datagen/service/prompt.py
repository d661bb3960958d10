"""The prompt: what a vision-language model is told about one image, and the form its answer must have.

Everything in the object table is read off the masks. ``PROMPT_VERSION`` goes into the provenance of every pair; change
it with every change of the wording, the table or the schema.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image
from pycocotools import mask as mask_util
from pydantic import BaseModel, ConfigDict

from aura.datagen.facts.facts import Facts, facts_of
from aura.datagen.facts.grammar import degree
from aura.datagen.records import GenerationRequest, PairDraft
from aura.formats.decoding import decoded, open_picture
from aura.formats.sources import AnnotatedImage
from aura.types import SEG_TOKEN, Masks

PROMPT_VERSION = "1"
SCHEMA_NAME = "question_answer_pairs"


class AnswerPair(BaseModel):
    """One pair as the model is asked to write it. Without defaults: a strict schema requires every property."""

    model_config = ConfigDict(extra="forbid")

    question: str
    answer: str
    objects: list[int]
    follows: int | None


class AskedPair(AnswerPair):
    """One pair that says which mask of each object its question means."""

    asked: list[Masks]


class AnswerPairs(BaseModel):
    """The whole response as the model is asked to write it; :mod:`aura.datagen.service.reading` reads what comes."""

    model_config = ConfigDict(extra="forbid")

    pairs: list[AnswerPair]


class AskedPairs(BaseModel):
    """The same where questions may mean one kind of mask."""

    model_config = ConfigDict(extra="forbid")

    pairs: list[AskedPair]


@cache
def answer_schema(intents: bool = False) -> dict[str, Any]:
    """The JSON schema of :class:`AnswerPairs`, or of :class:`AskedPairs`: every property required, none besides.

    ``docs/formats.md``, "Chat completions", says what a strict schema may hold.
    """
    return _without_prose((AskedPairs if intents else AnswerPairs).model_json_schema())


def response_format(intents: bool = False) -> dict[str, Any]:
    """``response_format`` of a chat completion that must follow the schema."""
    return {
        "type": "json_schema",
        "json_schema": {"name": SCHEMA_NAME, "schema": answer_schema(intents), "strict": True},
    }


def prompt_version(intents: bool = False) -> str:
    """The version of the prompt that is sent; with ``intents`` it is another prompt."""
    return f"{PROMPT_VERSION}-intents" if intents else PROMPT_VERSION


def _without_prose(schema: Any) -> Any:
    """Docstrings here speak to programmers, not to the model."""
    if isinstance(schema, dict):
        return {k: _without_prose(v) for k, v in schema.items() if not (k == "description" and isinstance(v, str))}
    return [_without_prose(v) for v in schema] if isinstance(schema, list) else schema


@dataclass(frozen=True)
class Prompt:
    """A system message, the user's text and the picture, a JPEG data URL of ``width`` x ``height`` pixels."""

    system: str
    text: str
    image_url: str
    width: int
    height: int
    version: str = PROMPT_VERSION

    def messages(self, detail: str = "auto") -> list[dict[str, Any]]:
        """The messages of a chat completion; ``detail`` as in the API: auto, low or high."""
        picture = {"type": "image_url", "image_url": {"url": self.image_url, "detail": detail}}
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": [{"type": "text", "text": self.text}, picture]},
        ]

    def shown(self) -> str:
        """The whole prompt for a person to read; of the picture only its size."""
        head, _, data = self.image_url.partition(",")
        picture = f"<{head},... {self.width} x {self.height} pixels, {len(data) * 3 // 4} bytes>"
        return f"[system]\n{self.system}\n\n[user]\n{self.text}\n\n{picture}"


_SYSTEM = f"""\
You write questions and answers that teach an assistant to look at a picture, to reason about what a person needs, \
and to point at the right things, even where other things hide them.

You get a picture and a table of its labelled objects. The table is measured, so it is right where the picture leaves \
a doubt. It gives for each object its id, its category, the box of its visible part and the box of the whole object \
with its hidden part (x0, y0, x1, y1 in pixels of the picture), how much of it is hidden, what hides it, and what it \
hides.

Rules for a question
1. It asks for objects by a purpose, a need, a situation or a relation, so that reasoning is needed to find them. \
"I am thirsty after my run; what here would help?" is good, "Where is the bottle?" is not.
2. It never names the category of an object that the answer points at, neither in the plural nor by a synonym. Other \
objects of the picture may be named.
3. It can be answered from the picture, has one right answer, and is what a person would say.

Rules for an answer
4. It is one to three plain English sentences that answer the question and, where it helps, give the reason.
5. Each object that it points at is named by its category, with {SEG_TOKEN} straight after the name: "the red cup \
{SEG_TOKEN}". "objects" holds the ids of these objects in the order of the marks: as many ids as marks, no id twice. \
An answer points at one object at least.
6. Many answers should organise several objects: all that serve the purpose, or an object with those that hide it. \
When all objects of a kind are meant, point at each of them.
7. Consider how the objects occlude each other. At least four in ten pairs should turn on it: what is in front, what \
is behind, what must be moved, which of two can be seen better, what lies beneath.
8. What is said about occlusion must agree with the table: who hides whom, and how much. Below 2 % hidden is "fully \
visible", below 20 % "slightly hidden", below 40 % "partly hidden", below 60 % "about half hidden", and above that \
"mostly hidden". Where "something unlabelled" hides an object, say no more than that something is in front of it.
9. Neither a question nor an answer holds ids, boxes, coordinates or percentages, and none speaks of the table, of \
masks or of annotations: the one who asks sees only the picture.

Rules for the set
10. The questions differ from each other in what they ask, not only in their words.
11. Two or three pairs continue an earlier one as the next turn of a talk, with words such as "it", "them" or "and \
what". "follows" of such a pair is the position of the pair it continues, counted from 0; that pair comes earlier in \
the list, and no other pair continues it. "follows" of every other pair is null.
"""

_INTENTS = """
Rules for what is to be shown
12. "asked" says for each object of "objects", in their order, what of it the person wants to be shown: "visible" for \
only the part that can be seen, "amodal" for the whole shape with its hidden part, "both" where the question leaves it \
open. About a third of the pairs want "visible", a third "amodal"; one or two want the whole shape of an object and \
only the visible part of what hides it.
13. Where "asked" is not "both", the question says so in plain words, which differ from pair to pair: "show only what \
can be seen", "leave out what is covered", "its whole shape", "as if nothing were in front of it". Where it is "both", \
the question says nothing of the kind. The answer does not speak of it. No whole shape is wanted where the table says \
that it is unknown.
"""

_FORM = f"""
Reply with JSON of this form and nothing else:
{{"pairs": [{{"question": "...", "answer": "... {SEG_TOKEN} ...", "objects": [1], "follows": null}}]}}"""

SYSTEM = _SYSTEM + _FORM


def system_text(intents: bool = False) -> str:
    """The system message; with ``intents`` pairs may ask for one kind of mask."""
    return _SYSTEM + _INTENTS + _FORM.replace("null}", 'null, "asked": ["both"]}') if intents else SYSTEM


def build_prompt(
    request: GenerationRequest, *, image_side: int = 1024, jpeg_quality: int = 90, intents: bool = False
) -> Prompt:
    """The prompt for one image.

    The picture is brought down to ``image_side`` pixels on its longer side (never up), and boxes are given in its
    pixels. An EXIF orientation is not applied: masks refer to the stored pixels. With ``intents`` pairs may ask for one
    kind of mask.

    Raises:
        ValueError: The image has no objects, or its file is missing, damaged or of another size than annotated.
    """
    text = user_text(request, image_side)
    picture = _picture(request, image_side)
    url = _data_url(picture, jpeg_quality)
    return Prompt(system_text(intents), text, url, picture.width, picture.height, prompt_version(intents))


def sent_size(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) of the picture as it is sent: its longer side is at most ``side`` pixels."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def user_text(request: GenerationRequest, image_side: int = 1024) -> str:
    """The text of the user's message; the picture is not opened. Raises ValueError for an image without objects."""
    image = request.image
    if not image.objects:
        raise ValueError(f"image {image.image_id} has no objects; there is nothing to ask about, leave it out")
    width, height = sent_size(image.width, image.height, image_side)
    parts = [
        f"The picture is {width} x {height} pixels. Its labelled objects, from left to right:",
        object_table(image, scale=(width / image.width, height / image.height)),
    ]
    if request.rejected:
        parts += _second_round(request)
    else:
        number = "1 pair" if request.pairs == 1 else f"{request.pairs} pairs"
        parts.append(f"Write {number} about this picture.")
    return "\n\n".join(parts)


def object_table(image: AnnotatedImage, *, scale: tuple[float, float] = (1.0, 1.0)) -> str:
    """One line per object, left to right; boxes are multiplied by ``scale`` (x, y) and rounded to whole pixels."""
    facts = facts_of(image)
    by_id = {o.id: o for o in image.objects}
    lines = ["id | category | visible box | whole box | hidden | hidden by | hides"]
    for index, number in enumerate(facts.ids):
        visible = _box(by_id[number].visible, scale)
        shape = by_id[number].amodal
        amodal = "unknown" if shape is None else _box(shape, scale)
        hides = ", ".join(_named(facts, other) for other in facts.back[index]) or "nothing"
        cells = (str(number), facts.categories[index], visible, amodal, _rate(facts.rates[index]))
        lines.append(" | ".join((*cells, _hidden_by(facts, index), hides)))
    return "\n".join(lines)


def _hidden_by(facts: Facts, index: int) -> str:
    """The occluders, the one that hides most first, with the share of the whole object that each hides."""
    rate = facts.rates[index]
    ranked = sorted(facts.front[index], key=lambda b: (-facts.hidden_share[b, index], facts.ids[b]))
    found = [f"{_named(facts, b)} ({_percent(rate * float(facts.hidden_share[b, index]))} of it)" for b in ranked]
    unlabelled = facts.unexplained(index)
    if unlabelled:
        found.append(f"something unlabelled ({_percent(unlabelled)} of it)")
    if math.isnan(rate):
        return "unknown"
    return ", ".join(found) or "nothing"


def _named(facts: Facts, index: int) -> str:
    return f"{facts.ids[index]} {facts.categories[index]}"


def _rate(rate: float) -> str:
    return "unknown" if math.isnan(rate) else f"{_percent(rate)}, {degree(rate)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _box(rle: dict[str, Any], scale: tuple[float, float]) -> str:
    x, y, width, height = (float(v) for v in mask_util.toBbox(rle))
    corners = (x * scale[0], y * scale[1], (x + width) * scale[0], (y + height) * scale[1])
    return "(" + ", ".join(str(round(v)) for v in corners) + ")"


def _second_round(request: GenerationRequest) -> list[str]:
    """What went back, why, and what must not be repeated."""
    refused = {pair for pair, _ in request.rejected}
    kept = [pair for pair in request.context if pair not in refused]
    parts = []
    if kept:
        parts.append("These pairs were accepted; do not repeat them:\n" + "\n".join(map(_pair_text, kept)))
    parts.append(
        "The following pairs were refused. Write for each of them, in this order, one new pair that mends what is "
        'wrong; change the idea where it cannot be mended. "follows" is null in all of them; one that continued an '
        "earlier pair must still continue it."
    )
    for number, (pair, problems) in enumerate(request.rejected, 1):
        lines = [f"{number}. {_pair_text(pair)}"]
        if pair.follows is not None and 0 <= pair.follows < len(request.context):
            lines.append(f"   It continues: {_pair_text(request.context[pair.follows])}")
        lines += [f"   Refused: {why}" for why in dict.fromkeys(p.advice or p.message for p in problems)]
        parts.append("\n".join(lines))
    return parts


def _pair_text(pair: PairDraft) -> str:
    asked = f" asked: {list(pair.asked)}" if pair.asked else ""
    return f"Q: {pair.question} A: {pair.answer} objects: {list(pair.objects)}{asked}"


def _picture(request: GenerationRequest, side: int) -> Image.Image:
    where, path = f"image {request.image.image_id}", request.picture
    with open_picture(path, f"{where}: ") as opened:
        size, wanted = opened.size, (request.image.width, request.image.height)
        if size != wanted:
            raise ValueError(
                f"{where}: {path} is {size[0]} x {size[1]} pixels but its annotations are made for "
                f"{wanted[0]} x {wanted[1]}; use the original image"
            )
        target = sent_size(*size, side)
        if target != size:
            opened.draft("RGB", target)
        picture = decoded(opened, f"{where}: {path}")
    return picture if picture.size == target else picture.resize(target, Image.Resampling.LANCZOS)


def _data_url(picture: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
