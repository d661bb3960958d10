"""The chat in the browser, on the same :class:`Assistant`: ``python -m aura.chat.web --checkpoint runs/mini``.

Needs Gradio (``pip install .[web]``). It serves this machine only, unless ``--host`` says otherwise.
"""

from __future__ import annotations

from aura import environment

environment.command_line(__name__)
if __name__ == "__main__":
    environment.prepare()  # before torch is imported

import argparse
import contextlib
import html
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from aura.chat.assistant import Assistant, ChatSession
from aura.chat.demo import COLUMNS, Demo, draw, switches_of, write_masks
from aura.chat.examples import Example, load_examples
from aura.chat.options import Parser, load
from aura.data.photos import open_photo
from aura.serving.address import listen, names_of, url_of, warn_of_others

__all__ = ["Assistant", "Demo", "build", "main", "serve"]

POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self'; connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'self'; "
    "frame-ancestors 'none'"
)
"""Gradio writes styles into the page; its inline scripts are allowed by their hashes, others are not."""
FETCHERS = r"(?i)/gradio_api/(proxy=|file[=/](?!/))"
"""Addresses of Gradio at which the server would fetch what others name."""
KEPT_SECONDS, KEPT_TALKS = 3600, 32
"""A conversation holds its image's features and the tokens' keys and values, so that only so many are kept so long."""


@dataclass
class Talk:
    """A visitor's conversation. It stays on the server: what a browser sends back is never read as history."""

    session: ChatSession
    name: str
    lines: list[dict[str, str]] = field(default_factory=list)
    question: str = ""


def build(demo: Demo, examples: Sequence[Example] = (), image: Path | None = None) -> Any:
    """The page, a ``gradio.Blocks``; ``image`` is looked at first."""
    import gradio as gr

    def look(path: str | None) -> tuple[Any, ...]:
        talk = None
        try:
            talk = Talk(demo.open(path), Path(path).name) if path else None
        except ValueError as error:
            warn(str(error).replace(str(path), Path(str(path)).name))  # where uploads lie is nobody's business
        return talk, None, [], None, [], closed()

    def ask(talk: Talk | None, question: str) -> Iterator[tuple[Any, ...]]:
        lines = talk.lines if talk else []
        try:
            if talk is None:
                raise ValueError("choose an image first; a conversation is forgotten after an hour without a question")
            for text, picture, rows in demo.answer(talk.session, question):
                said = [*lines, line("user", question), line("assistant", text)]
                yield gr.skip(), None, "", said, picture or gr.skip(), rows, closed()
            talk.lines, talk.question = said, question
            ready = closed()
            try:
                taken = write_masks(overlay.GRADIO_CACHE, talk.name, *answer_of(talk))
                ready = gr.DownloadButton(value=taken, interactive=True)
            except OSError as error:  # such as a full disk; the answer stands
                warn(f"the masks cannot be taken away: {error.strerror or error}")
            yield talk, len(talk.lines), "", said, gr.skip(), gr.skip(), ready
        except ValueError as error:  # a toast, and everything stays as it was: gr.Error would cover the whole page
            warn(str(error))
            yield gr.skip(), gr.skip(), question, lines, gr.skip(), gr.skip(), gr.skip()

    def line(role: str, text: str) -> dict[str, str]:
        """What somebody said; Gradio shows it as HTML even where it is told to render nothing."""
        return {"role": role, "content": html.escape(text, quote=False)}

    def warn(message: str) -> None:
        gr.Warning(html.escape(message, quote=False))

    def closed() -> Any:
        return gr.DownloadButton(value=None, interactive=False)

    with gr.Blocks(title="AURA", analytics_enabled=False, delete_cache=(600, 86400)) as page:
        page.state_session_capacity = KEPT_TALKS
        gr.Markdown("# AURA\nAsk about an image. Filled: what is visible of an object; hatched: what is hidden.")
        talk = gr.State(None, time_to_live=KEPT_SECONDS)
        answered = gr.State(None, time_to_live=KEPT_SECONDS)  # changes with every answer, and draws its switches
        with gr.Row(equal_height=True):
            photo = gr.Image(
                None if image is None else str(image),
                type="filepath",
                label="Image",
                height=420,
                sources=["upload", "clipboard"],
                buttons=[],
            )
            photo.preprocess = _as_sent  # type: ignore[method-assign]
            photo.async_move_resource_to_block_cache = _uploaded_only(photo)  # type: ignore[method-assign, assignment]
            overlay = gr.Image(
                label="Answer",
                show_label=False,
                elem_classes="answer",
                height=420,
                interactive=False,
                buttons=["download", "fullscreen"],
            )
        said = gr.Chatbot(label="Conversation", height=260, buttons=["copy"], render_markdown=False)
        question = gr.Textbox(
            placeholder="What could I ride, and what is in the way?", label="Question", show_label=False, autofocus=True
        )
        table = gr.Dataframe(headers=COLUMNS, label="Objects", interactive=False)

        @gr.render([talk, answered], triggers=[answered.change])
        def switches(now: Talk | None, of_answer: int | None) -> None:
            if now is None or of_answer is None:
                return
            picture, asked, reply = answer_of(now)
            with gr.Row():
                shown = [
                    gr.Radio(
                        switches_of(obj),
                        value=switches_of(obj)[0],
                        label=f"{number} {obj.name}",
                        interactive=True,
                        min_width=200,
                    )
                    for number, obj in enumerate(reply.objects, start=1)
                ]

            def redraw(*states: str) -> Any:
                return draw(picture, asked, reply, states)

            for radio in shown:
                radio.input(redraw, shown, overlay, api_visibility="private", show_progress="hidden")

        with gr.Row():
            masks = gr.DownloadButton("Masks as COCO JSON and PNG", interactive=False)
            again = gr.Button("New conversation about this image")
        if examples:
            gr.Examples(
                [[str(e.image), e.question] for e in examples], [photo, question], label="Examples", examples_per_page=4
            )
        cleared = [talk, answered, said, overlay, table, masks]
        shared: dict[str, Any] = {"concurrency_id": "model", "api_visibility": "private"}
        photo.change(look, photo, cleared, **shared)
        for fresh in (again.click, said.clear):
            fresh(look, photo, cleared, **shared)
        question.submit(ask, [talk, question], [talk, answered, question, said, overlay, table, masks], **shared)
        if image is not None:
            page.load(look, photo, cleared, **shared)
    return page


def answer_of(talk: Talk) -> tuple[Any, str, Any]:
    """The picture, the last question, and its answer."""
    return talk.session.image, talk.question, talk.session.turns[-1][1]


def _as_sent(payload: Any) -> str | None:
    """The uploaded file itself: Gradio's own reading would lose 16-bit shades and what is transparent."""
    return None if payload is None else payload.path


def _uploaded_only(photo: Any) -> Callable[[Any], Awaitable[str | None]]:
    """Takes no address in place of a file: Gradio would have this machine fetch it."""
    move = photo.async_move_resource_to_block_cache

    async def take(path: Any) -> str | None:
        if path is not None and "://" in str(path):
            raise ValueError("pictures are uploaded; this page fetches none")
        return await move(path)

    return take


def app_of(page: Any, hosts: Sequence[str], max_upload: int) -> Any:
    """The page behind the guard, an ASGI app.

    Args:
        page: Of :func:`build`.
        hosts: Names under which it may be reached; empty for any.
        max_upload: Most bytes of a picture.
    """
    import gradio as gr
    from fastapi import FastAPI

    from aura.serving.guard import Guard
    from aura.serving.scripts import InlineScripts

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(
        Guard,
        hosts=hosts,
        policy=POLICY,
        # A form around the file has a few hundred bytes.
        max_body={"/gradio_api/upload": max_upload + 64 * 1024},
        shut=FETCHERS,
        kept=("/assets/", "/static/"),
    )
    app.add_middleware(InlineScripts)
    system = ["ui-sans-serif", "system-ui", "sans-serif"]  # Gradio's own choice would be fetched from Google
    app = gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"]),
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=max_upload,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    # Gradio takes a mounted page for one in the making, in which any file of the machine may be named.
    page.has_launched = True
    return app


def serve(page: Any, listening: socket.socket, host: str, *, max_upload: int, names: Sequence[str] = ()) -> None:
    """Serve a page until Ctrl-C.

    Args:
        page: Of :func:`build`.
        listening: The socket on ``host``.
        host: The address to serve.
        max_upload: Most bytes of a picture.
        names: Further names under which it is reached, such as a proxy's; only used on a loopback address.
    """
    import uvicorn

    config = uvicorn.Config(
        app_of(page, names_of(host, *names), max_upload),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    print(f"AURA at {url_of(host, listening)} (Ctrl-C stops it)", flush=True)
    warn_of_others(
        host,
        ", without a password and without encryption",
        "stay on 127.0.0.1 and let others come through ssh or an https proxy with a login, see docs/chat.md",
    )
    uvicorn.Server(config).run(sockets=[listening])


@contextlib.contextmanager
def folder_of_uploads() -> Iterator[str]:
    """Where pictures of visitors lie: nobody else's on this machine, and gone with the page, also by SIGTERM."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with tempfile.TemporaryDirectory(prefix="aura-web-") as folder:
            yield folder
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; returns 2 for what the user can mend (with one line on stderr)."""
    options = parse(argv)
    if find_spec("gradio") is None:
        print("aura.chat.web: Gradio is not installed; pip install .[web]", file=sys.stderr)
        return 2
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        # What can be wrong is told before the weights are loaded, which takes minutes.
        examples = load_examples(options.examples)
        if options.image is not None:
            open_photo(options.image)
        with (
            listen(options.host, options.port, "choose others with --host and --port") as listening,
            folder_of_uploads() as folder,
        ):
            os.environ["GRADIO_TEMP_DIR"] = folder
            demo = Demo(load(options))
            page = build(demo, examples=examples, image=options.image)
            serve(page, listening, options.host, max_upload=options.max_upload * 2**20, names=options.name)
    except (ValueError, OSError) as error:
        print(f"aura.chat.web: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="aura.chat.web", description="Ask AURA about images in the browser.")
    parser.add_model()
    parser.add_argument("--image", type=Path, metavar="FILE", help="what to talk about first")
    parser.add_argument(
        "--examples",
        type=Path,
        metavar="DIR",
        help="folder of pictures, with the question about NAME.jpg in NAME.txt, or a data set's JSON file "
        "(default: the mini benchmark, if make data has made it)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="0: any free one (default %(default)s)")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        help="under which a proxy before this machine reaches it; may be repeated",
    )
    parser.add_argument(
        "--max-upload", type=int, default=32, metavar="MB", help="largest picture to upload (default %(default)s)"
    )
    options = parser.parse_args(argv)
    parser.check_model(options)
    if options.max_upload < 1:
        parser.error(f"--max-upload must be positive, got {options.max_upload}")
    return options


if __name__ == "__main__":
    sys.exit(main())
