"""The page as a visitor meets it, in real headless Chromium; a stand-in answers in place of a model."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import browser

if not browser.IS_THERE:
    pytest.skip(browser.REMEDY, allow_module_level=True)
pytest.importorskip("selenium.webdriver", reason="no selenium: pip install -r requirements-dev.txt")
pytest.importorskip("gradio", reason="no Gradio: pip install .[web]")

import uvicorn
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.wait import WebDriverWait

from aura.chat import web
from aura.chat.demo import Demo
from aura.chat.download import COCO_FILE
from aura.chat.examples import load_examples
from aura.data.photos import open_photo
from aura.serving.address import listen, names_of, url_of
from tests.chat.standin import EVIL, Assistant, reply_about

SECONDS = 60


class Visitor:
    """Hands and eyes in front of the page."""

    def __init__(self, driver: WebDriver, url: str, assistant: Assistant) -> None:
        self.driver, self.assistant = driver, assistant
        driver.get(url)
        self.wait(lambda: self.find("textarea"))
        driver.get_log("browser")  # reading empties the list; what is in it belongs to others

    def find(self, css: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str = "body") -> str:
        return "\n".join(element.text for element in self.find(css))

    def wait(self, condition) -> None:
        waiting = WebDriverWait(self.driver, SECONDS, 0.05, [StaleElementReferenceException, IndexError])
        try:
            waiting.until(lambda _: condition())
        except TimeoutException as error:
            raise AssertionError(f"waited in vain; the page says: {self.text()[:1500]}") from error

    def upload(self, path: Path) -> None:
        self.find("input[type=file]")[0].send_keys(str(path))

    def shows(self, act: Callable[[], object]) -> Image.Image:
        """Do something that shows the model a picture; what it then sees."""
        before = len(self.assistant.seen)
        act()
        self.wait(lambda: len(self.assistant.seen) > before)
        return self.assistant.seen[-1]

    def ask(self, question: str) -> None:
        field = self.find("textarea")[0]
        field.clear()
        field.send_keys(question, Keys.ENTER)

    def overlay(self) -> str:
        """The address of the answer's picture."""
        return str(self.find(".answer img")[0].get_attribute("src"))

    def switch(self, object_number: int, state: str) -> None:
        group = self.find("fieldset")[object_number - 1]
        next(label for label in group.find_elements(By.TAG_NAME, "label") if label.text == state).click()

    def refused(self) -> list[str]:
        """What the browser's console says of blocked scripts, foreign addresses and missing files."""
        words = ("content security policy", "refused", "failed to load", "violates")
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        return [message for message in said if any(word in message.lower() for word in words)]


@contextlib.contextmanager
def serving(page: object) -> Iterator[str]:
    """The page behind its guard on a port of its own; its address."""
    with listen("127.0.0.1", 0, "") as listening:
        app = web.app_of(page, names_of("127.0.0.1"), 2**20)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield url_of("127.0.0.1", listening)
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where what visitors send lies."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("uploads")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, uploads: Path) -> Iterator[tuple[str, Assistant]]:
    """A page with an example: (its address, what answers)."""
    folder = tmp_path_factory.mktemp("examples")
    Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB").save(folder / "a.png")
    (folder / "a.txt").write_text(f"What is {EVIL}?")
    assistant = Assistant()
    with serving(web.build(Demo(assistant), load_examples(folder))) as url:
        yield url, assistant


@pytest.fixture(scope="module")
def chromium() -> Iterator[WebDriver]:
    driver = browser.start_chromium()
    yield driver
    driver.quit()


@pytest.fixture
def visitor(chromium: WebDriver, served) -> Visitor:
    return Visitor(chromium, *served)


def test_a_visitor_uploads_asks_switches_masks_and_takes_them_away(visitor, tmp_path):
    visitor.ask("What?")
    visitor.wait(lambda: "choose an image first" in visitor.text())
    picture = tmp_path / "street ü.png"
    Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB").save(picture)
    visitor.shows(lambda: visitor.upload(picture))
    question = f"What is {EVIL}?"
    visitor.ask(question)
    visitor.wait(lambda: len(visitor.find("fieldset")) == 2)
    said = visitor.text()
    assert question in said and f"Take **the** bus (1) or {EVIL} (2)." in said, "markup is text"
    assert not visitor.find("img[src=x]") and "11,250" in said and "2 " + EVIL in visitor.text("fieldset")
    seen = {visitor.overlay()}
    for number, state in ((1, "amodal"), (2, "hidden"), (1, "visible")):
        visitor.switch(number, state)
        visitor.wait(lambda: visitor.overlay() not in seen)
        seen.add(visitor.overlay())
    (tmp_path / "downloads").mkdir()
    visitor.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "downloads")}
    )
    button = next(b for b in visitor.find("button") if b.text.startswith("Masks"))
    visitor.wait(button.is_enabled)
    button.click()
    file = tmp_path / "downloads" / "street_ü_masks.zip"
    visitor.wait(file.is_file)
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    assert names[0] == COCO_FILE and "01_bus_amodal.png" in names and len(names) == 7
    expected = reply_about(open_photo(picture)).objects[0].visible
    assert (np.asarray(Image.open(archive.open("01_bus_visible.png"))) == expected).all()
    assert visitor.refused() == []


def test_an_example_fills_in_its_picture_and_its_question(visitor):
    visitor.wait(lambda: visitor.find("table tbody tr"))
    seen = visitor.shows(visitor.find("table tbody tr")[-1].click)
    visitor.wait(lambda: visitor.find("textarea")[0].get_property("value") == f"What is {EVIL}?")
    assert seen.size == (300, 200)
    assert not visitor.find("img[src=x]") and visitor.refused() == []


@pytest.mark.parametrize("kind", ["alpha.png", "sixteen.png", "small.tif", "cmyk.jpg", "turned.jpg", "moving.gif"])
def test_the_model_sees_the_picture_that_the_chat_sees(visitor, tmp_path, kind):
    ramp = np.linspace(0, 65535, 60)[None].repeat(40, 0)
    clear = np.zeros((40, 60, 4), np.uint8)
    clear[:, 30:] = (200, 60, 60, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = {
        "alpha.png": (Image.fromarray(clear), {}),
        "sixteen.png": (Image.fromarray(ramp.astype(np.uint16)), {}),
        "small.tif": (Image.fromarray((ramp / 400).astype(np.int32)), {}),
        "cmyk.jpg": (Image.fromarray(clear).convert("CMYK"), {}),
        "turned.jpg": (Image.fromarray(clear[..., :3]), {"exif": exif}),
        "moving.gif": (Image.new("P", (60, 40), 3), {"save_all": True, "append_images": [Image.new("P", (60, 40), 9)]}),
    }
    picture, options = pictures[kind]
    picture.save(tmp_path / kind, **options)
    seen = visitor.shows(lambda: visitor.upload(tmp_path / kind))
    assert (np.asarray(seen) == np.asarray(open_photo(tmp_path / kind))).all()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("<img src=x onerror=alert(1)>.png", b"<script>alert(1)</script>", "cannot be decoded"),
        ("phone.heic", b"\0\0\0\x18ftypheic" + bytes(99), "phone.heic cannot be decoded"),
    ],
)
def test_what_is_no_picture_is_told_as_text(visitor, tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    visitor.upload(path)
    visitor.wait(lambda: message in visitor.text())
    assert str(tmp_path.parent) not in visitor.text()
    assert not visitor.find("img[src=x]") and visitor.refused() == []


def test_another_site_can_neither_frame_the_page_nor_send_to_it(chromium, served, uploads, tmp_path):
    said = browser.attack(chromium, served[0], "gradio_api/upload", {"files": "evil.png"}, tmp_path)
    assert "frame-ancestors" in said or "X-Frame-Options" in said
    assert not list(uploads.rglob("*evil*")), "it was stored"


@pytest.mark.skipif("AURA_DEMO_RUN" not in os.environ, reason="no trained model: AURA_DEMO_RUN=runs/mini, data/mini")
def test_the_first_example_of_the_mini_benchmark_as_the_documentation_shows_it(chromium, uploads, tmp_path):
    model = web.Assistant.from_pretrained(os.environ["AURA_DEMO_RUN"], "cpu")
    model.seen = []
    with serving(web.build(Demo(model), load_examples(None))) as url:
        visitor = Visitor(chromium, url, model)
        visitor.wait(lambda: visitor.find("table tbody tr"))
        visitor.find("table tbody tr")[0].click()
        visitor.wait(lambda: visitor.find("textarea")[0].get_property("value"))
        visitor.wait(lambda: visitor.find(".image-frame img"))
        visitor.find("textarea")[0].send_keys(Keys.ENTER)
        button = next(b for b in visitor.find("button") if b.text.startswith("Masks"))
        visitor.wait(button.is_enabled)
        browser.screenshot(chromium, "web_page", tmp_path)
