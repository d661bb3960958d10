"""A headless Chromium for the tests of pages, and its screenshots.

Needs Chromium, its driver (``IS_THERE``) and selenium.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IS_THERE = CHROMIUM is not None and DRIVER is not None
REMEDY = "no Chromium: apt-get install -y chromium chromium-driver"
SCREENSHOTS = os.environ.get("AURA_SCREENSHOTS")
"""A folder that gets the pictures of the documentation: AURA_SCREENSHOTS=docs/images pytest tests/chat tests/datagen"""


def start_chromium(*, javascript: bool = True) -> WebDriver:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "no-proxy-server"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1400,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if not javascript:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


def attack(driver: WebDriver, url: str, address: str, fields: dict[str, str], folder: Path) -> str:
    """What another site does to a page: frames it, and posts a form to ``url`` + ``address``, a file in each field.

    Returns:
        What the browser's console says.
    """
    page = folder / "evil.html"
    parts = "".join(f"form.append('{name}', new Blob(['x']), '{file}');" for name, file in fields.items())
    page.write_text(
        f"<title>evil</title><iframe src='{url}'></iframe><script>const form = new FormData();{parts}"
        f"fetch('{url}{address}', {{method: 'POST', body: form, mode: 'no-cors', credentials: 'include'}})"
        ".finally(() => document.title = 'sent')</script>"
    )
    driver.get(page.as_uri())
    end = time.monotonic() + 60
    while driver.title != "sent":
        assert time.monotonic() < end, "the request never ended"
        time.sleep(0.05)
    said = ""
    while "frame" not in said.lower() and time.monotonic() < end:  # the frame may still be on its way
        said += " ".join(entry["message"] for entry in driver.get_log("browser"))
    return said


def screenshot(driver: WebDriver, name: str, folder: Path) -> None:
    """The page as a small JPEG; into the documentation when asked to."""
    height = driver.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": 1400, "height": min(height, 1500), "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    folder = Path(SCREENSHOTS) if SCREENSHOTS else folder
    path = folder / f"{name}.jpg"
    picture.save(path, quality=82, optimize=True)
    assert 10_000 < path.stat().st_size < 200_000 and len(set(picture.resize((40, 40)).getdata())) > 20
