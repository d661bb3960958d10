"""The review app's server in a process of its own, and an annotator in front of a headless Chromium.

Import this only where Chromium, its driver and selenium are installed.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from selenium.common.exceptions import StaleElementReferenceException, TimeoutException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.wait import WebDriverWait

from aura.datagen.store.store import Store

ROOT = Path(__file__).parents[3]
NAMES = ("Ada", "Grace", "Edsger")
SECONDS = 60


def run_script(folder: Path, script: str, *arguments: str) -> None:
    """A script, in this process, as if called in ``folder``."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        main = runpy.run_path(str(ROOT / "scripts" / script))["main"]
        assert main([*arguments, "--config", "datagen.yaml"]) == 0
    finally:
        os.chdir(before)


class Server:
    """``scripts/review.py serve`` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        with self.store() as store:
            self.tokens = {name: store.annotators.add(name) for name in NAMES}
        self.start()

    def start(self) -> None:
        """Start it; after the first time on the same port."""
        command = [sys.executable, str(ROOT / "scripts" / "review.py"), "serve", "--config", "datagen.yaml"]
        self.process = subprocess.Popen(
            [*command, f"--review.port={self.port}"], cwd=self.folder, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line
        self.port = int(found[1])

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def store(self) -> Store:
        """The project, as another process sees it."""
        return Store.open(self.folder / "project" / "project.sqlite")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Reviewer:
    """Hands and eyes of an annotator in front of a browser."""

    def __init__(self, driver: WebDriver, server: Server, name: str) -> None:
        self.driver = driver
        self.server = server
        driver.get(f"{server.url}/login")
        driver.delete_all_cookies()
        driver.get(f"{server.url}/login")
        self.find("#token").send_keys(server.tokens[name], Keys.ENTER)
        self.wait(lambda: self.text("h1") == "Your queue")
        self.complaints()  # reading empties the list; what is in it belongs to others

    def find(self, css: str):  # type: ignore[no-untyped-def]
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        found = self.driver.find_elements(By.CSS_SELECTOR, css)
        return found[0].text.strip() if found else ""

    def value(self, css: str) -> str:
        return str(self.find(css).get_property("value"))

    def wait(self, condition: Callable[[], object]) -> None:
        waiting = WebDriverWait(self.driver, SECONDS, 0.05, [StaleElementReferenceException])
        try:
            waiting.until(lambda _: condition())
        except TimeoutException as error:
            raise AssertionError(f"waited in vain; the page says: {self.text('main')[:1000]}") from error

    def open(self, pair_id: int) -> None:
        self.driver.get(f"{self.server.url}/pairs/{pair_id}")
        self.wait(lambda: self.text("h1").startswith(f"Pair {pair_id}"))

    def press(self, *keys: str) -> None:
        """Keys for whatever has the focus, or for the page."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def leaves(self, act: Callable[[], object]) -> None:
        """Do something that leads to another page, and wait for that."""
        old = self.find("html")
        act()

        def gone() -> bool:
            try:
                old.is_enabled()
            except (StaleElementReferenceException, WebDriverException):
                return True
            return False

        self.wait(gone)
        self.wait(lambda: self.driver.execute_script("return document.readyState") == "complete")

    def judge(self, pair_id: int, key: str) -> None:
        self.open(pair_id)
        self.leaves(lambda: self.press(key))

    def retype(self, css: str, text: str) -> None:
        field = self.find(css)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)

    def edit(self, pair_id: int, answer: str) -> None:
        self.open(pair_id)
        self.press("e")
        self.retype("#answer", answer)
        self.leaves(lambda: self.press(Keys.CONTROL, Keys.ENTER))

    def saved(self) -> None:
        self.wait(lambda: self.text("#state").startswith("Draft saved"))

    def queue(self) -> list[tuple[int, str]]:
        """(pair, what to do) as the first page lists them."""
        self.driver.get(self.server.url)
        if not self.text("#start"):
            return []
        rows = self.driver.find_elements(By.CSS_SELECTOR, "main table")[0].find_elements(By.CSS_SELECTOR, "tbody tr")
        cells = [row.find_elements(By.TAG_NAME, "td") for row in rows]
        return [(int(row[0].text), row[3].text) for row in cells]

    def complaints(self) -> list[str]:
        """What the browser's console says: blocked scripts, missing files, errors."""
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]
