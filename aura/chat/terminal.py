"""A conversation about an image in the terminal: streamed answers, a table of the objects, an overlay per answer."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aura.chat.assistant import Assistant, ChatSession, OnObject, reply_record
from aura.data.photos import open_photo
from aura.drawing.typesetting import colour_of
from aura.drawing.visualize import ASKED_WORDS, overlay
from aura.files import write_bytes, write_json
from aura.types import Reply, ReplyObject

OVERLAY_SIDE = 2048
"""Overlays of larger images are this long, in pixels: drawing a photograph at full size takes gigabytes."""

COMMANDS = {
    "/image FILE": "talk about another image",
    "/reset": "forget the conversation, keep the image",
    "/save [FILE]": "write the conversation with all masks as JSON",
    "/help": "show this list",
    "/quit": "leave (or Ctrl-D)",
}


class Terminal:
    """Questions in, answers out. Programs read ``stdout`` (``as_json``), people read the rest.

    Args:
        assistant: Answers.
        out: Folder for the overlays and saved conversations; made when needed.
        as_json: Print one JSON object per answer on stdout, and everything else on stderr.
        image: File to start with.
    """

    def __init__(self, assistant: Assistant, out: Path, *, as_json: bool = False, image: Path | None = None) -> None:
        self.assistant, self.out, self.as_json = assistant, out, as_json
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        self.path: Path | None = None
        self.session: ChatSession | None = None
        self.records: list[dict[str, Any]] = []  # of this conversation
        self.answered = 0  # in all conversations
        self.lines = 0  # of stdin, where nobody types
        if image is not None:
            self.open(image)

    # --- what a user can do -------------------------------------------------------------------------------------------

    def open(self, path: Path) -> None:
        """Start a conversation about an image file; ValueError if it cannot be read (the old one then goes on)."""
        photo = open_photo(path)
        with self._busy("looking at the image"):
            session = self.assistant.conversation(photo)
        if self.session is not None and self.session.picture is not session.picture:
            self.session.close()
        self.path, self.session, self.records = path, session, []
        self._say(f"{path} ({photo.width} x {photo.height} pixels)", style="dim")

    def ask(self, question: str) -> dict[str, Any]:
        """Answer one question; returns what ``as_json`` prints. ValueError if it cannot be asked."""
        if self.session is None or self.session.image is None:
            raise ValueError("there is no image to talk about; give one with /image FILE")
        session, image, talked = self.session, self.session.image, len(self.session.turns)
        question = question.encode("utf-8", "replace").decode("utf-8")  # a terminal may send what is no text
        path = self.out / f"{self.path.stem if self.path else 'image'}_{self.answered + 1:02d}.png"
        try:
            if self.as_json:
                reply = session.ask(question)
            else:
                with self._growing_table(image) as add:
                    reply = session.ask(question, self._stream, add)
            write_bytes(path, draw_reply(image, question, reply))
        except BaseException:
            # Ctrl-C too: an answer that is finished is told, whatever becomes of its picture.
            if len(session.turns) > talked:
                self._tell(question, session.turns[-1][1], image, None)
            raise
        return self._tell(question, reply, image, path)

    def _tell(self, question: str, reply: Reply, image: Image.Image, path: Path | None) -> dict[str, Any]:
        """Record and show an answer; ``path`` is ``None`` where its overlay was not drawn."""
        self.answered += 1
        record = {
            "image": str(self.path),
            "width": image.width,
            "height": image.height,
            "turn": len(self.records) + 1,
            "question": question,
            **reply_record(reply),
            "overlay": None if path is None else str(path),
        }
        self.records.append(record)
        if self.as_json:
            print(json.dumps(record, allow_nan=False), flush=True)
        else:
            self._show(reply, path)
        return record

    def command(self, line: str) -> bool:
        """Obey ``/something``; False ends the conversation. ValueError says what was wrong."""
        name, _, argument = line.strip().partition(" ")
        argument = _unquote(argument)
        if name in ("/quit", "/exit"):
            return False
        if name == "/image":
            if not argument:
                raise ValueError("/image needs a file: /image photo.jpg")
            self.open(Path(argument).expanduser())
        elif name == "/reset":
            self.records = []
            if self.session is not None:
                self.session.reset()
            self._say("a new conversation about the same image")
        elif name == "/save":
            self._say(f"saved {self.save(Path(argument).expanduser() if argument else None)}")
        elif name == "/help":
            for usage, meaning in COMMANDS.items():
                self._say(f"  {usage:14}{meaning}")
        else:
            raise ValueError(f"there is no command {name}; /help lists them")
        return True

    def save(self, path: Path | None = None) -> Path:
        """Write the conversation so far as JSON, ``OUT/conversation.json`` by default."""
        if not self.records:
            raise ValueError("there is nothing to save yet; ask something first")
        path = self.out / "conversation.json" if path is None else path
        shared = ("image", "width", "height")
        turns = [{key: value for key, value in record.items() if key not in shared} for record in self.records]
        write_json(path, {**{key: self.records[0][key] for key in shared}, "turns": turns}, indent=1)
        return path

    # --- how a conversation runs --------------------------------------------------------------------------------------

    def ask_all(self, questions: Iterable[str]) -> int:
        """Ask one after the other, as rounds of one conversation; returns 0, ValueError from the first that fails."""
        for question in questions:
            self._say(f"> {question}", style="bold")
            self.ask(question)
        return 0

    def talk(self) -> int:
        """Read questions and commands until the end; returns the exit code (2 if a program's line failed)."""
        typed = sys.stdin.isatty()
        if typed:
            with suppress(ImportError):  # line editing and history, where Python has them
                import readline  # noqa: F401
            self._say("Ask about the image. /help lists the commands, /quit ends.", style="dim")
        failed = False
        while True:
            answered = self.answered
            try:
                line = self._read("> " if self.session else "image file: ", typed)
                if line is None or not self._obey(line):
                    break
            except (ValueError, OSError) as error:
                failed = True
                self._say(str(error), style="red")
            except KeyboardInterrupt:
                kept = "; the answer stays, without an overlay" if self.answered > answered else " and forgotten"
                self._say(f"\nstopped{kept}; /quit or Ctrl-D ends", style="yellow")
        return 2 if failed and not typed else 0

    def _obey(self, line: str) -> bool:
        line = line.strip()
        if line.startswith("/") and not (self.session is None and Path(line).is_file()):
            return self.command(line)
        if line and self.session is None:
            return self.command(f"/image {line}")
        if line:
            self.ask(line)
        return True

    def _read(self, prompt: str, typed: bool) -> str | None:
        """The next line, ``None`` at the end."""
        if not typed:
            return self._next_line().removeprefix("\ufeff") or None
        try:
            if not self.as_json:
                return input(prompt)
            self.console.print(prompt, end="")  # input() would write it to stdout
            return input()
        except EOFError:
            self._say("")
            return None

    def _next_line(self) -> str:
        """From a file or a program. ValueError if it is no text in stdin's encoding: one bad line loses one line."""
        source = getattr(sys.stdin, "buffer", None)
        if source is None:  # stdin was replaced by text
            return sys.stdin.readline()
        self.lines += 1
        encoding = "utf-8" if sys.stdin.encoding.lower() in ("ascii", "ansi_x3.4-1968") else sys.stdin.encoding
        try:
            return str(source.readline().decode(encoding))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"line {self.lines} of stdin is not {encoding} (byte {error.start + 1} is "
                f"0x{error.object[error.start]:02x}) and was passed over; write the questions in {encoding}"
            ) from error

    # --- what a person sees -------------------------------------------------------------------------------------------

    @contextmanager
    def _growing_table(self, image: Image.Image) -> Iterator[OnObject]:
        """A function that adds an object to the table of an answer; what is no terminal gets the table at the end."""
        objects: list[ReplyObject] = []

        def table() -> Table:
            return objects_table(objects, image.width * image.height)

        with ExitStack() as shown:
            live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

            def add(found: ReplyObject) -> None:
                objects.append(found)
                if len(objects) == 1:
                    self._say("")
                    if live is not None:
                        shown.enter_context(live)
                if live is not None:
                    live.update(table(), refresh=True)

            yield add
        if objects and live is None:
            self.console.print(table())

    def _show(self, reply: Reply, path: Path | None) -> None:
        if not reply.objects:
            self._say("")
        if reply.truncated:
            self._say("(cut: the answer reached its longest allowed length, see --max-new-tokens)", style="yellow")
        if not reply.objects:
            self._say("(the answer points at no object)", style="dim")
        if path is not None:
            self._say(f"overlay: {path}", style="dim")

    def _stream(self, piece: str) -> None:
        self.console.print(Text(_printable(piece)), end="")

    def _say(self, text: str, style: str | None = None) -> None:
        self.console.print(Text(_printable(text), style=style or ""))

    def _busy(self, what: str) -> Any:
        return self.console.status(what)


def objects_table(objects: Sequence[ReplyObject], pixels: int) -> Table:
    """One row per object: its colour in the overlay, name, occlusion rate, and areas in pixels and % of the image.

    Where the question means one kind of mask, a column says which.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    one_kind = any(obj.asked != "both" for obj in objects)
    for title in ("", "object", "asked") if one_kind else ("", "object"):
        table.add_column(title)
    for title in ("occluded", "visible px", "%", "amodal px", "%"):
        table.add_column(title, justify="right")
    for index, obj in enumerate(objects):
        areas = [None if mask is None else int(mask.sum()) for mask in (obj.visible, obj.amodal)]
        rate = "–" if obj.occlusion_rate is None else f"{obj.occlusion_rate:.0%}"
        table.add_row(
            Text(f"██ {index + 1}", style="rgb({},{},{})".format(*colour_of(index).rgb)),
            Text(_printable(obj.name)),
            *((ASKED_WORDS[obj.asked],) if one_kind else ()),
            rate,
            *(
                cell
                for area in areas
                for cell in (("–", "–") if area is None else (f"{area:,}", f"{area / pixels:.1%}"))
            ),
        )
    return table


def _printable(text: str) -> str:
    """Text alone: a model may write anything, and a terminal obeys control characters."""
    return "".join(c for c in text if c.isprintable() or c == "\n")


def draw_reply(image: Image.Image, question: str, reply: Reply) -> bytes:
    """The overlay of one answer as a PNG file's bytes."""
    objects = list(reply.objects)
    if max(image.size) > OVERLAY_SIDE:
        image = image.copy()
        image.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
        objects = [_shrink(obj, image.size) for obj in objects]
    file = io.BytesIO()
    overlay(image, objects, title=f"{question} {reply.text}").save(file, "png")
    return file.getvalue()


def _shrink(obj: ReplyObject, size: tuple[int, int]) -> ReplyObject:
    visible, amodal = (
        None if mask is None else np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        for mask in (obj.visible, obj.amodal)
    )
    return dataclasses.replace(obj, visible=visible, amodal=amodal)


def _unquote(argument: str) -> str:
    """A path as typed, or as a file manager pastes it: quoted, or with escaped spaces."""
    argument = argument.strip()
    if not argument or Path(argument).expanduser().exists():
        return argument
    try:
        return " ".join(shlex.split(argument))
    except ValueError:
        return argument
