"""LLaVA-Instruct: turns without masks, records of one picture together, and every flaw by file and record."""

from __future__ import annotations

import pytest

from aura.formats.llava_instruct import LlavaFile
from aura.formats.reading import Flaws
from tests.formats.asked import H, W, llava, picture, written


@pytest.fixture
def photos(tmp_path):
    for name in ("000000033471.jpg", "000000052846.jpg"):
        picture(tmp_path / "train2017" / name)
    return tmp_path / "train2017"


def test_the_dialogues_of_a_picture(tmp_path, photos):
    source = LlavaFile(written(tmp_path / "llava.json", llava()), photos)
    assert len(source) == 2 and source.num_without_picture == 1
    first, second = source
    assert (first.image.file_name, first.image.height, first.image.width) == ("000000033471.jpg", H, W)
    assert first.image.objects == () and first.questions == ()
    said = [[(t.question, t.answer, t.objects) for t in turns] for turns in first.dialogues]
    assert said == [
        [
            ("What colour is the bus?", "The bus is white and red.", ()),
            ("What stands behind it?", "A building stands behind it.", ()),
        ],
        [("Describe it.", "A bus on a street.", ())],
    ]
    assert [t.question for t in second.dialogues[0]] == ["Where is the cat?"]


def test_a_first_answer_without_question_is_left_out(tmp_path, photos):
    record = llava()[2]
    record["conversations"].insert(0, {"from": "gpt", "value": "Hello, ask me."})
    (asked,) = LlavaFile(written(tmp_path / "llava.json", [record]), photos)
    assert len(asked.dialogues[0]) == 1


def lines(*said):
    return {"id": "x", "image": "000000033471.jpg", "conversations": [{"from": f, "value": v} for f, v in said]}


BAD = {
    "no conversations": ({"id": "x", "image": "a.jpg"}, r"\(id x\): 'conversations' must be a list of \{from, value\}"),
    "empty": (lines(), "questions and answers must take turns and end with an answer, they are "),
    "two questions": (lines(("human", "a"), ("human", "b")), "they are human, human"),
    "no answer": (lines(("human", "a"), ("gpt", "b"), ("human", "c")), "they are human, gpt, human"),
    "role": (lines(("human", "a"), ("system", "b")), "line 1: 'from' must be human or gpt, it is 'system'"),
    "no text": (lines(("human", "a"), ("gpt", " ")), "line 1: 'value' must be a text"),
    "mark alone": (lines(("human", "<image>\n"), ("gpt", "b")), "turn 0 has nothing but <image>"),
    "[SEG]": (lines(("human", "a"), ("gpt", "It is [SEG].")), r"line 1: it holds \[SEG\], but there are no masks"),
    "image": ({"id": "x", "image": 7, "conversations": []}, "'image' must be a text"),
    "no record": (7, "item 0: expected an object, got a int"),
    "no picture": (
        lines(("human", "a"), ("gpt", "b")) | {"image": "b.jpg"},
        "item 0: .*b.jpg does not exist",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_one_error_with_file_and_record(tmp_path, photos, case):
    record, told = BAD[case]
    with pytest.raises(ValueError, match=told) as error:
        list(LlavaFile(written(tmp_path / "llava.json", [record]), photos))
    assert "llava.json: item 0" in str(error.value)


def test_bad_records_can_be_left_out(tmp_path, photos):
    flaws = Flaws(skip=True)
    records = [record for record, _ in BAD.values()] + llava()
    assert len(list(LlavaFile(written(tmp_path / "llava.json", records), photos, flaws=flaws))) == 2
    assert len(flaws.told) == len(BAD)


def test_wrong_files_are_told(tmp_path, photos):
    with pytest.raises(ValueError, match=r"llava\.json: expected a JSON list of records, got a object"):
        LlavaFile(written(tmp_path / "llava.json", {}), photos)
    (tmp_path / "llava.json").write_text("[{]")
    with pytest.raises(ValueError, match=r"llava\.json: is not JSON"):
        LlavaFile(tmp_path / "llava.json", photos)
    (tmp_path / "llava.json").write_text("[] []")
    with pytest.raises(ValueError, match=r"llava\.json: is not JSON"):
        LlavaFile(tmp_path / "llava.json", photos)
    (photos / "000000033471.jpg").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"llava\.json: item 0: .*000000033471\.jpg cannot be decoded"):
        list(LlavaFile(written(tmp_path / "llava.json", llava()), photos))
