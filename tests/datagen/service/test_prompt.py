"""What the model is told is what the masks say, and the schema is what the API takes."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.datagen.checks.rules import names_in
from aura.datagen.records import GenerationRequest, PairDraft, PairProblem
from aura.datagen.service.prompt import (
    PROMPT_VERSION,
    AnswerPairs,
    AskedPairs,
    answer_schema,
    build_prompt,
    object_table,
    sent_size,
    user_text,
)
from aura.formats.sources import AnnotatedImage
from aura.mini.scenes import Scene, SceneObject
from tests.scenes import annotated_image_from_scene

WIDTH, HEIGHT = 200, 100


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def scene() -> AnnotatedImage:
    """A cup behind a book (40 %) and behind something unlabelled (20 %), and a lone dog."""
    cup, book, dog = box(10, 10, 40, 50), box(28, 0, 60, 60), box(100, 20, 140, 60)
    hidden = book | box(10, 10, 16, 50)
    objects = (SceneObject("cup", cup, cup & ~hidden), SceneObject("book", book, book), SceneObject("dog", dog, dog))
    return annotated_image_from_scene(Scene(np.zeros((HEIGHT, WIDTH, 3), np.uint8), objects, "none"), 5, first_id=70)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_the_table_states_boxes_rates_and_who_hides_whom():
    header, *rows = (line.split(" | ") for line in object_table(scene()).splitlines())
    assert header == ["id", "category", "visible box", "whole box", "hidden", "hidden by", "hides"]
    by = "71 book (40 % of it), something unlabelled (20 % of it)"
    cup = ["70", "cup", "(16, 10, 28, 50)", "(10, 10, 40, 50)", "60 %, mostly hidden", by, "nothing"]
    assert rows == [
        cup,
        ["71", "book", "(28, 0, 60, 60)", "(28, 0, 60, 60)", "0 %, fully visible", "nothing", "70 cup"],
        ["72", "dog", "(100, 20, 140, 60)", "(100, 20, 140, 60)", "0 %, fully visible", "nothing", "nothing"],
    ]


def test_the_picture_is_brought_down_and_boxes_with_it(picture):
    prompt = build_prompt(GenerationRequest(scene(), picture), image_side=50)
    assert (prompt.width, prompt.height) == (50, 25)
    sent = Image.open(io.BytesIO(base64.b64decode(prompt.image_url.split(",")[1])))
    assert (sent.format, sent.size, sent.mode) == ("JPEG", (50, 25), "RGB")
    left, right = np.asarray(sent)[12, 5], np.asarray(sent)[12, 45]
    assert left[0] > 200 and right[0] < 50
    assert "The picture is 50 x 25 pixels" in prompt.text
    assert "(25, 5, 35, 15)" in prompt.text, "the dog's box in the sent picture's pixels"


def test_small_pictures_are_not_enlarged():
    assert sent_size(200, 100, 1024) == (200, 100)
    assert sent_size(4000, 1000, 1024) == (1024, 256)
    assert sent_size(3000, 1, 1024) == (1024, 1)


def test_an_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "turned.jpg", exif=exif)
    prompt = build_prompt(GenerationRequest(scene(), tmp_path / "turned.jpg"))
    assert (prompt.width, prompt.height) == (WIDTH, HEIGHT)


def test_other_kinds_of_pictures_are_sent_as_rgb(tmp_path):
    for mode in ("L", "RGBA", "P"):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (WIDTH, HEIGHT)).save(path)
        assert build_prompt(GenerationRequest(scene(), path)).image_url.startswith("data:image/jpeg;base64,/9j/")


def test_messages_have_a_system_a_text_and_a_picture(picture):
    prompt = build_prompt(GenerationRequest(scene(), picture, 4))
    system, user = prompt.messages("high")
    assert system == {"role": "system", "content": prompt.system}
    assert user["content"][0] == {"type": "text", "text": prompt.text}
    assert user["content"][1] == {"type": "image_url", "image_url": {"url": prompt.image_url, "detail": "high"}}
    assert prompt.text.endswith("Write 4 pairs about this picture.")
    assert prompt.version == PROMPT_VERSION
    assert build_prompt(GenerationRequest(scene(), picture, 4)) == prompt


def test_the_rules_of_the_paper_are_stated(picture):
    rules = build_prompt(GenerationRequest(scene(), picture)).system
    for rule in (
        "purpose",
        "never names the category",
        "several objects",
        "occlude",
        '"follows"',
        "[SEG]",
        '"objects"',
    ):
        assert rule in rules


def test_the_second_round_shows_what_was_refused_and_why():
    good = PairDraft("What can bark?", "The dog [SEG].", (72,))
    bad = PairDraft("What hides it?", "The dog [SEG].", (72,), 0)
    request = GenerationRequest(
        scene(), Path("x"), 1, ((bad, (PairProblem("occlusion", "for people", "for the model"),)),), (good, bad)
    )
    text = user_text(request)
    assert "accepted; do not repeat them:\nQ: What can bark? A: The dog [SEG]. objects: [72]\n" in text
    assert "1. Q: What hides it?" in text and "It continues: Q: What can bark?" in text
    assert "Refused: for the model" in text and "for people" not in text
    assert "Write 1 pair " not in text


def test_the_schema_is_strict_as_the_openai_library_makes_it():
    from openai.lib._pydantic import to_strict_json_schema

    def stripped(value):
        if isinstance(value, dict):
            return {k: stripped(v) for k, v in value.items() if k != "description"}
        return value

    assert answer_schema() == stripped(to_strict_json_schema(AnswerPairs))
    assert "description" not in str(answer_schema())


def test_the_examples_of_the_prompt_obey_its_own_rules(picture):
    """A good question names no target; the picture for a person leaves the data out."""
    prompt = build_prompt(GenerationRequest(scene(), picture))
    assert not names_in("I am thirsty after my run; what here would help?", ["bottle", "cup", "wine glass"])
    shown = prompt.shown()
    assert prompt.text in shown and prompt.system in shown and prompt.image_url not in shown


def test_what_cannot_be_asked_is_one_clear_error(picture, tmp_path):
    empty = AnnotatedImage(5, "x.jpg", HEIGHT, WIDTH, ())
    with pytest.raises(ValueError, match="image 5 has no objects"):
        build_prompt(GenerationRequest(empty, picture))
    with pytest.raises(ValueError, match=r"image 5: .*absent.png does not exist"):
        build_prompt(GenerationRequest(scene(), tmp_path / "absent.png"))
    Image.new("RGB", (10, 20)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small.png is 10 x 20 pixels but .* 200 x 100"):
        build_prompt(GenerationRequest(scene(), tmp_path / "small.png"))
    data = picture.read_bytes()
    (tmp_path / "torn.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"torn.png cannot be decoded"):
        build_prompt(GenerationRequest(scene(), tmp_path / "torn.png"))
    with pytest.raises(ValueError, match="pairs must be positive"):
        GenerationRequest(scene(), picture, 0)


def test_questions_may_be_asked_to_mean_one_kind_of_mask(picture):
    from openai.lib._pydantic import to_strict_json_schema

    plain = build_prompt(GenerationRequest(scene(), picture))
    prompt = build_prompt(GenerationRequest(scene(), picture), intents=True)
    assert (plain.version, prompt.version) == (PROMPT_VERSION, f"{PROMPT_VERSION}-intents")
    assert "asked" not in plain.system and prompt.text == plain.text
    rules, form = prompt.system.split("Rules for what is to be shown")
    assert plain.system.startswith(rules) and form.endswith('"follows": null, "asked": ["both"]}]}')
    example = json.loads(form[form.rindex('{"pairs"') :])
    AskedPairs.model_validate(example)
    schema = answer_schema(intents=True)
    pair = schema["$defs"]["AskedPair"]
    assert pair["properties"]["asked"]["items"]["enum"] == ["both", "visible", "amodal"]
    assert set(pair["required"]) == {"question", "answer", "objects", "follows", "asked"}
    strict = to_strict_json_schema(AskedPairs)["$defs"]["AskedPair"]
    assert (pair["required"], pair["additionalProperties"]) == (strict["required"], strict["additionalProperties"])
    bad = PairDraft("What hides it? Whole shape.", "The dog [SEG].", (72,), None, ("amodal",))
    again = GenerationRequest(scene(), picture, 1, ((bad, (PairProblem("asked", "no", "no"),)),), (bad,))
    assert "objects: [72] asked: ['amodal']" in user_text(again)
