"""The chat in the browser, on the same :class:`Assistant`: ``python -m aura.chat.web --checkpoint runs/mini``.

Needs Gradio (``pip install .[web]``). It serves this machine only, unless ``--host`` says otherwise.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)

import argparse
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from PIL import Image

from aura.chat.assistant import Assistant, ChatSession
from aura.chat.terminal import draw_reply
from aura.types import SEG_TOKEN, Reply

COLUMNS = ["", "object", "hidden", "visible px", "amodal px"]
Answer = tuple[str, Image.Image | None, list[list[Any]]]
"""The text so far; with the last one the overlay, and one row per object."""


class Demo:
    """What the page does, without the page. One answer at a time: the model is shared by all visitors."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant
        self._turn = threading.Lock()

    def open(self, path: str | Path) -> ChatSession:
        """A conversation about an image file; ValueError if it cannot be read."""
        with self._turn:
            return self.assistant.conversation(path)

    def answer(self, session: ChatSession, question: str) -> Iterator[Answer]:
        """The answer as it is written, ``[SEG]`` marks as the overlay's numbers; ValueError if it cannot be asked."""
        pieces: SimpleQueue[str | Reply | BaseException] = SimpleQueue()

        def ask() -> None:
            with self._turn:
                try:
                    pieces.put(session.ask(question, pieces.put))
                except BaseException as error:
                    pieces.put(error)

        threading.Thread(target=ask, daemon=True).start()
        text = ""
        while isinstance(piece := pieces.get(), str):
            text += piece
            yield numbered(text), None, []
        if isinstance(piece, BaseException):
            raise piece
        assert session.image is not None
        picture = Image.open(BytesIO(draw_reply(session.image, question, piece)))
        yield numbered(piece.text) + (" …" if piece.truncated else ""), picture, object_rows(piece)


def numbered(text: str) -> str:
    """``the bus [SEG]`` -> ``the bus (1)``: the number of the object in the overlay and the table."""
    first, *rest = text.split(SEG_TOKEN)
    return first + "".join(f"({number}){part}" for number, part in enumerate(rest, start=1))


def object_rows(reply: Reply) -> list[list[Any]]:
    """One row per object, in the order of :data:`COLUMNS`; a dash for what the model does not predict."""
    rows = []
    for number, obj in enumerate(reply.objects, start=1):
        areas = ["–" if mask is None else f"{int(mask.sum()):,}" for mask in (obj.visible, obj.amodal)]
        rows.append([number, obj.name, "–" if obj.occlusion_rate is None else f"{obj.occlusion_rate:.0%}", *areas])
    return rows


def _as_sent(payload: Any) -> str | None:
    """The uploaded file itself: Gradio's own reading would lose 16-bit shades and what is transparent."""
    return None if payload is None else payload.path


def build(demo: Demo) -> Any:
    """The page, a ``gradio.Blocks``."""
    import gradio as gr

    def look(path: str | None) -> tuple[ChatSession | None, list[Any], None, list[Any]]:
        session = None
        try:
            session = demo.open(path) if path else None
        except ValueError as error:
            gr.Warning(str(error))
        return session, [], None, []

    def ask(session: ChatSession | None, question: str, history: list[Any]) -> Iterator[tuple[Any, ...]]:
        asked = [*history, {"role": "user", "content": question}]
        try:
            if session is None:
                raise ValueError("choose an image first")
            for text, picture, rows in demo.answer(session, question):
                yield "", [*asked, {"role": "assistant", "content": text}], picture or gr.skip(), rows
        except ValueError as error:  # a toast, and everything stays as it was: gr.Error would cover the whole page
            gr.Warning(str(error))
            yield question, history, gr.skip(), gr.skip()

    with gr.Blocks(title="AURA", analytics_enabled=False) as page:
        gr.Markdown("# AURA\nAsk about an image. Filled: what is visible of an object; hatched: what is hidden.")
        session = gr.State(None)
        with gr.Row(equal_height=True):
            image = gr.Image(type="filepath", label="Image", height=420)
            image.preprocess = _as_sent
            overlay = gr.Image(label="Answer", height=420, interactive=False, buttons=["download", "fullscreen"])
        talk = gr.Chatbot(label="Conversation", height=260, buttons=["copy"])
        question = gr.Textbox(
            placeholder="What could I ride, and what is in the way?", show_label=False, autofocus=True
        )
        table = gr.Dataframe(headers=COLUMNS, label="Objects", interactive=False)
        again = gr.Button("New conversation about this image")
        cleared = [session, talk, overlay, table]
        image.change(look, image, cleared, concurrency_id="model")
        again.click(look, image, cleared, concurrency_id="model")
        question.submit(ask, [session, question, talk], [question, talk, overlay, table], concurrency_id="model")
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; returns 0, or 2 for what the user can mend (with one line on stderr)."""
    parser = argparse.ArgumentParser(prog="aura.chat.web", description="Ask AURA about images in the browser.")
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="run or export folder, or OWNER/NAME on the hub"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the first GPU, else the CPU)")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the language model (default: what suits)")
    parser.add_argument("--quantize", choices=("none", "int8", "int4"), default="none", help="of the language model")
    parser.add_argument("--device-map", choices=("auto",), help="spread the model over all GPUs")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)")
    options = parser.parse_args(argv)
    if options.max_new_tokens < 1:
        parser.error(f"--max-new-tokens must be positive, got {options.max_new_tokens}")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if find_spec("gradio") is None:
        print("aura.chat.web: Gradio is not installed; pip install .[web]", file=sys.stderr)
        return 2
    try:
        assistant = Assistant.from_pretrained(
            options.checkpoint,
            options.device,
            options.dtype,
            quantize=options.quantize,
            device_map=options.device_map,
            max_new_tokens=options.max_new_tokens,
        )
        build(Demo(assistant)).launch(server_name=options.host, server_port=options.port)
    except (ValueError, OSError) as error:
        print(f"aura.chat.web: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
