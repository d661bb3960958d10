"""The command that serves the page, and the page where Gradio is installed."""

from __future__ import annotations

import signal
import socket
import stat
from pathlib import Path

import pytest
from PIL import Image

from aura.chat import web
from tests.chat.standin import demo


def test_without_gradio_the_remedy_is_said(monkeypatch, capsys):
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    assert web.main(["--checkpoint", "anywhere"]) == 2
    assert capsys.readouterr().err == "aura.chat.web: Gradio is not installed; pip install .[web]\n"


@pytest.fixture
def loaded(monkeypatch):
    """What the model was asked to be; it never comes."""
    asked: dict[str, object] = {}

    def load(*args, **options):
        asked.update(options)
        raise ValueError("not here")

    monkeypatch.setattr(web, "find_spec", lambda name: True)
    monkeypatch.setattr(web.Assistant, "from_pretrained", load)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    return asked


def test_the_page_takes_the_chat_s_options(loaded, capsys):
    options = ["--device-map", "auto", "--max-new-tokens", "64", "--quantize", "int4"]
    assert web.main(["--checkpoint", "run", "--port", "0", *options]) == 2
    assert loaded == {"quantize": "int4", "device_map": "auto", "max_new_tokens": 64}
    assert capsys.readouterr().err == "aura.chat.web: not here\n"
    for wrong in (["--max-new-tokens", "0"], ["--max-upload", "0"], ["--quantize", "int3"]):
        with pytest.raises(SystemExit):
            web.main(["--checkpoint", "run", *wrong])


def test_what_can_be_wrong_is_told_before_the_weights_are_loaded(loaded, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options, message in (
            (["--port", str(port)], f"cannot listen on 127.0.0.1, port {port} "),
            (["--host", "a.invalid", "--port", "0"], "cannot listen on a.invalid, port 0 "),
            (["--port", "0", "--examples", str(tmp_path / "none")], "does not exist; give a folder of pictures"),
            (["--port", "0", "--examples", str(tmp_path)], "broken.png"),
            (["--port", "0", "--image", str(tmp_path / "broken.png")], "broken.png"),
        ):
            assert web.main(["--checkpoint", "run", *options]) == 2
            said = capsys.readouterr().err
            assert message in said and said.count("\n") == 1
    assert not loaded


def test_uploads_go_with_the_page_whatever_ends_it():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, web.folder_of_uploads() as folder:
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
        (Path(folder) / "photo.jpg").touch()
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 143 and not Path(folder).exists() and signal.getsignal(signal.SIGTERM) is before


def test_a_picture_comes_as_it_was_sent(tmp_path):
    gradio = pytest.importorskip("gradio")
    from gradio.data_classes import ImageData

    page = web.build(demo())
    image = next(b for b in page.blocks.values() if isinstance(b, gradio.Image) and b.label == "Image")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    Image.new("RGBA", (60, 40)).save(tmp_path / "clear.png")
    for name in ("phone.heic", "clear.png"):
        path = str(tmp_path / name)
        assert image.preprocess(ImageData(path=path, orig_name=name)) == path
