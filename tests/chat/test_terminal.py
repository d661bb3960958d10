from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aura.chat.assistant import Assistant, ChatSession
from aura.chat.terminal import COMMANDS, Terminal, draw_reply
from aura.data.processor import Processor
from aura.masks import decode_rle
from aura.types import Reply, ReplyObject

SPEC = importlib.util.spec_from_file_location("chat", Path(__file__).parents[2] / "chat.py")
assert SPEC is not None
chat = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(chat)


@pytest.fixture
def assistant(tiny_model, tiny_tokenizer) -> Assistant:
    processor = Processor(tiny_tokenizer, sam_image_size=64, clip_image_size=28, num_image_tokens=4)
    tiny_model.config.seg_token_id = processor.text.seg_token_id
    return Assistant(tiny_model, processor, max_new_tokens=6)


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    """What the assistant says, in order, in place of the random model's babble. An exception is raised instead."""
    left, right = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    left[:, :30], right[:, 15:45] = True, True
    bus = ReplyObject("bus", left & ~right, left, 0.5)
    prepared: list[Reply | BaseException] = []

    def ask(self, question, on_text=None, on_object=None):
        reply = prepared.pop(0) if prepared else Reply("Take the bus [SEG].", (bus,))
        if isinstance(reply, BaseException):
            raise reply
        for piece in reply.text.partition("bus"):
            if on_text is not None:
                on_text(piece)
        for obj in reply.objects:
            if on_object is not None:
                on_object(obj)
        self.turns.append((question, reply))
        return reply

    monkeypatch.setattr(ChatSession, "ask", ask)
    return prepared


@pytest.fixture
def street(tmp_path) -> Path:
    path = tmp_path / "my street.png"
    Image.new("RGB", (60, 40), "grey").save(path)
    return path


@pytest.fixture
def export(assistant, tmp_path) -> Path:
    assistant.model.save_pretrained(tmp_path / "run" / "export")
    assistant.processor.save_pretrained(tmp_path / "run" / "export")
    return tmp_path / "run"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def lines(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def say(assistant, out, street, monkeypatch, capsys):
    """Types lines into a terminal; returns the exit code and everything that was printed."""

    def run(*typed: str, image: Path | None = street):
        lines(monkeypatch, "".join(f"{line}\n" for line in typed))
        code = Terminal(assistant, out, image=image).talk()
        return code, capsys.readouterr().out

    return run


# --- in the terminal --------------------------------------------------------------------------------------------------


def test_an_answer_comes_with_a_table_and_an_overlay(say, out):
    code, printed = say("What could I ride?", "/quit", "never asked")
    assert code == 0
    assert "Take the bus [SEG]." in printed
    row = next(line for line in printed.splitlines() if "██" in line)
    assert row.split() == ["██", "1", "bus", "50%", "600", "25.0%", "1,200", "50.0%"]
    overlay = out / "my street_01.png"
    assert str(overlay) in printed.replace("\n", "")
    assert Image.open(overlay).width >= 60
    assert list(out.iterdir()) == [overlay]


def test_answers_without_objects_or_end_say_so(say, answers):
    answers += [Reply("Nothing.", ()), Reply("It is", (), truncated=True)]
    _, printed = say("one?", "two?")
    assert printed.count("points at no object") == 2
    assert printed.count("cut: the answer reached") == 1


def test_reset_and_save(say, out, tmp_path):
    code, printed = say("/save", "one?", "/reset", "two?", "three?", "/save", f"/save '{tmp_path}/my chat.json'")
    assert "nothing to save" in printed
    assert code == 2, "a program's line failed"
    saved = json.loads((out / "conversation.json").read_text())
    assert saved == json.loads((tmp_path / "my chat.json").read_text())
    assert saved["image"].endswith("my street.png")
    assert [t["question"] for t in saved["turns"]] == ["two?", "three?"]
    assert [t["turn"] for t in saved["turns"]] == [1, 2]
    assert decode_rle(saved["turns"][0]["objects"][0]["amodal"]).sum() == 1200
    assert [Path(t["overlay"]).name for t in saved["turns"]] == ["my street_02.png", "my street_03.png"]
    assert all(Path(t["overlay"]).is_file() for t in saved["turns"])


def test_another_image_starts_another_conversation(say, tmp_path, out):
    Image.new("RGB", (30, 20)).save(tmp_path / "cat.png")
    _, printed = say("one?", f"/image {tmp_path}/gone.png", "two?", "/image", f"/image {tmp_path}/cat.png", "/save")
    assert "gone.png does not exist" in printed
    assert "/image needs a file" in printed
    assert "cat.png (30 x 20 pixels)" in printed
    assert {p.name for p in out.iterdir()} == {"my street_01.png", "my street_02.png"}
    assert "nothing to save" in printed


@pytest.mark.parametrize("typed", ["/image {}", "{}", "/image '{}'"])
def test_without_an_image_it_asks_for_one(say, street, typed):
    code, printed = say("/reset", typed.format(street), "What could I ride?", image=None)
    assert code == 0
    assert "Take the bus" in printed


def test_a_question_before_any_image_is_taken_for_a_file(say):
    code, printed = say("What could I ride?", image=None)
    assert code == 2
    assert "the image What could I ride? does not exist" in printed


def test_help_lists_every_command_and_unknown_ones_are_named(say):
    code, printed = say("/help", "/imgae cat.png", "/exit")
    assert all(usage in printed for usage in COMMANDS)
    assert "no command /imgae; /help lists them" in printed
    assert code == 2


def test_blank_lines_are_not_questions(say, out):
    assert say("", "   ")[0] == 0
    assert not out.exists()


def test_ctrl_c_stops_the_answer_and_not_the_conversation(say, answers):
    answers.append(KeyboardInterrupt())
    code, printed = say("one?", "two?")
    assert "stopped and forgotten" in printed
    assert "Take the bus" in printed
    assert code == 0


def test_ctrl_c_while_the_overlay_is_drawn_keeps_the_answer(assistant, out, street, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    lines(monkeypatch, "one?\n")
    terminal = Terminal(assistant, out, image=street)
    monkeypatch.setattr("aura.chat.terminal.draw_reply", stop)
    terminal.talk()
    printed = capsys.readouterr().out
    assert "Take the bus" in printed and "██" in printed
    assert "stopped; the answer stays" in printed and "forgotten" not in printed
    assert len(terminal.session.turns) == len(terminal.records) == 1
    assert terminal.records[0]["overlay"] is None


def test_an_answer_is_told_though_its_overlay_cannot_be_written(export, street, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aura.chat.terminal.write_bytes", full)
    arguments = ["--checkpoint", str(export), "--image", str(street), "--out", str(tmp_path), "--json", "--ask", "one?"]
    assert chat.main(arguments) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["text"] == "Take the bus [SEG]."
    assert "No space left" in captured.err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_line_in_another_encoding_loses_itself_only(assistant, out, street, monkeypatch, capsys, encoding):
    typed = "one?\nWas könnte ich essen?\ntwo?\n".encode("latin-1")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding=encoding))
    assert Terminal(assistant, out, image=street).talk() == 2
    printed = capsys.readouterr().out
    assert printed.count("Take the bus") == 2
    assert "line 2 of stdin is not utf-8 (byte 6 is 0xf6)" in printed


def test_what_is_no_text_in_a_question_becomes_a_question_mark(assistant, out, street, capsys):
    assert Terminal(assistant, out, as_json=True, image=street).ask("k\udcf6nnte?")["question"] == "k?nnte?"
    json.loads(capsys.readouterr().out)


def test_without_stdin_questions_come_from_options(export, street, out, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    arguments = ["--checkpoint", str(export), "--image", str(street), "--out", str(out)]
    with pytest.raises(SystemExit) as end:
        chat.main(arguments)
    assert end.value.code == 2
    assert "there is no stdin to read questions from; give them with --ask" in capsys.readouterr().err
    assert chat.main([*arguments, "--ask", "What?"]) == 0


def test_a_file_that_cannot_be_written_does_not_end_the_conversation(say, tmp_path):
    (tmp_path / "taken").write_text("a file")
    _, printed = say("one?", f"/save {tmp_path}/taken/chat.json", "two?")
    assert "taken is, or lies below, a file" in printed
    assert printed.count("Take the bus") == 2


def test_markup_in_an_answer_is_shown_and_control_characters_are_not(say, answers):
    thing = ReplyObject("dan\x1bger", np.ones((40, 60), bool), None, None)
    answers.append(Reply("[red]danger[/red] \x1b[2J", (thing,)))
    printed = say("one?")[1]
    assert "[red]danger[/red] [2J" in printed
    assert "\x1b" not in printed


def test_a_large_photograph_has_a_smaller_overlay():
    mask = np.zeros((1500, 3000), bool)
    mask[:, :1500] = True
    reply = Reply("the bus [SEG]", (ReplyObject("bus", mask, mask, 0.0),))
    picture = Image.open(io.BytesIO(draw_reply(Image.new("RGB", (3000, 1500)), "What?", reply)))
    assert picture.width == 2048


def test_an_only_mask_is_shown_with_dashes_for_the_other(say, answers):
    mask = np.zeros((40, 60), bool)
    mask[:, :15] = True
    answers.append(Reply("the bus [SEG]", (ReplyObject("bus", mask, None, None),)))
    printed = say("one?")[1]
    assert "600" in printed and "25.0%" in printed and printed.count("–") == 3


# --- chat.py ----------------------------------------------------------------------------------------------------------

KEYS = {"image", "width", "height", "turn", "question", "text", "truncated", "objects", "overlay"}
OBJECT_KEYS = {"name", "asked", "occlusion_rate", "visible", "amodal", "visible_bbox", "bbox", "visible_area", "area"}


def test_json_is_one_object_per_answer_and_nothing_else(export, street, out, capsys):
    arguments = ["--checkpoint", str(export), "--image", str(street), "--out", str(out), "--json", "--device", "cpu"]
    assert chat.main([*arguments, "--ask", "What could I ride?", "--ask", "And?"]) == 0
    captured = capsys.readouterr()
    first, second = (json.loads(line) for line in captured.out.splitlines())
    assert set(first) == KEYS
    assert (first["turn"], second["turn"]) == (1, 2)
    assert second["question"] == "And?"
    (bus,) = first["objects"]
    assert set(bus) == OBJECT_KEYS
    assert bus["bbox"] == [0, 0, 30, 40]
    assert bus["visible_bbox"] == [0, 0, 15, 40]
    assert decode_rle(bus["visible"]).shape == (first["height"], first["width"]) == (40, 60)
    assert Path(first["overlay"]).is_file()
    assert "What could I ride?" in captured.err


def test_questions_come_from_a_pipe(export, street, out, capsys, monkeypatch):
    lines(monkeypatch, "\ufeffone?\n/nonsense\ntwo?\n")
    assert chat.main(["--checkpoint", str(export), "--image", str(street), "--out", str(out), "--json"]) == 2
    captured = capsys.readouterr()
    assert [json.loads(line)["question"] for line in captured.out.splitlines()] == ["one?", "two?"]
    assert "/nonsense" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ask", "What?"], "--ask needs --image"),
        (["--image", "gone.png"], "gone.png does not exist"),
        (["--checkpoint", "nowhere"], "nowhere does not exist"),
        (["--dtype", "fp8"], "fp8"),
        (["--device", "toaster"], "toaster"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be positive"),
        (["--max-new-tokens", "many"], "many"),
        (["--imgae", "x"], "--imgae"),
    ],
)
def test_a_users_mistake_is_one_line_and_code_2(export, capsys, monkeypatch, arguments, message):
    lines(monkeypatch, "")
    try:
        code = chat.main(["--checkpoint", str(export), *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("chat.py: ")
    assert captured.err.count("\n") == 1


def test_a_question_that_fails_and_a_folder_that_cannot_be_written(export, street, tmp_path, capsys, answers):
    (tmp_path / "taken").write_text("a file")
    arguments = ["--checkpoint", str(export), "--image", str(street), "--ask", "What?"]
    answers.append(ValueError("the question is empty"))
    assert chat.main([*arguments, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "chat.py: the question is empty"
    with pytest.raises(SystemExit) as end:
        chat.main([*arguments, "--out", str(tmp_path / "taken")])
    assert end.value.code == 2
    assert "taken is a file" in capsys.readouterr().err


def test_ctrl_c_in_one_shot_use_ends_with_130(export, street, out, answers):
    answers.append(KeyboardInterrupt())
    assert chat.main(["--checkpoint", str(export), "--image", str(street), "--out", str(out), "--ask", "What?"]) == 130


def test_an_asked_mask_is_told(say, answers):
    mask = np.ones((40, 60), bool)
    kinds = {"visible": "visible part", "amodal": "whole shape", "both": "both"}
    objects = tuple(ReplyObject("cup", mask, mask, 0.0, kind) for kind in kinds)
    answers.append(Reply("Here [SEG] and [SEG] and [SEG].", objects))
    _, printed = say("Which?")
    rows = [" ".join(line.split()) for line in printed.splitlines() if "██" in line]
    for row, words in zip(rows, kinds.values(), strict=True):
        assert f"cup {words} 0%" in row
    _, printed = say("What could I ride?")
    assert "object  occluded" in printed and "visible part" not in printed
