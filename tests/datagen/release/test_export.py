"""Releases: exactly what was agreed on, in files that others can read, the same bytes each time."""

import dataclasses
import json
from collections import Counter
from io import BytesIO

import pytest
from PIL import Image

from aura.datagen.release.export import export_release
from aura.datagen.settings import ExportSettings
from aura.datagen.store.agreement import PairText
from aura.datagen.store.images import write_image
from aura.formats.amodal_reason_seg import AmodalReasonSeg
from aura.formats.checks import problems, shared_images
from aura.types import Conversation, Turn

EDITED = "What, half hidden, could hold my tea?"


@pytest.fixture
def reviewed(in_review):
    """Four images: the first pair of image 1 is edited, the first of image 2 rejected, image 4 is not reviewed."""
    store = in_review(4)
    for name in ("Ann", "Bo"):
        store.annotators.add(name)
    ann, bo = store.annotators.all()
    for image in (1, 2, 3):
        for pair in store.pairs.of(image):
            decision = {(1, 0): "edit", (2, 0): "reject"}.get((image, pair.position), "accept")
            text = PairText(EDITED, pair.text.answer, pair.text.objects)
            for annotator in (ann, bo):
                store.reviews.submit(annotator, pair.id, decision, version=1, text=text, note="so")
    return store


@pytest.fixture
def settings(tmp_path):
    def make(**changes):
        return ExportSettings(**{"out": str(tmp_path / "out"), "name": "Trial", "version": "1", **changes})

    return make


def load(release, split):
    path = release.folder / f"{split}.json"
    return AmodalReasonSeg.load(path), json.loads(path.read_text())


def test_the_files_hold_exactly_what_was_agreed_on(reviewed, settings):
    release = export_release(reviewed, settings())
    train, document = load(release, "train")
    test, other = load(release, "test")
    assert [s.image_id for s in train] == [1, 2] and [s.image_id for s in test] == [3]
    questions = {s.image_id: [[t.question for t in c.turns] for c in s.conversations] for s in train}
    assert questions[1] == [[EDITED, "And what could I put it on?"], ["What is in front of what?"]]
    assert questions[2] == [["What is in front of what?"]], "a rejected turn takes those that follow it along"
    assert release.left_out == {
        "pairs rejected by the annotators": 1,
        "pairs that follow a turn that is left out": 2,
        "pairs whose review is not over": 2,
        "images without a pair to release": 1,
    }
    folders = release.folder / "images" / "train", release.folder / "images" / "test"
    assert problems(document, images=folders[0]) == problems(other, images=folders[1]) == []
    assert shared_images(document, other, folders) == []
    assert train[0].image_path.is_file()
    ids = [c["id"] for d in (document, other) for c in d["conversations"]]
    assert len(ids) == len(set(ids))


def test_the_file_is_what_the_library_would_write(reviewed, settings):
    release = export_release(reviewed, settings(include="all", parquet=False))
    for split in ("train", "test"):
        loaded, document = load(release, split)
        stored = [s for s in reviewed.images.all() if s.split == split]
        built = AmodalReasonSeg.build(
            [s.image for s in stored],
            {s.image_id: s.conversations for s in loaded},
            source=release.folder / f"{split}.json",
            image_folder=f"images/{split}",
        ).document
        for key in ("images", "annotations", "conversations", "categories"):
            assert document[key] == json.loads(json.dumps(built[key])), key
        expected = loaded.statistics()
        found = release.figures[split]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == (pytest.approx(value) if isinstance(value, float) else value), key


def test_provenance_tells_who_wrote_and_who_judged(reviewed, settings):
    release = export_release(reviewed, settings(parquet=False))
    _, document = load(release, "train")
    first, second = document["conversations"][0]["provenance"]["turns"]
    assert (first["generator"], first["model"], first["prompt_version"]) == ("fake", "model-1", "1")
    assert (first["state"], first["version"], second["state"]) == ("changed", 2, "accepted")
    assert [(v["annotator"], v["decision"], v["note"]) for v in first["verdicts"]] == [
        ("annotator-1", "edit", "so"), ("annotator-2", "edit", "so")
    ]  # fmt: skip
    assert [(e["author"], e["question"]) for e in first["edits"]] == [
        ("generator", "What could hold my tea?"), ("annotator-1", EDITED), ("annotator-2", EDITED)
    ]  # fmt: skip
    assert second["edits"] == []
    assert "Ann" not in (release.folder / "train.json").read_text() + (release.folder / "DATA_CARD.md").read_text()
    named = export_release(reviewed, settings(parquet=False, version="2", annotator_names=True))
    assert load(named, "train")[1]["conversations"][0]["provenance"]["turns"][0]["verdicts"][0]["annotator"] == "Ann"


def test_the_same_store_gives_the_same_bytes(reviewed, settings, tmp_path):
    one = export_release(reviewed, settings(out=str(tmp_path / "one")))
    two = export_release(reviewed, settings(out=str(tmp_path / "two")))
    files = sorted(p.relative_to(one.folder) for p in one.folder.rglob("*") if p.is_file())
    assert {str(f) for f in files} >= {"train.json", "DATA_CARD.md", "release.json", "huggingface/README.md"}
    assert all((one.folder / f).read_bytes() == (two.folder / f).read_bytes() for f in files)
    assert files == sorted(p.relative_to(two.folder) for p in two.folder.rglob("*") if p.is_file())


def test_a_version_is_never_overwritten(reviewed, settings, tmp_path):
    release = export_release(reviewed, settings())
    assert not release.unchanged
    before = {p: p.stat().st_mtime_ns for p in release.folder.rglob("*")}
    assert export_release(reviewed, settings()).unchanged
    ann, bo = reviewed.annotators.all()
    pair = reviewed.pairs.of(4)[0]
    for annotator in (ann, bo):
        reviewed.reviews.submit(annotator, pair.id, "accept", version=1)
    with pytest.raises(ValueError, match=r"never overwritten; raise export\.version"):
        export_release(reviewed, settings())
    assert {p: p.stat().st_mtime_ns for p in release.folder.rglob("*")} == before
    assert export_release(reviewed, settings(version="2")).folder.name == "2"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1", "2"], "nothing is left lying about"


def test_an_export_that_fails_leaves_nothing(reviewed, settings, tmp_path, in_review):
    picture = tmp_path / "pictures" / "1.png"
    kept = picture.read_bytes()
    picture.write_bytes(kept + b"x")
    with pytest.raises(ValueError, match=r"1\.png: missing, or changed since"):
        export_release(reviewed, settings())
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_review_there_is_nothing_to_release_unless_one_says_so(in_review, settings):
    store = in_review(2)
    with pytest.raises(ValueError, match=r"no pair is ready .* export\.include=all"):
        export_release(store, settings(parquet=False))
    release = export_release(store, settings(parquet=False, include="all"))
    assert release.figures["train"]["pairs"] == 6 and release.figures["test"]["images"] == 0
    assert not (release.folder / "test.json").exists()
    assert "nobody has reviewed" in (release.folder / "DATA_CARD.md").read_text()


def test_unreviewed_pairs_of_a_broken_form_are_left_out(make_store, recipe, result_of, settings):
    store = make_store(1)
    [job] = store.jobs.claim(recipe)
    result = result_of(job)
    broken = result.pairs[2].__class__("Where is it?", "No mark at all.", (100,))
    store.answers.take(job, result.__class__(1, (*result.pairs[:2], broken), "fake", "model-1", "1"))
    release = export_release(store, settings(parquet=False, include="all"))
    assert release.figures["train"]["pairs"] == 2 and release.left_out["pairs with a broken form"] == 1


def test_pictures_by_reference(reviewed, settings, tmp_path):
    release = export_release(reviewed, settings(pictures="reference", parquet=False))
    train, document = load(release, "train")
    assert document["info"]["image_folder"] == "../../pictures"
    assert train[0].image_path.resolve() == (tmp_path / "pictures" / "1.png").resolve()
    assert not (release.folder / "images").exists()


def test_the_data_card(reviewed, settings):
    card = (export_release(reviewed, settings(parquet=False), notes=["A remark."]).folder / "DATA_CARD.md").read_text()
    assert card.startswith("# Trial 1\n") and "- A remark." in card
    cells = [[c.strip() for c in line[1:-1].split("|")] for line in card.splitlines() if line.startswith("|")]
    rows = {first: " | ".join(rest).strip(" |") for first, *rest in cells}
    assert rows["images"] == "2 | 1 | 3" and rows["question-answer pairs"] == "4 | 3 | 7"
    assert rows["pairs per image"].startswith("2.000 | 3.000")
    assert rows["fake"] == "model-1 | 1 | 7"
    assert rows["changed"] == "1" and rows["rejected"] == "1"
    # Each image has a cup in full view, and a table that it hides a part of.
    table = reviewed.images.get(1).image.objects[1].occlusion_rate
    low = int(table * 10)
    assert rows["0.0 to 0.1"] == "2 | 1" and rows[f"{low / 10:.1f} to {(low + 1) / 10:.1f}"] == "2 | 1"
    assert "9 pairs judged by all their reviewers" in card and "9 alike in decision and text (100.0%)" in card
    assert "Fleiss' kappa of the decisions: 1.000" in card and "annotator-1 and annotator-2: 1.000 (9 pairs)" in card


def test_hugging_face_datasets_loads_the_folder(reviewed, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    release = export_release(reviewed, settings())
    loaded = datasets.load_dataset(str(release.folder / "huggingface"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 2, "test": 1}
    for split in ("train", "test"):
        expected, _ = load(release, split)
        for row, sample in zip(loaded[split], expected, strict=True):
            assert row["image"].size == (sample.width, sample.height)
            with Image.open(sample.image_path) as picture:
                assert row["image"].convert("RGB").tobytes() == picture.convert("RGB").tobytes()
            assert [o["amodal"] for o in row["objects"]] == [o.amodal for o in sample.objects]
            assert [o["visible"] for o in row["objects"]] == [o.visible for o in sample.objects]
            turns = [
                Conversation(
                    c["id"],
                    tuple(Turn(t["question"], t["answer"], tuple(t["objects"])) for t in c["turns"]),
                    json.loads(c["provenance"]),
                )
                for c in row["conversations"]
            ]
            assert turns == list(sample.conversations)


def test_parquet_files_are_cut_and_hold_the_pictures_bytes(reviewed, settings, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("aura.datagen.release.parquet.IMAGES_PER_FILE", 1)
    folder = export_release(reviewed, settings()).folder / "huggingface" / "data"
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["test-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    rows = [row for name in names[1:] for row in parquet.read_table(folder / name).to_pylist()]
    assert [row["image_id"] for row in rows] == [1, 2]
    with Image.open(BytesIO(rows[0]["image"]["bytes"])) as picture:
        assert picture.size == (32, 24)


def test_a_reader_sees_one_state_while_others_write(reviewed):
    from aura.datagen.store.store import Store

    ann, bo = reviewed.annotators.all()
    pair = reviewed.pairs.of(4)[0]
    with Store.open(reviewed.path) as reader:
        with reader.database.snapshot():
            before = Counter(reader.status().pairs)
            for annotator in (ann, bo):
                reviewed.reviews.submit(annotator, pair.id, "accept", version=1)
            assert Counter(reader.status().pairs) == before
        assert reader.status().pairs["accepted"] == before["accepted"] + 1


def test_a_release_writes_below_its_folder_whatever_a_picture_is_called(reviewed, settings, tmp_path):
    stored = next(s for s in reviewed.images.all() if s.image.image_id == 1)
    record = write_image(dataclasses.replace(stored.image, file_name="../../../stray.png"))
    reviewed.database.rows("UPDATE images SET record = ? WHERE image_id = 1", [record])
    with pytest.raises(ValueError, match=r"image 1: the file name '\.\./\.\./\.\./stray\.png' leads out"):
        export_release(reviewed, settings())
    assert not list(tmp_path.rglob("*stray.png"))


def test_the_masks_that_are_asked_for_are_released(make_store, recipe, result_of, settings, tmp_path):
    import pyarrow.parquet

    store = make_store(2)
    for job in store.jobs.claim(recipe, limit=2):
        result = result_of(job)
        pairs = (dataclasses.replace(result.pairs[0], asked=("visible",)), *result.pairs[1:])
        assert store.answers.take(job, dataclasses.replace(result, pairs=pairs))
    release = export_release(store, settings(include="all"))
    dataset, document = load(release, "train")
    turns = [turn for sample in dataset for c in sample.conversations for turn in c.turns]
    assert [turn.asked for turn in turns] == [("visible",), (), ()] * 2
    assert problems(document) == []
    assert dataset.statistics()["asked_visible"] == 2
    (path,) = release.folder.rglob("train-*.parquet")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [t["asked"] for row in rows for c in row["conversations"] for t in c["turns"]] == [["visible"], [], []] * 2
