"""The review app as annotators meet it: a served project, and real headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from aura.datagen.store.pairs import Pair
from aura.datagen.store.store import Store
from aura.drawing.typesetting import PALETTE
from aura.mini.benchmark import write_mini
from aura.mini.pictures import load_backgrounds, load_cutouts
from tests import browser
from tests.browser import screenshot, start_chromium

if not browser.IS_THERE:
    pytest.skip(browser.REMEDY, allow_module_level=True)
pytest.importorskip("selenium.webdriver", reason="no selenium: pip install -r requirements-dev.txt")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from tests.datagen.review.reviewer import NAMES, Reviewer, Server, run_script


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes with two pairs each, made by the scripts as a user would, and three annotators."""
    folder = tmp_path_factory.mktemp("review")
    numbers = {"train": 2, "val": 1, "test": 1}
    write_mini(folder, load_cutouts(), load_backgrounds(), num_images=numbers, size=480, seed=5, num_workers=1)
    sources = [
        {"annotations": f"annotations/mini_{split}_cocoa_cls.json", "images": f"images/{split}", "split": split}
        for split in ("train", "test")
    ]
    settings = {
        "project": "project",
        "sources": sources,
        "generator": {"kind": "offline", "pairs_per_image": 2},
        "review": {"port": 0},
        "export": {"out": "releases", "version": "1", "parquet": False},
    }
    (folder / "datagen.yaml").write_text(yaml.safe_dump(settings))
    run_script(folder, "build_dataset.py", "init")
    run_script(folder, "build_dataset.py", "generate")
    return folder


@pytest.fixture
def server(template: Path, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "work"
    shutil.copytree(template, folder)
    server = Server(folder)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def chromium() -> Iterator[WebDriver]:
    driver = start_chromium()
    yield driver
    driver.quit()


def test_three_annotators_review_disagree_decide_and_the_release_holds_what_they_agreed_on(chromium, server, tmp_path):
    with server.store() as store:
        pairs = {p.id: p for image in store.images.all() for p in store.pairs.of(image.image.image_id)}
        turns = {name: [i.pair_id for i in store.queues.of(store.annotators.get(name))] for name in NAMES}
    judges = {pair: [name for name in NAMES if pair in turns[name]] for pair in pairs}
    assert len(pairs) == 6 and all(len(names) == 2 for names in judges.values())
    # One pair of each image gets a plan; of the others both accept.
    images = {p.image_id: p.id for p in reversed(pairs.values())}
    disputed, edited, rejected = (images[image] for image in sorted(images))
    better = {pair: pairs[pair].text.answer.rstrip(".") + ", as you can see." for pair in (disputed, edited)}
    best = better[disputed].replace("as you can see", "look")

    for name in NAMES:
        reviewer = Reviewer(chromium, server, name)
        assert sorted(reviewer.queue()) == sorted((pair, "judge") for pair in turns[name])
        for pair in turns[name]:
            first = judges[pair][0] == name
            if pair == edited or (pair == disputed and first):
                reviewer.edit(pair, better[pair])
            else:
                reviewer.judge(pair, "r" if pair == rejected else "a")
        assert not set(dict(reviewer.queue())) & set(turns[name])

    with server.store() as store:
        assert [p.id for p in all_pairs(store) if p.disputed] == [disputed]
        third = next(name for name in NAMES if name not in judges[disputed])
    for name in judges[disputed]:
        assert Reviewer(chromium, server, name).queue() == []
    decider = Reviewer(chromium, server, third)
    assert decider.queue() == [(disputed, "decide a dispute")]
    decider.open(disputed)
    shown = [article.text for article in chromium.find_elements(By.CSS_SELECTOR, ".proposal")]
    assert len(shown) == 2 and "accept" in shown[1] and "edit" in shown[0] and "as you can see." in shown[0]
    assert decider.text(".proposal ins").endswith("as you can see.")
    screenshot(chromium, "review_dispute", tmp_path)
    decider.edit(disputed, best)
    chromium.get(f"{server.url}/dashboard")
    screenshot(chromium, "review_dashboard", tmp_path)
    cards = [card.text.split("\n")[0] for card in chromium.find_elements(By.CSS_SELECTOR, ".card")]
    assert cards[1:3] == ["6", "0"], "decided, disputed"
    assert not decider.complaints()

    run_script(server.folder, "build_dataset.py", "export")
    expected = Counter(
        (best if p.id == disputed else better.get(p.id, p.text.answer), p.text.question, p.text.objects)
        for p in pairs.values()
        if p.id != rejected
    )
    released: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    for path in (server.folder / "releases" / "1").glob("t*.json"):
        for conversation in json.loads(path.read_text())["conversations"]:
            released.update((t["answer"], t["question"], tuple(t["objects"])) for t in conversation["turns"])
    # A turn that follows a rejected one goes with it.
    gone = [p for p in pairs.values() if p.follows == rejected]
    expected.subtract((p.text.answer, p.text.question, p.text.objects) for p in gone)
    assert released == +expected


def all_pairs(store: Store) -> list[Pair]:
    return [pair for image in store.images.all() for pair in store.pairs.of(image.image.image_id)]


def test_a_killed_server_loses_nothing_that_it_acknowledged(chromium, server):
    reviewer = Reviewer(chromium, server, "Ada")
    one, other = (pair for pair, _ in reviewer.queue()[:2])
    reviewer.judge(one, "a")
    reviewer.open(other)
    reviewer.press("e")
    reviewer.retype("#note", "typed before the crash")
    reviewer.saved()
    server.kill()
    with server.store() as store:
        assert [v.decision for v in store.reviews.verdicts(one)] == ["accept"]
        draft = store.reviews.draft(store.annotators.get("Ada"), other)
        assert draft is not None and draft.content["note"] == "typed before the crash"
    # What is typed while it is away stays in the page, says so, and is saved as soon as it is back.
    reviewer.find("#note").send_keys(", and after it")
    reviewer.wait(lambda: "does not answer" in reviewer.text("#state"))
    server.start()
    reviewer.saved()
    reviewer.open(other)
    assert reviewer.value("#note") == "typed before the crash, and after it", "the session holds, too"
    reviewer.leaves(lambda: reviewer.find("#accept").click())
    server.kill()
    with server.store() as store:
        assert [v.note for v in store.reviews.verdicts(other)] == ["typed before the crash, and after it"]
    server.start()


def test_a_reviewer_types_links_toggles_and_checks_with_keys(chromium, server, tmp_path):
    reviewer = Reviewer(chromium, server, "Ada")
    with server.store() as store:
        queue = [store.pairs.get(i.pair_id) for i in store.queues.of(store.annotators.get("Ada"))]
        pair = max(queue, key=lambda p: len(p.text.objects))
        objects = len(store.images.get(pair.image_id).image.objects)
    reviewer.open(pair.id)
    layers = lambda: chromium.find_elements(By.CSS_SELECTOR, ".layer:not([hidden])")  # noqa: E731
    loaded = (
        "return [...document.querySelectorAll('.layer:not([hidden])')].every(i => i.complete && i.naturalWidth > 0)"
    )
    assert len(layers()) == 2 * len(pair.text.objects), "the answer's objects are shown, visible and amodal"
    reviewer.wait(lambda: chromium.execute_script(loaded))
    screenshot(chromium, "review_page", tmp_path)
    # The chip in the text, the one in the legend and the filled mask have the same colour.
    chip = reviewer.find("#current .chip").value_of_css_property("background-color")
    assert chip == reviewer.find(".legend tbody .chip").value_of_css_property("background-color")
    assert [int(v) for v in re.findall(r"\d+", chip)[:3]] == list(PALETTE[0].rgb)
    for keys, number in (("0", 0), ("v", objects), ("m", 2 * objects), ("1", 2 * objects - 2), ("0", 0), ("1", 2)):
        reviewer.press(keys)
        assert len(layers()) == number, keys
    reviewer.find(".toggle[data-kind=amodal]").click()
    assert [layer.get_attribute("data-kind") for layer in layers()] == ["visible"]

    # A mark more brings a choice of its object where it stands, and the checks speak at once.
    reviewer.press("e")
    before = selected(reviewer)
    field = reviewer.find("#answer")
    field.send_keys(Keys.CONTROL, Keys.HOME)
    field.send_keys("[SEG] ")
    assert selected(reviewer) == ["", *before]
    reviewer.saved()
    reviewer.wait(lambda: "unnamed object" in reviewer.text(".problems") or "seg count" in reviewer.text(".problems"))
    assert "?" in reviewer.text("#preview .chip.none")
    field.send_keys(Keys.CONTROL, Keys.HOME)
    field.send_keys(*[Keys.DELETE] * 6)
    assert selected(reviewer) == before
    # Undone or typed anew, marks point at what they pointed at.
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("[SEG]")
    assert selected(reviewer) == before[:1]
    reviewer.retype("#answer", pair.text.answer)
    assert selected(reviewer) == before
    reviewer.wait(lambda: "nothing wrong" in reviewer.text("#preview .fine"))
    # In a field, letters are letters.
    reviewer.retype("#note", "a r e")
    reviewer.saved()
    assert reviewer.text("h1").startswith(f"Pair {pair.id}") and reviewer.value("#note") == "a r e"
    # With a note but no other text, accepting is accepting.
    reviewer.press(Keys.ESCAPE)
    reviewer.leaves(lambda: reviewer.press("a"))
    assert f"Pair {pair.id}: accept" in reviewer.text(".flash")
    assert not reviewer.complaints()


def selected(reviewer: Reviewer) -> list[str]:
    return [s.get_property("value") for s in reviewer.driver.find_elements(By.CSS_SELECTOR, "#links select")]


def test_two_windows_lose_no_edit(chromium, server):
    reviewer = Reviewer(chromium, server, "Ada")
    pair = reviewer.queue()[0][0]
    with server.store() as store:
        answer = store.pairs.get(pair).text.answer
    left = chromium.current_window_handle
    reviewer.open(pair)
    chromium.switch_to.new_window("tab")
    reviewer.edit(pair, f"Certainly: {answer}")
    chromium.close()
    chromium.switch_to.window(left)
    reviewer.press("e")
    reviewer.retype("#answer", f"Of course: {answer}")
    reviewer.saved()
    reviewer.leaves(lambda: reviewer.press(Keys.CONTROL, Keys.ENTER))
    assert "two texts" in reviewer.text("h1")
    mine, other = (section.text for section in chromium.find_elements(By.CSS_SELECTOR, ".two section"))
    assert "Of course:" in mine and "Certainly:" in other
    reviewer.leaves(lambda: reviewer.find("button[value=edit]").click())
    with server.store() as store:
        assert [v.replaced for v in store.reviews.verdicts(pair)] == [True, False]
        texts = [v.text.answer for v in store.pairs.history(pair)]
    assert texts[1:] == [f"Certainly: {answer}", f"Of course: {answer}"]


def test_markup_in_texts_is_text(chromium, server):
    evil = "<img src=x onerror='document.title=1'><script>document.title=2</script>"
    with server.store() as store:
        ada = store.annotators.get("Ada")
        pair = store.pairs.get(store.queues.of(ada)[0].pair_id)
        content = {
            "question": evil,
            "answer": pair.text.answer + evil,
            "objects": list(pair.text.objects),
            "note": evil,
        }
        store.reviews.save_draft(ada, pair.id, pair.version, content)
    reviewer = Reviewer(chromium, server, "Ada")
    reviewer.open(pair.id)
    reviewer.find("#note").send_keys(" ")
    reviewer.saved()
    assert evil in reviewer.text("#preview") and chromium.title == f"Pair {pair.id} · AURA"
    assert not chromium.find_elements(By.CSS_SELECTOR, "main script, img[src=x]")
    # Even markup that came through would not run.
    chromium.execute_script(
        "document.body.insertAdjacentHTML('beforeend', arguments[0])", "<img src=x onerror='document.title=3'>"
    )
    reviewer.wait(lambda: any("Content Security Policy" in line for line in reviewer.complaints()))
    assert chromium.title == f"Pair {pair.id} · AURA"


def test_without_javascript_everything_can_be_judged_and_edited(server):
    driver = start_chromium(javascript=False)
    try:
        reviewer = Reviewer(driver, server, "Ada")
        one, other = (pair for pair, _ in reviewer.queue()[:2])
        with server.store() as store:
            answer = store.pairs.get(other).text.answer
        reviewer.open(one)
        assert not reviewer.find("#edit").is_displayed() and not reviewer.find(".toggle").is_displayed()
        reviewer.leaves(lambda: reviewer.find("#accept").click())
        reviewer.open(other)
        reviewer.find("#editor summary").click()
        reviewer.retype("#answer", f"Well: {answer}")
        reviewer.leaves(lambda: reviewer.find("button[value=save]").click())
        assert reviewer.value("#answer") == f"Well: {answer}"
        reviewer.leaves(lambda: reviewer.find("#send").click())
        with server.store() as store:
            assert [store.reviews.verdicts(pair)[0].decision for pair in (one, other)] == ["accept", "edit"]
            assert store.pairs.history(other)[-1].text.answer == f"Well: {answer}"
    finally:
        driver.quit()


def test_another_site_can_neither_frame_the_app_nor_log_anybody_out(chromium, server, tmp_path):
    reviewer = Reviewer(chromium, server, "Ada")
    said = browser.attack(chromium, f"{server.url}/", "logout", {"form_token": "x"}, tmp_path)
    assert "frame-ancestors" in said or "X-Frame-Options" in said
    assert reviewer.queue(), "still logged in"
