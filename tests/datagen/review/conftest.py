"""Projects to review: a tiny one for the unit tests, and one with real scenes and a running server for the browser."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from aura.datagen.records import GenerationResult, PairDraft
from aura.datagen.review.app import create_app
from aura.datagen.store.annotators import Annotator
from aura.datagen.store.images import ImageEntry, Source
from aura.datagen.store.jobs import Recipe
from aura.datagen.store.store import Store
from aura.formats.sources import AnnotatedImage, with_occluders
from aura.masks import encode_rle
from aura.types import AmodalObject

SIZE = (48, 64)
NAMES = ("Ada", "Grace", "Edsger")
CUP, BOOK = 70, 71
SHARED_CUP = 10_000 + CUP
"""The cup of image 1, which the three annotators share."""
EDITED = "You could drink from this cup [SEG]."
PAIRS = (
    PairDraft("What could I drink from?", "You could drink from the cup [SEG].", (CUP,)),
    PairDraft("What hides it?", "Nothing hides the cup [SEG].", (CUP,), follows=0),
    PairDraft("What could I read?", "You could read the book [SEG], which the cup [SEG] hides in part.", (BOOK, CUP)),
)


def tiny_image(image_id: int) -> AnnotatedImage:
    """A cup in front of a book; annotation ids are the image's id times ten thousand and 70 or 71."""
    cup, book = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    cup[10:40, 8:30], book[20:44, 20:60] = True, True
    visible = book & ~cup
    rate = 1 - visible.sum() / book.sum()
    objects = (
        AmodalObject(CUP + 10_000 * image_id, "cup", encode_rle(cup), encode_rle(cup), 0.0),
        AmodalObject(BOOK + 10_000 * image_id, "book", encode_rle(visible), encode_rle(book), float(rate)),
    )
    return AnnotatedImage(image_id, f"{image_id}.png", *SIZE, with_occluders(objects))


def fill(store: Store, folder: Path, number: int) -> None:
    """``number`` images with the three pairs each."""
    entries = []
    for image_id in range(1, number + 1):
        path = folder / f"{image_id}.png"
        Image.new("RGB", SIZE[::-1], (90, 120, 40 * image_id)).save(path)
        entries.append(ImageEntry(tiny_image(image_id), "train", 0, hashlib.sha256(path.read_bytes()).hexdigest()))
    store.images.add(entries)
    for job in store.jobs.claim(Recipe("test", "test-1", "1", len(PAIRS)), limit=number):
        shift = 10_000 * job.image.image_id
        drafts = tuple(PairDraft(p.question, p.answer, tuple(o + shift for o in p.objects), p.follows) for p in PAIRS)
        assert store.answers.take(job, GenerationResult(job.image.image_id, drafts, "test", "test-1", "1"))


class Browser:
    """What an annotator's browser does, without one: cookies, forms with all their fields, redirects."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def log_in(self, token: str, to: str = "/") -> str:
        page = self.client.get("/login", params={"to": to}).text
        response = self.client.post("/login", data={**fields(page), "token": token})
        assert response.status_code == 200, response.text
        return response.text

    def open(self, address: str, status: int = 200) -> str:
        response = self.client.get(address)
        assert response.status_code == status, response.text
        return response.text

    def send(self, page: str, decision: str, status: int = 200, **changes: str | list[str]) -> str:
        """Press a button of the review page, with fields changed first."""
        address = re.search(r'action="(/pairs/\d+)"', page)
        assert address, page
        response = self.client.post(address[1], data={**fields(page), "decision": decision, **changes})
        assert response.status_code == status, response.text
        return response.text


def fields(page: str) -> dict[str, str | list[str]]:
    """The last form of a page as a browser would send it."""
    form = page[page.rindex("<form") :]
    found: dict[str, str | list[str]] = {
        name: unescape(value) for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)
    }
    for name, value in re.findall(r'<textarea[^>]* name="(\w+)"[^>]*>([^<]*)</textarea>', form):
        found[name] = unescape(value)
    selects = re.findall(r'<select name="objects">(.*?)</select>', form, re.DOTALL)
    hidden = re.findall(r'type="hidden" name="objects" value="(\d*)"', form)
    chosen = [re.search(r'value="(\d+)" selected', options) for options in selects]
    found["objects"] = hidden or [match[1] if match else "" for match in chosen]
    return found


@dataclass
class Project:
    """A store with three annotators, and how to come in."""

    store: Store
    tokens: dict[str, str]
    people: dict[str, Annotator]
    browser: Callable[..., Browser]

    def pair(self, number: int = 0, image_id: int = 1) -> int:
        return self.store.pairs.of(image_id)[number].id

    def judges(self, image_id: int = 1) -> list[str]:
        """Names of the two whose turn an image is, then of the third."""
        ids = {pair.id for pair in self.store.pairs.of(image_id)}
        turn = [n for n in NAMES if ids & {i.pair_id for i in self.store.queues.of(self.people[n])}]
        return [*turn, *(n for n in NAMES if n not in turn)]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "pictures").mkdir()
    sources = [Source(str(tmp_path / "a.json"), str(tmp_path / "pictures"))]
    with Store.create(tmp_path / "project.sqlite", sources=sources) as store:
        fill(store, tmp_path / "pictures", 3)
        tokens = {name: store.annotators.add(name) for name in NAMES}
        people = {a.name: a for a in store.annotators.all()}
        app = create_app(store)

        def browser(name: str | None = None, **options: object) -> Browser:
            client = TestClient(app, base_url="http://localhost", **options)  # type: ignore[arg-type]
            made = Browser(client)
            if name is not None:
                made.log_in(tokens[name])
            return made

        yield Project(store, tokens, people, browser)
